package fleet_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// callers are what a proxy tells of calls: as many are in flight as a test says.
type callers struct {
	mu    sync.Mutex // guards below
	since time.Time
	loads map[faas.Name]faas.Load
	room  []provider.Room
}

// set has so many calls in flight from now on; they have just begun.
func (c *callers) set(name string, inFlight int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass()
	l := c.loads[named(name)]
	l.Started += uint64(max(0, inFlight-l.InFlight))
	l.InFlight = inFlight
	c.loads[named(name)] = l
}

// call has so many calls begin and end at once.
func (c *callers) call(name string, calls uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.loads[named(name)]
	l.Started += calls
	c.loads[named(name)] = l
}

// pass lets time pass. c.mu is held.
func (c *callers) pass() {
	now := time.Now()
	for name, l := range c.loads {
		l.Busy += now.Sub(c.since) * time.Duration(l.InFlight)
		c.loads[name] = l
	}
	c.since = now
}

func (c *callers) each(yield func(faas.Name, faas.Load)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass()
	for name, l := range c.loads {
		yield(name, l)
	}
}

func (c *callers) invocations(name faas.Name) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.loads[name]
	return float64(l.Started) - float64(l.InFlight)
}

// startScaled opens a fleet that is told of calls.
func startScaled(t *testing.T, s *store) (*world, *callers) {
	t.Helper()
	w := &world{store: s, nodes: newNodes(), registry: newRegistry()}
	c := &callers{since: time.Now(), loads: make(map[faas.Name]faas.Load)}
	f, err := fleet.New(t.Context(), fleet.Config{
		Store: s, Provider: w.nodes, Images: w.registry, Key: testKey, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Loads: c.each, Invocations: c.invocations,
		Room: func() []provider.Room {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.room
		},
	})
	must(t, err)
	w.Fleet = f
	w.stop = runFleet(t, f)
	return w, c
}

// scaled is a function that asks to be scaled by what is in flight.
func scaled(name string, more ...string) types.FunctionDeployment {
	d := deployment(name)
	l := map[string]string{faas.LabelScaleType: "capacity", faas.LabelScaleTarget: "7", faas.LabelScaleProportion: "1"}
	for i := 0; i < len(more); i += 2 {
		l[more[i]] = more[i+1]
	}
	d.Labels = &l
	return d
}

func (w *world) wanted(t *testing.T, name string, want int) {
	t.Helper()
	if got, _, _ := w.Known(named(name)); got != want {
		t.Errorf("%s has %d replicas, want %d", name, got, want)
	}
	if want > 0 {
		if got, _ := w.nodes.last(name); got.Function.Replicas != want {
			t.Errorf("the provider was told to run %d replicas of %s, want %d", got.Function.Replicas, name, want)
		}
	}
}

// get asks what operators are shown.
func (w *world) get(t *testing.T, target string, into any) error {
	t.Helper()
	mux := http.NewServeMux()
	var failed error
	for pattern, serve := range w.Operate() {
		mux.HandleFunc(pattern, func(rw http.ResponseWriter, r *http.Request) { failed = serve(rw, r) })
	}
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest("GET", target, nil))
	if failed == nil {
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			t.Fatalf("GET %s: %v in %s", target, err, rec.Body)
		}
	}
	return failed
}

func TestScaleByLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		must(t, w.Deploy(t.Context(), scaled("f")))
		must(t, w.Deploy(t.Context(), deployment("plain")))
		synctest.Wait()
		puts := w.store.puts
		time.Sleep(2*time.Minute + 500*time.Millisecond)
		c.set("f", 41)
		c.set("plain", 4100)
		time.Sleep(8 * time.Second)
		w.wanted(t, "f", 6)
		w.wanted(t, "plain", 1) // no label asks for more
		time.Sleep(time.Minute)
		c.set("f", 2)
		c.set("plain", 0)
		time.Sleep(3 * time.Minute)
		w.wanted(t, "f", 1)

		var decisions []fleet.Decision
		must(t, w.get(t, "/system/scaling?function=f", &decisions))
		for _, d := range decisions {
			t.Logf("%s %d -> %d (%d times): %s", d.At.Format(time.TimeOnly), d.From, d.To, d.Times, d.Sentence)
		}
		newest := decisions[0]
		if newest.To != 1 || newest.Times < 30 || newest.Last.Sub(newest.At) < 30*time.Second || newest.Sentence != "2 in flight over 60 s, target 7 each: 1 replica" {
			t.Errorf("the newest decision is %+v", newest)
		}
		found := false
		for i, d := range decisions {
			found = found || d.To == 6 && strings.HasSuffix(d.Sentence, "in flight over 6 s, target 7 each: 6 replicas")
			if i > 0 && d.ID >= decisions[i-1].ID {
				t.Errorf("decision %d comes after %d", d.ID, decisions[i-1].ID)
			}
		}
		if !found {
			t.Error("no decision tells why there were 6 replicas")
		}
		var later []fleet.Decision
		must(t, w.get(t, fmt.Sprintf("/system/scaling?since=%d", decisions[1].ID), &later))
		if len(later) != 1 || later[0].ID != newest.ID {
			t.Errorf("since the last but one: %+v, want the newest", later)
		}
		must(t, w.get(t, "/system/scaling?limit=2", &later))
		if len(later) != 2 {
			t.Errorf("limit=2 gave %d", len(later))
		}
		var one struct {
			Replicas, Available, Min, Max int
			Type, Why                     string
			Target                        float64
			Decisions                     []fleet.Decision
		}
		must(t, w.get(t, "/system/scaling/f", &one))
		if one.Replicas != 1 || one.Available != 1 || one.Max != 20 || one.Type != "capacity" || one.Target != 7 || one.Why != newest.Sentence || len(one.Decisions) != len(decisions) {
			t.Errorf("state = %+v", one)
		}
		must(t, w.get(t, "/system/scaling/plain", &one))
		if len(one.Decisions) != 0 || !strings.Contains(one.Why, faas.LabelScaleType) {
			t.Errorf("state of a function that isn't scaled by load = %+v", one)
		}
		for _, bad := range []string{"?since=x", "?limit=0", "?function=none", "?function=F_", "/none"} {
			if err := w.get(t, "/system/scaling"+bad, nil); err == nil {
				t.Errorf("GET /system/scaling%s is no error", bad)
			}
		}
		if n := w.store.puts - puts; n > 1 {
			t.Errorf("stored %d times in 6 minutes, want at most once", n)
		}
	})
}

func TestScaleWithinTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		d := scaled("f")
		d.Requests = &types.FunctionResources{Memory: "64Mi"}
		must(t, w.Deploy(t.Context(), d))
		synctest.Wait()
		c.mu.Lock()
		c.room = []provider.Room{{Node: "pi-3", Memory: 200 << 20, CPU: 4000}} // for three more, ever
		c.mu.Unlock()
		c.set("f", 410)
		time.Sleep(1500 * time.Millisecond) // one look
		w.wanted(t, "f", 4)
		c.mu.Lock()
		c.room[0].Memory = 0
		c.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.wanted(t, "f", 4)
		newest := w.Decisions(new(named("f")), 0)[0]
		if !strings.HasSuffix(newest.Sentence, "; capped at 4: memory on pi-3") || newest.Times < 9 {
			t.Errorf("decision = %+v", newest)
		}
	})
}

func TestScaleByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		must(t, w.Deploy(t.Context(), scaled("f")))
		synctest.Wait()
		c.set("f", 5)
		time.Sleep(time.Minute + time.Second/2) // not when the loop decides
		must(t, w.Scale(t.Context(), named("f"), 4, "set by hand"))
		if d := w.Decisions(nil, 0)[0]; d.Sentence != "set by hand: 4 replicas; kept for 5 min, unless the load needs twice what is ready" || d.From != 1 || d.To != 4 {
			t.Errorf("decision = %+v", d)
		}
		time.Sleep(4*time.Minute + 50*time.Second)
		w.wanted(t, "f", 4)
		time.Sleep(20 * time.Second)
		w.wanted(t, "f", 1)

		must(t, w.Scale(t.Context(), named("f"), 2, "set by hand"))
		c.set("f", 60) // far more than two can take
		time.Sleep(10 * time.Second)
		w.wanted(t, "f", 9)
	})
}

