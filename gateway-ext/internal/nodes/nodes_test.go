package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

func TestMain(m *testing.M) { os.Exit(providertest.Run(m)) }

// memory is a store that forgets when the test ends.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (s *memory) Put(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string][]byte)
	}
	s.m[key] = value
	return nil
}

func (s *memory) all() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m)
}

func (s *memory) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, key)
	return nil
}

func (s *memory) Each(_ context.Context, f func(string, []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.m {
		if err := f(k, v); err != nil {
			return err
		}
	}
	return nil
}

// lease is the word of a node, counted out by hand.
type lease struct {
	provider.Observer
	mu   sync.Mutex
	out  bool
	lost func()
}

func (l *lease) Heard() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.out
}

func (l *lease) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = true
}

// gateway is one end of a fleet.
type gateway struct {
	*nodes.Nodes
	t         *testing.T
	authority *nodes.Authority
	store     *memory
	table     *providertest.Table
	url       string
	stop      func()

	mu     sync.Mutex
	leases map[string]*lease
}

// ports gives each provider of this package's tests ports of its own.
var ports = struct {
	sync.Mutex
	next uint16
}{next: 26000}

func portRange() (first, last uint16) {
	ports.Lock()
	defer ports.Unlock()
	first = ports.next
	ports.next += 100
	if ports.next > 29000 {
		ports.next = 26000
	}
	return first, first + 99
}

