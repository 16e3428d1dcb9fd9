package nodes_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// switchboard passes connections on, all of them, only those that ask who is
// there, or none.
type switchboard struct {
	net.Listener
	to   string
	mode atomic.Int32 // one of the below

	mu    sync.Mutex
	conns []net.Conn
	work  sync.WaitGroup
}

const (
	all int32 = iota
	greetings
	none
)

func newSwitchboard(t *testing.T, to string) *switchboard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{Listener: l, to: to}
	s.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.work.Go(func() { s.pass(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); s.set(none); s.work.Wait() })
	return s
}

func (s *switchboard) set(mode int32) {
	s.mode.Store(mode)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *switchboard) pass(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.conns = append(s.conns, conn)
	s.mu.Unlock()
	first := make([]byte, 4096)
	n, _ := conn.Read(first)
	// What a client wants stands in the first that it says (ALPN).
	if mode := s.mode.Load(); mode == none || mode == greetings && !bytes.Contains(first[:n], []byte("thicket-hello/1")) {
		return
	}
	to, err := net.Dial("tcp", s.to)
	if err != nil {
		return
	}
	defer to.Close()
	if _, err := to.Write(first[:n]); err != nil {
		return
	}
	s.work.Go(func() { _, _ = io.Copy(conn, to); conn.Close() })
	_, _ = io.Copy(to, conn)
}

