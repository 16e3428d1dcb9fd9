package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

func (c *command) node() *cobra.Command {
	var join, token, tokenFile, name, listenAddr, advertise string
	var replace bool
	var labels []string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Be a node: run functions for a gateway on another machine",
		Long: `Join the gateway whose command "gateway-ext token" has printed the token, and run
what it places here. The token is needed once: who this machine is then stays in
the state folder (THICKET_DATA). What runs here goes on while the gateway is away.

Machines that are set up by files alone join with a secret: THICKET_TOKEN_FILE (or
--token-file) names the same file there and here. Such a machine waits for its
gateway, and may take the place of one of its name that is gone (--replace).

The gateway must be able to reach this machine. It tries the machine's addresses,
and says what it tried if none answers; --advertise names the right one.

SIGTERM finishes what is in flight and stops.`,
		Example: `  gateway-ext node --join https://192.168.1.2:8090 --token thicket1.…
  gateway-ext node --join … --token … --node-name pi-2 --label zone=shelf-1
  gateway-ext node                                  once it has joined`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(c.environ)
			if err != nil {
				return err
			}
			if name == "" {
				name = s.Node
			}
			set, err := parseLabels(labels)
			if err != nil {
				return err
			}
			from := "--token-file"
			if tokenFile == "" {
				from, tokenFile = "THICKET_TOKEN_FILE", s.TokenFile
			}
			unattended := token == "" && tokenFile != ""
			if unattended {
				if token, err = readSecretFile(from, tokenFile); err != nil {
					return err
				}
			}
			return c.runNode(cmd.Context(), s, nodes.AgentConfig{
				Name: name, Gateway: strings.TrimSuffix(join, "/"), Token: token, Patient: unattended, Replace: replace, Advertise: advertise, Labels: set,
			}, listenAddr)
		},
	}
	cmd.Flags().StringVar(&join, "join", "", "the gateway's `URL` for nodes")
	cmd.Flags().StringVar(&token, "token", "", "what lets it join")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "a `file` with that, which other programs can't see (default THICKET_TOKEN_FILE)")
	cmd.Flags().BoolVar(&replace, "replace", false, "take the place of a node of this name that is gone, if both joined with the gateway's secret")
	cmd.Flags().StringVar(&name, "node-name", "", "what this node is called (default THICKET_NODE, or the host's `name`)")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`NAME=VALUE` for constraints, such as zone=shelf-1; may be repeated")
	cmd.Flags().StringVar(&listenAddr, "listen", ":8091", "`address` at which the gateway calls this node")
	cmd.Flags().StringVar(&advertise, "advertise", "", "`address` at which the gateway reaches it (default: tries this machine's own)")
	return cmd
}

// parseLabels reads NAME=VALUE pairs.
func parseLabels(list []string) (map[string]string, error) {
	set := make(map[string]string, len(list))
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, fmt.Errorf("label %q: write NAME=VALUE, such as zone=shelf-1", s)
		}
		set[k] = v
	}
	return set, nodes.CheckLabels(set)
}

// runNode is a node until ctx ends.
func (c *command) runNode(ctx context.Context, s settings, cfg nodes.AgentConfig, addr string) (err error) {
	log := c.logger(s)
	folder, err := state.Claim(state.Config{Dir: s.Data, Logger: log})
	if err != nil {
		return err
	}
	defer folder.Close()
	cfg.Dir, cfg.Logger = filepath.Join(s.Data, "node"), log
	if cfg.Listener, err = net.Listen("tcp", addr); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s is taken by another program: stop it, or set --listen to another address", addr)
		}
		return fmt.Errorf("--listen: %w", err)
	}
	defer cfg.Listener.Close()
	if err := ownFolder(s.Data); err != nil {
		return fmt.Errorf("THICKET_DATA: %w", err)
	}
	machine := machineOf(s.Data)
	var images atomic.Pointer[image.Store]
	cfg.Machine = func() remote.Machine {
		m := machine()
		if store := images.Load(); store != nil {
			for _, digest := range store.Digests() {
				m.Images = append(m.Images, remote.ImageKey(digest))
			}
		}
		return m
	}
	var store *image.Store
	var missing []string
	cfg.Examine = func(ctx context.Context, gateway string, question json.RawMessage) (json.RawMessage, error) {
		// The gateway is let in when there is a provider.
		about := subject(s)
		about.Name, about.Running, about.Missing = cfg.Name, true, missing
		return examineNode(ctx, about, store, gateway, question)
	}
	cfg.Provider = func(o provider.Observer, node, gateway string) (nodes.Runner, error) {
		_, registry, _ := strings.Cut(gateway, "://")
		insecure := s.InsecureRegistries
		if strings.HasPrefix(gateway, "http://") {
			insecure = append(slices.Clone(insecure), registry)
		}
		if store, err = image.OpenStore(image.StoreConfig{
			Dir: filepath.Join(s.Data, "images"), MaxImageBytes: int64(s.ImageSize),
			Insecure: insecure, DockerConfig: s.DockerConfig, Logger: log,
		}); err != nil {
			return nil, err
		}
		images.Store(store)
		process, err := provider.NewProcess(provider.ProcessConfig{
			Node: node, Zone: cfg.Labels["zone"], Dir: filepath.Join(s.Data, "replicas"), GatewayURL: gateway,
			Images: store, Observer: o, LogBytes: int(s.LogBuffer), Logger: log,
		})
		if err != nil {
			return nil, err
		}
		missing = process.Missing()
		for _, what := range missing {
			log.Warn("guarantee missing on this machine", "what", what)
		}
		context.AfterFunc(c.hurry, process.Hurry)
		return process, nil
	}
	defer func() {
		if store != nil {
			err = errors.Join(err, store.Close())
		}
	}()
	a, err := nodes.OpenAgent(cfg)
	if err != nil {
		return err
	}
	release, _ := buildVersion()
	log.Info("node started", "node", a.Name(), "version", release, "addr", cfg.Listener.Addr().String())
	settling, stop := context.WithCancel(ctx)
	var settled sync.WaitGroup
	settled.Go(func() { _ = settle(settling) }) // its end is the context's
	defer settled.Wait()
	defer stop()
	return a.Run(ctx)
}

// ownFolder makes the state folder, and closes it if others may write into it: as a
// volume for a container is handed over, functions that run as other users could
// put a node's identity of their own in its place.
func ownFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o022 == 0 {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()&^0o022)
}

// machineOf returns what this machine tells of itself.
func machineOf(data string) func() remote.Machine {
	release, _ := buildVersion()
	var platforms []string
	for _, p := range image.HostPlatforms() {
		platforms = append(platforms, p.String())
	}
	return func() remote.Machine {
		m := remote.Machine{Version: release, Platforms: platforms, CPU: provider.CPU(), Time: time.Now()}
		m.Memory, m.MemoryFree = provider.Memory()
		m.Disk, m.DiskFree = diskSpace(data)
		return m
	}
}

// diskSpace returns how many bytes there are on a folder's file system, and how
// many of them can be written; 0 if that can't be told.
func diskSpace(dir string) (all, free int64) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, 0
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize)
}
