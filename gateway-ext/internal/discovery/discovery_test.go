package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

var (
	_ provider.Observer = (*discovery.Table)(nil)
	_ provider.Observer = (*discovery.Source)(nil)
)

var weather = faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}

func replica(id string, s faas.State) faas.Replica {
	return faas.Replica{
		ID: id, Function: weather, State: s,
		Addr: netip.MustParseAddrPort("127.0.0.1:1234"),
	}
}

func ids(r discovery.Route) []string {
	var all []string
	for _, e := range r.Endpoints {
		all = append(all, e.ID)
	}
	return all
}

func TestRoute(t *testing.T) {
	const (
		s = faas.Starting
		r = faas.Ready
		d = faas.Draining
		g = faas.Gone
	)
	type step struct {
		id    string
		state faas.State
	}
	for _, tt := range []struct {
		name  string
		steps []step
		want  []string
		known int
	}{
		{"nothing", nil, nil, 0},
		{"a starting replica is none", []step{{"a", s}}, nil, 1},
		{"a ready one is", []step{{"a", s}, {"a", r}}, []string{"a"}, 1},
		{"first seen when ready", []step{{"a", r}}, []string{"a"}, 1},
		{"ready twice", []step{{"a", r}, {"a", r}}, []string{"a"}, 1},
		{"two", []step{{"a", r}, {"b", r}}, []string{"a", "b"}, 2},
		{"draining", []step{{"a", r}, {"b", r}, {"a", d}}, []string{"b"}, 2},
		{"gone without draining", []step{{"a", r}, {"b", r}, {"b", g}}, []string{"a"}, 1},
		{"states only grow", []step{{"a", r}, {"a", d}, {"a", r}, {"a", s}}, nil, 1},
		{"gone and never seen", []step{{"a", g}}, nil, 0},
		{"all gone", []step{{"a", r}, {"a", d}, {"a", g}}, nil, 0},
		{"gone while starting", []step{{"a", s}, {"a", g}}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := discovery.New()
			for _, st := range tt.steps {
				table.Observe(replica(st.id, st.state))
			}
			if got := ids(table.Route(weather)); !slices.Equal(got, tt.want) {
				t.Errorf("Route() = %v, want %v", got, tt.want)
			}
			if got := len(table.Replicas()); got != tt.known {
				t.Errorf("len(Replicas()) = %d, want %d", got, tt.known)
			}
		})
	}
}

func TestRouteIsASnapshot(t *testing.T) {
	table := discovery.New()
	table.Observe(replica("a", faas.Ready))
	before := table.Route(weather)
	table.Observe(replica("b", faas.Ready))
	table.Observe(replica("a", faas.Draining))
	if got, want := ids(before), []string{"a"}; !slices.Equal(got, want) {
		t.Errorf("the route from before is now %v, want %v", got, want)
	}
	if before.Endpoints[0].Acquire() {
		t.Error("Acquire() = true for a draining replica of an older route")
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := discovery.New()
		table.Observe(replica("a", faas.Ready))
		e := table.Route(weather).Endpoints[0]
		for range 2 {
			if !e.Acquire() {
				t.Fatal("Acquire() = false for a ready replica")
			}
		}
		if got := table.Replicas()[0].InFlight; got != 2 {
			t.Errorf("InFlight = %d, want 2", got)
		}
		table.Observe(replica("a", faas.Draining))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := table.Idle(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Idle() = %v with 2 requests in flight, want %v", err, context.DeadlineExceeded)
		}
		if err := table.Idle(t.Context(), "nobody"); err != nil {
			t.Errorf("Idle() = %v for an unknown replica, want nil", err)
		}

		var idle atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := table.Idle(t.Context(), "a"); err != nil {
				t.Errorf("Idle() = %v, want nil", err)
			}
			idle.Store(true)
		})
		e.Release()
		if e.Acquire() {
			t.Error("Acquire() = true for a draining replica")
		}
		synctest.Wait()
		if idle.Load() {
			t.Error("Idle() returned with a request in flight")
		}
		e.Release()
		wg.Wait()
		if got := e.InFlight(); got != 0 {
			t.Errorf("InFlight() = %d, want 0", got)
		}
	})
}

