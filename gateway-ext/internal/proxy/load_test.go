package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// loadOf returns the load of the function echo.
func loadOf(p *proxy.Proxy) (l faas.Load) {
	p.Loads(func(name faas.Name, of faas.Load) {
		if name == echo {
			l = of
		}
	})
	return l
}

// sleeper returns a proxy whose function sleeps, and is waked when release is
// closed: until then calls wait, without any work.
func sleeper(t *testing.T, reg prometheus.Registerer) (p *proxy.Proxy, release chan struct{}) {
	t.Helper()
	release = make(chan struct{})
	p, err := proxy.New(proxy.Config{
		Table: discovery.New(), Logger: slog.New(slog.DiscardHandler), HoldTime: 400 * 24 * time.Hour, Registerer: reg,
		Known: func(name faas.Name) (int, string, bool) { return 0, "", name == echo },
		Wake: func(ctx context.Context, _ faas.Name) error {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return errors.New("it doesn't wake")
		},
		Declared: func(name faas.Name) *faas.Function {
			if name != echo {
				return nil
			}
			return &faas.Function{}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, release
}

// TestLoadIsExact: calls that wait are in flight, and how long is known exactly,
// also when the counter behind it has gone round.
func TestLoadIsExact(t *testing.T) {
	for _, unit := range []time.Duration{time.Millisecond, time.Second, 24 * time.Hour} {
		t.Run(unit.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, release := sleeper(t, nil)
				began := time.Now()
				var all sync.WaitGroup
				for _, start := range []time.Duration{0, 20, 50} {
					all.Go(func() {
						time.Sleep(start * unit)
						p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/function/echo", nil))
					})
				}
				for _, tt := range []struct {
					at       time.Duration
					inFlight int64
					busy     time.Duration
				}{{10, 1, 10}, {30, 2, 30 + 10}, {60, 3, 60 + 40 + 10}, {80, 3, 80 + 60 + 30}, {90, 3, 90 + 70 + 40}, {110, 3, 110 + 90 + 60}} {
					time.Sleep(time.Until(began.Add(tt.at * unit)))
					synctest.Wait()
					if l := loadOf(p); l.InFlight != tt.inFlight || l.Started != uint64(tt.inFlight) || l.Busy != tt.busy*unit {
						t.Errorf("at %v: load = %+v, want %d in flight for %v", tt.at*unit, l, tt.inFlight, tt.busy*unit)
					}
				}
				close(release)
				all.Wait()
				time.Sleep(unit)
				if l := loadOf(p); l.InFlight != 0 || l.Started != 3 || l.Busy != 260*unit {
					t.Errorf("at the end: load = %+v, want none in flight for %v", l, 260*unit)
				}
			})
		})
	}
}

