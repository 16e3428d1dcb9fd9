package resilience

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// State is where a breaker is in its circle.
type State uint8

// The states. The edges are Closed to Open, Open to HalfOpen, and from there
// back to either; forcing a breaker may lead anywhere.
const (
	StateClosed   State = iota // calls pass and are counted
	StateOpen                  // calls are refused
	StateHalfOpen              // a few calls pass, to see whether the target is back
)

var stateNames = [...]string{"closed", "open", "half-open"}

// String returns the state in lower case.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Mode is who decides about a breaker's state.
type Mode uint8

// The modes. A policy can ask for the first three.
const (
	ModeAuto         Mode = iota // what the calls say
	ModeObserve                  // as auto, but no call is refused: to see what would be
	ModeOff                      // all calls pass, none is counted
	ModeForcedOpen               // an operator: all calls are refused
	ModeForcedClosed             // an operator: all calls pass, none is counted
)

var modeNames = [...]string{"auto", "observe", "off", "forced-open", "forced-closed"}

// String returns the mode in lower case.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode reads what [Mode.String] writes.
func ParseMode(s string) (Mode, error) {
	for i, name := range modeNames {
		if s == name {
			return Mode(i), nil
		}
	}
	return 0, fmt.Errorf("breaker mode %.40q is none: write one of %s", s, list(modeNames[:]))
}

// How a half-open breaker finds its way back. One call probes; when it is
// answered, two may be under way at the same time, then four, up to 32, then all.
// To bound what is under way, and not a share of the calls, lets the callers of
// a quiet target pass from the start, and protects a busy one.
const (
	rampSteps = 6 // 1, 2, 4, 8, 16, 32
	stepGood  = 3 // answers that a step after the probe needs
)

// probeEvery is how often [Breaker.Probe] looks at a target before its time.
const probeEvery = time.Second

// Breaker decides whether a target is asked. It has no goroutine and no clock:
// time comes with each call, and only its monotonic part matters.
//
// It is safe for concurrent use. While it is closed, to be let through costs one
// atomic read, and a good call one atomic addition: only what is not good, and
// the first call of each tenth of the window, takes a lock.
type Breaker struct {
	policy  BreakerPolicy
	meter   *Meter
	replica string

	// pass is the generation while everybody is let through and counted,
	// uncounted while everybody is and nobody is, else 0.
	pass atomic.Uint64

	mu          sync.Mutex // guards below
	mode        Mode
	state       State
	gen         uint64 // grows with every change; what was let in earlier has nothing to say
	window      window // calls, failures, slow calls
	consecutive int    // failures in a row
	quiet       time.Time

	opened int       // how often it opened since it was closed last
	since  time.Time // when the state began
	until  time.Time // when Open ends

	// Of HalfOpen.
	step     int
	stepFrom time.Time
	inFlight int
	good     int       // answers in this step
	slow     int       // slow ones in this step
	admitted time.Time // the last one let in
}

const uncounted = ^uint64(0)

// NewBreaker returns a closed breaker of a target, or one of its replicas. Its
// changes are noted with m, which may be nil; then call [Breaker.Close] when it
// is no longer needed.
func NewBreaker(p BreakerPolicy, m *Meter, replica string) *Breaker {
	p.fill()
	p.Probe = cmp.Or(p.Probe, 30*time.Second)
	b := &Breaker{policy: p, meter: m, replica: replica, mode: p.Mode, gen: 1}
	b.window.span(p.Window)
	b.settle()
	m.watch(b)
	return b
}

// Close makes the metrics forget the breaker. It still works.
func (b *Breaker) Close() { b.meter.unwatch(b) }

// Permit is the leave to make one call. Its holder must call [Permit.Done].
type Permit struct {
	b     *Breaker // nil: nobody wants to know
	gen   uint64
	start time.Time
}

