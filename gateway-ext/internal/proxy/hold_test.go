package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

func hello(id string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s got %q", id, b)
	}
}

// gather reads the metrics: "name label…" -> value, of histograms the count.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var key strings.Builder
			key.WriteString(f.GetName())
			for _, l := range m.Label {
				key.WriteString(" " + l.GetValue())
			}
			switch {
			case m.Counter != nil:
				got[key.String()] = m.Counter.GetValue()
			case m.Gauge != nil:
				got[key.String()] = m.Gauge.GetValue()
			case m.Histogram != nil:
				got[key.String()] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return got
}

func TestHoldWhileStarting(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Registerer = reg })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if res, body := w.do("POST", "/function/echo", "x"); res.StatusCode != 200 || body != `a got "x"` {
				t.Errorf("answer = %d %q", res.StatusCode, body)
			}
		})
	}
	eventually(t, "20 calls wait", func() bool {
		return gather(t, reg)["gateway_function_invocation_inflight echo.openfaas-fn"] == 20
	})
	w.serve("a", hello("a"))
	wg.Wait()
}

func TestWakeOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail error
		code int
		text string
	}{
		{"waked", nil, 200, `a got "x"`},
		{"in vain", errors.New("the node is full"), 503, "function echo.openfaas-fn sleeps and could not be waked: the node is full\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			release := make(chan struct{})
			var wakes atomic.Int64
			w := newWorld(t, func(w *world, c *proxy.Config) {
				c.Registerer = reg
				w.wanted[echo] = 0
				c.Wake = func(_ context.Context, name faas.Name) error {
					wakes.Add(1)
					<-release
					if tt.fail == nil {
						w.want(name, 1)
					}
					return tt.fail
				}
			})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if res, body := w.do("POST", "/function/echo", "x"); res.StatusCode != tt.code || body != tt.text {
						t.Errorf("answer = %d %q", res.StatusCode, body)
					}
				})
			}
			eventually(t, "20 calls wait", func() bool {
				return gather(t, reg)["gateway_function_invocation_inflight echo.openfaas-fn"] == 20 && wakes.Load() > 0
			})
			if n := wakes.Load(); n != 1 {
				t.Errorf("it is being waked %d times at once", n)
			}
			close(release)
			if tt.fail == nil {
				w.serve("a", hello("a"))
			}
			wg.Wait()
			if n := wakes.Load(); tt.fail == nil && n != 1 {
				t.Errorf("it was waked %d times, want 1", n)
			}
		})
	}
}

func TestWakeOutlivesItsClient(t *testing.T) {
	var wakes atomic.Int64
	began, release, waked := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	w := newWorld(t, func(w *world, c *proxy.Config) {
		w.wanted[echo] = 0
		c.Wake = func(ctx context.Context, name faas.Name) error {
			wakes.Add(1)
			close(began)
			<-release
			waked <- ctx.Err()
			w.want(name, 1)
			return nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/function/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := noRedirects.Do(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release)
	if err := <-waked; err != nil {
		t.Errorf("the wake was ended with its client: %v", err)
	}
}

func TestHoldIsBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.HoldQueue = 3; c.Registerer = reg })
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if res, body := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
				t.Errorf("a call that waited: %d %q", res.StatusCode, body)
			}
		})
	}
	// A call is in flight a moment before it waits; the fourth is refused as
	// soon as the three do.
	eventually(t, "3 calls wait", func() bool {
		return gather(t, reg)["gateway_function_invocation_inflight echo.openfaas-fn"] == 3
	})
	eventually(t, "the fourth is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/function/echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := noRedirects.Do(req)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" || !strings.Contains(string(b), "3 requests wait") {
			t.Errorf("answer = %d %v %q", res.StatusCode, res.Header, b)
		}
		return true
	})
	w.serve("a", hello("a"))
	wg.Wait()
}

func TestDeletedWhileWaiting(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Registerer = reg })
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, body := w.do("GET", "/function/echo", ""); res.StatusCode != 404 {
			t.Errorf("answer = %d %q, want 404", res.StatusCode, body)
		}
	})
	eventually(t, "the call waits", func() bool {
		return gather(t, reg)["gateway_function_invocation_inflight echo.openfaas-fn"] == 1
	})
	w.mu.Lock()
	delete(w.wanted, echo)
	w.mu.Unlock()
	wg.Wait()
}

