package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// withCache is a gateway that keeps answers.
func withCache(t *testing.T) *world {
	return newWorld(t, func(_ *world, c *proxy.Config) { c.Cache = newCache(t) })
}

// numbered answers with how often it was called.
func numbered(calls *atomic.Int64) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %d", r.URL.RequestURI(), calls.Add(1))
	}
}

// TestStale holds that callers get the last good answer, marked, whatever it is
// that failed; and the function's again when it is back.
func TestStale(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(w *world, code *atomic.Int64)
		mend func(w *world, code *atomic.Int64)
	}{
		{"it answers 500", func(_ *world, c *atomic.Int64) { c.Store(500) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it answers 503", func(_ *world, c *atomic.Int64) { c.Store(503) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it answers 429", func(_ *world, c *atomic.Int64) { c.Store(429) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it breaks off", func(_ *world, c *atomic.Int64) { c.Store(-1) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it cuts its answer short", func(_ *world, c *atomic.Int64) { c.Store(-2) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it says JSON, and isn't", func(_ *world, c *atomic.Int64) { c.Store(-3) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it hangs", func(_ *world, c *atomic.Int64) { c.Store(-4) }, func(_ *world, c *atomic.Int64) { c.Store(200) }},
		{"it is gone", func(w *world, _ *atomic.Int64) { w.observe("a", "127.0.0.1:1", faas.Gone) }, func(w *world, c *atomic.Int64) {
			w.serveRevision("b", 1, failing(c))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // a failed call is remembered for a second
			w := withCache(t)
			w.declare("fallback", "stale", "stale.for", "1h", "timeout", "100ms", "attempts", "1", "breaker", "off")
			code := value(200)
			w.serveRevision("a", 1, failing(code))
			if res, text := w.do("GET", "/function/echo/x?b=2&a=1", ""); text != "good" || res.Header.Get("Age") != "" || !strings.Contains(res.Header.Get("Cache-Status"), "thicket; fwd=miss; stored") {
				t.Fatalf("answer = %d %q, %v", res.StatusCode, text, res.Header)
			}
			tt.fail(w, code)
			for range 3 {
				res, text := w.do("GET", "/function/echo/x?a=1&b=2", "")
				status := res.Header.Get("Cache-Status")
				if age, err := strconv.Atoi(res.Header.Get("Age")); res.StatusCode != 200 || text != "good" || err != nil || age < 0 ||
					!strings.HasPrefix(status, "thicket; hit; ttl=") || !strings.Contains(status, "stale_if_error") {
					t.Fatalf("answer = %d %q, %v", res.StatusCode, text, res.Header)
				}
				if res.Header.Get("X-Call-Id") == "" || res.Header.Get("X-Served-By") == "" || res.Header.Get("X-Of-Function") != "yes" {
					t.Fatalf("header = %v", res.Header)
				}
			}
			tt.mend(w, code)
			eventually(t, "fresh answers are back", func() bool {
				res, _ := w.do("GET", "/function/echo/x?a=1&b=2", "")
				return strings.Contains(res.Header.Get("Cache-Status"), "fwd=miss")
			})
		})
	}
}

// TestNobodyWaitsForALook holds that who can have an old answer isn't the one
// who finds out whether a replica that hangs is back.
func TestNobodyWaitsForALook(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "stale.for", "1h", "attempts", "1", "breaker", "50%/10s consecutive=1 open=1h")
	var fails, hangs atomic.Bool
	looked, release, hanging := make(chan struct{}, 100), make(chan struct{}), atomic.Int64{}
	defer close(release)
	w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case hangs.Load():
			hanging.Add(1)
			defer hanging.Add(-1)
			looked <- struct{}{}
			select {
			case <-r.Context().Done():
			case <-release:
			}
		case fails.Load():
			rw.WriteHeader(500)
		default:
			io.WriteString(rw, "good")
		}
	})
	w.do("GET", "/function/echo/a", "")
	fails.Store(true)
	eventually(t, "it is left alone", func() bool {
		w.do("GET", "/function/echo/a", "")
		return w.state().breaker("a") == "open"
	})
	hangs.Store(true)
	eventually(t, "it is looked at", func() bool {
		if res, text := w.do("GET", "/function/echo/a", ""); text != "good" || !strings.Contains(res.Header.Get("Cache-Status"), "stale_if_error") {
			t.Fatalf("answer = %d %q, %v", res.StatusCode, text, res.Header)
		}
		select {
		case <-looked:
			return true
		default:
			return false
		}
	})
	if hanging.Load() != 1 {
		t.Error("the caller waited for the replica that hangs")
	}
}

