package proxy_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// What a caller sends that is part of a trace, sampled and not.
const (
	callersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callersSpan  = "00f067aa0ba902b7"
	sampled      = "00-" + callersTrace + "-" + callersSpan + "-01"
	unsampled    = "00-" + callersTrace + "-" + callersSpan + "-00"
)

// traced is a gateway whose spans can be looked at.
func traced(t *testing.T, set func(*world, *proxy.Config)) (*world, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	w := newWorld(t, func(w *world, c *proxy.Config) {
		c.Tracer = sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)).Tracer("test")
		if set != nil {
			set(w, c)
		}
	})
	return w, spans
}

// call waits for the span of a call that has ended, and returns it with those of
// its attempts.
func call(t *testing.T, spans *tracetest.SpanRecorder) (of sdk.ReadOnlySpan, attempts []sdk.ReadOnlySpan) {
	t.Helper()
	eventually(t, "the call's span has ended", func() bool {
		all := spans.Ended()
		return len(all) > 0 && all[len(all)-1].SpanKind() == trace.SpanKindServer
	})
	all := spans.Ended()
	of = all[len(all)-1]
	for _, s := range all[:len(all)-1] {
		if s.SpanKind() != trace.SpanKindClient || s.Parent().SpanID() != of.SpanContext().SpanID() || s.SpanContext().TraceID() != of.SpanContext().TraceID() {
			t.Errorf("span %q, of kind %v, is no attempt of the call", s.Name(), s.SpanKind())
		}
		attempts = append(attempts, s)
	}
	return of, attempts
}

// said returns what a span says of something.
func said(s sdk.ReadOnlySpan, key string) string {
	for _, a := range s.Attributes() {
		if a.Key == attribute.Key(key) {
			return a.Value.String()
		}
	}
	return ""
}

func events(s sdk.ReadOnlySpan) (names []string) {
	for _, e := range s.Events() {
		names = append(names, e.Name)
	}
	return names
}

// contextEcho answers with the headers of the trace that the function was given.
func contextEcho(rw http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(rw, r.Header.Get("Traceparent")+" "+strings.Join(r.Header["Tracestate"], ","))
}

func TestTraceContextPasses(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", contextEcho)
	if _, got := w.do("GET", "/function/echo", "", "traceparent", sampled, "tracestate", "vendor=1"); got != sampled+" vendor=1" {
		t.Errorf("without traces the function gets %q, want what the caller sent", got)
	}
}

func TestTrace(t *testing.T) {
	w, spans := traced(t, nil)
	w.serve("a", contextEcho)
	_, got := w.do("GET", "/function/echo/path?key=secret", "", "traceparent", sampled, "tracestate", "vendor=1", "User-Agent", "curl", "X-Call-Id", "17")
	of, attempts := call(t, spans)
	if len(attempts) != 1 {
		t.Fatalf("%d attempts, want 1", len(attempts))
	}
	if id := of.SpanContext().TraceID().String(); id != callersTrace || of.Parent().SpanID().String() != callersSpan || !of.Parent().IsRemote() {
		t.Errorf("the call is in trace %s below %s, want the caller's", id, of.Parent().SpanID())
	}
	if want := "00-" + callersTrace + "-" + attempts[0].SpanContext().SpanID().String() + "-01 vendor=1"; got != want {
		t.Errorf("the function gets %q, want %q", got, want)
	}
	if want := "GET /function/echo.openfaas-fn"; of.Name() != want || of.Status().Code != codes.Unset {
		t.Errorf("the call's span = %q, status %v, want %q, unset", of.Name(), of.Status(), want)
	}
	for _, tt := range []struct {
		of        sdk.ReadOnlySpan
		key, want string
	}{
		{of, "http.request.method", "GET"},
		{of, "http.route", "/function/{name}"},
		{of, "http.response.status_code", "200"},
		{of, "url.path", "/function/echo/path"},
		{of, "url.scheme", "http"},
		{of, "url.query", ""},
		{of, "client.address", "127.0.0.1"},
		{of, "server.address", "127.0.0.1"},
		{of, "network.protocol.version", "1.1"},
		{of, "user_agent.original", "curl"},
		{of, "faas.name", "echo.openfaas-fn"},
		{of, "faas.invocation_id", "17"},
		{of, "thicket.replica", "a"},
		{of, "thicket.attempts", "1"},
		{of, "thicket.held_seconds", ""},
		{of, "error.type", ""},
		{attempts[0], "http.request.method", "GET"},
		{attempts[0], "http.response.status_code", "200"},
		{attempts[0], "server.address", "127.0.0.1"},
		{attempts[0], "thicket.replica", "a"},
		{attempts[0], "thicket.breaker", "closed"},
		{attempts[0], "http.request.resend_count", ""},
	} {
		if got := said(tt.of, tt.key); got != tt.want {
			t.Errorf("%s says %s = %q, want %q", tt.of.Name(), tt.key, got, tt.want)
		}
	}
	for _, s := range append(attempts, of) {
		for _, a := range s.Attributes() {
			if strings.Contains(a.Value.String(), "secret") {
				t.Errorf("%s = %q tells the query", a.Key, a.Value.String())
			}
		}
	}
}