// TestUnreachable holds that a replica which can't be reached costs nobody an
// answer, whatever the method, and that the body arrives whole.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, nil)
	w.observe("dead", w.dead(), faas.Ready)
	w.serve("alive", hello("alive"))
	for range 20 {
		for _, m := range []string{"GET", "POST", "DELETE"} {
			if res, body := w.do(m, "/function/echo", "x"); res.StatusCode != 200 || body != `alive got "x"` {
				t.Errorf("%s: %d %q", m, res.StatusCode, body)
			}
		}
	}
}

func TestUnreachableUntilReplaced(t *testing.T) {
	w := newWorld(t, nil)
	w.observe("dead", w.dead(), faas.Ready)
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, body := w.do("POST", "/function/echo", "x"); res.StatusCode != 200 || body != `new got "x"` {
			t.Errorf("answer = %d %q", res.StatusCode, body)
		}
	})
	w.observe("dead", w.dead(), faas.Gone)
	w.serve("new", hello("new"))
	wg.Wait()
}

func TestAllUnreachable(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.HoldTime = 200 * time.Millisecond })
	w.observe("a", w.dead(), faas.Ready)
	w.observe("b", w.dead(), faas.Ready)
	res, body := w.do("POST", "/function/echo", "x")
	if res.StatusCode != 502 || !strings.Contains(body, "connection refused") || strings.Contains(body, "127.0.0.1") {
		t.Errorf("answer = %d %q, want 502 and why, without addresses", res.StatusCode, body)
	}
}

// TestHalfSent holds that a request of which a replica may have seen something
// is never sent again.
func TestHalfSent(t *testing.T) {
	w := newWorld(t, nil)
	var asked atomic.Int64
	hangUp := func(http.ResponseWriter, *http.Request) {
		asked.Add(1)
		panic(http.ErrAbortHandler)
	}
	w.serve("a", hangUp)
	w.serve("b", hangUp)
	for i, body := range []string{"x", ""} {
		if res, _ := w.do("POST", "/function/echo", body); res.StatusCode != 502 {
			t.Errorf("code = %d, want 502", res.StatusCode)
		}
		if n := asked.Load(); n != int64(i)+1 {
			t.Errorf("%d requests were sent for %d", n, i+1)
		}
	}
}

// TestConnectionClosedMeanwhile holds that a replica which closes connections
// that are kept costs no call that may be repeated, and has none done twice.
func TestConnectionClosedMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	var asked atomic.Int64
	s := w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Method == "POST" {
			asked.Add(1)
		}
	})
	for range 50 {
		if res, body := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
			t.Fatalf("GET: %d %q", res.StatusCode, body)
		}
		s.CloseClientConnections()
	}
	answers := int64(0)
	for i := range int64(50) {
		// If it is closed while the request is on its way nobody can know
		// whether it was done; then it is an error and not a second try.
		if res, _ := w.do("POST", "/function/echo", "x"); res.StatusCode == 200 {
			answers++
		}
		if n := asked.Load(); n > i+1 || n < answers {
			t.Fatalf("%d calls, of which %d had an answer, were done %d times", i+1, answers, n)
		}
		s.CloseClientConnections()
	}
}