// failing answers as code says; below 0 in ways of its own.
func failing(code *atomic.Int64) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Of-Function", "yes")
		switch c := code.Load(); c {
		case -1:
			panic(http.ErrAbortHandler)
		case -2:
			rw.Header().Set("Content-Length", "100")
			io.WriteString(rw, "short")
		case -3:
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, `{"broken":`)
		case -4:
			<-r.Context().Done()
		case 200:
			io.WriteString(rw, "good")
		default:
			rw.WriteHeader(int(c))
			io.WriteString(rw, "bad")
		}
	}
}

// TestNothingKept holds that the function's own error is given when there is
// nothing to give in its place.
func TestNothingKept(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "attempts", "1")
	w.serveRevision("a", 1, failing(value(500)))
	if res, text := w.do("GET", "/function/echo", ""); res.StatusCode != 500 || text != "bad" || res.Header.Get("X-Of-Function") != "yes" {
		t.Errorf("answer = %d %q, %v, want the function's", res.StatusCode, text, res.Header)
	}
	if res, text := w.do("POST", "/function/echo", "x"); res.StatusCode != 500 || text != "bad" {
		t.Errorf("answer = %d %q, want the function's", res.StatusCode, text)
	}
}

// TestLargeErrors holds that an error with a long text is an error like others.
func TestLargeErrors(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "attempts", "1")
	var fails atomic.Bool
	w.serveRevision("a", 1, func(rw http.ResponseWriter, _ *http.Request) {
		if fails.Load() {
			rw.WriteHeader(500)
			io.WriteString(rw, strings.Repeat("x", 1<<20))
			return
		}
		io.WriteString(rw, "good")
	})
	w.do("GET", "/function/echo/a", "")
	fails.Store(true)
	if res, text := w.do("GET", "/function/echo/a", ""); text != "good" || res.Header.Get("Age") == "" {
		t.Errorf("answer = %d, %d bytes", res.StatusCode, len(text))
	}
	if res, text := w.do("GET", "/function/echo/b", ""); res.StatusCode != 500 || !strings.Contains(text, "more text than is held") {
		t.Errorf("answer = %d, %d bytes", res.StatusCode, len(text))
	}
}

