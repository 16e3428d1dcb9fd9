package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

func (w *world) running(name faas.Name) *faas.Function {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.declared[name]
}

// declare gives echo annotations ("key", "value", …), as a new declaration would.
func (w *world) declare(annotations ...string) {
	w.declareAs(echo, &faas.Function{Digest: "sha256:1", Revision: 1}, annotations...)
}

func (w *world) declareAs(name faas.Name, f *faas.Function, annotations ...string) {
	a := map[string]string{}
	for i := 0; i+1 < len(annotations); i += 2 {
		a["thicket."+annotations[i]] = annotations[i+1]
	}
	f.Service, f.Namespace, f.Annotations = name.Function, name.Namespace, &a
	w.mu.Lock()
	if w.declared == nil {
		w.declared = make(map[faas.Name]*faas.Function)
	}
	w.declared[name] = f
	w.mu.Unlock()
	w.proxy.Changed(name)
}

// serveRevision is serve for a replica of a revision.
func (w *world) serveRevision(id string, revision uint64, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	w.table.Observe(replicaOf(echo, id, revision, s, faas.Ready))
	return s
}

// newCache is a cache in process, and what closes it.
func newCache(t *testing.T) *stale.Cache {
	t.Helper()
	c, err := stale.Open(stale.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// order asks for what operators do, and returns the answer or the error's text.
func (w *world) order(pattern, name, query, body string) (string, error) {
	w.t.Helper()
	serve := w.proxy.Operate()[pattern]
	if serve == nil {
		w.t.Fatalf("there is no %s", pattern)
	}
	r := httptest.NewRequestWithContext(w.t.Context(), "PUT", "/?"+query, strings.NewReader(body))
	r.SetPathValue("name", name)
	rec := httptest.NewRecorder()
	err := serve(rec, r)
	return rec.Body.String(), err
}

// state is what operators see of echo.
type state struct {
	Policy   map[string]string
	Asked    bool
	Timeout  string
	Replicas []struct {
		ID      string
		Balance struct {
			Latency string
			Weight  float64
		}
		Breaker struct {
			State, Mode string
			Opened      int
		}
	}
	RetryBudget *struct{ Calls, Retries int }
	Counts      map[string]int
	Chaos       *struct{ Errors float64 }
}

func (w *world) state() state {
	w.t.Helper()
	text, err := w.order("GET /system/resilience/{name}", "echo", "", "")
	if err != nil {
		w.t.Fatal(err)
	}
	var s state
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// breaker returns the state of a replica's breaker.
func (s state) breaker(id string) string {
	for _, r := range s.Replicas {
		if r.ID == id {
			return r.Breaker.State
		}
	}
	return ""
}

// answers returns a handler that answers with what code says, and counts.
func answers(code *atomic.Int64, calls *atomic.Int64) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		rw.WriteHeader(int(code.Load()))
		fmt.Fprintf(rw, "answer %d", code.Load())
	}
}

func value(n int64) *atomic.Int64 {
	v := new(atomic.Int64)
	v.Store(n)
	return v
}

// TestBrokenReplica holds that a replica that fails is skipped while there is
// another, with a policy and without, and is asked again when it is back.
func TestBrokenReplica(t *testing.T) {
	for _, tt := range []struct {
		name        string
		annotations []string
	}{
		{"without a policy", nil},
		{"with one", []string{"breaker", "50%/10s open=100ms"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.declare(tt.annotations...)
			var good, bad atomic.Int64
			ill := value(500)
			w.serve("good", answers(value(200), &good))
			w.serve("bad", answers(ill, &bad))
			eventually(t, "the bad one is left alone", func() bool {
				w.do("GET", "/function/echo", "")
				return w.state().breaker("bad") == "open"
			})
			if n := bad.Load(); n > 10 {
				t.Errorf("it took %d calls, want no more than 10", n)
			}
			if tt.annotations == nil {
				before := bad.Load()
				for range 50 {
					if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
						t.Fatalf("code = %d while there is a good replica", res.StatusCode)
					}
				}
				if n := bad.Load() - before; n > 0 {
					t.Errorf("%d calls went to the bad one", n)
				}
				return
			}
			ill.Store(200)
			eventually(t, "it is back", func() bool {
				if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
					t.Fatalf("code = %d from a replica that is well", res.StatusCode)
				}
				return w.state().breaker("bad") != "open"
			})
		})
	}
}

