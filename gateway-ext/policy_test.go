package main_test

import (
	"net/http"
	"strings"
	"testing"
)

// order sends what an operator asks for.
func (g *thicket) order(method, path, body, password string) (int, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	if password != "" {
		req.SetBasicAuth("admin", password)
	}
	code, _, text := g.do(req)
	return code, text
}

// TestPolicy goes once through an outage on the real program: what is refused at
// deploy, what is in force, stale answers while the function fails, and a
// function with no policy, whose answers are its own.
func TestPolicy(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_CHAOS=true", "THICKET_TIMEOUT=20s")
	probe := g.probe()
	probe.Annotations = &map[string]string{"thicket.timeout": "soon", "thicket.fallbak": "stale"}
	if _, err := g.client.Deploy(t.Context(), probe); err == nil || !strings.Contains(err.Error(), "400") ||
		!strings.Contains(err.Error(), "thicket.timeout") || !strings.Contains(err.Error(), "did you mean thicket.fallback") {
		t.Errorf("Deploy() = %v, want a 400 with both mistakes", err)
	}
	probe.Annotations = &map[string]string{"thicket.timeout": "1m", "thicket.fallback": "stale", "thicket.attempts": "2"}
	g.deploy(probe)
	f, err := g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
	if err != nil {
		t.Fatal(err)
	}
	a := *f.Annotations
	if !strings.Contains(a["thicket.policy"], "timeout 20s (THICKET_TIMEOUT)") || !strings.Contains(a["thicket.policy"], "fallback stale") || !strings.Contains(a["thicket.warning"], "raise THICKET_TIMEOUT") {
		t.Errorf("annotations = %v", a)
	}

	g.want("/function/probe", 200, "hello")
	if code, _ := g.order("PUT", "/system/chaos/probe", `{"errors":1,"status":500,"for":"1m"}`, ""); code != 401 {
		t.Errorf("chaos without the password: %d", code)
	}
	if code, text := g.order("PUT", "/system/chaos/probe", `{"errors":1,"status":500,"for":"1m"}`, testPassword); code != 200 {
		t.Fatalf("chaos = %d %s", code, text)
	}
	for range 20 {
		code, header, text := g.get("/function/probe")
		if code != 200 || text != "hello" || header.Get("Age") == "" || !strings.Contains(header.Get("Cache-Status"), "stale_if_error") {
			t.Fatalf("answer = %d %q, %v", code, text, header)
		}
	}
	if code, text := g.order("GET", "/system/resilience/probe", "", testPassword); code != 200 || !strings.Contains(text, `"fallback_served"`) {
		t.Errorf("state = %d %s", code, text)
	}
	if code, text := g.order("DELETE", "/system/chaos/probe", "", testPassword); code != 204 {
		t.Errorf("chaos = %d %s", code, text)
	}
	eventually(t, "answers are fresh", func() bool {
		_, header, _ := g.get("/function/probe")
		return strings.Contains(header.Get("Cache-Status"), "fwd=miss")
	})
	if _, _, metrics := g.get("/metrics"); !strings.Contains(metrics, `thicket_resilience_events_total{event="fallback_served",target="probe.openfaas-fn"}`) ||
		!strings.Contains(metrics, `thicket_cache_requests_total{result="stale_if_error"}`) {
		t.Error("the metrics don't tell of stale answers")
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d", code)
	}
}

// TestNoChaos holds that faults are off unless they are asked for.
func TestNoChaos(t *testing.T) {
	g := start(t, t.TempDir())
	if code, text := g.order("PUT", "/system/chaos/probe", `{"errors":1}`, testPassword); code != 403 || !strings.Contains(text, "THICKET_CHAOS=true") {
		t.Errorf("chaos = %d %q", code, text)
	}
}
