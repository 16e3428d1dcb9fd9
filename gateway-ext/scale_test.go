package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// decision is what GET /system/scaling tells of one.
type decision struct {
	ID       uint64
	Function string
	From, To int
	Times    int
	Sentence string
}

// system asks for a path below /system/ and reads the JSON.
func (g *thicket) system(path string, into any) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	code, _, body := g.do(req)
	if code != 200 {
		g.t.Fatalf("GET %s = %d %s", path, code, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		g.t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

// TestSleepsAndWakesLoseNothing calls a function 10,000 times while it is put to
// sleep 200 times, and waked as often, in the middle of it: no call may fail.
func TestSleepsAndWakesLoseNothing(t *testing.T) {
	const edges, perEdge, callers = 200, 50, 4
	g := start(t, t.TempDir(), "THICKET_LOG_LEVEL=INFO")
	g.deploy(g.probe())

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	var calls atomic.Int64
	var mu sync.Mutex // guards below
	var slowest time.Duration
	for i := range callers {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				body := fmt.Sprintf("%d of %d", n, i)
				began := time.Now()
				// Calls that are repeated by themselves when they fail would hide
				// what is looked for: POST is not.
				resp, err := http.Post(g.url+"/function/probe", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Errorf("call %s failed: %v", body, err)
					cancel()
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(got) != body {
					t.Errorf("call %s = %d %q, %v", body, resp.StatusCode, got, err)
					cancel()
					return
				}
				took := time.Since(began)
				mu.Lock()
				slowest = max(slowest, took)
				mu.Unlock()
				calls.Add(1)
			}
		})
	}
	wakes := func() int { return strings.Count(g.logged(), `"why":"a call came: 1 replica"`) }
	var waits []time.Duration // of the call that waited longest, for each edge
	for edge := range edges {
		if err := g.client.ScaleFunction(ctx, "probe", "openfaas-fn", 0); err != nil {
			t.Fatal(err)
		}
		before := calls.Load()
		eventually(t, fmt.Sprintf("a wake and %d more calls after sleep %d", perEdge, edge), func() bool {
			return ctx.Err() != nil || calls.Load() >= before+perEdge && wakes() > edge
		})
		mu.Lock()
		waits = append(waits, slowest)
		slowest = 0
		mu.Unlock()
	}
	cancel()
	all.Wait()
	woken := wakes()
	if n := calls.Load(); n < edges*perEdge || woken < edges {
		t.Errorf("%d calls over %d wakes, want %d over %d", n, woken, edges*perEdge, edges)
	}
	slices.Sort(waits)
	t.Logf("%d calls, %d sleeps and %d wakes, none failed; the longest call of each: median %v, p90 %v, longest %v", calls.Load(), edges, woken,
		waits[len(waits)/2].Round(time.Millisecond), waits[len(waits)*9/10].Round(time.Millisecond), waits[len(waits)-1].Round(time.Millisecond))
}

// TestSleepsByItself has a function sleep when nobody calls it, with calls that
// come just as it does.
func TestSleepsByItself(t *testing.T) {
	g := start(t, t.TempDir())
	probe := g.probe()
	probe.Labels = &map[string]string{"com.openfaas.scale.zero": "true", "com.openfaas.scale.zero-duration": "1s"}
	g.deploy(probe)
	asleep := func() bool {
		f, err := g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
		return err == nil && f.Replicas == 0
	}
	for i := range 5 {
		eventually(t, "it sleeps", asleep)
		for range i { // at one time or another within its going
			time.Sleep(time.Millisecond)
		}
		g.want("/function/probe", 200, "hello")
	}
	var decisions []decision
	g.system("/system/scaling?function=probe", &decisions)
	sleeps, wakes := 0, 0
	for _, d := range decisions {
		switch d.Sentence {
		case "no call for 1 s: asleep, 0 replicas":
			sleeps++
		case "a call came: 1 replica":
			wakes++
		}
	}
	if sleeps < 5 || wakes < 5 {
		t.Errorf("%d sleeps and %d wakes are remembered, want 5: %+v", sleeps, wakes, decisions)
	}
	f, err := g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
	if err != nil || f.InvocationCount != 5 {
		t.Errorf("GetFunction() = %v invocations, %v, want 5", f.InvocationCount, err)
	}

	// faas-cli sees the same after a restart.
	eventually(t, "it sleeps", asleep)
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	g = start(t, g.dir)
	f, err = g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
	if err != nil || f.InvocationCount != 5 || f.Replicas != 0 {
		t.Errorf("after a restart: %v invocations, %d replicas, %v, want 5 and 0", f.InvocationCount, f.Replicas, err)
	}
	g.want("/function/probe", 200, "hello")
}

// TestScalesWithLoad has real calls make real replicas, and CPU time too.
func TestScalesWithLoad(t *testing.T) {
	g := start(t, t.TempDir())
	probe := g.probe()
	probe.Labels = &map[string]string{
		"com.openfaas.scale.type": "capacity", "com.openfaas.scale.target": "5", "com.openfaas.scale.target-proportion": "1", "com.openfaas.scale.max": "4",
	}
	probe.Requests = &types.FunctionResources{Memory: "16Mi"}
	g.deploy(probe)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for range 15 {
		all.Go(func() {
			for ctx.Err() == nil {
				resp, err := http.Get(g.url + "/function/probe?sleep=100ms")
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("call: %v, %v", resp, err)
					return
				}
				resp.Body.Close()
			}
		})
	}
	g.ready("probe", 3)
	cancel()
	all.Wait()
	var one struct {
		Replicas, Available int
		Type, Why           string
		Decisions           []decision
	}
	g.system("/system/scaling/probe", &one)
	told := slices.ContainsFunc(one.Decisions, func(d decision) bool {
		return d.To == 3 && strings.Contains(d.Sentence, "in flight over ") && strings.HasSuffix(d.Sentence, "target 5 each: 3 replicas")
	})
	if one.Replicas != 3 || one.Available != 3 || one.Type != "capacity" || !told {
		t.Errorf("scaling = %+v", one)
	}
	_, _, metrics := g.get("/metrics")
	if !strings.Contains(metrics, `gateway_service_count{function_name="probe.openfaas-fn"} 3`) {
		t.Error("gateway_service_count doesn't say 3")
	}

	// What is wrong is refused, all of it at once.
	probe.Labels = &map[string]string{
		"com.openfaas.scale.type": "queue", "com.openfaas.scale.target": "none", "com.openfaas.scale.zero-duration": "15", "com.openfaas.scale.down.window": "6m",
	}
	_, err := g.client.Update(t.Context(), probe)
	for _, label := range []string{"scale.type", "scale.target", "scale.zero-duration", "scale.down.window"} {
		if err == nil || !strings.Contains(err.Error(), "com.openfaas."+label) {
			t.Errorf("Update() = %v, want an error that names %s", err, label)
		}
	}
}