// TestNothingToTripOver holds that what clients do wrong, and clients that
// leave, say nothing about a replica.
func TestNothingToTripOver(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("breaker", "10%/10s min=1 consecutive=1")
	code, calls := value(404), new(atomic.Int64)
	hang := make(chan struct{})
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			calls.Add(1)
			select {
			case <-r.Context().Done():
			case <-hang:
			}
			return
		}
		answers(code, calls)(rw, r)
	})
	for _, c := range []int64{400, 401, 403, 404, 405, 409, 410, 413, 418, 422, 451, 501, 505} {
		code.Store(c)
		for range 3 {
			if res, _ := w.do("POST", "/function/echo", "x"); int64(res.StatusCode) != c {
				t.Fatalf("code = %d, want the function's %d", res.StatusCode, c)
			}
		}
	}
	for range 20 {
		before := calls.Load()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", w.url+"/function/echo/hang", nil)
			res, err := noRedirects.Do(req)
			if err == nil {
				res.Body.Close()
			}
			done <- err
		}()
		eventually(t, "the function is called", func() bool { return calls.Load() > before })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("the client got %v", err)
		}
	}
	close(hang)
	eventually(t, "nothing is under way", func() bool { return w.table.Replicas()[0].InFlight == 0 })
	if s := w.state(); s.breaker("a") != "closed" || s.Counts["breaker_opened"] != 0 {
		t.Errorf("state = %+v, want a breaker that never opened", s)
	}
}

// TestThrottled holds that a replica which asks for it is left alone, and that
// one client that is told to wait doesn't make the others wait.
func TestThrottled(t *testing.T) {
	for _, tt := range []struct{ code, want int }{{503, 503}, {429, 200}} {
		w := newWorld(t, nil)
		w.declare("attempts", "1")
		w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/greedy" {
				rw.Header().Set("Retry-After", "30")
				rw.WriteHeader(tt.code)
			}
		})
		if res, _ := w.do("GET", "/function/echo/greedy", ""); res.StatusCode != tt.code || res.Header.Get("Retry-After") != "30" {
			t.Errorf("answer = %d, Retry-After %q, want the function's %d", res.StatusCode, res.Header.Get("Retry-After"), tt.code)
		}
		if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != tt.want || tt.want == 503 && res.Header.Get("Retry-After") != "30" {
			t.Errorf("after %d: answer = %d, Retry-After %q, want %d", tt.code, res.StatusCode, res.Header.Get("Retry-After"), tt.want)
		}
	}
}

// TestAllBroken holds that with all replicas broken, the callers of a function
// without a policy get what it answers; with one they get an error at once that
// says when to come back, and the replicas are looked at nonetheless.
func TestAllBroken(t *testing.T) {
	t.Run("without a policy", func(t *testing.T) {
		w := newWorld(t, nil)
		var a, b atomic.Int64
		w.serve("a", answers(value(500), &a))
		w.serve("b", answers(value(500), &b))
		for range 100 {
			if res, text := w.do("GET", "/function/echo", ""); res.StatusCode != 500 || text != "answer 500" {
				t.Fatalf("answer = %d %q, want the function's own", res.StatusCode, text)
			}
		}
		if n := a.Load() + b.Load(); n != 100 || a.Load() == 0 || b.Load() == 0 {
			t.Errorf("%d and %d calls reached the replicas, want all 100 at both", a.Load(), b.Load())
		}
	})
	t.Run("with one", func(t *testing.T) {
		w := newWorld(t, nil)
		w.declare("attempts", "1", "breaker", "50%/10s open=1h")
		var calls atomic.Int64
		ill := value(500)
		w.serve("a", answers(ill, &calls))
		for range 5 {
			if res, text := w.do("GET", "/function/echo", ""); text != "answer 500" {
				t.Fatalf("answer = %d %q, want the function's own", res.StatusCode, text)
			}
		}
		eventually(t, "it is left alone", func() bool { // unless a second has gone by already
			before := calls.Load()
			res, text := w.do("GET", "/function/echo", "")
			return res.StatusCode == 503 && res.Header.Get("Retry-After") == "1" && strings.Contains(text, "left alone") && calls.Load() == before
		})
		// Its breaker is open for an hour, but nobody else is there.
		ill.Store(200)
		eventually(t, "it is looked at", func() bool {
			res, _ := w.do("GET", "/function/echo", "")
			return res.StatusCode == 200
		})
	})
}

