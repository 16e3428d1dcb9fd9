package resilience_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// What is counted is what was told, also when everything happens at once.
func TestCountersAgreeWithEvents(t *testing.T) {
	const size = 1 << 16
	monitor := resilience.NewMonitor(size, nil)
	p := resilience.DefaultPolicy()
	p.Breaker.Open, p.Breaker.MinCalls, p.Budget.Ratio = 100*time.Millisecond, 3, 1
	var callers sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		c, err := resilience.New(resilience.Config{Name: name, Policy: p, Idempotent: true, Monitor: monitor, Result: func(err error) resilience.Result {
			return resilience.Result{Status: 502, Err: err}
		}})
		if err != nil {
			t.Fatal(err)
		}
		// One that succeeds in any case: three bad ones in a row open the breaker.
		if _, err := resilience.Do(t.Context(), c, func(context.Context) (int, error) { return 1, nil }); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			callers.Go(func() {
				for range 300 {
					resilience.Do(t.Context(), c, func(context.Context) (int, error) {
						if rand.IntN(3) == 0 {
							return 0, fmt.Errorf("bad luck")
						}
						return 1, nil
					}, resilience.Static(0))
				}
			})
		}
	}
	callers.Wait()
	told := map[string]map[resilience.EventKind]uint64{"a": {}, "b": {}}
	last := uint64(0)
	for _, e := range monitor.Events(0) {
		if e.Seq != last+1 || e.Time.IsZero() {
			t.Fatalf("event %+v follows number %d", e, last)
		}
		last = e.Seq
		told[e.Target][e.Kind]++
	}
	for name, want := range told {
		counts := monitor.Meter(name).Counts()
		if counts[resilience.Success] == 0 || want[resilience.Failure] == 0 || want[resilience.BreakerOpened] == 0 {
			t.Fatalf("%s: nothing happened: %v", name, counts)
		}
		delete(counts, resilience.Success) // the only one that is no event
		if fmt.Sprint(counts) != fmt.Sprint(want) {
			t.Errorf("%s: counted %v, told %v", name, counts, want)
		}
	}
}

func TestEventsAreBounded(t *testing.T) {
	monitor := resilience.NewMonitor(4, nil)
	meter := monitor.Meter("f")
	for i := range 10 {
		meter.Add(resilience.Failure, fmt.Sprint("r", i))
	}
	for after, want := range map[uint64]string{0: "r6 r7 r8 r9", 3: "r6 r7 r8 r9", 8: "r8 r9", 9: "r9", 10: "", 99: ""} {
		var got []string
		for _, e := range monitor.Events(after) {
			got = append(got, e.Replica)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("Events(%d) = %v, want %s", after, got, want)
		}
	}
	if n := meter.Counts()[resilience.Failure]; n != 10 {
		t.Errorf("%d are counted, want all 10", n)
	}
	var none *resilience.Meter
	none.Add(resilience.Failure, "")
	if none.Counts() != nil {
		t.Error("a nil meter counts")
	}
}