// TestFresh holds that answers are given without a call while they are fresh, to
// those for whom they are, and that conditions are met with what is kept.
func TestFresh(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "stale.fresh", "1h", "stale.vary", "Accept-Language")
	var calls atomic.Int64
	w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" {
			t.Error("the function gets a client's condition")
		}
		rw.Header().Set("ETag", `"1"`)
		numbered(&calls)(rw, r)
	})
	for _, tt := range []struct {
		name, method, path, body string
		header                   []string
		code                     int
		want                     string
	}{
		{"the first", "GET", "/a?x=1&y=2", "", nil, 200, "/a?x=1&y=2 1"},
		{"again", "GET", "/a?x=1&y=2", "", nil, 200, "/a?x=1&y=2 1"},
		{"in another order", "GET", "/a?y=2&x=1", "", nil, 200, "/a?x=1&y=2 1"},
		{"another query", "GET", "/a?x=2", "", nil, 200, "/a?x=2 2"},
		{"another path", "GET", "/b", "", nil, 200, "/b 3"},
		{"another language", "GET", "/b", "", []string{"Accept-Language", "de"}, 200, "/b 4"},
		{"what it doesn't vary by", "GET", "/b", "", []string{"Accept", "text/html"}, 200, "/b 3"},
		{"a POST", "POST", "/b", "x", nil, 200, "/b 5"},
		{"a POST without a body", "POST", "/b", "", nil, 200, "/b 6"},
		{"somebody's", "GET", "/b", "", []string{"Authorization", "x"}, 200, "/b 7"},
		{"somebody's again", "GET", "/b", "", []string{"Authorization", "x"}, 200, "/b 8"},
		{"with a cookie", "GET", "/b", "", []string{"Cookie", "a=b"}, 200, "/b 9"},
		{"who wants nothing kept", "GET", "/b", "", []string{"Cache-Control", "no-store"}, 200, "/b 10"},
		{"who has it", "GET", "/b", "", []string{"If-None-Match", `"1"`}, 304, ""},
		{"who has another", "GET", "/b", "", []string{"If-None-Match", `"2"`}, 200, "/b 3"},
	} {
		if res, text := w.do(tt.method, "/function/echo"+tt.path, tt.body, tt.header...); res.StatusCode != tt.code || text != tt.want {
			t.Errorf("%s: answer = %d %q, want %d %q", tt.name, res.StatusCode, text, tt.code, tt.want)
		}
	}

	// Another image's answers are others. So are those of another environment.
	w.declareAs(echo, &faas.Function{Digest: "sha256:2", Revision: 1}, "fallback", "stale", "stale.fresh", "1h")
	if _, text := w.do("GET", "/function/echo/b", ""); text != "/b 11" {
		t.Errorf("answer = %q of another image", text)
	}
	// While the old replica still runs, its answers are not kept for the new one.
	w.declareAs(echo, &faas.Function{Digest: "sha256:3", Revision: 2}, "fallback", "stale", "stale.fresh", "1h")
	for want := 12; want < 14; want++ {
		if _, text := w.do("GET", "/function/echo/b", ""); text != fmt.Sprint("/b ", want) {
			t.Errorf("answer = %q, want call %d", text, want)
		}
	}
}

// TestNotKept holds what goes by the cache, as it comes: to the caller who asked
// and to those who ask at the same time.
func TestNotKept(t *testing.T) {
	large := strings.Repeat("x", 300<<10)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"a cookie", func(rw http.ResponseWriter, _ *http.Request) {
			http.SetCookie(rw, &http.Cookie{Name: "a", Value: "b"})
			io.WriteString(rw, "yours")
		}, "yours"},
		{"what must not be kept", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Cache-Control", "no-store")
			io.WriteString(rw, "yours")
		}, "yours"},
		{"a client's mistake", func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no", http.StatusForbidden) }, "no\n"},
		{"a large answer of known length", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", strconv.Itoa(len(large)))
			io.WriteString(rw, large)
		}, large},
		{"a large answer of unknown length", func(rw http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(large); i += 1 << 10 {
				io.WriteString(rw, large[i:i+1<<10])
				http.NewResponseController(rw).Flush()
			}
		}, large},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := withCache(t)
			w.declare("fallback", "stale", "stale.fresh", "1h")
			var calls atomic.Int64
			w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				tt.handler(rw, r)
			})
			const callers = 8
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/function/echo", nil)
					res, err := noRedirects.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					if b, err := io.ReadAll(res.Body); err != nil || string(b) != tt.want {
						t.Errorf("got %d bytes, %v, want %d", len(b), err, len(tt.want))
					}
					if s := res.Header.Get("Cache-Status"); s != "thicket; fwd=bypass" {
						t.Errorf("Cache-Status = %q", s)
					}
				})
			}
			group.Wait()
			if calls.Load() != callers {
				t.Errorf("%d calls of %d callers reached the function: somebody got another's answer", calls.Load(), callers)
			}
		})
	}
}