// TestAttempts holds what is tried again, and what isn't.
func TestAttempts(t *testing.T) {
	for _, tt := range []struct {
		name, method, body string
		header             []string
		code               int64
		attempts           string
		calls              int64 // of both replicas
		want               int   // with one that fails and one that doesn't
	}{
		{"a GET", "GET", "", nil, 503, "3", 2, 200},
		{"two at most", "GET", "", nil, 502, "2", 2, 200},
		{"one only", "GET", "", nil, 503, "1", 1, 503},
		{"a POST", "POST", "x", nil, 503, "3", 1, 503},
		{"a POST with a key", "POST", "x", []string{"Idempotency-Key", "1"}, 503, "3", 2, 200},
		{"a POST with a key and a large body", "POST", strings.Repeat("x", 64<<10+1), []string{"Idempotency-Key", "1"}, 503, "3", 1, 503},
		{"a PUT", "PUT", "x", nil, 503, "3", 1, 503},
		{"the function's own mistake", "GET", "", nil, 500, "3", 1, 500},
		{"the client's", "GET", "", nil, 404, "3", 1, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.declare("attempts", tt.attempts)
			var calls atomic.Int64
			// Whichever is asked first fails, the other doesn't.
			handler := func(rw http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if string(body) != tt.body {
					t.Errorf("the function got %d bytes, want %d", len(body), len(tt.body))
				}
				if calls.Add(1) == 1 {
					rw.WriteHeader(int(tt.code))
				}
			}
			w.serve("a", handler)
			w.serve("b", handler)
			res, _ := w.do(tt.method, "/function/echo", tt.body, tt.header...)
			if res.StatusCode != tt.want || calls.Load() != tt.calls {
				t.Errorf("code = %d after %d calls, want %d after %d", res.StatusCode, calls.Load(), tt.want, tt.calls)
			}
		})
	}
	t.Run("a connection that breaks", func(t *testing.T) {
		w := newWorld(t, nil)
		w.declare("attempts", "3")
		w.serve("good", func(http.ResponseWriter, *http.Request) {})
		w.serve("bad", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		for range 3 { // what the budget has at least
			if res, text := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
				t.Fatalf("answer = %d %q", res.StatusCode, text)
			}
		}
	})
	t.Run("the same replica if there is no other", func(t *testing.T) {
		w := newWorld(t, nil)
		w.declare("attempts", "3")
		var calls atomic.Int64
		w.serve("a", func(rw http.ResponseWriter, _ *http.Request) {
			if calls.Add(1) < 3 {
				rw.WriteHeader(503)
			}
		})
		if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 || calls.Load() != 3 {
			t.Errorf("code = %d after %d calls, want 200 after 3", res.StatusCode, calls.Load())
		}
	})
}