// Allow lets a call through, or doesn't. Then [Breaker.Wait] says for how long.
func (b *Breaker) Allow(now time.Time) (Permit, bool) {
	switch gen := b.pass.Load(); gen {
	case 0:
	case uncounted:
		return Permit{}, true
	default:
		return Permit{b, gen, now}, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ready(now) {
		return b.admit(now), true
	}
	if b.mode == ModeObserve {
		return Permit{}, true
	}
	return Permit{}, false
}

// Ready says whether [Breaker.Allow] would let a call through now. It takes
// nothing: for choosing among replicas.
func (b *Breaker) Ready(now time.Time) bool {
	if b.pass.Load() != 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mode == ModeObserve || b.ready(now)
}

// Trusted says whether everybody is let through whatever comes of it: it is off,
// or an operator has forced it closed.
func (b *Breaker) Trusted() bool { return b.pass.Load() == uncounted }

// Probe is for a caller with no other target to turn to. It lets one call
// through each second while the breaker is open, before its time: a target that
// is the last one must not be away for a minute because it was away before.
func (b *Breaker) Probe(now time.Time) (Permit, bool) {
	if p, ok := b.Allow(now); ok {
		return p, ok
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode != ModeAuto || b.state != StateOpen || now.Sub(b.since) < probeEvery || now.Before(b.quiet) {
		return Permit{}, false
	}
	return b.admit(now), true
}

// Wait returns how long until a call is let through again, if nothing changes: 0
// if that is now, and a second where nobody knows.
func (b *Breaker) Wait(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	var wait time.Duration
	switch {
	case b.mode == ModeForcedOpen:
		wait = time.Second
	case b.mode != ModeAuto:
		return 0
	case b.state == StateOpen:
		wait = b.until.Sub(now)
	case b.state == StateHalfOpen && !b.ready(now):
		wait = time.Second
	}
	return max(wait, b.quiet.Sub(now), 0)
}

// ready is called with mu held.
func (b *Breaker) ready(now time.Time) bool {
	switch b.mode {
	case ModeForcedOpen:
		return false
	case ModeOff, ModeForcedClosed:
		return true
	}
	switch {
	case now.Before(b.quiet):
		return false
	case b.state == StateOpen:
		return !now.Before(b.until)
	case b.state == StateHalfOpen:
		return b.inFlight < 1<<b.step || b.lost(now)
	}
	return true
}

// lost says whether those who were let in will never report back.
func (b *Breaker) lost(now time.Time) bool {
	return now.Sub(b.admitted) > b.policy.Probe
}

// admit is called with mu held, by somebody who decided that a call may pass.
func (b *Breaker) admit(now time.Time) Permit {
	switch {
	case b.mode == ModeOff || b.mode == ModeForcedClosed:
		return Permit{}
	case b.state == StateClosed:
		b.quiet = time.Time{}
		b.settle()
		return Permit{b, b.gen, now}
	case b.state == StateOpen:
		b.become(StateHalfOpen, now)
		b.step, b.stepFrom, b.inFlight, b.good, b.slow = 0, now, 0, 0, 0
	case b.inFlight >= 1<<b.step: // they are lost, or this would not be called
		b.gen++
		b.inFlight = 0
	}
	b.inFlight++
	b.admitted = now
	return Permit{b, b.gen, now}
}

// Done says what came of the call. Only the first time counts, and nothing
// counts if the breaker has changed since: what an earlier time has to say about
// a target is not news.
func (p *Permit) Done(now time.Time, v Verdict) {
	b := p.b
	if b == nil {
		return
	}
	p.b = nil
	// One that is counted so although the breaker opens at this very moment is
	// forgotten when it closes again.
	if v.Outcome == Succeeded && b.pass.Load() == p.gen && (b.policy.Slow <= 0 || now.Sub(p.start) <= b.policy.Slow) && b.window.tick(now) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.gen != b.gen {
		return
	}
	if v.Outcome == Throttled && v.Wait > 0 {
		if until := now.Add(min(v.Wait, maxQuiet)); until.After(b.quiet) {
			b.quiet = until
			b.settle()
		}
	}
	c := b.judge(v.Outcome, now.Sub(p.start))
	if b.state == StateClosed {
		b.count(now, c)
		return
	}
	b.inFlight--
	b.probed(now, c)
}

// judge returns what one call adds to the window: nothing if it says nothing.
func (b *Breaker) judge(o Outcome, took time.Duration) counts {
	var slow uint32
	if b.policy.Slow > 0 && took > b.policy.Slow {
		slow = 1
	}
	switch o {
	case Succeeded:
		return counts{1, 0, slow}
	case Broken:
		return counts{1, 1, slow}
	case Late:
		return counts{1, 1, 1}
	case Impatient:
		return counts{slow, 0, slow}
	}
	return counts{}
}

// count is called with mu held, while the breaker is closed.
func (b *Breaker) count(now time.Time, c counts) {
	if c[0] == 0 {
		return
	}
	b.caughtUp(b.window.add(now, c))
	if c[1] == 0 {
		b.consecutive = 0
	} else {
		b.consecutive++
	}
	if c[1] == 0 && c[2] == 0 {
		return // a good call opens nothing
	}
	p, sum := &b.policy, b.window.sum
	calls := float64(sum[0])
	switch {
	case p.Consecutive > 0 && b.consecutive >= p.Consecutive:
	case int(sum[0]) < p.MinCalls:
		return
	case float64(sum[1]) >= p.Failures*calls:
	case p.Slow > 0 && float64(sum[2]) >= p.SlowCalls*calls:
	default:
		return
	}
	b.open(now)
}

// caughtUp is called with mu held when so many good calls were counted without
// it: they end a row of failures.
func (b *Breaker) caughtUp(good uint32) {
	if good > 0 {
		b.consecutive = 0
	}
}

// probed is called with mu held, when a call of a half-open breaker is done.
func (b *Breaker) probed(now time.Time, c counts) {
	switch {
	case c[0] == 0:
		return
	case c[1] > 0:
		b.open(now)
		return
	case c[2] > 0:
		if b.slow++; b.step == 0 || b.slow >= stepGood {
			b.open(now)
		}
		return
	}
	b.good++
	switch {
	case b.step == 0:
	case b.good < stepGood || now.Sub(b.stepFrom) < b.policy.Ramp/(rampSteps-1):
		return
	}
	if b.step++; b.step < rampSteps {
		b.stepFrom, b.good, b.slow = now, 0, 0
		return
	}
	b.opened = 0
	b.window.reset()
	b.consecutive = 0
	b.become(StateClosed, now)
}

// open is called with mu held.
func (b *Breaker) open(now time.Time) {
	d := b.policy.MaxOpen
	if b.opened < 16 { // more doubling is more than any limit
		d = min(b.policy.Open<<b.opened, d)
	}
	b.opened++
	// Breakers that opened together must not probe together.
	d += time.Duration((rand.Float64()*0.4 - 0.2) * float64(d))
	b.until = now.Add(d)
	b.window.reset()
	b.consecutive = 0
	b.become(StateOpen, now)
}

// become is called with mu held.
func (b *Breaker) become(s State, now time.Time) {
	b.state, b.since = s, now
	b.gen++
	b.settle()
	b.meter.changed(b.replica, s)
}

// settle sets the short cut. It is called with mu held.
func (b *Breaker) settle() {
	switch {
	case b.mode == ModeOff, b.mode == ModeForcedClosed:
		b.pass.Store(uncounted)
	case b.mode == ModeForcedOpen, b.state != StateClosed, !b.quiet.IsZero():
		b.pass.Store(0)
	default:
		b.pass.Store(b.gen)
	}
}

// SetMode forces the breaker, or gives it back to what calls say: then it begins
// anew, closed, with nothing counted.
func (b *Breaker) SetMode(now time.Time, m Mode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m == b.mode {
		return
	}
	b.mode = m
	b.quiet = time.Time{}
	b.opened, b.consecutive = 0, 0
	b.window.reset()
	b.state, b.since = StateClosed, now
	b.gen++
	b.settle()
	b.meter.Add(BreakerForced, b.replica)
}

// Snapshot is what a breaker knows at one moment.
type Snapshot struct {
	State       State
	Mode        Mode
	Since       time.Time     // when the state began; zero if it never changed
	Calls       int           // in the window
	Failures    int           // of them
	Slow        int           // of them
	Consecutive int           // failures in a row, up to now
	Opened      int           // how often it opened since it was closed last
	Wait        time.Duration // until it may be asked again; 0 for now
	InFlight    int           // calls under way while it is half-open
	Allowed     int           // how many of them may be; 0 for any number
}

// Snapshot returns what the breaker knows.
func (b *Breaker) Snapshot(now time.Time) Snapshot {
	wait := b.Wait(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.caughtUp(b.window.roll(now))
	s := Snapshot{
		State: b.state, Mode: b.mode, Since: b.since,
		Calls: int(b.window.sum[0]), Failures: int(b.window.sum[1]), Slow: int(b.window.sum[2]),
		Consecutive: b.consecutive, Opened: b.opened, Wait: wait,
	}
	if b.state == StateHalfOpen {
		s.InFlight, s.Allowed = b.inFlight, 1<<b.step
	}
	return s
}