// TestTraceSampling holds that who began a trace decides whether it is recorded;
// the function is told which.
func TestTraceSampling(t *testing.T) {
	w, spans := traced(t, nil)
	w.serve("a", contextEcho)
	_, got := w.do("GET", "/function/echo", "", "traceparent", unsampled)
	if !strings.HasPrefix(got, "00-"+callersTrace+"-") || !strings.HasSuffix(got, "-00 ") || strings.Contains(got, callersSpan) {
		t.Errorf("the function gets %q, want a span of trace %s that isn't sampled", got, callersTrace)
	}
	if n := len(spans.Ended()); n != 0 {
		t.Errorf("%d spans are recorded of a trace that isn't sampled", n)
	}
	for _, nonsense := range []string{"", "00-0-0-01", strings.ToUpper(sampled), strings.Repeat("x", 4000)} {
		spans.Reset()
		_, got := w.do("GET", "/function/echo", "", "traceparent", nonsense, "tracestate", "vendor=1")
		of, _ := call(t, spans)
		if of.Parent().IsValid() || !strings.HasPrefix(got, "00-"+of.SpanContext().TraceID().String()) || strings.Contains(got, "vendor") {
			t.Errorf("traceparent %.50q: the function gets %q, want a new trace", nonsense, got)
		}
	}
}

// TestTraceTold holds that what strangers send can't spoil what is told of others.
func TestTraceTold(t *testing.T) {
	w, spans := traced(t, nil)
	w.serve("a", contextEcho)
	w.raw("GET /function/echo/%ff HTTP/1.1\r\nHost: x\r\nUser-Agent: \xff" + strings.Repeat("a", 5000) + "\r\nConnection: close\r\n\r\n")
	of, _ := call(t, spans)
	for _, key := range []string{"user_agent.original", "url.path"} {
		if got := said(of, key); got == "" || len(got) > 600 || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%s = %q, want at most some 512 bytes of UTF-8", key, got)
		}
	}
}