// TestLoadAgreesWithTheMetrics has many calls at the same time, and somebody who
// looks at their load all the while.
func TestLoadAgreesWithTheMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Registerer = reg })
	w.serve("echo-1", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "", 200+len(r.URL.Path)%3) })
	const callers, each = 8, 100
	stop, began := make(chan struct{}), time.Now()
	var look, all sync.WaitGroup
	look.Go(func() {
		var last faas.Load
		for {
			l := loadOf(w.proxy)
			// A client has its answer a moment before the call has ended here.
			if most := 2 * callers * time.Since(began); l.Started < last.Started || l.InFlight < 0 || l.InFlight > 2*callers || l.Busy < 0 || l.Busy > most {
				t.Errorf("load went from %+v to %+v, and can't be more than %v busy", last, l, most)
			}
			last = l
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for range callers {
		all.Go(func() {
			for n := range each {
				w.do("GET", "/function/echo/"+strings.Repeat("x", n%3), "")
			}
		})
	}
	all.Wait()
	close(stop)
	look.Wait()
	eventually(t, "all calls have ended", func() bool { return loadOf(w.proxy).InFlight == 0 })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, count := 0.0, uint64(0)
	for _, f := range families {
		if f.GetName() == "gateway_functions_seconds" {
			for _, m := range f.Metric {
				sum += m.Histogram.GetSampleSum()
				count += m.Histogram.GetSampleCount()
			}
		}
	}
	l := loadOf(w.proxy)
	if l.Started != callers*each || count != callers*each || w.proxy.Invocations(echo) != callers*each {
		t.Errorf("%d calls arrived, %d are in the histogram, %v were invocations, want %d", l.Started, count, w.proxy.Invocations(echo), callers*each)
	}
	if d := math.Abs(l.Busy.Seconds() - sum); d > callers*each*2e-6 { // the integral counts microseconds
		t.Errorf("calls were in flight for %v, and took %v s by the histogram", l.Busy, sum)
	}
}

func TestDirectCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		p, _ := sleeper(t, reg)
		tell := func(client string, u proxy.Usage) {
			t.Helper()
			if err := p.Direct(client, echo, u); err != nil {
				t.Error(err)
			}
		}
		tell("a", proxy.Usage{Started: 10, InFlight: 3, Busy: 2 * time.Second, Ended: []proxy.Ended{{Code: 200, Calls: 6, Took: 600 * time.Millisecond}, {Code: 502, Calls: 1}}})
		tell("b", proxy.Usage{Started: 1, InFlight: 1, Busy: time.Second})
		if l := loadOf(p); l != (faas.Load{InFlight: 4, Started: 11, Busy: 3 * time.Second}) {
			t.Errorf("load = %+v", l)
		}
		time.Sleep(3 * time.Second)
		tell("a", proxy.Usage{InFlight: 2, Busy: 500 * time.Millisecond})
		time.Sleep(3 * time.Second) // b has been silent for too long
		if l := loadOf(p); l != (faas.Load{InFlight: 2, Started: 11, Busy: 3500 * time.Millisecond}) {
			t.Errorf("load = %+v", l)
		}
		tell("a", proxy.Usage{})
		if l := loadOf(p); l.InFlight != 0 {
			t.Errorf("load = %+v, want none in flight", l)
		}
		got := gather(t, reg)
		for k, want := range map[string]float64{
			"gateway_function_invocation_total 200 echo.openfaas-fn": 6,
			"gateway_function_invocation_total 502 echo.openfaas-fn": 1,
			"gateway_function_invocation_started echo.openfaas-fn":   11,
		} {
			if got[k] != want {
				t.Errorf("%s = %v, want %v", k, got[k], want)
			}
		}
		if n := p.Invocations(echo); n != 7 {
			t.Errorf("%v invocations, want 7", n)
		}

		for name, tt := range map[string]struct {
			client string
			name   faas.Name
			u      proxy.Usage
			kind   error
		}{
			"unknown function":  {"a", faas.Name{Function: "none", Namespace: "n"}, proxy.Usage{}, faas.ErrNotFound},
			"no client":         {"", echo, proxy.Usage{}, faas.ErrInvalid},
			"a long client":     {strings.Repeat("a", 129), echo, proxy.Usage{}, faas.ErrInvalid},
			"less than nothing": {"a", echo, proxy.Usage{InFlight: -1}, faas.ErrInvalid},
			"negative time":     {"a", echo, proxy.Usage{Busy: -1}, faas.ErrInvalid},
			"absurdly many":     {"a", echo, proxy.Usage{Started: math.MaxUint64}, faas.ErrInvalid},
			"absurdly long":     {"a", echo, proxy.Usage{Busy: math.MaxInt64}, faas.ErrInvalid},
			"no status":         {"a", echo, proxy.Usage{Ended: []proxy.Ended{{Code: 7, Calls: 1}}}, faas.ErrInvalid},
			"absurd sums":       {"a", echo, proxy.Usage{Ended: []proxy.Ended{{Code: 200, Calls: math.MaxUint64}, {Code: 200, Calls: 2}}}, faas.ErrInvalid},
		} {
			if err := p.Direct(tt.client, tt.name, tt.u); !errors.Is(err, tt.kind) {
				t.Errorf("%s: %v, want %v", name, err, tt.kind)
			}
		}

		// Who tells is bounded; who is silent makes room.
		var err error
		told := 0
		for ; err == nil && told < 10_000; told++ {
			err = p.Direct(fmt.Sprintf("c%d", told), echo, proxy.Usage{InFlight: 1})
		}
		if !errors.Is(err, faas.ErrOverloaded) || told != 4097 {
			t.Errorf("client %d: %v, want an ErrOverloaded for the 4097th", told, err)
		}
		tell("c1", proxy.Usage{InFlight: 1}) // it is known
		time.Sleep(6 * time.Second)
		tell("late", proxy.Usage{InFlight: 1})
	})
}
