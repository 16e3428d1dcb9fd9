package main_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/functions/discovery"
)

// asking has a function ask where replicas are.
func asking(d types.FunctionDeployment) types.FunctionDeployment {
	d.Annotations = &map[string]string{"thicket.discovery": "true"}
	return d
}

// direct returns a client that calls the functions of a gateway directly, with the
// rights of a function that is deployed for it.
func (g *thicket) direct() *discovery.Client {
	g.t.Helper()
	caller := asking(g.probe())
	caller.Service = "caller"
	caller.EnvVars = map[string]string{} // its process isn't among those that tests count
	g.deploy(caller)
	env := func(name string) string {
		_, _, value := g.get("/function/caller?env=" + name)
		return value
	}
	if at := env("THICKET_DISCOVERY_URL"); !strings.HasPrefix(at, "http://") || !strings.HasSuffix(at, discovery.Path) {
		g.t.Fatalf("the function finds %q in THICKET_DISCOVERY_URL", at)
	}
	c, err := discovery.New(discovery.Config{
		URL: g.url + discovery.Path, Token: env("THICKET_DISCOVERY_TOKEN"), Node: env("THICKET_NODE"), Name: "the-test",
		Wait: time.Minute, Log: slog.New(slog.NewTextHandler(g.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			g.t.Error("close:", err)
		}
	})
	eventually(g.t, "calls go directly", func() bool {
		_, replica := callDirect(g.t, c, "http://caller/?replica")
		return replica != ""
	})
	return c
}

// callDirect makes a call that has to be answered, and returns the answer and
// which replica gave it directly; none if it came through the gateway.
func callDirect(t testing.TB, c *discovery.Client, address string) (body, replica string) {
	req, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("GET %s = %d %q, %v", address, resp.StatusCode, b, err)
	}
	return string(b), resp.Header.Get(discovery.HeaderReplica)
}

// TestDirectCallsAreCounted: the gateway, and with it faas-cli and scaling, knows
// of calls that it hasn't seen.
func TestDirectCallsAreCounted(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	c := g.direct()
	const calls = 200
	var byReplica, total int
	for range calls {
		body, replica := callDirect(t, c, "http://probe.openfaas-fn/?replica")
		total++
		if replica != "" {
			if byReplica++; replica != body {
				t.Fatalf("replica %s was asked, and %s answered", replica, body)
			}
		}
	}
	if byReplica < calls*9/10 {
		t.Errorf("%d of %d calls went directly, want nearly all", byReplica, calls)
	}
	var f types.FunctionStatus
	eventually(t, "the calls are counted", func() bool {
		var err error
		f, err = g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
		return err == nil && f.InvocationCount >= float64(total)
	})
	if f.InvocationCount != float64(total) {
		t.Errorf("%v invocations are counted, want %d", f.InvocationCount, total)
	}
}

// TestDirectCallsSurvive lets clients loose that call directly, while replicas
// die, are taken away, are made anew, and while the gateway itself does. No call
// may fail.
func TestDirectCallsSurvive(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	g.deploy(g.probe())
	if err := g.client.ScaleFunction(t.Context(), "probe", "openfaas-fn", 2); err != nil {
		t.Fatal(err)
	}
	g.ready("probe", 2)
	c := g.direct()

	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var calls, direct atomic.Int64
	for range 6 {
		callers.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				_, replica := callDirect(t, c, "http://probe.openfaas-fn/?sleep=2ms&replica")
				calls.Add(1)
				if replica != "" {
					direct.Add(1)
				}
			}
		})
	}
	defer callers.Wait()
	defer cancel()
	step := func(what string) {
		t.Helper()
		calls0, direct0 := calls.Load(), direct.Load()
		eventually(t, what+": calls go on, and directly", func() bool { return direct.Load() > direct0+200 || t.Failed() })
		t.Logf("%s: %d calls, %d of them directly", what, calls.Load()-calls0, direct.Load()-direct0)
	}
	scale := func(n uint64) {
		t.Helper()
		if err := g.client.ScaleFunction(t.Context(), "probe", "openfaas-fn", n); err != nil {
			t.Fatal(err)
		}
	}
	step("two replicas")
	for range 3 {
		for pid := range replicas(t, dir) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			break
		}
		step("one killed")
		g.ready("probe", 2)
	}
	for pid := range replicas(t, dir) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	step("both killed")
	for range 3 {
		scale(0)
		step("put to sleep and woken")
		scale(1)
		step("scaled to one")
		scale(2)
		step("scaled to two")
	}

	at := "THICKET_ADDR=" + g.host()
	g.kill()
	step("the gateway killed")
	g = start(t, dir, at)
	step("the gateway started again")
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	g = start(t, dir, at)
	step("the gateway stopped and started")
}