func process(t *testing.T, node string, images provider.Images, observer provider.Observer) *provider.Process {
	t.Helper()
	first, last := portRange()
	p, err := provider.NewProcess(provider.ProcessConfig{
		Node: node, Dir: t.TempDir(), Images: images, Observer: observer, FirstPort: first, LastPort: last,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func machine(platforms ...string) func() remote.Machine {
	return func() remote.Machine {
		return remote.Machine{Version: "test", Platforms: platforms, Memory: 1 << 30, CPU: 4000, Time: time.Now()}
	}
}

// run runs something until the test ends, or stop is called.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// startGateway starts a gateway whose machine is called nuc. A store of one
// before makes it that one, started again.
func startGateway(t *testing.T, images provider.Images, observer provider.Observer, store *memory, change ...func(*nodes.Config)) *gateway {
	t.Helper()
	g := &gateway{t: t, store: store, leases: make(map[string]*lease)}
	if g.store == nil {
		g.store = &memory{}
	}
	g.table, _ = observer.(*providertest.Table)
	var err error
	if g.authority, err = nodes.NewAuthority([]byte(strings.Repeat("s", 32))); err != nil {
		t.Fatal(err)
	}
	cfg := nodes.Config{
		Authority: g.authority, Store: g.store, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Functions: url.URL{Scheme: "http", Host: "0.0.0.0:8080"},
		Local:     nodes.Local{Name: "nuc", Machine: machine("linux/amd64"), Has: func(string) bool { return true }},
		Known:     func(name faas.Name) bool { return name.Function != "forgotten" },
		Source: func(node string, _ netip.AddrPort, lost func()) (nodes.Source, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			l := &lease{Observer: observer, lost: lost}
			g.leases[node] = l
			return l, nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	if g.Nodes, err = nodes.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	p := process(t, "nuc", images, g.Watch(observer))
	g.Attach(p)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := g.Server()
	go func() { _ = s.ServeTLS(l, "", "") }() // ended by Close
	t.Cleanup(func() { s.Close() })
	g.url = "https://" + l.Addr().String()
	stopNodes := run(t, g.Run)
	stopProcess := run(t, p.Run)
	g.stop = func() { s.Close(); stopNodes(); stopProcess() }
	return g
}

// countOut ends a node's lease.
func (g *gateway) countOut(node string) {
	g.mu.Lock()
	l := g.leases[node]
	g.mu.Unlock()
	l.Close()
	l.lost()
}

func (g *gateway) token() string {
	g.t.Helper()
	_, text, err := g.NewToken(g.t.Context(), "test", time.Hour)
	if err != nil {
		g.t.Fatal(err)
	}
	return text
}

// pi is a node.
type pi struct {
	name, dir string
	images    provider.Images
	platforms []string
	stop      func()
}

// open prepares the node's program.
func (p *pi) open(t *testing.T, change func(*nodes.AgentConfig)) (*nodes.Agent, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	cfg := nodes.AgentConfig{
		Name: p.name, Dir: p.dir, Listener: l, Machine: machine(p.platforms...), Logger: slog.New(slog.DiscardHandler),
		Labels: map[string]string{"zone": "shelf-1"},
		Provider: func(o provider.Observer, node, gateway string) (nodes.Runner, error) {
			if gateway != "http://127.0.0.1:8080" {
				t.Errorf("functions reach the gateway at %s, want port 8080 of where it was joined", gateway)
			}
			return process(t, node, p.images, o), nil
		},
	}
	change(&cfg)
	return nodes.OpenAgent(cfg)
}

// join starts a node that joins, and waits until the gateway counts on it.
func (g *gateway) join(images provider.Images, name string, platforms ...string) *pi {
	g.t.Helper()
	p := &pi{name: name, dir: g.t.TempDir(), images: images, platforms: platforms}
	a, err := p.open(g.t, func(c *nodes.AgentConfig) { c.Gateway, c.Token = g.url, g.token() })
	if err != nil {
		g.t.Fatal(err)
	}
	p.stop = run(g.t, a.Run)
	g.await(name, "ready")
	return p
}

func (g *gateway) await(node, state string) {
	g.t.Helper()
	providertest.Await(g.t, node+" is "+state, func() bool {
		s, err := g.Node(node)
		return err == nil && s.State == state
	})
}

func (g *gateway) apply(w provider.Workload) faas.Name {
	g.t.Helper()
	if err := g.Apply(g.t.Context(), w); err != nil {
		g.t.Fatal(err)
	}
	return w.Function.Name()
}

// on counts a function's ready replicas by node.
func (g *gateway) on(name faas.Name) map[string]int {
	n := make(map[string]int)
	for _, r := range g.table.Ready(name) {
		n[r.Node]++
	}
	return n
}

func TestContract(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		providertest.Test(t, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
			return startGateway(t, images, observer, nil)
		})
	})
	t.Run("with two nodes", func(t *testing.T) {
		providertest.Test(t, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
			g := startGateway(t, images, observer, nil)
			g.join(images, "pi-1", "linux/arm64")
			g.join(images, "pi-2", "linux/arm64")
			return g
		})
	})
}

func newFleet(t *testing.T) (*gateway, *providertest.Images) {
	t.Helper()
	images := providertest.NewImages(t, providertest.Program(t))
	return startGateway(t, images, providertest.NewTable(t), nil), images
}

// TestLife: a fleet of three loses a node, gets it back, and loses its gateway.
func TestLife(t *testing.T) {
	g, images := newFleet(t)
	one := g.join(images, "pi-1", "linux/arm64")
	g.join(images, "pi-2", "linux/arm64")
	f := g.apply(providertest.Workload("f", 1, 3))
	g.table.AwaitReady(t, f, 1, 3)
	if on := g.on(f); len(on) != 3 {
		t.Errorf("3 replicas are on %v, want one on each node", on)
	}
	for _, r := range g.table.Ready(f) {
		dial := g.Dialer(r.Node, r.ID)
		if (dial == nil) != (r.Node == "nuc") {
			t.Fatalf("Dialer() of a replica on %s is nil: %v", r.Node, dial == nil)
		}
		if dial == nil {
			continue
		}
		conn, err := dial(t.Context())
		if err != nil {
			t.Fatalf("a tunnel to %s on %s: %v", r.ID, r.Node, err)
		}
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		b := make([]byte, 4096)
		n, _ := conn.Read(b)
		conn.Close()
		if !strings.Contains(string(b[:n]), "200 OK") {
			t.Errorf("%s answers %q", r.ID, b[:n])
		}
	}
	var text strings.Builder
	for m, err := range g.Logs(t.Context(), logs.Request{Name: "f", Tail: -1}) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&text, m.Instance, m.Text)
	}
	for _, r := range g.table.Ready(f) {
		if !strings.Contains(text.String(), r.ID+" listening") {
			t.Errorf("the logs don't tell of %s on %s:\n%s", r.ID, r.Node, text.String())
		}
	}

	// One goes, and comes back with nothing.
	one.stop()
	g.await("pi-1", "suspect")
	g.countOut("pi-1")
	g.await("pi-1", "gone")
	providertest.Await(t, "what was lost is elsewhere", func() bool { on := g.on(f); return on["nuc"]+on["pi-2"] == 3 && on["pi-1"] == 0 })
	a, err := one.open(t, func(*nodes.AgentConfig) {})
	if err != nil {
		t.Fatal(err)
	}
	one.stop = run(t, a.Run)
	g.await("pi-1", "ready")

	// The gateway goes, and comes back: what the nodes run is still there.
	before := g.table.Ready(f)
	g.stop()
	table := providertest.NewTable(t)
	g = startGateway(t, images, table, g.store)
	g.await("pi-2", "ready")
	g.await("pi-1", "ready")
	g.apply(providertest.Workload("f", 1, 3))
	g.table.AwaitReady(t, f, 1, 3)
	kept := 0
	for _, r := range g.table.Ready(f) {
		for _, b := range before {
			if b.ID == r.ID {
				kept++
			}
		}
	}
	want := 0
	for _, b := range before {
		if b.Node != "nuc" {
			want++
		}
	}
	if kept != want {
		t.Errorf("%d replicas were taken back, want the %d that were on other machines", kept, want)
	}
}

