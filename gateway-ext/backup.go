package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// serveBackup answers with a backup. With images=false it leaves out those in
// the registry.
func (g *gateway) serveBackup(w http.ResponseWriter, r *http.Request) error {
	folders := map[string]string{}
	if r.URL.Query().Get("images") != "false" {
		folders["registry"] = filepath.Join(g.state.Dir(), "registry")
	}
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("Cache-Control", "no-store")
	release, _ := buildVersion()
	if err := g.state.Backup(r.Context(), w, release, folders); err != nil {
		// Some of it is sent. That it isn't whole is seen when it is read.
		g.log.Error("a backup broke off", "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (c *command) backup() *cobra.Command {
	o := &operator{c: c}
	images := true
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all that a running gateway has been told into a file",
		Long: `Write what a running gateway keeps into one file: functions, secrets, namespaces,
nodes, its keys and generated password, and the images in its registry. The
gateway goes on meanwhile. Who has the file has every secret in it: only you can
read it. "gateway-ext restore FILE" makes a gateway of it again.`,
		Example: `  gateway-ext backup thicket-$(date +%F).tgz
  gateway-ext backup --images=false -g http://pi-1:8080 small.tgz`,
		Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			path := args[0]
			if _, err := os.Stat(path); err == nil {
				return fmt.Errorf("%s is there already: name another file", path)
			}
			f, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // with mode 0600
			if err != nil {
				return err
			}
			defer func() {
				if err != nil {
					os.Remove(f.Name()) // err is what counts
				}
			}()
			query := ""
			if !images {
				query = "?images=false"
			}
			size, err := o.download(cmd.Context(), "/system/backup"+query, f)
			if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
				return err
			}
			if err := os.Rename(f.Name(), path); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "%s: %s\n", path, megabytes(size))
			return err
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&images, "images", true, "with the images in the registry")
	return cmd
}

func (c *command) restore() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the state of a gateway from a backup",
		Long: `Make the state folder (THICKET_DATA) of a gateway from a file that "gateway-ext
backup" has written. The gateway must not run, and the folder must be empty or not
there. With THICKET_NATS_URL what was declared goes there, and keys and images into
the folder. A file that isn't whole changes nothing.`,
		Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := readSettings(c.environ)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no file %s", args[0])
			}
			if err != nil {
				return err
			}
			defer f.Close()
			into := state.Config{Dir: s.Data, NATS: s.nats(), Logger: slog.New(slog.DiscardHandler)}
			into.NATS.Patience = 10 * time.Second
			if err := state.Restore(cmd.Context(), into, f); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.stdout, "restored into %s: start the gateway\n", s.Data)
			return err
		},
	}
}

// download writes what the gateway answers to a GET into w.
func (o *operator) download(ctx context.Context, path string, w io.Writer) (int64, error) {
	res, err := o.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(w, res.Body)
	if err != nil {
		return n, fmt.Errorf("the gateway's answer broke off after %s: %w", megabytes(n), err)
	}
	return n, nil
}