func TestMetrics(t *testing.T) {
	monitor := resilience.NewMonitor(2, nil)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(monitor)
	meter := monitor.Meter("weather")
	now := time.Now()
	open := resilience.NewBreaker(resilience.BreakerPolicy{}, meter, "r1")
	resilience.NewBreaker(resilience.BreakerPolicy{}, meter, "r2")
	gone := resilience.NewBreaker(resilience.BreakerPolicy{}, meter, "r3")
	gone.Close()
	for range 5 {
		p, _ := open.Allow(now)
		p.Done(now, resilience.Verdict{Outcome: resilience.Broken})
		meter.Add(resilience.Failure, "r1")
	}
	want := `
# HELP thicket_resilience_breakers Breakers by their state: one of each replica.
# TYPE thicket_resilience_breakers gauge
thicket_resilience_breakers{state="closed",target="weather"} 1
thicket_resilience_breakers{state="half-open",target="weather"} 0
thicket_resilience_breakers{state="open",target="weather"} 1
# HELP thicket_resilience_events_dropped_total Events that are no longer remembered; they are counted nonetheless.
# TYPE thicket_resilience_events_dropped_total counter
thicket_resilience_events_dropped_total 4
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "thicket_resilience_breakers", "thicket_resilience_events_dropped_total"); err != nil {
		t.Error(err)
	}
	one := collected(monitor)
	// A stranger can't make series without end.
	for i := range 10_000 {
		monitor.Meter(fmt.Sprint("f", i)).Add(resilience.Failure, fmt.Sprint("replica", i))
	}
	if many := collected(monitor); many > 4097*one {
		t.Errorf("%d series; one target has %d", many, one)
	}
	if n := monitor.Meter("other").Counts()[resilience.Failure]; n == 0 || n+4096 < 10_000 {
		t.Errorf("%d are counted together, want all that were too many", n)
	}
	before := collected(monitor)
	monitor.Forget("weather")
	if n := before - collected(monitor); n != one-1 { // one of them is everybody's
		t.Errorf("%d series went with a target that is no more, want its %d", n, one-1)
	}
}

// collected counts the series.
func collected(c prometheus.Collector) int {
	series := make(chan prometheus.Metric)
	go func() {
		defer close(series)
		c.Collect(series)
	}()
	n := 0
	for range series {
		n++
	}
	return n
}

func TestBudget(t *testing.T) {
	now := time.Now()
	b := resilience.NewBudget(resilience.BudgetPolicy{Ratio: 0.1, Floor: 3})
	take := func() (n int) {
		for b.Take(now) {
			n++
		}
		return n
	}
	if got := take(); got != 3 {
		t.Errorf("without a call %d retries, want the floor's 3", got)
	}
	for range 100 {
		b.Call(now)
	}
	if got := take(); got != 10 {
		t.Errorf("100 calls gave %d retries more, want 10", got)
	}
	if calls, retries := b.Spent(now); calls != 100 || retries != 13 {
		t.Errorf("Spent() = %d, %d, want 100, 13", calls, retries)
	}
	now = now.Add(9 * time.Second)
	if got := take(); got != 0 {
		t.Errorf("9 s later there are %d more, want none", got)
	}
	now = now.Add(time.Second)
	if got := take(); got != 3 {
		t.Errorf("when all is forgotten there are %d, want the floor's 3", got)
	}
}

func TestBulkhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open *resilience.Bulkhead = resilience.NewBulkhead(resilience.BulkheadPolicy{})
		if !open.Acquire(t.Context()) || open.InUse() != 0 {
			t.Error("a bulkhead without a bound refuses")
		}
		open.Release()
		b := resilience.NewBulkhead(resilience.BulkheadPolicy{Limit: 1, Wait: time.Second})
		if !b.Acquire(t.Context()) || b.InUse() != 1 {
			t.Fatal("an empty bulkhead refuses")
		}
		start := time.Now()
		if b.Acquire(t.Context()) || time.Since(start) != time.Second {
			t.Errorf("it waited %s for a place, want 1s in vain", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		if b.Acquire(ctx) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("it waited %s for a caller who had 100ms", time.Since(start))
		}
		time.AfterFunc(300*time.Millisecond, b.Release)
		start = time.Now()
		if !b.Acquire(t.Context()) || time.Since(start) != 300*time.Millisecond {
			t.Errorf("it waited %s for a place that was free after 300ms", time.Since(start))
		}
		b.Release()
	})
}

func TestHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for left, want := range map[time.Duration]string{
			2 * time.Second: "1.98s", 100 * time.Millisecond: "90ms", 0: "1ms", -time.Second: "1ms",
		} {
			ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(left))
			h := http.Header{}
			resilience.SetHeader(ctx, h)
			cancel()
			if got := h.Get("X-Timeout"); got != want {
				t.Errorf("with %s left: %q, want %q", left, got, want)
			}
			if d, ok := resilience.FromHeader(h); !ok || d.String() != want {
				t.Errorf("FromHeader(%q) = %s, %v", want, d, ok)
			}
		}
	})
	h := http.Header{"X-Timeout": {"7s"}}
	resilience.SetHeader(t.Context(), h)
	if h.Get("X-Timeout") != "7s" {
		t.Error("without a deadline the header was changed")
	}
	for value, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "1.5s": 1500 * time.Millisecond, "2m": 2 * time.Minute, "-1s": 0, "0": 0, "0s": 0,
		"soon": 0, "1e9": 0, "99999h": 24 * time.Hour, "9999999999999999999999": 0, strings.Repeat("1", 40) + "s": 0,
	} {
		if d, ok := resilience.FromHeader(http.Header{"X-Timeout": {value}}); d != want || ok != (want > 0) {
			t.Errorf("FromHeader(%q) = %s, %v, want %s", value, d, ok, want)
		}
	}
}
