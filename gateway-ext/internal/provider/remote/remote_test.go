package remote_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

func TestMain(m *testing.M) { os.Exit(providertest.Run(m)) }

func machine() remote.Machine {
	return remote.Machine{Version: "test", Platforms: []string{"linux/arm64"}, Memory: 1 << 30, Time: time.Now()}
}

// node is a node with a provider for processes, and the line to it.
type node struct {
	server *remote.Server
	http   *httptest.Server
	client *http.Client
}

func startNode(t *testing.T, images provider.Images) *node {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	n := &node{server: remote.NewServer(remote.ServerConfig{Machine: machine, Logger: log, Away: 200 * time.Millisecond})}
	p, err := provider.NewProcess(provider.ProcessConfig{Node: "pi-1", Dir: t.TempDir(), Images: images, Observer: n.server, Logger: log, FirstPort: 21000, LastPort: 21999})
	if err != nil {
		t.Fatal(err)
	}
	n.server.Attach(p)
	run(t, p.Run)
	run(t, n.server.Run)
	n.http = httptest.NewServer(n.server.Handler())
	t.Cleanup(n.http.Close)
	n.client = n.http.Client()
	return n
}

// run runs something until the test ends.
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

// gateway is the other end.
func (n *node) gateway(t *testing.T, observer provider.Observer) (c *remote.Client, stop func()) {
	t.Helper()
	beats := make(chan remote.Machine, 1)
	c = remote.NewClient(remote.ClientConfig{
		Node: "pi-1", URL: n.http.URL, HTTP: n.client, Observer: observer, Zone: "shelf-1",
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Beat: func(m remote.Machine) {
			select {
			case beats <- m:
			default:
			}
		},
	})
	stop = run(t, c.Run)
	if m := <-beats; m.Version != "test" || len(m.Platforms) != 1 {
		t.Errorf("the node says %+v of itself", m)
	}
	return c, stop
}

func TestContract(t *testing.T) {
	providertest.Test(t, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
		c, _ := startNode(t, images).gateway(t, observer)
		return c
	})
}

// TestGatewayAway: what a node runs goes on without a gateway, changes meanwhile,
// and is taken over by the next one as it is.
func TestGatewayAway(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	n := startNode(t, images)
	first := providertest.NewTable(t)
	c, stop := n.gateway(t, first)
	for _, f := range []string{"kept", "lost"} {
		if err := c.Apply(t.Context(), providertest.Workload(f, 3, 2)); err != nil {
			t.Fatal(err)
		}
	}
	kept := first.AwaitReady(t, named("kept"), 3, 2)
	lost := first.AwaitReady(t, named("lost"), 3, 2)
	if kept[0].Node != "pi-1" || kept[0].Zone != "shelf-1" {
		t.Errorf("the replica is %+v, want it on pi-1 in shelf-1", kept[0])
	}
	stop()

	// Without a gateway one replica ends, and another takes its place.
	_, _, _ = first.DoAt(t.Context(), lost[0], "/exit?code=1")
	second := providertest.NewTable(t)
	c, _ = n.gateway(t, second)
	for _, r := range second.AwaitReady(t, named("kept"), 3, 2) {
		if r.ID != kept[0].ID && r.ID != kept[1].ID {
			t.Errorf("%s is a new replica, want those that ran", r.ID)
		}
	}
	providertest.Await(t, "another has the place of what ended", func() bool {
		ready := second.Ready(named("lost"))
		return len(ready) == 2 && ready[0].ID != lost[0].ID && ready[1].ID != lost[0].ID
	})
	if got := c.Wanted()[named("kept")]; got != (remote.Share{Revision: 3, Replicas: 2}) {
		t.Errorf("Wanted() = %+v, want what the first gateway said", got)
	}
	if s, ok := c.Status(named("kept")); !ok || s.Ready() != 2 {
		t.Errorf("Status() = %+v, %v", s, ok)
	}
	if got := second.Get(t, named("kept"), "/"); got == "" {
		t.Error("no answer")
	}
}

// TestStreamBreaks: a gateway whose stream broke learns what happened meanwhile.
func TestStreamBreaks(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	n := startNode(t, images)
	table := providertest.NewTable(t)
	c, _ := n.gateway(t, table)
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 2)); err != nil {
		t.Fatal(err)
	}
	before := table.AwaitReady(t, named("f"), 1, 2)
	n.http.CloseClientConnections()
	_, _, _ = table.DoAt(t.Context(), before[0], "/exit?code=1")
	table.AwaitGone(t, before[0].ID)
	table.AwaitReady(t, named("f"), 1, 2)

	// Counted out, and heard of again.
	c.Forget("its node is gone")
	if r := table.AwaitGone(t, before[1].ID); r.Reason != "its node is gone" {
		t.Errorf("it is gone because %q", r.Reason)
	}
	n.http.CloseClientConnections()
	table.AwaitReady(t, named("f"), 1, 2)
}

// TestSilence: a node that hangs is noticed.
func TestSilence(t *testing.T) {
	hangs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer hangs.Close()
	lost := make(chan error, 1)
	c := remote.NewClient(remote.ClientConfig{
		Node: "pi-1", URL: hangs.URL, HTTP: hangs.Client(), Observer: providertest.NewTable(t), Patience: 20 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
		Lost: func(err error) {
			select {
			case lost <- err:
			default:
			}
		},
	})
	run(t, c.Run)
	if err := <-lost; err == nil {
		t.Error("the stream broke without an error")
	}
}

func TestTunnel(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %d bytes", len(b))
	}))
	defer upstream.Close()
	addr := upstream.Listener.Addr().(*net.TCPAddr).AddrPort()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tunnels := remote.Tunnels{Logger: slog.New(slog.DiscardHandler), Lookup: func(id string) (faas.Replica, bool) {
		return faas.Replica{ID: id, Addr: addr}, id == "f-1"
	}}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { tunnels.Serve(conn) })
		}
	})
	dial := func(ctx context.Context, id string) (net.Conn, error) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return remote.Dial(ctx, conn, id)
	}
	if _, err := dial(t.Context(), "f-2"); err == nil || err.Error() != `no replica "f-2" is here` {
		t.Errorf("Dial() of an unknown replica = %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dial(gone, "f-1"); err == nil {
		t.Error("Dial() with a context that has ended = nil")
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, "f-1") }}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	for _, size := range []int64{0, 1, 10 << 20} {
		res, err := client.Post("http://replica/", "text/plain", io.LimitReader(zeros{}, size))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if want := fmt.Sprintf("got %d bytes", size); string(b) != want {
			t.Errorf("through the tunnel: %q, want %q", b, want)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func named(f string) faas.Name { return faas.Name{Function: f, Namespace: faas.DefaultNamespace} }