// TestPartition: a node whose stream is cut and that still answers by its key is
// suspect and keeps what it runs, however long that lasts; once it doesn't answer
// it is gone, and calls that wait for it end.
func TestPartition(t *testing.T) {
	var asked atomic.Int32
	table := discovery.Open(discovery.Config{Logger: slog.New(slog.DiscardHandler)})
	run(t, table.Run)
	images := providertest.NewImages(t, providertest.Program(t))
	var g *gateway
	g = startGateway(t, images, providertest.NewTable(t), nil, func(c *nodes.Config) {
		c.Source = func(node string, addr netip.AddrPort, lost func()) (nodes.Source, error) {
			return table.Source("node", node, discovery.Lease{
				Suspect: 300 * time.Millisecond, Gone: 700 * time.Millisecond, Probe: discovery.Target{Addr: addr},
				Ask: func(ctx context.Context) discovery.Answer {
					asked.Add(1)
					return discovery.Judge(ctx, g.Ask(ctx, node))
				},
			}, lost)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := newSwitchboard(t, l.Addr().String())
	p := &pi{name: "pi-1", dir: t.TempDir(), images: images, platforms: []string{"linux/arm64"}}
	a, err := p.open(t, func(c *nodes.AgentConfig) {
		c.Gateway, c.Token, c.Listener, c.Advertise = g.url, g.token(), l, line.Addr().String()
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, a.Run)
	g.await("pi-1", "ready")
	w := providertest.Workload("f", 1, 1)
	w.Function.Constraints = []string{"node==pi-1"}
	name := g.apply(w)
	ready := func() int { return len(table.Route(name).Endpoints) }
	providertest.Await(t, "it runs on pi-1", func() bool { return ready() == 1 })
	e := table.Route(name).Endpoints[0]
	waiting, err := g.Dialer(e.Node, e.ID)(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	line.set(greetings)
	g.await("pi-1", "suspect")
	before := asked.Load()
	providertest.Await(t, "it was asked three times", func() bool { return asked.Load() >= before+3 })
	if s, err := g.Node("pi-1"); err != nil || s.State != "suspect" || ready() != 1 {
		t.Errorf("a node that answers is %s, and %d of its replicas are left, %v", s.State, ready(), err)
	}
	waiting.Close()
	line.set(all)
	g.await("pi-1", "ready")
	if waiting, err = g.Dialer(e.Node, e.ID)(t.Context()); err != nil {
		t.Fatal(err)
	}

	line.mode.Store(none) // what is open stays open, as with a machine that froze
	g.countStream("pi-1", line)
	g.await("pi-1", "gone")
	if _, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Error("a call that waits for a node that is gone got an answer")
	}
	waiting.Close()
	if ready() != 0 {
		t.Error("replicas of a node that is gone are left")
	}
}

// countStream ends the stream of a node, and nothing else that is open: the first
// connection that was made.
func (g *gateway) countStream(_ string, line *switchboard) {
	line.mu.Lock()
	defer line.mu.Unlock()
	for _, c := range line.conns[:len(line.conns)-1] { // the last is the tunnel
		c.Close()
	}
}

// TestAsk: a process that was stopped accepts connections and says nothing.
func TestAsk(t *testing.T) {
	g, images := newFleet(t)
	p := g.join(images, "pi-1", "linux/arm64")
	if err := g.Ask(t.Context(), "pi-1"); err != nil {
		t.Errorf("Ask() = %v", err)
	}
	s, err := g.Node("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	l, err := net.Listen("tcp", s.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, node := range map[string]string{"one that is stopped": "pi-1", "none": "pi-9", "this machine": "nuc"} {
		if err := g.Ask(t.Context(), node); err == nil {
			t.Errorf("Ask() of %s got an answer", name)
		}
	}
}

// TestFlaps: a node that comes and goes gets nothing new for a while, and that is
// said.
func TestFlaps(t *testing.T) {
	g, images := newFleet(t)
	g.join(images, "pi-1", "linux/arm64")
	w := providertest.Workload("f", 1, 0)
	w.Function.Constraints = []string{"node!=nuc"}
	name := g.apply(w)
	for range 2 {
		g.countOut("pi-1")
		g.await("pi-1", "ready") // its next beat
	}
	e, err := g.Explain(name)
	if err != nil || !strings.Contains(e.String(), "pi-1 excluded: it came and went 2 times lately, and gets nothing new until ") {
		t.Errorf("Explain() = %s, %v", e, err)
	}
	s, err := g.Node("pi-1")
	if err != nil || len(s.Notes) != 1 || s.Cordoned {
		t.Errorf("Node() = %+v, %v, want a note of it", s, err)
	}
	w.Function.Replicas = 1
	g.apply(w)
	if st, _ := g.Status(name); !strings.Contains(st.Reason, "it came and went") {
		t.Errorf("the function's status is %q, want why it has no place", st.Reason)
	}
	g.table.AwaitReady(t, name, 1, 1) // after 5 s
}

// TestNoticed is what isn't as it should be with machines that are ready: it is
// said, when they join and afterwards, and functions go elsewhere where that helps.
func TestNoticed(t *testing.T) {
	g, images := newFleet(t)
	said := make(chan string, 64)
	p := &pi{name: "pi-1", dir: t.TempDir(), images: images}
	var full atomic.Bool
	a, err := p.open(t, func(c *nodes.AgentConfig) {
		c.Gateway, c.Token, c.Logger = g.url, g.token(), slog.New(slog.NewTextHandler(tell(said), nil))
		c.Machine = func() remote.Machine {
			m := machine("linux/amd64")()
			m.Version, m.Time = "v0.0.1", time.Now().Add(-time.Hour)
			m.Disk, m.DiskFree = 1<<30, 512<<20
			m.Images = []string{remote.ImageKey(providertest.Digest)}
			if full.Load() {
				m.DiskFree, m.Images = 1<<20, nil
			}
			return m
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, a.Run)
	for line := range said {
		if strings.Contains(line, "its clock is 1h0m0s behind") {
			break
		}
	}
	g.await("pi-1", "ready")
	w := providertest.Workload("f", 1, 0)
	name := g.apply(w)
	explained := func() string {
		e, err := g.Explain(name)
		if err != nil {
			t.Fatal(err)
		}
		return e.String()
	}
	if why := explained(); !strings.Contains(why, "pi-1: best: image present") && !strings.Contains(why, "pi-1: image present") {
		t.Errorf("Explain() = %s, want that pi-1 has the image", why)
	}
	full.Store(true)
	const disk = "its disk is full: 1 of 1024 MiB free"
	providertest.Await(t, "the disk is seen to be full", func() bool { return strings.Contains(explained(), "pi-1 excluded: "+disk) })
	s, err := g.Node("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(s.Notes, "\n")
	for _, want := range []string{"its clock is 1h0m0s behind the gateway's", "it runs version v0.0.1 and the gateway test", disk} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes are\n%s\nwant %q among them", notes, want)
		}
	}
	w.Function.Replicas = 2
	g.apply(w)
	g.table.AwaitReady(t, name, 1, 2)
	if on := g.on(name); on["nuc"] != 2 {
		t.Errorf("it is on %v, want it where there is room on the disk", on)
	}
}

// TestProtocol: who speaks another protocol is told which side to update.
func TestProtocol(t *testing.T) {
	g, _ := newFleet(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for protocol, want := range map[int]string{
		0:  "is too old for this gateway: install the gateway's version there (it speaks protocol 0, the gateway 1)",
		99: "is newer than this gateway: install that version on the gateway first",
	} {
		body, err := json.Marshal(map[string]any{"protocol": protocol, "name": "pi-1", "machine": map[string]string{"version": "v9"}})
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Post(g.url+"/join", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), want) {
			t.Errorf("protocol %d is answered %s %q, want %q", protocol, res.Status, text, want)
		}
	}
}

// TestTwin: a copy of a node's disk in another machine is told that it is one, and
// the node is unharmed.
func TestTwin(t *testing.T) {
	g, images := newFleet(t)
	one := g.join(images, "pi-1", "linux/arm64")
	id, err := os.ReadFile(filepath.Join(one.dir, nodes.IdentityFile))
	if err != nil {
		t.Fatal(err)
	}
	copied := &pi{name: "pi-1", dir: t.TempDir(), images: images}
	if err := os.WriteFile(filepath.Join(copied.dir, nodes.IdentityFile), id, 0o600); err != nil {
		t.Fatal(err)
	}
	was, err := g.Node("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 64)
	a, err := copied.open(t, func(c *nodes.AgentConfig) { c.Logger = slog.New(slog.NewTextHandler(tell(said), nil)) })
	if err != nil {
		t.Fatal(err)
	}
	run(t, a.Run)
	for line := range said {
		if strings.Contains(line, "there is a pi-1 already, which answers at "+was.Addr.String()) {
			break
		}
	}
	if is, err := g.Node("pi-1"); err != nil || is.Addr != was.Addr || is.State != "ready" {
		t.Errorf("the node is %+v, %v, want it where it was", is, err)
	}
}

// tell is a writer of lines to a channel that is read.
type tell chan string

func (c tell) Write(p []byte) (int, error) {
	select {
	case c <- string(p):
	default:
	}
	return len(p), nil
}

// TestMoved: a gateway is restored on another machine, at another address. What
// its nodes run goes on, and they follow it when they are told where it is.
func TestMoved(t *testing.T) {
	g, images := newFleet(t)
	p := g.join(images, "pi-1", "linux/arm64")
	if err := g.Update(t.Context(), "nuc", nodes.Change{Cordoned: new(true)}); err != nil {
		t.Fatal(err)
	}
	g.stop()
	restored := startGateway(t, images, providertest.NewTable(t), g.store, func(c *nodes.Config) { c.Local.Name = "attic" })
	restored.await("pi-1", "ready")
	if list := restored.List(); len(list) != 2 {
		t.Errorf("the fleet is %+v, want pi-1 and the gateway's new machine", list)
	}
	p.stop()
	a, err := p.open(t, func(c *nodes.AgentConfig) { c.Gateway = restored.url })
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, a.Run)
	providertest.Await(t, "it remembers where the gateway is", func() bool {
		b, err := os.ReadFile(filepath.Join(p.dir, nodes.IdentityFile))
		return err == nil && bytes.Contains(b, []byte(restored.url))
	})
	restored.await("pi-1", "ready")
	stop()

	// Another gateway is another matter.
	other := startGateway(t, images, providertest.NewTable(t), nil, func(c *nodes.Config) {
		authority, err := nodes.NewAuthority(bytes.Repeat([]byte("x"), 32))
		if err != nil {
			t.Fatal(err)
		}
		c.Authority = authority
	})
	if a, err = p.open(t, func(c *nodes.AgentConfig) { c.Gateway = other.url }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "to have it join that one, stop it and remove") {
		t.Errorf("it was told %v, want what to do to join another gateway", err)
	}
	// The name of a node isn't one for the gateway's machine.
	_, err = nodes.New(t.Context(), nodes.Config{
		Authority: g.authority, Store: g.store, Logger: slog.New(slog.DiscardHandler), Local: nodes.Local{Name: "pi-1", Machine: machine()},
	})
	if !errors.Is(err, faas.ErrConflict) || !strings.Contains(fmt.Sprint(err), "THICKET_NODE") {
		t.Errorf("New() with the name of a node = %v", err)
	}
}

// TestLabels: what was said here of a node stays when it comes back, and what it
// newly says of itself counts.
func TestLabels(t *testing.T) {
	g, images := newFleet(t)
	p := g.join(images, "pi-1", "linux/arm64")
	if err := g.Update(t.Context(), "pi-1", nodes.Change{Labels: map[string]*string{"zone": nil, "disk": new("ssd")}}); err != nil {
		t.Fatal(err)
	}
	again := func(labels map[string]string) map[string]string {
		t.Helper()
		before, err := g.Node("pi-1")
		if err != nil {
			t.Fatal(err)
		}
		p.stop()
		a, err := p.open(t, func(c *nodes.AgentConfig) { c.Labels = labels })
		if err != nil {
			t.Fatal(err)
		}
		p.stop = run(t, a.Run)
		var s nodes.Status
		providertest.Await(t, "it is back", func() bool {
			s, err = g.Node("pi-1")
			return err == nil && s.State == "ready" && s.Addr != before.Addr
		})
		return s.Labels
	}
	if l := again(map[string]string{"zone": "shelf-1"}); l["zone"] != "" || l["disk"] != "ssd" || len(l) != 1 {
		t.Errorf("the labels are %v, want those that were left and set here", l)
	}
	if l := again(map[string]string{"zone": "shelf-2", "gpu": "yes"}); l["zone"] != "shelf-2" || l["disk"] != "ssd" || l["gpu"] != "yes" {
		t.Errorf("the labels are %v, want also what it newly says of itself", l)
	}
}