// TestStreamPastCache holds that an event stream of a function whose answers are
// kept arrives piece by piece, outlasts the function's time, ends with its
// client, and holds nobody else up.
func TestStreamPastCache(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "timeout", "200ms")
	next, ended := make(chan struct{}), make(chan struct{}, 2)
	w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(rw).Flush()
		defer func() { ended <- struct{}{} }()
		for i := 0; ; i++ {
			select {
			case <-next:
				fmt.Fprintf(rw, "data: %d\n", i)
				http.NewResponseController(rw).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := w.open(ctx, "GET", "/function/echo", nil)
	second := w.open(ctx, "GET", "/function/echo", nil)
	timer := time.NewTimer(300 * time.Millisecond) // longer than the function's time
	defer timer.Stop()
	<-timer.C
	for range 4 {
		next <- struct{}{}
	}
	got := make(chan string, 4)
	for _, res := range []*http.Response{first, second} {
		go func() {
			for lines := bufio.NewScanner(res.Body); lines.Scan(); {
				got <- lines.Text()
			}
		}()
	}
	for range 4 {
		if line := <-got; !strings.HasPrefix(line, "data: ") {
			t.Errorf("got %q", line)
		}
	}
	cancel()
	<-ended
	<-ended
	eventually(t, "nothing is under way", func() bool { return w.table.Replicas()[0].InFlight == 0 })
}

// TestHerd holds that of many callers of one key one calls the function.
func TestHerd(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "stale.fresh", "1h")
	var calls atomic.Int64
	let := make(chan struct{})
	w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
		<-let
		numbered(&calls)(rw, r)
	})
	const callers = 100
	var group sync.WaitGroup
	var sent atomic.Int64
	for range callers {
		group.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/function/echo", nil)
			sent.Add(1)
			res, err := noRedirects.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if b, _ := io.ReadAll(res.Body); string(b) != "/ 1" {
				t.Errorf("answer = %d %q", res.StatusCode, b)
			}
		})
	}
	eventually(t, "they are on their way", func() bool { return sent.Load() == callers })
	close(let)
	group.Wait()
}

// TestFallbacks holds what is given when there is no answer.
func TestFallbacks(t *testing.T) {
	other := faas.Name{Function: "other", Namespace: faas.DefaultNamespace}
	for _, tt := range []struct {
		name, method, fallback string
		up                     bool // the other function is
		code                   int
		want, kind, mark       string
	}{
		{"none", "GET", "fast", true, 503, "bad", "text/plain; charset=utf-8", ""},
		{"silent", "GET", "silent", true, 204, "", "", "silent"},
		{"silent, for a POST", "POST", "silent", true, 204, "", "", "silent"},
		{"nothing kept, so silent", "GET", "stale,silent", true, 204, "", "", "silent"},
		{"a text", "GET", "static:come back later", true, 200, "come back later", "text/plain; charset=utf-8", "static"},
		{"JSON", "GET", `stale,static:{"items":[]}`, true, 200, `{"items":[]}`, "application/json", "static"},
		{"another function", "GET", "function:other", true, 200, "the other's", "text/plain; charset=utf-8", "function:other"},
		{"another function, which is down", "GET", "function:other,static:sorry", false, 200, "sorry", "text/plain; charset=utf-8", "static"},
		{"nothing is left", "GET", "function:other", false, 503, "nothing to give in its place", "text/plain; charset=utf-8", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, c *proxy.Config) {
				c.Cache = newCache(t)
				c.HoldTime = 10 * time.Millisecond
			})
			w.declare("fallback", tt.fallback, "attempts", "1")
			w.serveRevision("a", 1, failing(value(503)))
			if tt.up {
				w.want(other, 1)
				s := w.serveOther(other, func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "the other's") })
				defer s.Close()
			}
			body := ""
			if tt.method == "POST" {
				body = "x"
			}
			res, text := w.do(tt.method, "/function/echo", body)
			if res.StatusCode != tt.code || !strings.Contains(text, tt.want) || res.Header.Get("Content-Type") != tt.kind || res.Header.Get("X-Thicket-Fallback") != tt.mark {
				t.Errorf("answer = %d %q, %v", res.StatusCode, text, res.Header)
			}
		})
	}
}

