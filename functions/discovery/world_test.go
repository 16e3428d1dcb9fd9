package discovery_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/discovery"
)

// world is a network in memory, for tests in virtual time: HTTP servers by their
// addresses. An address that nobody has refuses connections.
type world struct {
	t testing.TB

	mu    sync.Mutex // guards below
	hosts map[string]*host
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, hosts: make(map[string]*host)}
	t.Cleanup(func() {
		for _, addr := range w.addresses() {
			w.kill(addr)
		}
	})
	return w
}

// host is one server in the world, and its listener.
type host struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	served sync.WaitGroup
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error   { h.once.Do(func() { close(h.closed) }); return nil }
func (h *host) Addr() net.Addr { return &net.TCPAddr{} }

// serve has a handler answer at an address.
func (w *world) serve(addr string, handler http.HandlerFunc) {
	h := &host{conns: make(chan net.Conn), closed: make(chan struct{})}
	h.server = &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	h.served.Go(func() { h.server.Serve(h) })
	w.mu.Lock()
	w.hosts[addr] = h
	w.mu.Unlock()
}

// kill ends a server with all its connections.
func (w *world) kill(addr string) {
	w.mu.Lock()
	h := w.hosts[addr]
	delete(w.hosts, addr)
	w.mu.Unlock()
	if h != nil {
		h.server.Close()
		h.served.Wait()
	}
}

func (w *world) addresses() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for addr := range w.hosts {
		all = append(all, addr)
	}
	return all
}

func (w *world) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	h := w.hosts[addr]
	w.mu.Unlock()
	if h == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	here, there := net.Pipe()
	select {
	case h.conns <- there:
		return here, nil
	case <-h.closed:
	case <-ctx.Done():
	}
	here.Close()
	there.Close()
	return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
}

const gatewayAddr = "gateway:8080"

var producer = discovery.Name{Function: "producer", Namespace: "openfaas-fn"}

// gateway is a gateway as clients see it.
type gateway struct {
	*world

	mu       sync.Mutex // guards below
	replicas map[string]discovery.Replica
	streams  map[chan string]struct{}
	began    int // streams
	sequence int
	usage    []discovery.Usage
	deaf     bool     // fails to hear usage
	mute     bool     // streams send nothing
	calls    []string // that came through it
	function http.HandlerFunc
}

// newGateway starts a gateway in the world. Calls through it are answered
// "through the gateway".
func newGateway(w *world) *gateway {
	g := &gateway{world: w, replicas: make(map[string]discovery.Replica), streams: make(map[chan string]struct{})}
	g.start()
	return g
}

func (g *gateway) start() { g.serve(gatewayAddr, g.ServeHTTP) }
func (g *gateway) stop()  { g.kill(gatewayAddr) }

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, discovery.Path) && r.Header.Get("Authorization") != "Bearer token" {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET " + discovery.Path + "/events":
		g.stream(w, r)
	case "POST " + discovery.Path + "/usage":
		var u discovery.Usage
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := json.NewDecoder(r.Body).Decode(&u); err != nil || g.deaf {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		g.usage = append(g.usage, u)
		w.WriteHeader(http.StatusNoContent)
	default:
		g.mu.Lock()
		g.calls = append(g.calls, r.Method+" "+r.URL.RequestURI())
		f := g.function
		g.mu.Unlock()
		if f != nil {
			f(w, r)
			return
		}
		fmt.Fprint(w, "through the gateway")
	}
}

func (g *gateway) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	events := make(chan string, 1000)
	g.mu.Lock()
	mute := g.mute
	g.began++
	var s discovery.Snapshot
	for _, replica := range g.replicas {
		s.Replicas = append(s.Replicas, replica)
	}
	g.streams[events] = struct{}{}
	first := g.event(discovery.EventSnapshot, s)
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.streams, events)
		g.mu.Unlock()
	}()
	flush := http.NewResponseController(w).Flush
	if mute {
		flush()
		<-r.Context().Done()
		return
	}
	fmt.Fprint(w, first)
	flush()
	beat := newBeat(r.Context())
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			fmt.Fprint(w, e)
		case <-beat:
			fmt.Fprint(w, ": still here\n\n")
		}
		if flush() != nil {
			return
		}
	}
}

// event must be called with mu held.
func (g *gateway) event(name string, data any) string {
	b, err := json.Marshal(data)
	if err != nil {
		g.t.Error(err)
	}
	g.sequence++
	return fmt.Sprintf("id: e-%d\nevent: %s\ndata: %s\n\n", g.sequence, name, b)
}

// tell has the gateway know a replica, and tell of it.
func (g *gateway) tell(r discovery.Replica) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.replicas[r.ID] = r; r.State == discovery.StateGone {
		delete(g.replicas, r.ID)
	}
	e := g.event(discovery.EventReplica, r)
	for s := range g.streams {
		s <- e
	}
}

// replica starts the n-th replica of the producer, which answers with its id, and
// tells of it.
func (g *gateway) replica(n int, change ...func(*discovery.Replica)) discovery.Replica {
	r := discovery.Replica{
		ID: fmt.Sprintf("producer-%d", n), Function: producer, Node: "here", State: discovery.StateReady, Age: 1000,
		Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(1000+n)),
	}
	for _, f := range change {
		f(&r)
	}
	g.serve(r.Addr.String(), answering(r.ID))
	g.tell(r)
	return r
}

func (g *gateway) become(r discovery.Replica, state string) {
	r.State = state
	g.tell(r)
}

func answering(id string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if want := r.Header.Get(discovery.HeaderReplica); want != id {
			w.Header().Set("X-OpenFaaS-Internal", "template")
			http.Error(w, "I am "+id, http.StatusMisdirectedRequest)
			return
		}
		time.Sleep(time.Millisecond)
		fmt.Fprint(w, id)
	}
}

// heard returns the sums of all usage that was told of a function.
func (g *gateway) heard(name discovery.Name) (sum discovery.FunctionUsage, seconds float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, u := range g.usage {
		seconds += u.Seconds
		for _, f := range u.Functions {
			if f.Function == name {
				sum.Started += f.Started
				sum.Busy += f.Busy
				sum.InFlight = f.InFlight
				sum.Ended = append(sum.Ended, f.Ended...)
			}
		}
	}
	return sum, seconds
}

func (g *gateway) through() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.calls)
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
