package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

const fleetSecret = "6d5c1f0a9b8e7d6c5b4a392817060504f3e2d1c0"

func TestParseSecret(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"one", fleetSecret, ""},
		{"with a line break", fleetSecret + "\n", ""},
		{"nothing", "", "32 to 1024 characters"},
		{"short", "swordfish", "32 to 1024 characters"},
		{"long", strings.Repeat("x", 1025), "32 to 1024 characters"},
		{"bytes", strings.Repeat("\x01", 40), "32 to 1024 characters"},
		{"token", "thicket1." + fleetSecret, "it is a token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := nodes.ParseSecret(tt.text)
			if tt.want == "" && (err != nil || s != fleetSecret) {
				t.Errorf("ParseSecret(%q) = %q, %v", tt.text, s, err)
			}
			if tt.want != "" && (!errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("ParseSecret(%q) = %v, want %q", tt.text, err, tt.want)
			}
		})
	}
}

// TestSecret: machines join with a secret that both were given, and one takes the
// place of another of its name, but only when that is gone.
func TestSecret(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	g := startGateway(t, images, providertest.NewTable(t), nil, func(c *nodes.Config) { c.Secret = fleetSecret })
	// open prepares a machine that has no identity yet.
	open := func(name, secret string, replace bool) (*pi, *nodes.Agent) {
		p := &pi{name: name, dir: t.TempDir(), images: images, platforms: []string{"linux/arm64"}}
		a, err := p.open(t, func(c *nodes.AgentConfig) { c.Gateway, c.Token, c.Replace = g.url, secret, replace })
		if err != nil {
			t.Fatal(err)
		}
		return p, a
	}
	refused := func(what, name, secret string, replace bool, want string) {
		t.Helper()
		_, a := open(name, secret, replace)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s was told %v, want %q", what, err, want)
		}
	}
	one, a := open("pi-1", fleetSecret+"\n", false)
	one.stop = run(t, a.Run)
	g.await("pi-1", "ready")
	was, err := g.Node("pi-1")
	if err != nil || was.By != "file" {
		t.Errorf("Node(pi-1) = %+v, %v", was, err)
	}
	f := g.apply(providertest.Workload("f", 1, 2))
	g.table.AwaitReady(t, f, 1, 2)
	if err := g.Update(t.Context(), "pi-1", nodes.Change{Labels: map[string]*string{"disk": new("ssd")}}); err != nil {
		t.Fatal(err)
	}

	refused("who has another secret", "pi-2", strings.Repeat("x", 40), false, "node pi-2 has another secret than the gateway")
	refused("a second of the name, while the first is there", "pi-1", fleetSecret, true, "there is a node pi-1 already")
	one.stop()
	refused("a second of the name that doesn't ask for its place", "pi-1", fleetSecret, false, "there is a node pi-1 already")
	refused("a second of the name with a token", "pi-1", g.token(), true, "there is a node pi-1 already")

	_, a = open("pi-1", fleetSecret, true)
	run(t, a.Run)
	providertest.Await(t, "the new pi-1 is ready", func() bool {
		s, err := g.Node("pi-1")
		return err == nil && s.State == "ready" && s.Addr != was.Addr
	})
	if s, err := g.Node("pi-1"); err != nil || s.Labels["disk"] != "ssd" {
		t.Errorf("Node(pi-1) = %+v, %v, want the labels that the node had", s, err)
	}
	g.table.AwaitReady(t, f, 1, 2)
	// Whose place was taken is a stranger.
	back, err := one.open(t, func(*nodes.AgentConfig) {})
	if err != nil {
		t.Fatal(err)
	}
	run(t, back.Run)
	now, err := g.Node("pi-1")
	if err != nil || now.State != "ready" {
		t.Errorf("Node(pi-1) = %+v, %v", now, err)
	}
}

// TestSecretOfAnother: a gateway that doesn't know the secret is not joined, and a
// machine waits for one that isn't there yet, if it has been told to.
func TestSecretOfAnother(t *testing.T) {
	g, images := newFleet(t) // knows none
	p := &pi{name: "pi-1", dir: t.TempDir(), images: images}
	a, err := p.open(t, func(c *nodes.AgentConfig) { c.Gateway, c.Token, c.Patient = g.url, fleetSecret, true })
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another secret than the gateway, which may have none") {
		t.Errorf("it was told %v", err)
	}
	// Who answers well, and proves nothing.
	liar := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"certificate":"AA==","authority":"AA==","address":"127.0.0.1:1","functions":"http://127.0.0.1:8080","proof":"AA=="}`)
	}))
	liar.TLS = g.authority.Server()
	liar.StartTLS()
	defer liar.Close()
	a, err = p.open(t, func(c *nodes.AgentConfig) { c.Gateway, c.Token = liar.URL, fleetSecret })
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "doesn't know the secret") {
		t.Errorf("it was told %v", err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "https://" + free.Addr().String()
	free.Close()
	if a, err = p.open(t, func(c *nodes.AgentConfig) { c.Gateway, c.Token, c.Patient = at, fleetSecret, true }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.Run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a patient machine ended with %v", err)
	}
}