// TestSleepsWhenIdle has a function sleep after its idle time, and not earlier,
// and be waked by who calls it.
func TestSleepsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		must(t, w.Deploy(t.Context(), scaled("f", faas.LabelScaleZero, "true", faas.LabelScaleMin, "2")))
		static := deployment("static")
		static.Labels = &map[string]string{faas.LabelScaleZero: "true", faas.LabelScaleZeroDuration: "10s"}
		must(t, w.Deploy(t.Context(), static))
		synctest.Wait()
		time.Sleep(12*time.Second + 500*time.Millisecond) // in between the fleet's looks
		w.wanted(t, "f", 2)
		w.wanted(t, "static", 0)
		c.set("f", 1) // one call of 20 minutes
		time.Sleep(20 * time.Minute)
		w.wanted(t, "f", 2)
		c.set("f", 0)
		time.Sleep(14*time.Minute + 55*time.Second)
		w.wanted(t, "f", 2)
		time.Sleep(10 * time.Second)
		w.wanted(t, "f", 0)
		if d := w.Decisions(new(named("f")), 0)[0]; d.Sentence != "no call for 15 min: asleep, 0 replicas" {
			t.Errorf("decision = %+v", d)
		}
		for range 3 { // it sleeps again and again
			time.Sleep(5*time.Second + time.Hour)
			must(t, w.Wake(t.Context(), named("f")))
			c.call("f", 1)
			w.wanted(t, "f", 2)
			if d := w.Decisions(new(named("f")), 0)[0]; d.Sentence != "a call came: 2 replicas" {
				t.Errorf("decision = %+v", d)
			}
			time.Sleep(14*time.Minute + 55*time.Second)
			w.wanted(t, "f", 2)
			time.Sleep(10 * time.Second)
			w.wanted(t, "f", 0)
		}
		if n := w.store.puts; n > 40 {
			t.Errorf("stored %d times, want at most every 5 minutes while something changes", n)
		}
	})
}

// TestScaleAfterWake has many calls wait for a function that sleeps.
func TestScaleAfterWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		must(t, w.Deploy(t.Context(), scaled("f", faas.LabelScaleMin, "0")))
		synctest.Wait()
		time.Sleep(time.Hour + 300*time.Millisecond)
		w.wanted(t, "f", 0)
		c.set("f", 70)
		must(t, w.Wake(t.Context(), named("f")))
		w.wanted(t, "f", 1)
		time.Sleep(2 * time.Second)
		w.wanted(t, "f", 9) // as far as the load is known by then
		time.Sleep(6 * time.Second)
		w.wanted(t, "f", 10)
	})
}

func TestScaleByCPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		d := scaled("f", faas.LabelScaleType, "cpu", faas.LabelScaleTarget, "500")
		must(t, w.Deploy(t.Context(), d))
		synctest.Wait()
		began := time.Now()
		w.nodes.mu.Lock()
		w.nodes.used = func(replica int) provider.Used { // 1.6 processors, shared by all
			n := w.nodes.running[named("f")].Function.Replicas
			return provider.Used{Replica: fmt.Sprint(replica), CPU: 1600 * time.Since(began) / 1000 / time.Duration(n)}
		}
		w.nodes.mu.Unlock()
		for range 60 {
			c.call("f", 3)
			time.Sleep(time.Second)
		}
		w.wanted(t, "f", 4)
		if d := w.Decisions(nil, 0); !strings.Contains(d[len(d)-1].Sentence, "milli-CPU over") {
			t.Errorf("decisions = %+v", d)
		}
		w.nodes.mu.Lock()
		w.nodes.used = nil
		w.nodes.mu.Unlock()
		c.call("f", 3)
		time.Sleep(2 * time.Second)
		if d := w.Decisions(nil, 0)[0]; !strings.Contains(d.Sentence, "can't be measured") {
			t.Errorf("decision = %+v", d)
		}
	})
}

func TestCallsAndReplicasAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c := startScaled(t, newStore())
		must(t, w.Deploy(t.Context(), scaled("f")))
		must(t, w.Deploy(t.Context(), scaled("g", faas.LabelScaleZero, "true")))
		synctest.Wait()
		c.set("f", 41)
		c.call("f", 100)
		c.call("g", 7)
		time.Sleep(10 * time.Second)
		w.wanted(t, "f", 6)
		c.set("f", 0)
		time.Sleep(30 * time.Second)
		w.stop()

		w, c = startScaled(t, w.store)
		synctest.Wait()
		w.wanted(t, "f", 6)
		if f, g := w.Invocations(named("f")), w.Invocations(named("g")); f != 141 || g != 7 {
			t.Errorf("%v and %v invocations after a restart, want 141 and 7", f, g)
		}
		c.call("g", 1)
		if g := w.Invocations(named("g")); g != 8 {
			t.Errorf("%v invocations, want 8", g)
		}
		time.Sleep(20 * time.Minute) // f shrinks, g sleeps
		w.wanted(t, "f", 1)
		w.wanted(t, "g", 0)

		// Nothing happens any more, and nothing is written.
		puts := w.store.puts
		time.Sleep(time.Hour)
		if n := w.store.puts - puts; n > 0 {
			t.Errorf("stored %d times in an idle hour", n)
		}

		// A kill loses what is younger than 5 minutes.
		must(t, w.Wake(t.Context(), named("g")))
		c.call("g", 10)
		time.Sleep(6 * time.Minute)
		c.call("g", 100)
		time.Sleep(time.Minute)
		killed := newStore()
		w.store.mu.Lock()
		maps.Copy(killed.data, w.store.data)
		w.store.mu.Unlock()
		w2, _ := startScaled(t, killed)
		if g := w2.Invocations(named("g")); g != 18 {
			t.Errorf("%v invocations after a kill, want the 18 that were stored", g)
		}
		synctest.Wait()
		w2.wanted(t, "g", 1)

		// What was set by hand is newer than what load made of it.
		must(t, w2.Scale(t.Context(), named("f"), 3, "set by hand"))
		w2.stop()
		w3, _ := startScaled(t, killed)
		synctest.Wait()
		w3.wanted(t, "f", 3)

		must(t, w3.Delete(t.Context(), named("f")))
		must(t, w3.Deploy(t.Context(), scaled("f")))
		if n := w3.Invocations(named("f")); n != 0 || len(w3.Decisions(new(named("f")), 0)) != 0 {
			t.Errorf("%v invocations of another function of the same name, want 0", n)
		}
	})
}

// TestDecisionsAreBounded makes more decisions than are remembered.
func TestDecisionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := startScaled(t, newStore())
		const functions = 200
		for i := range functions {
			must(t, w.Deploy(t.Context(), deployment(fmt.Sprintf("f%d", i))))
		}
		synctest.Wait()
		for i := range functions {
			for n := range 20 {
				must(t, w.Scale(t.Context(), named(fmt.Sprintf("f%d", i)), n%3+1, "set by hand"))
			}
		}
		if n := len(w.Decisions(nil, 0)); n != 2048 {
			t.Errorf("%d decisions are remembered, want 2048", n)
		}
		if n := len(w.Decisions(new(named("f199")), 0)); n != 16 {
			t.Errorf("%d decisions of one function are remembered, want 16", n)
		}
		if n := len(w.Decisions(new(named("f0")), 0)); n != 0 {
			t.Errorf("%d decisions of the oldest are remembered, want none", n)
		}
	})
}

// FuzzKept opens a fleet over a record that anybody may have written.
func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"function.openfaas-fn.f":{"calls":3,"replicas":7,"of":1,"revision":1}}`))
	f.Add([]byte(`{"function.openfaas-fn.f":{"calls":3,"replicas":-7,"of":1,"revision":1}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStore()
		s.data["function.openfaas-fn.f"] = []byte(`{"declared":{"service":"f","image":"img:1","namespace":"openfaas-fn","revision":1,"replicas":1}}`)
		s.data["scaling"] = b
		fl, err := fleet.New(t.Context(), fleet.Config{Store: s, Provider: newNodes(), Images: newRegistry(), Key: testKey, Logger: discard})
		if err != nil {
			t.Fatal(err)
		}
		if n, _, ok := fl.Known(named("f")); !ok || n < 0 || n > 20 {
			t.Errorf("%d replicas", n)
		}
	})
}
