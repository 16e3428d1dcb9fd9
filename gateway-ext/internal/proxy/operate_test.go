package proxy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// TestForce holds that operators decide about a breaker, and the calls no longer.
func TestForce(t *testing.T) {
	for _, annotations := range [][]string{nil, {"attempts", "1"}} {
		w := newWorld(t, nil)
		w.declare(annotations...)
		var a, b atomic.Int64
		w.serve("a", answers(value(200), &a))
		w.serve("b", answers(value(500), &b))
		order := func(query, mode string) {
			t.Helper()
			if text, err := w.order("PUT /system/resilience/{name}/breaker", "echo", query, `{"mode":"`+mode+`"}`); err != nil || !strings.Contains(text, `"`+mode+`"`) {
				t.Fatalf("order = %q, %v", text, err)
			}
		}
		order("replica=a", "forced-open")
		for range 20 {
			w.do("GET", "/function/echo", "")
		}
		if a.Load() != 0 {
			t.Errorf("%d calls went to a replica that is forced open", a.Load())
		}
		order("", "forced-open")
		before := b.Load()
		if res, text := w.do("GET", "/function/echo", ""); res.StatusCode != 503 || !strings.Contains(text, "switched off by an operator") || b.Load() != before {
			t.Errorf("answer = %d %q with all forced open", res.StatusCode, text)
		}
		order("", "forced-closed")
		for range 40 {
			w.do("GET", "/function/echo", "")
		}
		if b.Load() < before+10 {
			t.Errorf("%d calls went to a replica that is forced closed", b.Load()-before)
		}
		order("", "auto")
	}
}

// TestOrders holds what is refused, in words.
func TestOrders(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Chaos, c.Cache = true, newCache(t) })
	w.serve("a", func(http.ResponseWriter, *http.Request) {})
	off := newWorld(t, func(_ *world, c *proxy.Config) { c.ChaosSetting = "THE_SETTING=true" })
	for _, tt := range []struct {
		name, pattern, function, query, body string
		kind                                 error
		want                                 string
		w                                    *world
	}{
		{"no such function", "GET /system/resilience/{name}", "nobody", "", "", faas.ErrNotFound, "there is no function nobody", w},
		{"not a name", "GET /system/resilience/{name}", "No Body", "", "", faas.ErrInvalid, "DNS label", w},
		{"no such mode", "PUT /system/resilience/{name}/breaker", "echo", "", `{"mode":"shut"}`, faas.ErrInvalid, "forced-open", w},
		{"no body", "PUT /system/resilience/{name}/breaker", "echo", "", ``, faas.ErrInvalid, "body", w},
		{"a field that is none", "PUT /system/resilience/{name}/breaker", "echo", "", `{"modus":"auto"}`, faas.ErrInvalid, "modus", w},
		{"no such replica", "PUT /system/resilience/{name}/breaker", "echo", "replica=x", `{"mode":"off"}`, faas.ErrNotFound, `"x"`, w},
		{"no replica", "PUT /system/resilience/{name}/breaker", "echo", "", `{"mode":"off"}`, faas.ErrNotFound, "no ready replica", off},
		{"not a key", "DELETE /system/cache/{name}", "echo", "key=x", "", faas.ErrInvalid, "Cache-Status", w},
		{"another's key", "DELETE /system/cache/{name}", "echo", "key=other.openfaas-fn:" + strings.Repeat("0", 32), "", faas.ErrInvalid, "and not of echo", w},
		{"no cache", "DELETE /system/cache/{name}", "echo", "", "", faas.ErrNotFound, "keeps no answers", off},
		{"chaos is off", "PUT /system/chaos/{name}", "echo", "", `{"errors":1}`, faas.ErrForbidden, "THE_SETTING=true", off},
		{"chaos of nothing", "PUT /system/chaos/{name}", "echo", "", `{}`, faas.ErrInvalid, "nothing would happen", w},
		{"all wrong", "PUT /system/chaos/{name}", "echo", "", `{"latency":"2h","errors":7,"status":200,"for":"1h"}`, faas.ErrInvalid, "from 0 to 1", w},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.w.order(tt.pattern, tt.function, tt.query, tt.body)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want %v with %q", err, tt.kind, tt.want)
			}
			if tt.name == "all wrong" && strings.Count(err.Error(), "\n") != 3 {
				t.Errorf("error = %q, want a line for each of four mistakes", err)
			}
		})
	}
}

