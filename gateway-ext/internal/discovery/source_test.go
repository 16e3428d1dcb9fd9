package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// network answers probes in place of one.
type network struct {
	mu    sync.Mutex // guards below
	dead  map[netip.Addr]bool
	local bool // this machine's network is down
	asked int
}

func (n *network) probe(ctx context.Context, target discovery.Target) discovery.Answer {
	n.mu.Lock()
	dead, local := n.dead[target.Addr.Addr()], n.local
	n.asked++
	n.mu.Unlock()
	switch {
	case local:
		return discovery.Unknown
	case dead:
		select { // nobody says anything
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
		return discovery.Refused
	}
	return discovery.Answered
}

func (n *network) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// world is a table whose loop runs.
type world struct {
	*discovery.Table
	t   *testing.T
	net *network
	log strings.Builder
}

// running is to be called in a bubble. The table stops with the test.
func running(t *testing.T, path string) *world {
	w := &world{t: t, net: &network{dead: map[netip.Addr]bool{}}}
	w.Table = discovery.Open(discovery.Config{
		Path: path, Probe: w.net.probe, Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

// node is a source that sends heartbeats each second while it is on.
type node struct {
	source *discovery.Source
	addr   netip.Addr
	off    atomic.Bool
	lost   atomic.Bool
}

var nodeLease = discovery.Lease{Suspect: 2500 * time.Millisecond, Gone: 7 * time.Second}

func (w *world) node(i byte) *node {
	w.t.Helper()
	n := &node{addr: netip.AddrFrom4([4]byte{10, 0, 0, i})}
	lease := nodeLease
	lease.Probe = discovery.Target{Addr: netip.AddrPortFrom(n.addr, 8080)}
	var err error
	if n.source, err = w.Source("node", fmt.Sprint("pi-", i), lease, func() { n.lost.Store(true) }); err != nil {
		w.t.Fatal(err)
	}
	r := replica(fmt.Sprint("weather-", i), faas.Ready)
	r.Addr = lease.Probe.Addr
	n.source.Observe(r)
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
				if !n.off.Load() {
					n.source.Heard()
				}
			}
		}
	})
	w.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return n
}

// kill is what a power cut does to a node.
func (w *world) kill(n *node) {
	n.off.Store(true)
	w.net.set(func() { w.net.dead[n.addr] = true })
}

func (w *world) ids() []string { return ids(w.Route(weather)) }

func (w *world) suspects() (list []string) {
	for _, e := range w.Route(weather).Endpoints {
		if e.Suspect() {
			list = append(list, e.ID)
		}
	}
	return list
}

// until returns how long it takes until a condition holds, which it looks at
// each 10 ms.
func (w *world) until(what string, holds func() bool) time.Duration {
	w.t.Helper()
	begun := time.Now()
	for !holds() {
		if time.Since(begun) > time.Hour {
			w.t.Fatalf("%s: not within an hour", what)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(begun)
}

// TestNodeDies is what a fleet is promised: suspect within 3 s, gone within 8 s.
func TestNodeDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := running(t, "")
		var nodes []*node
		for i := range byte(7) {
			nodes = append(nodes, w.node(i))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(w.ids()) != 7 || len(w.suspects()) != 0 {
			t.Fatalf("all are well, but the route has %v, suspect %v", w.ids(), w.suspects())
		}
		e := w.Route(weather).Endpoints[3]
		if e.ID != "weather-3" || !e.Acquire() {
			t.Fatalf("the fourth is %s", e.ID)
		}
		defer e.Release()
		w.kill(nodes[3])
		suspect := w.until("suspect", func() bool { return len(w.suspects()) > 0 })
		if got := w.suspects(); !slices.Equal(got, []string{"weather-3"}) {
			t.Errorf("suspect are %v", got)
		}
		gone := suspect + w.until("gone", func() bool { return len(w.ids()) == 6 })
		if suspect > 3*time.Second || gone > 8*time.Second {
			t.Errorf("suspect after %v, gone after %v: want 3 s and 8 s", suspect, gone)
		}
		if !nodes[3].lost.Load() {
			t.Error("its owner was not told")
		}
		if e.Acquire() {
			t.Error("Acquire() = true for a replica that is gone")
		}
		if nodes[3].source.Heard() {
			t.Error("Heard() = true for a source that is removed")
		}
		if len(w.suspects()) != 0 {
			t.Errorf("others are suspect: %v", w.suspects())
		}
		t.Logf("suspect after %v, gone after %v", suspect, gone)
	})
}