// TestBury: what a node ran before the gateway's start, and doesn't run when it is
// heard of again, is told to be gone; what it runs is not.
func TestBury(t *testing.T) {
	g, images := newFleet(t)
	pi := g.join(images, "pi-1", "linux/arm64")
	w := providertest.Workload("f", 1, 1)
	w.Function.Constraints = []string{"node==pi-1"}
	f := g.apply(w)
	runs := g.table.AwaitReady(t, f, 1, 1)[0]
	g.stop()

	ghost := runs
	ghost.ID = "f-ghost"
	table := providertest.NewTable(t)
	g = startGateway(t, images, table, g.store, func(c *nodes.Config) {
		c.Replicas = func(node string) []faas.Replica {
			if node != pi.name {
				return nil
			}
			return []faas.Replica{runs, ghost}
		}
	})
	g.await("pi-1", "ready")
	if r := table.AwaitGone(t, ghost.ID); r.Reason == "" {
		t.Errorf("it is told without a reason: %+v", r)
	}
	g.apply(w)
	if r := table.AwaitReady(t, f, 1, 1)[0]; r.ID != runs.ID {
		t.Errorf("%s is ready, want %s that ran all the time", r.ID, runs.ID)
	}
}

// TestDrain moves what a node runs without a failed request.
func TestDrain(t *testing.T) {
	g, images := newFleet(t)
	g.join(images, "pi-1", "linux/arm64")
	f := g.apply(providertest.Workload("f", 1, 2))
	g.table.AwaitReady(t, f, 1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var caller sync.WaitGroup
	asked := 0
	caller.Go(func() {
		for ctx.Err() == nil {
			if code, body, err := g.table.Do(context.WithoutCancel(ctx), f, "/sleep?for=2ms"); err != nil || code != 200 {
				t.Errorf("a request failed while a node was drained: %d %s %v", code, body, err)
				return
			}
			asked++
		}
	})
	if err := g.Update(t.Context(), "pi-1", nodes.Change{Draining: new(true)}); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "all is on nuc", func() bool { on := g.on(f); return on["nuc"] == 2 && len(g.table.All(f)) == 2 })
	cancel()
	caller.Wait()
	if asked == 0 {
		t.Error("nothing was asked meanwhile")
	}
	if err := g.Update(t.Context(), "pi-1", nodes.Change{Draining: new(false), Labels: map[string]*string{"disk": new("ssd")}}); err != nil {
		t.Fatal(err)
	}
	s, err := g.Node("pi-1")
	if err != nil || s.Cordoned || s.Labels["disk"] != "ssd" || s.Labels["zone"] != "shelf-1" {
		t.Errorf("Node(pi-1) = %+v, %v", s, err)
	}
	w := providertest.Workload("ssd", 1, 1)
	w.Function.Constraints = []string{"node.labels.disk==ssd"}
	name := g.apply(w)
	if r := g.table.AwaitReady(t, name, 1, 1)[0]; r.Node != "pi-1" {
		t.Errorf("it is on %s, want it where its constraint says", r.Node)
	}
	w.Function.Constraints = []string{"node.labels.disk==tape"}
	if err := g.Possible(t.Context(), &w.Function); err == nil || !strings.Contains(err.Error(), "pi-1: node.labels.disk==tape is asked for, and it is ssd") {
		t.Errorf("Possible() = %v, want each node's reason", err)
	}
	if err := g.Dismiss(t.Context(), "pi-1"); err != nil {
		t.Fatal(err)
	}
	if err := g.Dismiss(t.Context(), "nuc"); !errors.Is(err, faas.ErrInvalid) {
		t.Errorf("Dismiss() of the gateway's own machine = %v", err)
	}
	if _, err := g.Node("pi-1"); !errors.Is(err, faas.ErrNotFound) {
		t.Errorf("Node() of one that was removed = %v", err)
	}
}