// TestChaos holds that a fault does what it says where the replicas are, that
// what is in force then is in force as in earnest, and that it ends.
func TestChaos(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Chaos, c.Cache = true, newCache(t) })
	w.declare("fallback", "stale", "attempts", "1")
	var calls atomic.Int64
	w.serveRevision("a", 1, numbered(&calls))
	if _, text := w.do("GET", "/function/echo", ""); text != "/ 1" {
		t.Fatalf("answer = %q", text)
	}
	order := func(body string) {
		t.Helper()
		if _, err := w.order("PUT /system/chaos/{name}", "echo", "", body); err != nil {
			t.Fatal(err)
		}
	}
	order(`{"errors":1,"status":502,"for":"1m"}`)
	eventually(t, "the breaker opens", func() bool {
		if res, text := w.do("GET", "/function/echo", ""); text != "/ 1" || res.Header.Get("Age") == "" {
			t.Fatalf("answer = %d %q", res.StatusCode, text)
		}
		w.do("POST", "/function/echo", "x")
		return w.state().breaker("a") == "open"
	})
	if w.state().Chaos == nil || calls.Load() != 1 {
		t.Errorf("state = %+v after %d calls, want a fault before all but one", w.state(), calls.Load())
	}
	// It outlives a new declaration, and ends when it is taken out.
	w.declare("attempts", "1")
	if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 502 {
		t.Errorf("code = %d, want the fault's 502", res.StatusCode)
	}
	if _, err := w.order("DELETE /system/chaos/{name}", "echo", "", ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is well", func() bool {
		res, _ := w.do("GET", "/function/echo", "")
		return res.StatusCode == 200
	})
	order(`{"latency":"150ms","for":"10m"}`)
	start := time.Now()
	if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 || time.Since(start) < 150*time.Millisecond {
		t.Errorf("code = %d after %v, want 200 after 150 ms", res.StatusCode, time.Since(start))
	}
	order(`{"errors":1,"for":"1ms"}`)
	eventually(t, "its time is over", func() bool {
		res, _ := w.do("GET", "/function/echo", "")
		return res.StatusCode == 200 && w.state().Chaos == nil
	})
}

// TestPurge holds that a kept answer is forgotten when an operator says so.
func TestPurge(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Cache = newCache(t) })
	w.declare("fallback", "stale", "stale.fresh", "1h")
	var calls atomic.Int64
	w.serveRevision("a", 1, numbered(&calls))
	res, _ := w.do("GET", "/function/echo/a", "")
	w.do("GET", "/function/echo/b", "")
	_, key, _ := strings.Cut(res.Header.Get("Cache-Status"), `key="`)
	key, _, _ = strings.Cut(key, `"`)
	for _, tt := range []struct{ query, a, b string }{
		{"key=" + key, "/a 3", "/b 2"},
		{"", "/a 4", "/b 5"},
	} {
		if _, err := w.order("DELETE /system/cache/{name}", "echo", tt.query, ""); err != nil {
			t.Fatal(err)
		}
		_, a := w.do("GET", "/function/echo/a", "")
		_, b := w.do("GET", "/function/echo/b", "")
		if a != tt.a || b != tt.b {
			t.Errorf("after a purge of %q: %q and %q, want %q and %q", tt.query, a, b, tt.a, tt.b)
		}
	}
}