// TestPartition cuts most heartbeats off while the nodes still answer: nobody
// leaves, and one that really dies meanwhile leaves later.
func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := running(t, "")
		var nodes []*node
		for i := range byte(7) {
			nodes = append(nodes, w.node(i))
		}
		time.Sleep(10 * time.Second)
		for _, n := range nodes[:4] {
			n.off.Store(true)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(w.ids()) != 7 || len(w.suspects()) != 4 {
			t.Errorf("after ten minutes the route has %v, suspect %v: want all, four of them suspect", w.ids(), w.suspects())
		}
		w.kill(nodes[0])
		if frozen := w.until("the dead one leaves", func() bool { return len(w.ids()) == 6 }); frozen < time.Minute || frozen > 90*time.Second {
			t.Errorf("a dead one left after %v, want a minute of asking in vain", frozen)
		}
		for _, n := range nodes[1:4] {
			n.off.Store(false)
		}
		if took := w.until("all are trusted", func() bool { return len(w.suspects()) == 0 }); took > 2*time.Second {
			t.Errorf("trusted %v after they were heard again", took)
		}
	})
}

// TestOwnNetworkDown removes nobody because this machine can't ask.
func TestOwnNetworkDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := running(t, "")
		n := w.node(1)
		n.off.Store(true)
		w.net.set(func() { w.net.local = true })
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(w.suspects()) != 1 {
			t.Errorf("the route has %v, suspect %v, want one that is suspect", w.ids(), w.suspects())
		}
	})
}

// TestFlapping bounds how often a source that comes and goes changes its state.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := running(t, "")
		n := w.node(1)
		var changes []time.Time
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			first := true
			for range w.Watch(ctx, 0) {
				if !first {
					changes = append(changes, time.Now())
				}
				first = false
			}
		})
		for range 60 { // ten minutes
			n.off.Store(!n.off.Load())
			time.Sleep(5 * time.Second)
		}
		n.off.Store(false)
		synctest.Wait()
		calm := w.until("it is trusted again", func() bool { return len(w.suspects()) == 0 })
		cancel()
		wg.Wait()
		if len(changes) < 12 {
			t.Errorf("%d changes in ten minutes: it hardly flapped", len(changes))
		}
		for i := range changes {
			if i >= 6 && changes[i].Sub(changes[i-6]) < time.Minute {
				t.Errorf("7 changes within %v", changes[i].Sub(changes[i-6]))
			}
		}
		if calm > 70*time.Second {
			t.Errorf("trusted only %v after it was calm", calm)
		}
		if n.lost.Load() {
			t.Error("it was removed though it answered")
		}
	})
}

// TestLeaseOfMinutes is an instance with Eureka's usual lease, that dies or that
// only stops to send heartbeats.
func TestLeaseOfMinutes(t *testing.T) {
	for _, dies := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := running(t, "")
			addr := netip.MustParseAddrPort("10.0.0.1:8080")
			s, err := w.Source("eureka", "a", discovery.Lease{
				Suspect: time.Minute, Gone: 90 * time.Second, Probe: discovery.Target{Addr: addr},
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Observe(replica("a", faas.Ready))
			w.net.set(func() { w.net.dead[addr.Addr()] = dies })
			if !dies {
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				if len(w.suspects()) != 1 {
					t.Error("it was removed though it answers")
				}
				if n := w.net.asked; n > 24*60*4+10 {
					t.Errorf("asked %d times in a day, want four times a minute", n)
				}
				return
			}
			suspect := w.until("suspect", func() bool { return len(w.suspects()) == 1 })
			gone := suspect + w.until("gone", func() bool { return len(w.ids()) == 0 })
			if suspect < time.Minute || suspect > 61*time.Second || gone < 90*time.Second || gone > 92*time.Second {
				t.Errorf("suspect after %v, gone after %v", suspect, gone)
			}
		})
	}
}

