package resilience_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// TestBreakerModel lets chance interleave callers, clocks and operators, and
// holds every step against a model that is slow and plain.
func TestBreakerModel(t *testing.T) {
	var healed uint64
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { healed += runModel(t, seed) })
	}
	if healed < 60 {
		t.Errorf("breakers closed again %d times, want them to more often: else that is not tested", healed)
	}
}

type sample struct {
	bucket     int64
	fail, slow bool
}

type heldPermit struct {
	p     resilience.Permit
	era   int // of the model, when it was let in
	start time.Time
}

// runModel returns how often the breaker closed again.
func runModel(t *testing.T, seed uint64) uint64 {
	rnd := rand.New(rand.NewPCG(seed, 7))
	policy := resilience.BreakerPolicy{
		Failures: 0.1 + 0.3*rnd.Float64(), SlowCalls: 0.5, Slow: 300 * time.Millisecond,
		MinCalls: 1 + rnd.IntN(12), Consecutive: rnd.IntN(8) - 1, // 0 is the default, 5
		Open: time.Second, MaxOpen: 4 * time.Second, Ramp: 2 * time.Second, Probe: 5 * time.Second,
	}
	lucky := seed%2 == 0 // what is probed is well, and never slow: else it would hardly ever heal
	if lucky {
		policy.Slow = time.Hour
	}
	meter := resilience.NewMonitor(16, nil).Meter("model")
	b := resilience.NewBreaker(policy, meter, "")
	start := time.Now()
	now := start
	if policy.Consecutive == 0 {
		policy.Consecutive = 5
	}

	var (
		held     []heldPermit
		samples  []sample // of this closed era
		row      int
		era      int       // what is let in belongs to one
		lastIn   time.Time // the last one let in while half-open
		until    time.Time // the end of what is open
		edges    = map[[2]resilience.State]int{}
		snap     = b.Snapshot(now)
		admitted = func() (n int) { // of this era, and not done
			for _, h := range held {
				if h.era == era {
					n++
				}
			}
			return n
		}
	)
	next := func() (from, to resilience.State) {
		before := snap
		snap = b.Snapshot(now)
		if before.State != snap.State {
			edges[[2]resilience.State{before.State, snap.State}]++
			era++
		}
		return before.State, snap.State
	}
	for range 3000 {
		switch op := rnd.IntN(20); {
		case op < 6: // time passes
			now = now.Add(time.Duration(rnd.Int64N(int64(400 * time.Millisecond))))
			if from, to := next(); from != to {
				t.Fatalf("time alone led from %v to %v", from, to)
			}
		case op < 12: // somebody calls
			urgent := rnd.IntN(4) == 0
			before := snap
			lost := before.State == resilience.StateHalfOpen && admitted() >= before.Allowed && now.Sub(lastIn) > policy.Probe
			allow := b.Allow
			if urgent {
				allow = b.Probe
			}
			ready := b.Ready(now)
			permit, ok := allow(now)
			from, to := next()
			want := ready
			if over := !now.Before(until); from == resilience.StateOpen && ready != over {
				t.Fatalf("open, %s after its end: Ready() = %v", now.Sub(until), ready)
			}
			switch from {
			case resilience.StateClosed:
				if !ok || to != from {
					t.Fatalf("closed: Allow() = %v and it is %v", ok, to)
				}
			case resilience.StateOpen:
				if urgent && now.Sub(before.Since) >= time.Second {
					want = true
				}
				if ok != want || ok != (to == resilience.StateHalfOpen) {
					t.Fatalf("open, urgent %v: Allow() = %v, want %v, and it is %v", urgent, ok, want, to)
				}
			case resilience.StateHalfOpen:
				room := admitted() < before.Allowed
				if ok != (room || lost) || to != from {
					t.Fatalf("half-open with %d of %d, lost %v: Allow() = %v and it is %v", admitted(), before.Allowed, lost, ok, to)
				}
				if lost {
					era++ // those who are lost are not heard any more
				}
			}
			if ok {
				held = append(held, heldPermit{permit, era, now})
				if to == resilience.StateHalfOpen {
					lastIn = now
					if n := admitted(); n > snap.Allowed || n != snap.InFlight {
						t.Fatalf("%d calls are under way, the breaker counts %d and allows %d", n, snap.InFlight, snap.Allowed)
					}
				}
			}
		case op < 19 && len(held) > 0: // somebody is done
			i := rnd.IntN(len(held))
			h := held[i]
			held = append(held[:i], held[i+1:]...)
			v := []resilience.Verdict{good, good, good, bad, late, ignored, hurried}[rnd.IntN(7)]
			if snap.State == resilience.StateHalfOpen && (lucky || rnd.IntN(3) > 0) {
				v = good
			}
			before := snap
			h.p.Done(now, v)
			wasEra := era
			from, to := next()
			if h.era != wasEra {
				if after := snap; after.State != before.State || after.InFlight != before.InFlight || after.Allowed != before.Allowed || after.Consecutive != before.Consecutive {
					t.Fatalf("a late result changed %+v to %+v", before, after)
				}
				continue
			}
			slow := now.Sub(h.start) > policy.Slow || v.Outcome == resilience.Late
			fail := v.Outcome == resilience.Broken || v.Outcome == resilience.Late
			counted := fail || v.Outcome == resilience.Succeeded || v.Outcome == resilience.Impatient && slow
			switch from {
			case resilience.StateClosed:
				open := false
				if counted {
					samples = append(samples, sample{int64(now.Sub(start) / time.Second), fail, slow})
					row++
					if !fail {
						row = 0
					}
					open = (fail || slow) && shouldOpen(policy, samples, row, int64(now.Sub(start)/time.Second))
				}
				if want := map[bool]resilience.State{false: resilience.StateClosed, true: resilience.StateOpen}[open]; to != want {
					t.Fatalf("closed, after fail %v slow %v, row %d, window %+v: it is %v, want %v", fail, slow, row, before, to, want)
				}
			case resilience.StateHalfOpen:
				if fail && to != resilience.StateOpen {
					t.Fatalf("a probe failed and it is %v", to)
				}
				if !counted && to != from {
					t.Fatalf("a probe that says nothing made it %v", to)
				}
				if to == resilience.StateClosed && (fail || slow || before.Allowed != 32) {
					t.Fatalf("it closed after fail %v slow %v with %d allowed", fail, slow, before.Allowed)
				}
				if to == resilience.StateOpen && !fail && !slow {
					t.Fatal("a good probe opened it")
				}
			default:
				t.Fatalf("a call was under way while it was %v", from)
			}
			if to != from {
				samples, row = nil, 0
			}
			if to == resilience.StateOpen {
				if snap.Wait < policy.Open*8/10 || snap.Wait > policy.MaxOpen*12/10 {
					t.Fatalf("it opened for %s", snap.Wait)
				}
				until = now.Add(snap.Wait)
			}
		case op == 19 && rnd.IntN(30) == 0: // an operator
			b.SetMode(now, resilience.ModeForcedOpen)
			if _, ok := b.Allow(now); ok {
				t.Fatal("forced open, it let a call through")
			}
			b.SetMode(now, resilience.ModeAuto)
			snap = b.Snapshot(now)
			if snap.State != resilience.StateClosed || snap.Calls != 0 {
				t.Fatalf("given back it is %+v", snap)
			}
			era++
			samples, row = nil, 0
		}
	}
	legal := map[[2]resilience.State]resilience.EventKind{
		{resilience.StateClosed, resilience.StateOpen}:     resilience.BreakerOpened,
		{resilience.StateOpen, resilience.StateHalfOpen}:   resilience.BreakerHalfOpen,
		{resilience.StateHalfOpen, resilience.StateOpen}:   resilience.BreakerOpened,
		{resilience.StateHalfOpen, resilience.StateClosed}: resilience.BreakerClosed,
	}
	seen := map[resilience.EventKind]uint64{}
	for edge, n := range edges {
		kind, ok := legal[edge]
		if !ok {
			t.Errorf("it went from %v to %v", edge[0], edge[1])
		}
		seen[kind] += uint64(n)
	}
	for _, kind := range []resilience.EventKind{resilience.BreakerOpened, resilience.BreakerHalfOpen, resilience.BreakerClosed} {
		if got := meter.Counts()[kind]; got != seen[kind] {
			t.Errorf("%v is counted %d times and was seen %d times", kind, got, seen[kind])
		}
	}
	if seen[resilience.BreakerOpened] == 0 || seen[resilience.BreakerHalfOpen] == 0 {
		t.Errorf("nothing happened: %v", edges)
	}
	return seen[resilience.BreakerClosed]
}

// shouldOpen is the rule, said plainly: ten buckets of a second.
func shouldOpen(p resilience.BreakerPolicy, samples []sample, row int, bucket int64) bool {
	if p.Consecutive > 0 && row >= p.Consecutive {
		return true
	}
	var calls, fails, slow float64
	for _, s := range samples {
		if s.bucket > bucket-10 {
			calls++
			if s.fail {
				fails++
			}
			if s.slow {
				slow++
			}
		}
	}
	return int(calls) >= p.MinCalls && (fails >= p.Failures*calls || slow >= p.SlowCalls*calls)
}