func TestTraceTrouble(t *testing.T) {
	for _, tt := range []struct {
		name        string
		annotations []string
		first       http.HandlerFunc // answers the first attempt
		attempts    int
		events      []string
		code, kind  string // of the call
		firstKind   string // of the first attempt
	}{
		{"a retry", nil, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }, 2, []string{"retry"}, "200", "", "503"},
		{"no answer", nil, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 2, []string{"retry"}, "200", "", "no_answer"},
		{"an error", []string{"attempts", "1"}, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) }, 1, nil, "500", "500", "500"},
		{"not found", nil, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) }, 1, nil, "404", "", ""},
		{"too late", []string{"timeout", "50ms"}, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 1, nil, "504", "504", "timeout"},
		{"a fallback", []string{"attempts", "1", "fallback", "static:sorry"}, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }, 1, []string{"fallback_served"}, "200", "", "503"},
		{"broken off", nil, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(rw, "x")
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		}, 1, nil, "200", "broken_off", "broken_off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, spans := traced(t, nil)
			w.declare(append([]string{"attempts", "2"}, tt.annotations...)...)
			var calls atomic.Int64
			handler := func(rw http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					tt.first(rw, r)
				}
			}
			w.serveRevision("a", 1, handler)
			w.serveRevision("b", 1, handler)
			w.get("/function/echo")
			of, attempts := call(t, spans)
			if got := events(of); len(attempts) != tt.attempts || !slices.Equal(got, tt.events) {
				t.Errorf("%d attempts, events %q, want %d and %q", len(attempts), got, tt.attempts, tt.events)
			}
			if code, kind := said(of, "http.response.status_code"), said(of, "error.type"); code != tt.code || kind != tt.kind || (of.Status().Code == codes.Error) != (kind != "") {
				t.Errorf("the call says %s, %q, %v, want %s, %q", code, kind, of.Status(), tt.code, tt.kind)
			}
			if kind := said(attempts[0], "error.type"); kind != tt.firstKind {
				t.Errorf("the first attempt says %q, want %q", kind, tt.firstKind)
			}
			for i, a := range attempts[1:] {
				if got := said(a, "http.request.resend_count"); got != "1" || i > 0 {
					t.Errorf("attempt %d says that it is number %s", i+1, got)
				}
			}
		})
	}
}

func TestTraceBreaker(t *testing.T) {
	w, spans := traced(t, nil)
	w.declare("attempts", "1", "breaker", "50%/10s open=1h")
	w.serve("a", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) })
	eventually(t, "a call tells that the breaker refused it", func() bool {
		spans.Reset()
		w.do("GET", "/function/echo", "")
		of, attempts := call(t, spans)
		if len(attempts) == 1 {
			return false
		}
		if got := events(of); !slices.Equal(got, []string{"short_circuit"}) || said(of, "http.response.status_code") != "503" {
			t.Errorf("events %q, status %s, want short_circuit and 503", got, said(of, "http.response.status_code"))
		}
		return true
	})
}

func TestTraceWake(t *testing.T) {
	w, spans := traced(t, func(w *world, c *proxy.Config) {
		w.wanted[echo] = 0
		c.Wake = func(_ context.Context, name faas.Name) error {
			w.want(name, 1)
			w.serve("a", contextEcho)
			return nil
		}
	})
	w.do("GET", "/function/echo", "")
	of, attempts := call(t, spans)
	if got := events(of); !slices.Equal(got, []string{"held", "wake"}) || len(attempts) != 1 {
		t.Errorf("events %q, %d attempts, want held and wake, and 1", got, len(attempts))
	}
	if said(of, "thicket.held_seconds") == "" {
		t.Error("the call doesn't say how long it was held")
	}
}

func TestTraceCache(t *testing.T) {
	w, spans := traced(t, func(_ *world, c *proxy.Config) { c.Cache = newCache(t) })
	w.declare("stale.fresh", "1h", "fallback", "stale")
	w.serveRevision("a", 1, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cookie" {
			rw.Header().Set("Set-Cookie", "a=b")
		}
		_, _ = io.WriteString(rw, "good")
	})
	for _, tt := range []struct {
		path, want string
		attempts   int
	}{
		{"/function/echo", "miss", 1},
		{"/function/echo", "hit", 0},
		{"/function/echo/cookie", "pass", 1},
	} {
		spans.Reset()
		w.do("GET", tt.path, "")
		of, attempts := call(t, spans)
		if got := said(of, "thicket.cache"); got != tt.want || len(attempts) != tt.attempts {
			t.Errorf("%s: %q with %d attempts, want %q with %d", tt.path, got, len(attempts), tt.want, tt.attempts)
		}
	}
}

// get asks for a path, whatever comes of it.
func (w *world) get(path string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body) // which may break off
}
