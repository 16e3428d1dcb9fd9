package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
)

// operator is who asks a running gateway for something: a command of this
// program, on the gateway's machine or elsewhere.
type operator struct {
	c       *command
	gateway string
}

// oneArg and atLeast check how many arguments a command has, and say how it is
// written if that is wrong.
func oneArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return misused(cmd)
	}
	return nil
}

func atLeast(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return misused(cmd)
		}
		return nil
	}
}

func misused(cmd *cobra.Command) error {
	return fmt.Errorf("write %s %s; see %s --help", cmd.Parent().CommandPath(), cmd.Use, cmd.CommandPath())
}

// flags has a command ask for the gateway.
func (o *operator) flags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&o.gateway, "gateway", "g", "", "the gateway's `URL` (default: the one on this machine, by THICKET_ADDR)")
}

// url is where the gateway is.
func (o *operator) url(s settings) string {
	if o.gateway == "" {
		plain := "http://" + ownRegistry(s)
		if s.TLSCert != "" {
			if c, err := openCertificate(s.TLSCert, s.TLSKey, slog.New(slog.DiscardHandler)); err == nil {
				return secureURL(plain, c.name())
			}
		}
		return plain
	}
	u := o.gateway
	if !strings.Contains(u, "://") {
		u = "http://" + u
	}
	return strings.TrimSuffix(u, "/")
}

// ask makes a request of the gateway's API, and reads the answer into out if
// that isn't nil.
func (o *operator) ask(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := o.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(out); err != nil {
		return fmt.Errorf("the gateway's answer can't be read: %w", err)
	}
	return nil
}

// send makes a request of the gateway's API. The caller closes the answer's body.
func (o *operator) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	s, err := readSettings(o.c.environ)
	if err != nil {
		return nil, err
	}
	user, password := s.pushCredentials()
	if password == "" {
		return nil, errors.New("the gateway's password isn't known here: set THICKET_PASSWORD or THICKET_PASSWORD_FILE, or run this as the gateway's user on its machine (with the same THICKET_DATA)")
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	base := o.url(s)
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, fmt.Errorf("--gateway %s: %w", o.gateway, err)
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("no gateway answers at %s: is it running? --gateway names another (%w)", base, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("the gateway at %s doesn't take this password: set THICKET_PASSWORD or THICKET_PASSWORD_FILE", base)
	case err != nil || len(text) == 0:
		return nil, errors.New(res.Status)
	}
	return nil, errors.New(strings.TrimSpace(string(text)))
}