// TestKeptAttempts holds that a call which fills the cache is tried again as
// others are, also when an answer broke off in its middle: nobody has any of it.
func TestKeptAttempts(t *testing.T) {
	for _, how := range []int64{503, -1, -2, -3} {
		w := withCache(t)
		w.declare("fallback", "stale", "attempts", "2")
		var calls atomic.Int64
		ill, well := failing(value(how)), failing(value(200))
		handler := func(rw http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				ill(rw, r)
				return
			}
			well(rw, r)
		}
		w.serveRevision("a", 1, handler)
		w.serveRevision("b", 1, handler)
		res, text := w.do("GET", "/function/echo", "")
		if res.StatusCode != 200 || text != "good" || calls.Load() != 2 || !strings.Contains(res.Header.Get("Cache-Status"), "fwd=miss; stored") {
			t.Errorf("%d: answer = %d %q after %d calls, %v", how, res.StatusCode, text, calls.Load(), res.Header)
		}
	}
}

// TestKeptWhileUnreachable holds that nobody waits for replicas that refuse
// connections if there is a kept answer, and who has none waits for another
// replica.
func TestKeptWhileUnreachable(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale")
	a := w.serveRevision("a", 1, failing(value(200)))
	w.do("GET", "/function/echo/known", "")
	a.Close()
	for range 20 {
		if res, text := w.do("GET", "/function/echo/known", ""); res.StatusCode != 200 || text != "good" || res.Header.Get("Age") == "" {
			t.Fatalf("answer = %d %q, %v", res.StatusCode, text, res.Header)
		}
	}
	answer := make(chan string, 1)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", w.url+"/function/echo/unknown", nil)
		res, err := noRedirects.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		answer <- string(b)
	}()
	eventually(t, "it is on its way", func() bool { return w.proxy.Invocations(echo) == 21 && len(w.state().Replicas) == 1 })
	w.serveRevision("b", 1, failing(value(200)))
	if text := <-answer; text != "good" {
		t.Errorf("who had nothing got %q", text)
	}
}

// TestKeptCallerLeaves holds that a call which fills the cache ends when nobody
// waits for it any more, and says nothing about the replica.
func TestKeptCallerLeaves(t *testing.T) {
	w := withCache(t)
	w.declare("fallback", "stale", "breaker", "10%/10s min=1 consecutive=1")
	began, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	w.serveRevision("a", 1, func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", w.url+"/function/echo", nil)
			if res, err := noRedirects.Do(req); err == nil {
				res.Body.Close()
			}
		})
		<-began
		cancel()
		<-ended
		group.Wait()
	}
	eventually(t, "nothing is under way", func() bool { return w.table.Replicas()[0].InFlight == 0 })
	if s := w.state(); s.breaker("a") != "closed" || s.Counts["breaker_opened"] != 0 {
		t.Errorf("state = %+v, want a breaker that never opened", s)
	}
}

// TestKeptWakes holds that a function asleep is woken for an answer that is to
// be kept, by one of those who wait for it.
func TestKeptWakes(t *testing.T) {
	var w *world
	var wakes atomic.Int64
	w = newWorld(t, func(_ *world, c *proxy.Config) {
		c.Cache = newCache(t)
		c.Wake = func(context.Context, faas.Name) error {
			wakes.Add(1)
			w.want(echo, 1)
			w.serveRevision("a", 1, failing(value(200)))
			return nil
		}
	})
	w.declare("fallback", "stale")
	w.want(echo, 0)
	if res, text := w.do("GET", "/function/echo", ""); res.StatusCode != 200 || text != "good" || wakes.Load() != 1 {
		t.Errorf("answer = %d %q after %d wakes", res.StatusCode, text, wakes.Load())
	}
}