// TestChurn holds that nothing is left of replicas and functions that are gone,
// and nobody who waits for them.
func TestChurn(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Registerer, c.Cache = reg, newCache(t) })
	w.declare("fallback", "stale", "attempts", "2")
	var calls atomic.Int64
	s := w.serve("keeper", numbered(&calls))
	w.do("GET", "/function/echo/warm", "")
	before := runtime.NumGoroutine()
	breakers := func() (n float64) {
		for k, v := range gather(t, reg) {
			if strings.HasPrefix(k, "thicket_resilience_breakers") {
				n += v
			}
		}
		return n
	}
	for i := range 200 {
		id := fmt.Sprint("r", i)
		w.table.Observe(replicaOf(echo, id, 1, s, faas.Ready))
		w.do("GET", fmt.Sprint("/function/echo/", i%7), "")
		if i%50 == 0 {
			w.declare("fallback", "stale", "attempts", "2")
		}
		w.table.Observe(replicaOf(echo, id, 1, s, faas.Gone))
	}
	w.do("GET", "/function/echo/warm", "")
	if n := breakers(); n != 1 {
		t.Errorf("%v breakers of one replica", n)
	}
	if n := len(w.state().Replicas); n != 1 {
		t.Errorf("%d replicas, want 1", n)
	}
	eventually(t, "no goroutine is left over", func() bool { return runtime.NumGoroutine() <= before+3 })

	w.mu.Lock()
	delete(w.wanted, echo)
	w.mu.Unlock()
	w.proxy.Changed(echo)
	if n := breakers(); n != 0 {
		t.Errorf("%v breakers of a function that is gone", n)
	}
	if text, err := w.order("GET /system/resilience", "", "", ""); err != nil || strings.TrimSpace(text) != "[]" {
		t.Errorf("functions = %s, %v", text, err)
	}
}

// TestCheck holds what a declaration is told about its policy.
func TestCheck(t *testing.T) {
	limits := proxy.Limits{Timeout: time.Minute, TimeoutSetting: "THE_TIMEOUT"}
	for _, tt := range []struct {
		name             string
		annotations, env map[string]string
		policy, warning  string // parts of them
		wrong            []string
	}{
		{"nothing", nil, nil, "attempts 1 · balance p2c · breaker 50%/10s", "", nil},
		{"a rule alone is no policy", map[string]string{"thicket.balance": "random"}, nil, "attempts 1 · balance random", "", nil},
		{"a rule and a policy", map[string]string{"thicket.balance": "consistent-hash query=city", "thicket.timeout": "5s"}, nil, "attempts 3 · balance consistent-hash query=city", "", nil},
		{"the watchdog's bound", nil, map[string]string{"max_inflight": "4"}, "bulkhead 4 (max_inflight)", "", nil},
		{"the watchdog's bound is the higher", map[string]string{"thicket.bulkhead": "3"}, map[string]string{"max_inflight": "4"}, "bulkhead 3 ·", "", nil},
		{"the watchdog has no bound", nil, map[string]string{"max_inflight": "0"}, "bulkhead off", "", nil},
		{"nothing of ours", map[string]string{"topic": "x"}, nil, "timeout 1m (THE_TIMEOUT)", "", nil},
		{"a policy", map[string]string{"thicket.timeout": "5s/2s", "thicket.fallback": "stale,silent"}, nil, "timeout 5s, 2s each attempt", "", nil},
		{"OpenFaaS's limit", nil, map[string]string{"exec_timeout": "10"}, "timeout 11s (exec_timeout)", "", nil},
		{"OpenFaaS's limit is the gateway's", nil, map[string]string{"exec_timeout": "1m"}, "timeout 1m (THE_TIMEOUT)", "", nil},
		{"nothing that is a time", nil, map[string]string{"exec_timeout": "soon", "write_timeout": "-1s"}, "timeout 1m (THE_TIMEOUT)", "", nil},
		{"more than the gateway", map[string]string{"thicket.timeout": "5m"}, nil, "timeout 1m (THE_TIMEOUT)",
			"thicket.timeout asks for 5m, and this gateway ends every call after 1m: raise THE_TIMEOUT", nil},
		{"OpenFaaS's limit is more than the gateway's", nil, map[string]string{"exec_timeout": "2m"}, "timeout 1m (THE_TIMEOUT)", "exec_timeout asks for 2m", nil},
		{"the function would go on", map[string]string{"thicket.timeout": "5s"}, map[string]string{"exec_timeout": "8s", "write_timeout": "7s"}, "timeout 5s",
			"exec_timeout is 8s, and thicket.timeout ends the call after 5s: write a shorter exec_timeout, or leave it out; write_timeout is 7s, shorter than exec_timeout", nil},
		{"all is wrong", map[string]string{"thicket.timeout": "soon", "thicket.atempts": "2", "thicket.breaker": "half", "thicket.balance": "best-available"}, nil, "", "",
			[]string{"thicket.timeout", "did you mean thicket.attempts", "thicket.breaker", `thicket.balance: "best-available" is no rule: did you mean least-requests?`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policy, warning, err := limits.Check(types.FunctionDeployment{Annotations: &tt.annotations, EnvVars: tt.env})
			if (err != nil) != (tt.wrong != nil) || err != nil && !errors.Is(err, faas.ErrInvalid) {
				t.Fatalf("error = %v", err)
			}
			for _, part := range tt.wrong {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error = %q, want %q in it", err, part)
				}
			}
			if !strings.Contains(policy, tt.policy) || !strings.Contains(warning, tt.warning) || tt.warning == "" && warning != "" {
				t.Errorf("Check() = %q, %q, want %q, %q", policy, warning, tt.policy, tt.warning)
			}
		})
	}
}

