package resilience_test

import (
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

var (
	good     = resilience.Verdict{Outcome: resilience.Succeeded}
	bad      = resilience.Verdict{Outcome: resilience.Broken, Fallback: true}
	late     = resilience.Verdict{Outcome: resilience.Late}
	ignored  = resilience.Verdict{}
	hurried  = resilience.Verdict{Outcome: resilience.Impatient}
	throttle = resilience.Verdict{Outcome: resilience.Throttled, Wait: 3 * time.Second}
)

// breakerAt is a breaker and the clock that it is told.
type breakerAt struct {
	*resilience.Breaker
	t     *testing.T
	now   time.Time
	meter *resilience.Meter
}

func newBreaker(t *testing.T, p resilience.BreakerPolicy) *breakerAt {
	meter := resilience.NewMonitor(64, nil).Meter("test")
	return &breakerAt{resilience.NewBreaker(p, meter, "r1"), t, time.Now(), meter}
}

// call makes a call that takes a while.
func (b *breakerAt) call(v resilience.Verdict, took time.Duration) bool {
	permit, ok := b.Allow(b.now)
	if ok {
		b.now = b.now.Add(took)
		permit.Done(b.now, v)
	}
	return ok
}

func (b *breakerAt) calls(n int, v resilience.Verdict, took time.Duration) {
	b.t.Helper()
	for i := range n {
		if !b.call(v, took) {
			b.t.Fatalf("call %d of %d was refused", i+1, n)
		}
	}
}

func (b *breakerAt) want(s resilience.State) {
	b.t.Helper()
	if got := b.Snapshot(b.now); got.State != s {
		b.t.Fatalf("state = %v, want %v: %+v", got.State, s, got)
	}
}

// reopen opens the breaker and waits until it may be probed.
func (b *breakerAt) reopen() {
	b.t.Helper()
	for range 100 {
		if b.Snapshot(b.now).State == resilience.StateOpen {
			b.now = b.now.Add(b.Wait(b.now))
			return
		}
		b.call(bad, time.Millisecond)
	}
	b.t.Fatal("100 failures don't open it")
}

func TestBreakerOpens(t *testing.T) {
	type step struct {
		n    int
		v    resilience.Verdict
		took time.Duration
	}
	ms := time.Millisecond
	never := func(p *resilience.BreakerPolicy) { p.Consecutive = -1 }
	for _, tt := range []struct {
		name   string
		policy func(*resilience.BreakerPolicy)
		steps  []step
		want   resilience.State
	}{
		{"nothing", nil, nil, resilience.StateClosed},
		{"four failures in a row", nil, []step{{4, bad, ms}}, resilience.StateClosed},
		{"five failures in a row", nil, []step{{5, bad, ms}}, resilience.StateOpen},
		{"five with a good one between", nil, []step{{4, bad, ms}, {1, good, ms}, {1, bad, ms}}, resilience.StateClosed},
		{"five with one between that says nothing", nil, []step{{4, bad, ms}, {1, ignored, ms}, {1, bad, ms}}, resilience.StateOpen},
		{"half of nine", never, []step{{4, good, ms}, {5, bad, ms}}, resilience.StateClosed},
		{"half of ten", never, []step{{5, good, ms}, {5, bad, ms}}, resilience.StateOpen},
		{"less than half", never, []step{{60, good, ms}, {59, bad, ms}}, resilience.StateClosed},
		{"half, but an hour apart", never, []step{{9, bad, ms}, {1, good, time.Hour}, {8, bad, ms}}, resilience.StateClosed},
		{"failures at one a second", nil, []step{{5, bad, time.Second}}, resilience.StateOpen},
		{"callers that leave", nil, []step{{10000, ignored, time.Hour}}, resilience.StateClosed},
		{"callers in a hurry", nil, []step{{10000, hurried, 50 * ms}}, resilience.StateClosed},
		{"a target that asks for patience", nil, []step{{1, throttle, ms}}, resilience.StateClosed},
		{"slow calls that nobody calls slow", nil, []step{{20, good, time.Minute}}, resilience.StateClosed},
		{"slow calls", func(p *resilience.BreakerPolicy) { p.Slow = 100 * ms }, []step{{2, good, ms}, {8, good, 101 * ms}}, resilience.StateOpen},
		{"few slow calls", func(p *resilience.BreakerPolicy) { p.Slow = 100 * ms }, []step{{5, good, ms}, {15, good, 101 * ms}}, resilience.StateClosed},
		{"slow ones cut by callers in a hurry", func(p *resilience.BreakerPolicy) { p.Slow = 100 * ms }, []step{{10, hurried, 101 * ms}}, resilience.StateOpen},
		{"timeouts", nil, []step{{5, late, time.Second}}, resilience.StateOpen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := resilience.DefaultPolicy().Breaker
			if tt.policy != nil {
				tt.policy(&p)
			}
			b := newBreaker(t, p)
			for _, s := range tt.steps {
				b.calls(s.n, s.v, s.took)
			}
			b.want(tt.want)
		})
	}
}