func TestSource(t *testing.T) {
	table := discovery.New()
	lease := nodeLease
	lease.Detail = []byte(`{"a":1}`)
	a, err := table.Source("node", "a", lease, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.Source("node", "b", nodeLease, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.Observe(replica("x", faas.Ready))
	table.Observe(replica("local", faas.Ready))

	b.Observe(replica("x", faas.Draining))
	b.Observe(replica("local", faas.Gone))
	table.Observe(replica("x", faas.Gone))
	if got, want := ids(table.Route(weather)), []string{"x", "local"}; !slices.Equal(got, want) {
		t.Errorf("the route has %v, want %v: nobody speaks for another's replicas", got, want)
	}
	for _, s := range table.Replicas() {
		if want := map[string]string{"x": "node", "local": discovery.Local}[s.ID]; s.Source != want || s.LastSeen.IsZero() || s.Suspect {
			t.Errorf("%s is from %q, want %q; %+v", s.ID, s.Source, want, s)
		}
	}

	// Who opens a source again takes over what it told.
	again, err := table.Source("node", "a", nodeLease, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	a.Observe(replica("y", faas.Ready))
	if a.Heard() || !again.Heard() {
		t.Error("the old one speaks still, or the new one doesn't")
	}
	again.Observe(replica("x", faas.Draining))
	if err := again.Idle(t.Context(), "x"); err != nil {
		t.Errorf("Idle() = %v", err)
	}
	if got, want := ids(table.Route(weather)), []string{"local"}; !slices.Equal(got, want) {
		t.Errorf("the route has %v, want %v", got, want)
	}
	again.Close()
	if got := len(table.Replicas()); got != 1 {
		t.Errorf("%d replicas after the source said goodbye, want 1", got)
	}
	if got := len(table.Saved("node")); got != 1 {
		t.Errorf("%d nodes, want b alone", got)
	}
	lease.Detail = make([]byte, 20<<10)
	if _, err := table.Source("node", "c", lease, nil); !errors.Is(err, faas.ErrTooLarge) {
		t.Errorf("Source() with 20 KiB of details = %v", err)
	}
	if err := b.Agree(lease); !errors.Is(err, faas.ErrTooLarge) {
		t.Errorf("Agree() with 20 KiB of details = %v", err)
	}
	for i := range 3000 {
		if _, err = table.Source("node", fmt.Sprint("more-", i), nodeLease, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, faas.ErrOverloaded) {
		t.Errorf("3000 sources: %v, want %v", err, faas.ErrOverloaded)
	}
}

// TestNotice gives those who send requests past the table time to learn of a
// replica's end.
func TestNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := discovery.New()
		table.Observe(replica("a", faas.Ready))
		table.Observe(replica("b", faas.Ready))
		idle := func(id string) time.Duration {
			begun := time.Now()
			table.Observe(replica(id, faas.Draining))
			if err := table.Idle(t.Context(), id); err != nil {
				t.Errorf("Idle() = %v", err)
			}
			return time.Since(begun)
		}
		if got := idle("a"); got != 0 {
			t.Errorf("idle after %v with nobody to be told, want at once", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, notice := range []time.Duration{0, 100 * time.Millisecond} {
			wg.Go(func() {
				for range table.Watch(ctx, notice) {
				}
			})
		}
		synctest.Wait()
		if got := idle("b"); got != 100*time.Millisecond {
			t.Errorf("idle after %v, want what a watcher asked for", got)
		}
		table.Observe(replica("c", faas.Ready))
		table.Observe(replica("c", faas.Draining))
		short, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		if err := table.Idle(short, "c"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Idle() = %v, want the context's end", err)
		}
		cancel()
		wg.Wait()
	})
}