// TestDrainUnderLoad holds the promise that an update rests on: nobody has a
// replica after its Draining was observed and Idle has returned.
func TestDrainUnderLoad(t *testing.T) {
	const clients, generations = 4, 200
	table := discovery.New()
	var stopped sync.Map // ids of replicas whose process is gone
	observe := func(g int, s faas.State) { table.Observe(replica(fmt.Sprint(g), s)) }
	observe(0, faas.Ready)

	done := make(chan struct{})
	var calls atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				route := table.Route(weather)
				if len(route.Endpoints) == 0 {
					t.Error("a moment without a replica")
					return
				}
				e := route.Endpoints[0]
				if !e.Acquire() {
					continue
				}
				if _, gone := stopped.Load(e.ID); gone {
					t.Errorf("replica %s was acquired after it was stopped", e.ID)
				}
				calls.Add(1)
				runtime.Gosched() // with the endpoint held
				e.Release()
				runtime.Gosched()
			}
		})
	}
	for g := range generations {
		observe(g+1, faas.Ready)
		observe(g, faas.Draining)
		if err := table.Idle(t.Context(), fmt.Sprint(g)); err != nil {
			t.Error(err)
		}
		stopped.Store(fmt.Sprint(g), true)
		observe(g, faas.Gone)
	}
	close(done)
	wg.Wait()
	t.Logf("%d calls over %d generations", calls.Load(), generations)
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := discovery.New()
		var wg sync.WaitGroup
		var woken atomic.Int64
		for range 10 {
			wg.Go(func() {
				route, err := table.Wait(t.Context(), weather, discovery.Route{})
				if err != nil || !slices.Equal(ids(route), []string{"a"}) {
					t.Errorf("Wait() = %v, %v, want [a]", ids(route), err)
				}
				woken.Add(1)
			})
		}
		synctest.Wait()
		table.Observe(replica("a", faas.Starting))
		other := replica("x", faas.Ready)
		other.Function.Function = "other"
		table.Observe(other)
		synctest.Wait()
		if n := woken.Load(); n != 0 {
			t.Errorf("%d were woken by what is not a change of their route", n)
		}
		table.Observe(replica("a", faas.Ready))
		wg.Wait()

		seen := table.Route(weather)
		if route, err := table.Wait(t.Context(), weather, discovery.Route{}); err != nil || len(route.Endpoints) != 1 {
			t.Errorf("Wait() for what is already so = %v, %v, want it at once", ids(route), err)
		}
		stop := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, stop)
		defer cancel()
		if _, err := table.Wait(ctx, weather, seen); !errors.Is(err, stop) {
			t.Errorf("Wait() = %v, want the context's cause", err)
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := discovery.New()
		table.Observe(replica("a", faas.Ready))
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		var wg sync.WaitGroup
		wg.Go(func() {
			for change, err := range table.Watch(ctx, 0) {
				if err != nil {
					t.Error(err)
				}
				for _, r := range change.Replicas {
					got = append(got, r.ID+" "+r.State.String())
				}
			}
		})
		synctest.Wait()
		table.Observe(replica("b", faas.Starting))
		table.Observe(replica("b", faas.Ready))
		table.Observe(replica("a", faas.Draining))
		table.Observe(replica("a", faas.Gone))
		synctest.Wait()
		cancel()
		wg.Wait()
		want := []string{"a ready", "b starting", "b ready", "a draining", "a gone"}
		if !slices.Equal(got, want) {
			t.Errorf("Watch() gave %q, want %q", got, want)
		}
	})
}

func TestWatchIsBounded(t *testing.T) {
	table := discovery.New()
	table.Observe(replica("a", faas.Starting))
	n := 0
	for _, err := range table.Watch(t.Context(), 0) {
		if err != nil {
			if !errors.Is(err, faas.ErrOverloaded) {
				t.Errorf("Watch() ended with %v, want %v", err, faas.ErrOverloaded)
			}
			return
		}
		// While this reader is busy with the first event, too many more come.
		for range 3000 {
			table.Observe(replica("a", faas.Starting))
		}
		if n++; n > 1 {
			t.Fatal("Watch() goes on though events are lost")
		}
	}
	t.Error("Watch() ended without an error though events were lost")
}

func BenchmarkAcquire(b *testing.B) {
	table := discovery.New()
	table.Observe(replica("a", faas.Ready))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			e := table.Route(weather).Endpoints[0]
			if e.Acquire() {
				e.Release()
			}
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	for _, functions := range []int{10, 1000} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			table := discovery.New()
			for i := range functions {
				r := replica(fmt.Sprint("r", i), faas.Ready)
				r.Function.Function = fmt.Sprint("f", i)
				table.Observe(r)
			}
			b.ReportAllocs()
			for b.Loop() {
				table.Observe(replica("a", faas.Ready))
				table.Observe(replica("a", faas.Gone))
			}
		})
	}
}