func (c *command) token() *cobra.Command {
	o := &operator{c: c}
	var note, life string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a token with which machines can join as nodes",
		Long: `Make a token and print the command with which a machine joins this gateway. The
token is good for joining only, by as many machines as you like, until its time is
over or it is revoked. It names the gateway, so that a machine trusts no other.`,
		Example: `  gateway-ext token
  gateway-ext token --for 1h --note "the new shelf"
  gateway-ext token list
  gateway-ext token revoke mfzwizlt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var t nodes.NewTokenAnswer
			if err := o.ask(cmd.Context(), http.MethodPost, "/system/tokens", nodes.TokenRequest{Note: note, For: life}, &t); err != nil {
				return err
			}
			until := "until it is revoked"
			if !t.Expires.IsZero() {
				until = "until " + t.Expires.Local().Format("2006-01-02 15:04")
			}
			_, err := fmt.Fprintf(c.stdout, "# Run this on each machine that is to be a node. It is good %s (gateway-ext token revoke %s).\n%s\n", until, t.ID, t.Command)
			return err
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&life, "for", "24h", "how `long` it is good; 0 is until it is revoked")
	cmd.Flags().StringVar(&note, "note", "", "what it is for, for the list")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the tokens", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []nodes.Token
			if err := o.ask(cmd.Context(), http.MethodGet, "/system/tokens", nil, &all); err != nil {
				return err
			}
			w := tabwriter.NewWriter(c.stdout, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "TOKEN\tMADE\tGOOD UNTIL\tUSED\tNOTE")
			for _, t := range all {
				until := "it is revoked"
				if !t.Expires.IsZero() {
					until = t.Expires.Local().Format("2006-01-02 15:04")
					if time.Now().After(t.Expires) {
						until += " (over)"
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", t.ID, t.Created.Local().Format("2006-01-02 15:04"), until, t.Used, t.Note)
			}
			return w.Flush()
		},
	}, &cobra.Command{
		Use: "revoke TOKEN", Short: "Make a token worthless; nodes that joined with it stay", Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd.Context(), http.MethodDelete, "/system/tokens/"+url.PathEscape(args[0]), nil, nil)
		},
	})
	return cmd
}

func (c *command) nodes() *cobra.Command {
	o := &operator{c: c}
	list := func(cmd *cobra.Command, _ []string) error {
		var all []nodes.Status
		if err := o.ask(cmd.Context(), http.MethodGet, "/system/nodes", nil, &all); err != nil {
			return err
		}
		return c.printNodes(all)
	}
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the machines of the fleet, and tell them what to do",
		Example: `  gateway-ext nodes
  gateway-ext nodes describe pi-2
  gateway-ext nodes label pi-2 zone=shelf-1 disk-
  gateway-ext nodes drain pi-2              # moves what it runs elsewhere
  gateway-ext nodes uncordon pi-2
  gateway-ext nodes remove pi-2
  gateway-ext nodes add nuc --url http://192.168.1.20:8080 --user admin --password-file ~/faasd-password
  gateway-ext nodes adopt nuc figlet        # what runs there already becomes the fleet's
  gateway-ext nodes why weather-producer    # where the next replica would go, and why not elsewhere`,
		Args: cobra.NoArgs,
		RunE: list,
	}
	o.flags(cmd)
	at := func(name string) string { return "/system/nodes/" + url.PathEscape(name) }
	change := func(use, short string, change nodes.Change) *cobra.Command {
		return &cobra.Command{
			Use: use + " NODE", Short: short, Args: oneArg,
			RunE: func(cmd *cobra.Command, args []string) error {
				var s nodes.Status
				if err := o.ask(cmd.Context(), http.MethodPatch, at(args[0]), change, &s); err != nil {
					return err
				}
				return c.printNodes([]nodes.Status{s})
			},
		}
	}
	cmd.AddCommand(
		c.addNode(o), c.adoptFunctions(o),
		&cobra.Command{Use: "list", Short: "List the nodes", Args: cobra.NoArgs, RunE: list},
		&cobra.Command{
			Use: "describe NODE", Short: "Print all that is known of a node, as JSON", Args: oneArg,
			RunE: func(cmd *cobra.Command, args []string) error {
				var s json.RawMessage
				if err := o.ask(cmd.Context(), http.MethodGet, at(args[0]), nil, &s); err != nil {
					return err
				}
				var b bytes.Buffer
				if err := json.Indent(&b, s, "", "  "); err != nil {
					return err
				}
				_, err := fmt.Fprintln(c.stdout, b.String())
				return err
			},
		},
		&cobra.Command{
			Use: "label NODE NAME=VALUE|NAME- ...", Short: "Set labels of a node, or remove them (NAME-)", Args: atLeast(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				labels := make(map[string]*string)
				for _, s := range args[1:] {
					if name, ok := strings.CutSuffix(s, "-"); ok && !strings.Contains(s, "=") {
						labels[name] = nil
						continue
					}
					k, v, ok := strings.Cut(s, "=")
					if !ok {
						return fmt.Errorf("label %q: write NAME=VALUE to set one, NAME- to remove it", s)
					}
					labels[k] = &v
				}
				var s nodes.Status
				if err := o.ask(cmd.Context(), http.MethodPatch, at(args[0]), nodes.Change{Labels: labels}, &s); err != nil {
					return err
				}
				return c.printNodes([]nodes.Status{s})
			},
		},
		change("cordon", "Place nothing new on a node", nodes.Change{Cordoned: new(true)}),
		change("uncordon", "Place functions on a node again", nodes.Change{Cordoned: new(false)}),
		change("drain", "Move what a node runs elsewhere, without a failed request", nodes.Change{Draining: new(true)}),
		&cobra.Command{
			Use: "remove NODE", Short: "Take a node out of the fleet", Args: oneArg,
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := o.ask(cmd.Context(), http.MethodDelete, at(args[0]), nil, nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.stdout, "%s is no node any more\n", args[0])
				return err
			},
		},
		&cobra.Command{
			Use: "why FUNCTION", Short: "Say for each node how it is for one more replica of a function", Args: oneArg,
			RunE: func(cmd *cobra.Command, args []string) error {
				var e struct {
					Nodes []struct {
						Node           string
						Best, Excluded bool
						Why            string
					}
				}
				if err := o.ask(cmd.Context(), http.MethodGet, "/system/placement/"+url.PathEscape(args[0]), nil, &e); err != nil {
					return err
				}
				w := tabwriter.NewWriter(c.stdout, 0, 0, 3, ' ', 0)
				for _, n := range e.Nodes {
					is := ""
					switch {
					case n.Best:
						is = "best"
					case n.Excluded:
						is = "excluded"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", n.Node, is, n.Why)
				}
				return w.Flush()
			},
		},
	)
	return cmd
}

// printNodes prints a table, and below each node what isn't as it should be.
func (c *command) printNodes(all []nodes.Status) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tREPLICAS\tPLATFORM\tMEMORY FREE\tVERSION\tADDRESS\tLABELS")
	for _, n := range all {
		state := n.State
		switch {
		case n.Draining:
			state += ", draining"
		case n.Cordoned:
			state += ", cordoned"
		}
		platform, addr, memory := "", "this gateway", "unknown"
		if len(n.Machine.Platforms) > 0 {
			platform = strings.TrimPrefix(n.Machine.Platforms[0], "linux/")
		}
		switch {
		case n.Foreign != nil:
			addr = n.Foreign.URL
		case !n.Local:
			addr = n.Addr.String()
		}
		if n.Machine.Memory > 0 {
			memory = fmt.Sprintf("%d of %d MiB", n.Machine.MemoryFree>>20, n.Machine.Memory>>20)
		}
		var labels []string
		for k, v := range n.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", n.Name, state, n.Replicas, platform, memory, n.Machine.Version, addr, strings.Join(labels, ","))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	lines := bufio.NewScanner(&table)
	for i := -1; lines.Scan(); i++ {
		fmt.Fprintln(c.stdout, strings.TrimRight(lines.Text(), " "))
		if i < 0 {
			continue
		}
		said := all[i].Notes
		if all[i].Reason != "" && all[i].State != "ready" {
			said = append([]string{all[i].Reason}, said...)
		}
		for _, s := range said {
			fmt.Fprintln(c.stdout, "    "+s)
		}
	}
	return lines.Err()
}