// TestUpdateUnderLoad replaces a function's replicas again and again while it is
// called, as a provider does, and holds that no call fails.
func TestUpdateUnderLoad(t *testing.T) {
	const clients, generations = 8, 40
	w := newWorld(t, nil)
	type running struct {
		server *http.Server
		addr   string
		ended  chan error
	}
	start := func(g int) running {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r := running{&http.Server{Handler: hello("r")}, l.Addr().String(), make(chan error, 1)}
		go func() { r.ended <- r.server.Serve(l) }()
		w.observe(fmt.Sprint(g), r.addr, faas.Starting)
		w.observe(fmt.Sprint(g), r.addr, faas.Ready)
		return r
	}
	current := start(0)
	done := make(chan struct{})
	var calls atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			body := strings.Repeat("x", i*1000)
			for {
				select {
				case <-done:
					return
				default:
				}
				res, got := w.do("POST", "/function/echo", body)
				if res.StatusCode != 200 || got != fmt.Sprintf("r got %q", body) {
					t.Errorf("answer = %d %.100q", res.StatusCode, got)
					return
				}
				calls.Add(1)
			}
		})
	}
	for g := range generations {
		next := start(g + 1)
		before := calls.Load()
		w.observe(fmt.Sprint(g), current.addr, faas.Draining)
		if err := w.table.Idle(t.Context(), fmt.Sprint(g)); err != nil {
			t.Error(err)
		}
		current.server.Close() // at once: whoever were still there would be cut off
		<-current.ended
		w.observe(fmt.Sprint(g), current.addr, faas.Gone)
		current = next
		eventually(t, "the new replica is called", func() bool { return t.Failed() || calls.Load() > before+clients })
	}
	close(done)
	wg.Wait()
	current.server.Close()
	<-current.ended
	t.Logf("%d calls over %d updates", calls.Load(), generations)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Registerer = reg })
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		var code int
		fmt.Sscanf(r.URL.Path, "/%d", &code)
		rw.WriteHeader(code)
	})
	for _, code := range []int{200, 200, 404, 500} {
		w.do("GET", fmt.Sprintf("/function/echo/%d", code), "")
	}
	w.do("GET", "/function/stranger", "")
	const fn = " echo.openfaas-fn"
	want := map[string]float64{
		"gateway_function_invocation_total 200" + fn: 2,
		"gateway_function_invocation_total 404" + fn: 1,
		"gateway_function_invocation_total 500" + fn: 1,
		"gateway_functions_seconds 200" + fn:         2,
		"gateway_functions_seconds 404" + fn:         1,
		"gateway_functions_seconds 500" + fn:         1,
		"gateway_function_invocation_started" + fn:   4,
		"gateway_function_invocation_inflight" + fn:  0,
		"gateway_service_count" + fn:                 1,
		"gateway_service_ready_count" + fn:           1,
		"thicket_function_calls_waiting" + fn:        0,
		"thicket_function_wakes_total" + fn:          0,

		"thicket_resilience_events_total success" + fn: 3, // a 404 is an answer
		"thicket_resilience_events_total failure" + fn: 1,
		"thicket_resilience_breakers closed" + fn:      1,
		"thicket_resilience_breakers half-open" + fn:   0,
		"thicket_resilience_breakers open" + fn:        0,
		"thicket_resilience_events_dropped_total":      0,
	}
	var got map[string]float64
	eventually(t, "all calls are counted", func() bool {
		got = gather(t, reg)
		return w.proxy.Invocations(echo) == 4 && got["gateway_function_invocation_inflight"+fn] == 0
	})
	for k, v := range want {
		if g, ok := got[k]; g != v || !ok {
			t.Errorf("%s = %v, want %v", k, g, v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d series, want %d: %v", len(got), len(want), got)
	}

	for code := 300; code < 400; code++ { // 304 and all
		w.do("GET", fmt.Sprintf("/function/echo/%d", code), "")
	}
	eventually(t, "all calls are counted", func() bool { return w.proxy.Invocations(echo) == 104 })
	got = gather(t, reg)
	if n := got["gateway_function_invocation_total 3xx"+fn]; len(got) > 70 || n < 50 {
		t.Errorf("a function made %d series, %v calls are in its class", len(got), n)
	}

	w.mu.Lock()
	delete(w.wanted, echo)
	w.mu.Unlock()
	w.proxy.Forget(echo)
	if got := gather(t, reg); len(got) != 1 || w.proxy.Invocations(echo) != 0 {
		t.Errorf("after Forget: %v", got)
	}
}

// BenchmarkProxy carries calls to a function that answers at once: one without a
// policy, one with all that a policy can ask for, and one whose kept answers are
// fresh. What the client and the function need for themselves is in the numbers.
func BenchmarkProxy(b *testing.B) {
	for _, bb := range []struct {
		name        string
		annotations map[string]string
	}{
		{"plain", nil},
		{"policy", map[string]string{"thicket.timeout": "10s/5s", "thicket.slow": "2s", "thicket.bulkhead": "64", "thicket.attempts": "3"}},
		{"kept", map[string]string{"thicket.fallback": "stale", "thicket.stale.fresh": "1h"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			function := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "2")
				io.WriteString(w, "ok")
			}))
			b.Cleanup(function.Close)
			table := discovery.New()
			table.Observe(faas.Replica{ID: "a", Function: echo, State: faas.Ready, Addr: netip.MustParseAddrPort(function.Listener.Addr().String())})
			cache, err := stale.Open(stale.Config{Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = cache.Close() })
			p, err := proxy.New(proxy.Config{
				Table: table, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Cache: cache,
				Known: func(faas.Name) (int, string, bool) { return 1, "", true },
				Declared: func(faas.Name) *faas.Function {
					return &faas.Function{FunctionDeployment: types.FunctionDeployment{Annotations: &bb.annotations}}
				},
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(p.Close)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					w := httptest.NewRecorder()
					r := httptest.NewRequestWithContext(b.Context(), "GET", "/function/echo/a?b=c", nil)
					p.ServeHTTP(w, r)
					if w.Code != http.StatusOK {
						b.Errorf("code = %d: %s", w.Code, w.Body)
						return
					}
				}
			})
		})
	}
}