// TestTurnedAway is who may not join, and what they are told.
func TestTurnedAway(t *testing.T) {
	g, images := newFleet(t)
	g.join(images, "pi-1", "linux/arm64")
	pi1, err := g.Node("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	revoked := g.token()
	for _, tok := range g.Tokens() {
		if tok.Used == 0 {
			if err := g.Revoke(t.Context(), tok.ID); err != nil {
				t.Fatal(err)
			}
		}
		if tok.Hash != nil {
			t.Error("the list of tokens tells their hashes")
		}
	}
	_, over, err := g.NewToken(t.Context(), "over", time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	other, err := nodes.NewAuthority([]byte(strings.Repeat("o", 32)))
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	free.Close()
	for _, tt := range []struct {
		name   string
		change func(*nodes.AgentConfig)
		want   string
	}{
		{"without a token", func(c *nodes.AgentConfig) { c.Token = "" }, "run gateway-ext token there"},
		{"half a token", func(c *nodes.AgentConfig) { c.Token = c.Token[:40] }, "the token is not whole"},
		{"a revoked one", func(c *nodes.AgentConfig) { c.Token = revoked }, "the token was revoked"},
		{"another gateway's", func(c *nodes.AgentConfig) {
			c.Token = strings.Replace(c.Token, g.authority.Pin(), other.Pin(), 1)
		}, "is not the one that made this token"},
		{"no gateway there", func(c *nodes.AgentConfig) { c.Gateway = "https://" + closed }, "can't be reached"},
		{"not an address", func(c *nodes.AgentConfig) { c.Gateway = "pi.lan:8090" }, "write the gateway's address"},
		{"a name that is taken", func(c *nodes.AgentConfig) { c.Name = "pi-1" }, "there is a node pi-1 already"},
		{"the gateway's name", func(c *nodes.AgentConfig) { c.Name = "nuc" }, "is the gateway's own machine"},
		{"a name that is none", func(c *nodes.AgentConfig) { c.Name = "Pi 1" }, "the node's name"},
		{"an address of nobody", func(c *nodes.AgentConfig) { c.Advertise = closed }, closed + " refuses connections (loopback"},
		{"an address of another node", func(c *nodes.AgentConfig) { c.Advertise = pi1.Addr.String() }, "is answered by another machine"},
		{"an address of something else", func(c *nodes.AgentConfig) { c.Advertise = strings.TrimPrefix(g.url, "https://") }, "is answered by something else"},
		{"a bridge", func(c *nodes.AgentConfig) { c.Advertise = "172.17.255.254" }, "it looks like a container bridge"},
		{"too many labels", func(c *nodes.AgentConfig) {
			c.Labels = make(map[string]string)
			for i := range 65 {
				c.Labels[fmt.Sprint("label-", i)] = "x"
			}
		}, "65 labels, at most 64 are allowed"},
		{"a label that is too long", func(c *nodes.AgentConfig) { c.Labels = map[string]string{"a": strings.Repeat("b", 129)} }, "each of 1 to 128 printable characters"},
		{"a token that is over", func(c *nodes.AgentConfig) { c.Token = over }, "the token was good until"},
		{"a label that is none", func(c *nodes.AgentConfig) { c.Labels = map[string]string{"a b": "c"} }, "write NAME=VALUE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &pi{name: "pi-9", dir: t.TempDir(), images: images}
			a, err := p.open(t, func(c *nodes.AgentConfig) {
				c.Gateway, c.Token = g.url, g.token()
				tt.change(c)
			})
			if err == nil {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err = a.Run(ctx)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("it was told %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if _, err := os.Stat(filepath.Join(p.dir, "identity.json")); err == nil {
				t.Error("it keeps an identity though it didn't join")
			}
		})
	}
	if all := g.List(); len(all) != 2 {
		t.Errorf("the fleet is %+v, want nuc and pi-1 unharmed", all)
	}
	g.await("pi-1", "ready")
}