// TestRetryStorm holds that attempts are bounded by a share of the calls, when
// all replicas fail for everybody.
func TestRetryStorm(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("attempts", "3", "breaker", "off")
	var calls atomic.Int64
	for _, id := range []string{"a", "b", "c"} {
		w.serve(id, answers(value(503), &calls))
	}
	const clients, each = 10, 30
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range each {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/function/echo", nil)
				res, err := noRedirects.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
			}
		})
	}
	group.Wait()
	if n := calls.Load(); n > clients*each*12/10+3 || n == clients*each {
		t.Errorf("%d calls reached the function for %d of clients, want a few more and at most 1.2 times as many", n, clients*each)
	}
	if s := w.state(); s.RetryBudget == nil || s.RetryBudget.Retries == 0 || s.Counts["retry"] == 0 || s.Counts["budget_spent"] == 0 {
		t.Errorf("state = %+v, want retries and a budget that was spent", s)
	}
}

// TestDeadline holds who ends a call that takes too long, and that it says so.
func TestDeadline(t *testing.T) {
	for _, tt := range []struct {
		name        string
		annotations []string
		env         map[string]string
		header      []string
		want        string
		told        bool // the function is told how long it has
	}{
		{"the gateway", nil, nil, nil, "took longer than 400ms, the limit for a call: have it answer sooner, or raise THE_TIMEOUT", false},
		{"the policy", []string{"timeout", "50ms"}, nil, nil, "took longer than 50ms, its limit for a call: have it answer sooner, or raise its annotation thicket.timeout", true},
		{"an attempt", []string{"timeout", "300ms/50ms", "attempts", "1"}, nil, nil, "longer than 50ms, the limit for each attempt", true},
		{"a policy that asks for more than there is", []string{"timeout", "5s"}, nil, nil, "took longer than 400ms, the limit for a call: have it answer sooner, or raise THE_TIMEOUT", true},
		{"the caller", nil, nil, []string{"X-Timeout", "60ms"}, "not done within the 60ms that the request's header X-Timeout gives it", true},
		{"the caller has more than the policy", []string{"timeout", "50ms"}, nil, []string{"X-Timeout", "5s"}, "took longer than 50ms, its limit", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, c *proxy.Config) {
				c.Timeout, c.TimeoutSetting = 400*time.Millisecond, "THE_TIMEOUT"
			})
			w.declareAs(echo, &faas.Function{FunctionDeployment: types.FunctionDeployment{EnvVars: tt.env}}, tt.annotations...)
			given := make(chan string, 1)
			w.serve("a", func(_ http.ResponseWriter, r *http.Request) {
				given <- r.Header.Get("X-Timeout")
				<-r.Context().Done()
			})
			start := time.Now()
			res, text := w.do("GET", "/function/echo", "", tt.header...)
			if res.StatusCode != 504 || !strings.Contains(text, tt.want) {
				t.Errorf("answer = %d %q, want 504 with %q", res.StatusCode, text, tt.want)
			}
			told := <-given
			if left, err := time.ParseDuration(told); tt.told && (err != nil || left <= 0 || left > 400*time.Millisecond) || !tt.told && told != "" {
				t.Errorf("X-Timeout = %q after %v", told, time.Since(start))
			}
		})
	}
}

// TestBulkhead holds that a replica gets no more calls at the same time than its
// policy says, and that what is too much is refused and no failure.
func TestBulkhead(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("bulkhead", "2", "attempts", "1")
	let, in := make(chan struct{}), make(chan struct{}, 10)
	w.serve("a", func(http.ResponseWriter, *http.Request) {
		in <- struct{}{}
		<-let
	})
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/function/echo", nil)
			if res, err := noRedirects.Do(req); err == nil {
				res.Body.Close()
			}
		})
		<-in
	}
	res, text := w.do("GET", "/function/echo", "")
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !strings.Contains(text, "bulkhead") {
		t.Errorf("answer = %d %q", res.StatusCode, text)
	}
	close(let)
	group.Wait()
	if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
		t.Errorf("code = %d when there is room again", res.StatusCode)
	}
	if s := w.state(); s.Counts["bulkhead_full"] != 1 || s.breaker("a") != "closed" {
		t.Errorf("state = %+v", s)
	}
}