func TestBreakerHeals(t *testing.T) {
	b := newBreaker(t, resilience.BreakerPolicy{})
	b.calls(5, bad, time.Millisecond)
	b.want(resilience.StateOpen)
	if b.call(good, 0) {
		t.Fatal("an open breaker let a call through")
	}
	wait := b.Wait(b.now)
	if wait < 4*time.Second || wait > 6*time.Second {
		t.Errorf("it opened for %s, want 5s ± 20%%", wait)
	}
	b.now = b.now.Add(wait - 1)
	if b.call(good, 0) {
		t.Fatal("a call came through before its time")
	}
	b.now = b.now.Add(1)
	began := b.now

	// Each step lets so many in at the same time, however many come at once.
	for step, allowed := range []int{1, 2, 4, 8, 16, 32} {
		permits := b.storm(500)
		if len(permits) != allowed {
			t.Fatalf("step %d let %d of 500 callers in, want %d", step, len(permits), allowed)
		}
		if b.Ready(b.now) {
			t.Errorf("step %d is ready for more than it lets in", step)
		}
		b.want(resilience.StateHalfOpen)
		for i := range permits {
			permits[i].Done(b.now, good)
		}
		for range 2 { // a step needs three, the smaller ones don't have so many at once
			if s := b.Snapshot(b.now); s.State == resilience.StateHalfOpen && s.Allowed == allowed {
				b.calls(1, good, 0)
			}
		}
		if step > 0 {
			if s := b.Snapshot(b.now); s.Allowed != allowed {
				t.Fatalf("after step %d of no time %d are allowed, want %d still", step, s.Allowed, allowed)
			}
			b.calls(1, good, time.Second)
		}
	}
	b.want(resilience.StateClosed)
	if took := b.now.Sub(began); took < 5*time.Second {
		t.Errorf("all calls passed after %s, want the ramp's 5s at least", took)
	}
	if got := len(b.storm(500)); got != 500 {
		t.Errorf("closed, it let %d of 500 in", got)
	}
	counts := b.meter.Counts()
	if counts[resilience.BreakerOpened] != 1 || counts[resilience.BreakerHalfOpen] != 1 || counts[resilience.BreakerClosed] != 1 {
		t.Errorf("counts = %v, want one of each change", counts)
	}
}

// storm has n callers at once, and returns the permits of those let in.
func (b *breakerAt) storm(n int) []resilience.Permit {
	var (
		mu      sync.Mutex
		permits []resilience.Permit
		callers sync.WaitGroup
	)
	for range n {
		callers.Go(func() {
			if p, ok := b.Allow(b.now); ok {
				mu.Lock()
				defer mu.Unlock()
				permits = append(permits, p)
			}
		})
	}
	callers.Wait()
	return permits
}

func TestBreakerOpensLonger(t *testing.T) {
	b := newBreaker(t, resilience.BreakerPolicy{})
	for _, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		want *= time.Second
		for b.Snapshot(b.now).State != resilience.StateOpen {
			b.call(bad, time.Millisecond)
		}
		wait := b.Wait(b.now)
		if wait < want*8/10 || wait > want*12/10 {
			t.Errorf("it opened for %s, want %s ± 20%%", wait, want)
		}
		b.now = b.now.Add(wait)
		b.call(bad, time.Millisecond) // one failed probe is enough
		b.want(resilience.StateOpen)
	}
}

// What was let in before a change says nothing after it: in the stock breaker an
// old success closed the circuit while the probe was still under way.
func TestBreakerDropsLateResults(t *testing.T) {
	b := newBreaker(t, resilience.BreakerPolicy{})
	old, _ := b.Allow(b.now)
	older, _ := b.Allow(b.now)
	b.reopen()
	probe, ok := b.Allow(b.now)
	if !ok {
		t.Fatal("no probe")
	}
	old.Done(b.now, good)
	older.Done(b.now, bad)
	if s := b.Snapshot(b.now); s.State != resilience.StateHalfOpen || s.InFlight != 1 || s.Allowed != 1 {
		t.Fatalf("late results changed it: %+v", s)
	}
	probe.Done(b.now, good)
	probe.Done(b.now, bad) // only the first time counts
	if s := b.Snapshot(b.now); s.State != resilience.StateHalfOpen || s.Allowed != 2 || s.InFlight != 0 {
		t.Fatalf("after a good probe: %+v", s)
	}
}