// TestWeatherDirect: the consumer gets its answers also while the gateway stands
// still, since the producer is called past it.
func TestWeatherDirect(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(types.FunctionDeployment{
		Service: "weather-producer", Image: images(t) + "/weather-producer:latest",
		EnvVars: map[string]string{"weather_simulate": "true", "openmeteo_geocoding_url": "http://127.0.0.1:1", "openmeteo_url": "http://127.0.0.1:1"},
	})
	g.deploy(asking(types.FunctionDeployment{
		Service: "weather-consumer", Image: images(t) + "/weather-consumer:latest",
		EnvVars: map[string]string{"weather_direct": "true", "weather_fresh": "0"},
	}))
	var addr string
	for _, r := range g.replicas().Replicas {
		if r.Function.Function == "weather-consumer" {
			addr = r.Addr.String()
		}
	}
	ask := func() (served string) {
		t.Helper()
		resp, err := http.Get((&url.URL{Scheme: "http", Host: addr, RawQuery: "zip=70569&format=json"}).String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var report struct {
			Stale    bool
			ServedBy string `json:"served_by"`
			Message  string
		}
		if err := json.NewDecoder(resp.Body).Decode(&report); err != nil || report.Stale {
			t.Fatalf("a report that is stale (%q), %v", report.Message, err)
		}
		return report.ServedBy
	}
	ask() // the first call makes the client
	eventually(t, "the consumer knows where the producer is", func() bool {
		_, _, text := g.getAuthorized("/system/logs?name=weather-consumer")
		return strings.Contains(text, "functions are called directly")
	})
	if err := g.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer g.cmd.Process.Signal(syscall.SIGCONT)
	if served := ask(); !strings.HasPrefix(served, "weather-producer") {
		t.Errorf("the report was served by %q while the gateway stood still, want by the producer", served)
	}
}

// replicas is what the gateway tells with the password.
func (g *thicket) replicas() (s discovery.Snapshot) {
	g.t.Helper()
	code, _, body := g.getAuthorized(discovery.Path)
	if err := json.Unmarshal([]byte(body), &s); err != nil || code != http.StatusOK {
		g.t.Fatalf("GET %s = %d %s, %v", discovery.Path, code, body, err)
	}
	return s
}

// getAuthorized is get with the password.
func (g *thicket) getAuthorized(path string) (int, http.Header, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	return g.do(req)
}

// BenchmarkHop measures what a call costs directly, and through the gateway, one
// after the other in turns.
func BenchmarkHop(b *testing.B) {
	g := start(b, b.TempDir())
	g.deploy(g.probe())
	c := g.direct()
	var direct, through time.Duration
	client := &http.Client{Transport: &http.Transport{}}
	for b.Loop() {
		begun := time.Now()
		if _, replica := callDirect(b, c, "http://probe.openfaas-fn/"); replica == "" {
			b.Fatal("a call went through the gateway")
		}
		direct += time.Since(begun)

		begun = time.Now()
		resp, err := client.Get(g.url + "/function/probe")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		through += time.Since(begun)
	}
	n := float64(b.N)
	b.ReportMetric(float64(direct.Microseconds())/n, "direct-µs")
	b.ReportMetric(float64(through.Microseconds())/n, "gateway-µs")
	b.ReportMetric(direct.Seconds()/through.Seconds(), "ratio")
}