// TestEnvironment holds that a function's own limits follow from the one that it
// asks for, where it doesn't say more.
func TestEnvironment(t *testing.T) {
	limits := proxy.Limits{Timeout: time.Minute, TimeoutSetting: "THE_TIMEOUT"}
	for _, tt := range []struct {
		timeout, exec string
		want          string
	}{
		{"", "", ""},
		{"", "8s", ""},
		{"45s", "", "45s 46s"},
		{"2m", "", "1m 1m1s"}, // no more than the gateway waits
		{"45s", "10s", "10s 11s"},
	} {
		d := types.FunctionDeployment{EnvVars: map[string]string{"exec_timeout": tt.exec}}
		if tt.timeout != "" {
			d.Annotations = &map[string]string{"thicket.timeout": tt.timeout}
		}
		env, got := limits.Environment(d), ""
		if env != nil {
			got = env["exec_timeout"] + " " + env["write_timeout"]
		}
		if got != tt.want {
			t.Errorf("Environment(%q, %q) = %v, want %q", tt.timeout, tt.exec, env, tt.want)
		}
	}
}

// TestShowAll holds that what operators see is JSON of what was called.
func TestShowAll(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("timeout", "5s")
	w.serve("a", func(http.ResponseWriter, *http.Request) {})
	w.do("GET", "/function/echo", "")
	text, err := w.order("GET /system/resilience", "", "", "")
	var all []state
	if err := errors.Join(err, json.Unmarshal([]byte(text), &all)); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || !all[0].Asked || all[0].Timeout != "5s" || all[0].breaker("a") != "closed" || all[0].Counts["success"] != 1 || all[0].Policy["thicket.timeout"] != "5s" {
		t.Errorf("state = %+v", all)
	}
	w.order("PUT /system/resilience/{name}/breaker", "echo", "", `{"mode":"observe"}`)
	if text, err := w.order("GET /system/resilience/{name}/events", "echo", "", ""); err != nil || !strings.Contains(text, "breaker_forced") {
		t.Errorf("events = %s, %v", text, err)
	}
}
