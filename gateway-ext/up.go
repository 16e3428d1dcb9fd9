package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/openfaas/faas-provider/logs"
	sdk "github.com/openfaas/go-sdk"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// readyTimeout bounds how long up waits for a deployed function. A pull of a
// large image over a slow line takes minutes; the gateway goes on trying after it.
const readyTimeout = 5 * time.Minute

func (c *command) up() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build, deploy and run a stack on this machine, until Ctrl-C",
		Long: `Start a gateway on this machine, build every function of the stack, push the
images to the gateway's registry, deploy them through its OpenFaaS API, print
their addresses and follow their logs. Ctrl-C stops everything.

In the stack file ${THICKET_REGISTRY} is this gateway's registry. Only this
machine can reach the gateway unless THICKET_ADDR says otherwise, and its state
is kept in .thicket beside the stack file unless THICKET_DATA does.`,
		Example: `  gateway-ext up
  gateway-ext up -f stack.yml
  THICKET_ADDR=127.0.0.1:9090 gateway-ext up`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(append([]string{
				"THICKET_ADDR=127.0.0.1:8080",
				"THICKET_DATA=" + filepath.Join(filepath.Dir(file), ".thicket"),
				"THICKET_LOG_LEVEL=WARN",
			}, c.environ...)) // the last one counts
			if err != nil {
				return err
			}
			if s.TLSCert != "" {
				return errors.New("THICKET_TLS_CERT: up is for one machine by itself, and speaks no TLS: leave it out, or use serve")
			}
			// The file is read before anything starts, so that a mistake in it
			// costs nothing. The registry's real address is filled in later.
			if _, err := image.ReadStack(file, c.stackVariables(ownRegistry(s))); err != nil {
				return err
			}
			return c.runUp(cmd.Context(), file, s)
		},
	}
	cmd.Flags().StringVarP(&file, "yaml", "f", "", "stack `file` (default stack.yaml, else stack.yml)")
	return cmd
}

// runUp runs the gateway and, beside it, what brings the stack onto it.
func (c *command) runUp(ctx context.Context, file string, s settings) error {
	p := newProgress(c.stdout)
	g, err := openGateway(ctx, s, c.logger(s), nil, func(ref string, done, total int64) {
		image, _, _ := strings.Cut(ref, "@")
		p.update("pulled %s of %s of %s", megabytes(done), megabytes(total), image)
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { p.line("stopping") })()
	group.Go(func() error { return g.run(ctx, c.hurry) })
	group.Go(func() error {
		err := c.bringUp(ctx, g, p, file, s)
		if ctx.Err() != nil {
			return nil // asked to stop; what broke off then is no news
		}
		return err
	})
	return group.Wait()
}

// bringUp builds, pushes and deploys a stack's functions, then follows their
// logs until ctx ends.
func (c *command) bringUp(ctx context.Context, g *gateway, p *progress, file string, s settings) error {
	p.line("gateway: %s", g.url)
	own := strings.TrimPrefix(g.url, "http://")
	st, err := image.ReadStack(file, c.stackVariables(own))
	if err != nil {
		return err
	}

	gatewayURL, err := url.Parse(g.url)
	if err != nil {
		return err
	}
	client := sdk.NewClient(gatewayURL, &sdk.BasicAuth{Username: g.user, Password: g.password}, &http.Client{})

	b := builder{command: c, settings: s, stack: st, platforms: []v1.Platform{image.HostPlatform()}, p: p, own: own, user: g.user, password: g.password}
	// Everything is built before anything is deployed, so that a mistake in one
	// function leaves all as they were.
	digests := map[string]string{}
	for _, function := range st.Names() {
		if digests[function], err = b.make(ctx, function, true); err != nil {
			return err
		}
	}
	for _, function := range st.Names() {
		if err := deploy(ctx, client, st, function); err != nil {
			return err
		}
	}
	var names []faas.Name
	for _, function := range st.Names() {
		name := functionName(st, function)
		if err := waitReady(ctx, client, p, name, digests[function]); err != nil {
			return err
		}
		names = append(names, name)
	}

	p.line("")
	for _, name := range names {
		p.line("  %-20s %s", name.Function, g.url+functionPath(name))
	}
	p.line("  %-20s %s", "dashboard", g.url+"/ui/")
	p.line("  %-20s %s", "log in", g.loginCommand())
	p.line("")
	p.line("The functions' logs follow; Ctrl-C stops everything.")
	return g.followLogs(ctx, p, names)
}

// deploy asks the gateway to run a function, as faas-cli does: by an update,
// and if there is nothing to update, by a deployment.
func deploy(ctx context.Context, client *sdk.Client, st *image.Stack, name string) error {
	d, err := st.Deployment(name)
	if err != nil {
		return err
	}
	status, err := client.Update(ctx, d)
	if status == http.StatusNotFound {
		_, err = client.Deploy(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("deploy %s: %w", name, err)
	}
	return nil
}

// functionName is a stack function's full name.
func functionName(st *image.Stack, name string) faas.Name {
	return faas.Name{Function: name, Namespace: cmp.Or(st.Functions[name].Namespace, faas.DefaultNamespace)}
}

// functionPath is the path at which a function is called.
func functionPath(name faas.Name) string {
	if name.Namespace == faas.DefaultNamespace {
		return "/function/" + name.Function
	}
	return "/function/" + name.String()
}

// waitReady waits until a replica of the image with the given digest is ready.
// An empty digest means any image.
func waitReady(ctx context.Context, client *sdk.Client, p *progress, name faas.Name, digest string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	began := time.Now()
	var shown string
	for {
		status, err := client.GetFunction(ctx, name.Function, name.Namespace)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("ask for the state of %s: %w", name, err)
		}
		var annotations map[string]string
		if status.Annotations != nil {
			annotations = *status.Annotations
		}
		current := digest == "" || annotations[fleet.DigestAnnotation] == digest
		if current && status.AvailableReplicas > 0 {
			p.line("%s: ready in %.1f s", name.Function, time.Since(began).Seconds())
			return nil
		}
		if reason := annotations[fleet.StatusAnnotation]; reason != shown && reason != "" {
			p.line("%s: not ready yet: %s", name.Function, reason)
			shown = reason
		}
		select {
		case <-ctx.Done():
			p.clear()
			if context.Cause(ctx) == context.DeadlineExceeded {
				return fmt.Errorf("%s is not ready after %v: %s", name.Function, readyTimeout, cmp.Or(shown, "its logs may tell why"))
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// followLogs prints what the functions write, until ctx ends.
func (g *gateway) followLogs(ctx context.Context, p *progress, names []faas.Name) error {
	group, ctx := errgroup.WithContext(ctx)
	since := time.Now()
	for _, name := range names {
		group.Go(func() error {
			request := logs.Request{Name: name.Function, Namespace: name.Namespace, Since: &since, Follow: true}
			for line, err := range g.fleet.Logs(ctx, request) {
				if err != nil {
					return fmt.Errorf("follow the logs of %s: %w", name, err)
				}
				p.line("%s | %s", line.Instance, strings.TrimRight(line.Text, "\n"))
			}
			return nil
		})
	}
	return group.Wait()
}
