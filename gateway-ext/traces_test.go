package main_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collected is what a collector of traces was sent.
type collected struct {
	t   *testing.T
	url string

	mu       sync.Mutex // guards below
	services map[string]bool
	spans    []*otlp.Span
}

// newCollector starts a collector that speaks OTLP over HTTP.
func newCollector(t *testing.T) *collected {
	c := &collected{t: t, services: map[string]bool{}}
	s := httptest.NewServer(http.HandlerFunc(c.take))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *collected) take(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	var got collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &got)
	}
	if err != nil || r.URL.Path != "/v1/traces" || r.Method != http.MethodPost {
		c.t.Errorf("the collector got %s %s: %v", r.Method, r.URL.Path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range got.ResourceSpans {
		for _, a := range from.Resource.Attributes {
			if a.Key == "service.name" {
				c.services[a.Value.GetStringValue()] = true
			}
		}
		for _, scope := range from.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
}

// of returns the spans of a kind.
func (c *collected) of(kind otlp.Span_SpanKind) (spans []*otlp.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Kind == kind {
			spans = append(spans, s)
		}
	}
	return spans
}

// TestTraces has one function call another: what the collector gets is one trace
// of both calls, the second below the first's attempt. Nothing is lost when the
// gateway stops.
func TestTraces(t *testing.T) {
	c := newCollector(t)
	g := start(t, t.TempDir(), "OTEL_EXPORTER_OTLP_ENDPOINT="+c.url, "OTEL_SERVICE_NAME=the-gateway", "OTEL_BSP_SCHEDULE_DELAY=3600000")
	g.deploy(g.probe())
	other := g.probe()
	other.Service = "other"
	g.deploy(other)
	g.want("/function/probe?call=other&passon=traceparent", 200, "hello")
	if n := len(c.of(otlp.Span_SPAN_KIND_SERVER)); n != 0 {
		t.Errorf("%d spans came before the hour was over, and before the gateway has stopped", n)
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}

	calls, attempts := c.of(otlp.Span_SPAN_KIND_SERVER), c.of(otlp.Span_SPAN_KIND_CLIENT)
	if len(calls) != 2 || len(attempts) != 2 || !c.services["the-gateway"] {
		t.Fatalf("the collector has %d calls and %d attempts of %v, want 2 and 2 of the-gateway", len(calls), len(attempts), c.services)
	}
	parent := map[string]string{}
	names := map[string]string{}
	for _, s := range append(calls, attempts...) {
		if string(s.TraceId) != string(calls[0].TraceId) {
			t.Errorf("%s is in another trace", s.Name)
		}
		parent[string(s.SpanId)] = string(s.ParentSpanId)
		names[string(s.SpanId)] = s.Name
	}
	for _, s := range attempts {
		if s.Name != "GET other.openfaas-fn" {
			continue
		}
		var way []string
		for id := string(s.SpanId); id != ""; id = parent[id] {
			way = append(way, names[id])
		}
		if got, want := strings.Join(way, " < "), "GET other.openfaas-fn < GET /function/other.openfaas-fn < GET probe.openfaas-fn < GET /function/probe.openfaas-fn"; got != want {
			t.Errorf("the trace is %s, want %s", got, want)
		}
	}
}

// TestTracesSettings starts the program with OpenTelemetry's variables, right and
// wrong: nobody is told who needn't be, and a mistake is said before the start.
func TestTracesSettings(t *testing.T) {
	c := newCollector(t)
	for _, environ := range [][]string{
		{"OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url},
		{"OTEL_SDK_DISABLED=true", "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url},
		{"OTEL_TRACES_SAMPLER=always_off", "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url},
		{"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + c.url + "/v1/traces"},
	} {
		g := start(t, t.TempDir(), environ...)
		g.deploy(g.probe())
		g.want("/function/probe", 200, "hello")
		g.stop()
		if n := len(c.of(otlp.Span_SPAN_KIND_SERVER)); n != 0 {
			t.Errorf("%q: the collector got %d spans", environ, n)
		}
	}
	for _, tt := range []struct {
		environ []string
		want    string
	}{
		{[]string{"OTEL_TRACES_EXPORTER=zipkin"}, "OTEL_TRACES_EXPORTER: "},
		{[]string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: "},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=127.0.0.1:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: "},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_TRACES_SAMPLER=some"}, "OTEL_TRACES_SAMPLER: "},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + c.url, "OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=50%"}, "OTEL_TRACES_SAMPLER_ARG: "},
	} {
		code, _, stderr := run(t, ".", append(tt.environ, "THICKET_DATA="+t.TempDir()), "serve", "--check")
		if code == 0 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit %d, %q, want an error with %q", tt.environ, code, stderr, tt.want)
		}
	}
}

// TestTracesToNobody calls functions while nobody takes the traces: that is
// logged, once a minute, and costs the callers nothing.
func TestTracesToNobody(t *testing.T) {
	g := start(t, t.TempDir(), "OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1",
		"OTEL_BSP_SCHEDULE_DELAY=1", "OTEL_BSP_EXPORT_TIMEOUT=10", "OTEL_EXPORTER_OTLP_TIMEOUT=10")
	g.deploy(g.probe())
	eventually(t, "the log says so", func() bool {
		g.want("/function/probe", 200, "hello")
		return strings.Contains(g.logged(), "traces can't be sent")
	})
	for range 100 {
		g.want("/function/probe", 200, "hello")
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if n := strings.Count(g.logged(), "traces can't be sent"); n > 5 {
		t.Errorf("the log says %d times that traces can't be sent, want once a minute", n)
	}
}