func TestBreakerProbe(t *testing.T) {
	t.Run("who says nothing frees its place", func(t *testing.T) {
		b := newBreaker(t, resilience.BreakerPolicy{})
		b.reopen()
		for _, v := range []resilience.Verdict{ignored, hurried} {
			if !b.call(v, 0) || b.Snapshot(b.now).InFlight != 0 {
				t.Fatalf("a probe that ended with %+v is still held", v)
			}
			b.want(resilience.StateHalfOpen)
		}
	})
	t.Run("one that is lost", func(t *testing.T) {
		b := newBreaker(t, resilience.BreakerPolicy{Probe: time.Second})
		b.reopen()
		lost, _ := b.Allow(b.now)
		b.now = b.now.Add(time.Second)
		if b.call(good, 0) {
			t.Fatal("two probes in the time of one")
		}
		b.now = b.now.Add(1)
		next, ok := b.Allow(b.now)
		if !ok {
			t.Fatal("a lost probe blocks the breaker")
		}
		lost.Done(b.now, good)
		if s := b.Snapshot(b.now); s.InFlight != 1 || s.Allowed != 1 {
			t.Fatalf("the lost one was heard: %+v", s)
		}
		next.Done(b.now, bad)
		b.want(resilience.StateOpen)
	})
	t.Run("a step needs three good ones, however long it lasts", func(t *testing.T) {
		b := newBreaker(t, resilience.BreakerPolicy{})
		b.reopen()
		for _, want := range []int{2, 2, 2, 4, 4, 4, 8} {
			b.calls(1, good, time.Minute)
			if s := b.Snapshot(b.now); s.Allowed != want {
				t.Fatalf("%d are allowed, want %d: %+v", s.Allowed, want, s)
			}
		}
	})
	t.Run("a slow one", func(t *testing.T) {
		b := newBreaker(t, resilience.BreakerPolicy{Slow: time.Second})
		b.reopen()
		b.calls(1, good, 1001*time.Millisecond)
		b.want(resilience.StateOpen)
	})
	t.Run("the last target is looked at each second", func(t *testing.T) {
		b := newBreaker(t, resilience.BreakerPolicy{Open: time.Minute})
		b.calls(5, bad, 0)
		probes := 0
		for range 600 { // 30 s
			b.now = b.now.Add(50 * time.Millisecond)
			if p, ok := b.Breaker.Probe(b.now); ok {
				probes++
				p.Done(b.now, bad)
			}
		}
		if probes != 30 {
			t.Errorf("%d probes in 30 s, want 30", probes)
		}
	})
}

func TestBreakerLeavesAlone(t *testing.T) {
	b := newBreaker(t, resilience.BreakerPolicy{})
	b.calls(1, throttle, 0)
	b.want(resilience.StateClosed)
	if b.call(good, 0) || b.Wait(b.now) != 3*time.Second {
		t.Fatalf("Wait() = %s, want the 3s that the target asked for, and no calls", b.Wait(b.now))
	}
	b.now = b.now.Add(3 * time.Second)
	b.calls(100, good, 0)

	forever := resilience.Verdict{Outcome: resilience.Throttled, Wait: 24 * time.Hour}
	b.calls(1, forever, 0)
	if b.Wait(b.now) != 30*time.Second {
		t.Errorf("Wait() = %s, want no more than 30s", b.Wait(b.now))
	}
}

func TestBreakerModes(t *testing.T) {
	for _, tt := range []struct {
		mode  resilience.Mode
		calls bool // pass
		state resilience.State
	}{
		{resilience.ModeAuto, false, resilience.StateOpen},
		{resilience.ModeObserve, true, resilience.StateOpen},
		{resilience.ModeOff, true, resilience.StateClosed},
		{resilience.ModeForcedClosed, true, resilience.StateClosed},
		{resilience.ModeForcedOpen, false, resilience.StateClosed},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			b := newBreaker(t, resilience.BreakerPolicy{})
			b.SetMode(b.now, tt.mode)
			for range 50 {
				b.call(bad, time.Millisecond)
			}
			b.want(tt.state)
			if b.call(bad, 0) != tt.calls || b.Ready(b.now) != tt.calls {
				t.Errorf("calls pass: %v, want %v", !tt.calls, tt.calls)
			}
			if (b.Wait(b.now) == 0) != tt.calls {
				t.Errorf("Wait() = %s where calls pass: %v", b.Wait(b.now), tt.calls)
			}
			b.SetMode(b.now, resilience.ModeAuto)
			if tt.mode != resilience.ModeAuto {
				b.calls(4, bad, 0) // it began anew
			}
			parsed, err := resilience.ParseMode(tt.mode.String())
			if err != nil || parsed != tt.mode {
				t.Errorf("ParseMode(%q) = %v, %v", tt.mode, parsed, err)
			}
		})
	}
	if _, err := resilience.ParseMode("ajar"); err == nil {
		t.Error("ParseMode takes anything")
	}
}
