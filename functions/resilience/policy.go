package resilience

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// Policy is what a target's callers ask for when a call goes wrong. The zero
// value asks for nothing; [DefaultPolicy] is what a small cluster wants.
type Policy struct {
	// Timeout bounds a whole call, with all its attempts and pauses. 0 leaves
	// it to the caller's own deadline, and in the gateway to the gateway's.
	Timeout time.Duration

	// Attempt bounds each attempt, so that one that hangs leaves time for
	// another. 0 gives each all the time that is left. Too short, and answers
	// that would have come are thrown away.
	Attempt time.Duration

	// Attempts is how often one call is tried at most, from 1 to 3. Where
	// callers retry as well as those they call, attempts multiply: let one of
	// them do it.
	Attempts int

	// Balance is which of several replicas is asked.
	Balance balance.Rule

	Breaker  BreakerPolicy  // of each replica
	Bulkhead BulkheadPolicy // of each replica
	Budget   BudgetPolicy   // of all of them

	// Fallback is what is given instead of an answer, in this order. None is
	// to fail fast: an error at once, with Retry-After.
	Fallback []FallbackPolicy

	// Stale is how answers are kept. It takes effect if Fallback has
	// [FallbackStale].
	Stale StalePolicy
}

// BreakerPolicy is when a breaker opens, and how it closes again. Fields that
// are zero are as in [DefaultPolicy], but Slow.
type BreakerPolicy struct {
	// Mode is [ModeAuto], [ModeObserve] or [ModeOff].
	Mode Mode

	// Window is the time looked back at. Longer forgives bursts and notices
	// later.
	Window time.Duration

	// Failures is the share of calls in the window, from above 0 to 1, that
	// opens the breaker when they fail.
	Failures float64

	// SlowCalls is the same for calls that took longer than Slow. Slow 0 calls
	// nothing slow but what ran into its timeout.
	SlowCalls float64
	Slow      time.Duration

	// MinCalls is how many calls must be in the window before a share means
	// anything.
	MinCalls int

	// Consecutive failures open the breaker however few calls there are: where
	// one call comes each second, the window never has enough. -1 is never.
	Consecutive int

	// Open is how long the breaker stays open the first time. It doubles each
	// time that the target isn't back, up to MaxOpen; then up to a fifth is
	// added or taken away at random.
	Open    time.Duration
	MaxOpen time.Duration

	// Ramp is how long it takes at least from the first good answer until all
	// calls pass again.
	Ramp time.Duration

	// Probe is when a call that was let through to look at the target is given
	// up for lost, and another may look. 0 is the longest that an attempt may
	// take where that is known, else 30 s.
	Probe time.Duration
}

// BulkheadPolicy is how many calls a replica gets at the same time.
type BulkheadPolicy struct {
	Limit int           // 0 is any number
	Wait  time.Duration // how long a call waits for a place; 0 is not at all
}

// BudgetPolicy is how many retries there may be in ten seconds: Floor, and
// Ratio for each call.
type BudgetPolicy struct {
	Ratio float64
	Floor int
}

// FallbackKind is what stands in for an answer.
type FallbackKind uint8

// The fallbacks, by their names in annotations.
const (
	FallbackStale    FallbackKind = iota + 1 // "stale": the last good answer, if there is one
	FallbackFunction                         // "function:NAME": what another function answers
	FallbackStatic                           // "static:TEXT": always this
	FallbackSilent                           // "silent": an empty answer
)

// FallbackPolicy is one fallback.
type FallbackPolicy struct {
	Kind  FallbackKind
	Value string // the name or the text of those that have one
}

// String writes the fallback as an annotation has it.
func (f FallbackPolicy) String() string {
	switch f.Kind {
	case FallbackStale:
		return "stale"
	case FallbackFunction:
		return "function:" + f.Value
	case FallbackStatic:
		return "static:" + f.Value
	case FallbackSilent:
		return "silent"
	}
	return fmt.Sprintf("FallbackKind(%d)", uint8(f.Kind))
}

// StalePolicy is how long answers are kept, and for whom.
type StalePolicy struct {
	Fresh time.Duration // so old an answer is given without a call; 0 is never
	For   time.Duration // so long after that it is given when the call fails
	Vary  []string      // request headers that make it another answer
}

// DefaultPolicy returns what a small cluster wants: few replicas, few calls,
// machines that are slow now and then.
func DefaultPolicy() Policy {
	p := Policy{
		Attempts: 3,
		// More than the gateway lets wait for one sleeping function, so that
		// none of those is refused when it wakes; a bound nonetheless.
		Bulkhead: BulkheadPolicy{Limit: 512},
		// At most 1.1 attempts for each call, and three more for functions that
		// are called so rarely that a tenth is nothing.
		Budget: BudgetPolicy{Ratio: 0.1, Floor: 3},
		Stale: StalePolicy{
			For:  6 * time.Hour,
			Vary: []string{"Accept", "Accept-Encoding", "Accept-Language"},
		},
	}
	p.Breaker.fill()
	return p
}

// fill sets what is zero.
func (p *BreakerPolicy) fill() {
	p.Window = cmp.Or(p.Window, 10*time.Second)
	p.Failures = cmp.Or(p.Failures, 0.5)
	p.SlowCalls = cmp.Or(p.SlowCalls, 0.8)
	p.MinCalls = cmp.Or(p.MinCalls, 10)
	p.Consecutive = cmp.Or(p.Consecutive, 5)
	p.Open = cmp.Or(p.Open, 5*time.Second)
	p.MaxOpen = cmp.Or(p.MaxOpen, max(time.Minute, p.Open))
	p.Ramp = cmp.Or(p.Ramp, 5*time.Second)
}

// The bounds of what a policy may say.
const (
	maxAttempts  = 3
	maxBulkhead  = 100_000
	maxTime      = 24 * time.Hour
	maxKept      = 30 * 24 * time.Hour
	maxStatic    = 4 << 10 // bytes of a static answer
	maxFallbacks = 4
	maxVary      = 16
)

// Validate returns nil, or one error with a line for every mistake. Each names
// the setting as annotations do.
func (p Policy) Validate() error {
	var m mistakes
	p.validate(&m)
	return m.err()
}

func (p Policy) validate(m *mistakes) {
	m.within(keyTimeout, p.Timeout, 0, maxTime)
	m.within(keyTimeout+" (each attempt)", p.Attempt, 0, maxTime)
	if p.Attempt > 0 && p.Timeout > 0 && p.Attempt > p.Timeout {
		m.add(keyTimeout, "an attempt may take %s and the whole call only %s: write the longer one first, as in \"5s/2s\"", p.Attempt, p.Timeout)
	}
	if p.Attempts < 1 || p.Attempts > maxAttempts {
		m.add(keyAttempts, "%d is out of range: write a number from 1 to %d", p.Attempts, maxAttempts)
	}
	p.Breaker.validate(m)
	if limit := cmp.Or(p.Attempt, p.Timeout); limit > 0 && p.Breaker.Slow >= limit {
		m.add(keySlow, "no call can take %s, since %s ends it after %s: write less", p.Breaker.Slow, keyTimeout, limit)
	}
	if p.Bulkhead.Limit < 0 || p.Bulkhead.Limit > maxBulkhead {
		m.add(keyBulkhead, "%d is out of range: write a number from 1 to %d, or off", p.Bulkhead.Limit, maxBulkhead)
	}
	m.within(keyBulkhead+" (wait)", p.Bulkhead.Wait, 0, time.Minute)
	if !(p.Budget.Ratio >= 0 && p.Budget.Ratio <= 1) || p.Budget.Floor < 0 {
		m.add("retry budget", "ratio %g and floor %d are out of range: the ratio is from 0 to 1, the floor not negative", p.Budget.Ratio, p.Budget.Floor)
	}
	p.validateFallback(m)
}

func (p BreakerPolicy) validate(m *mistakes) {
	if p.Mode > ModeOff {
		m.add(keyBreaker, "mode %s is for operators at run time: write auto, observe or off", p.Mode)
	}
	p.fill()
	m.within(keyBreaker+" (window)", p.Window, time.Second, time.Hour)
	m.share(keyBreaker, p.Failures)
	m.share(keySlow, p.SlowCalls)
	m.within(keySlow, p.Slow, 0, maxTime)
	if p.MinCalls < 1 || p.MinCalls > 1_000_000 {
		m.add(keyBreaker, "min=%d is out of range: write a number from 1 to 1000000", p.MinCalls)
	}
	if p.Consecutive < -1 || p.Consecutive > 1_000_000 {
		m.add(keyBreaker, "consecutive=%d is out of range: write a number from 1 to 1000000, or off", p.Consecutive)
	}
	m.within(keyBreaker+" (open)", p.Open, time.Millisecond, time.Hour)
	m.within(keyBreaker+" (longest open)", p.MaxOpen, p.Open, maxTime)
	m.within(keyBreaker+" (ramp)", p.Ramp, 0, time.Hour)
	m.within(keyBreaker+" (probe)", p.Probe, 0, maxTime)
}

func (p Policy) validateFallback(m *mistakes) {
	if len(p.Fallback) > maxFallbacks {
		m.add(keyFallback, "%d fallbacks are too many: write at most %d", len(p.Fallback), maxFallbacks)
	}
	for i, f := range p.Fallback {
		switch f.Kind {
		case FallbackStale:
		case FallbackFunction:
			if !isName(f.Value) {
				m.add(keyFallback, "%.80q is no function's name: write function:NAME or function:NAME.NAMESPACE", f.Value)
			}
		case FallbackStatic, FallbackSilent:
			if len(f.Value) > maxStatic {
				m.add(keyFallback, "the static answer has %d bytes: write at most %d", len(f.Value), maxStatic)
			}
			if i < len(p.Fallback)-1 {
				m.add(keyFallback, "nothing after %.40q is ever reached, since it always has an answer: write it last", f)
			}
		default:
			m.add(keyFallback, "%s is no fallback: write one of %s", f, fallbackForms)
		}
		if slices.ContainsFunc(p.Fallback[:i], func(g FallbackPolicy) bool { return f == g }) {
			m.add(keyFallback, "%.40q is there twice: write it once", f)
		}
	}
	m.within(keyStaleFresh, p.Stale.Fresh, 0, maxKept)
	m.within(keyStaleFor, p.Stale.For, 0, maxKept)
	if p.Keeps() && p.Stale.For == 0 && p.Stale.Fresh == 0 {
		m.add(keyStaleFor, "0s keeps no answer, and %s asks for stale ones: write for example 6h", keyFallback)
	}
	if len(p.Stale.Vary) > maxVary {
		m.add(keyStaleVary, "%d headers are too many: write at most %d", len(p.Stale.Vary), maxVary)
	}
	for i, h := range p.Stale.Vary {
		switch {
		case !isToken(h):
			m.add(keyStaleVary, "%.80q is no header's name: write names with commas between them, as in \"Accept,Accept-Language\"", h)
		case h != http.CanonicalHeaderKey(h):
			m.add(keyStaleVary, "%q is written %q", h, http.CanonicalHeaderKey(h))
		case h == "Authorization" || h == "Cookie":
			m.add(keyStaleVary, "%s tells one person from another, and what is for one person is never kept: leave it out", h)
		case slices.Contains(p.Stale.Vary[:i], h):
			m.add(keyStaleVary, "%s is there twice: write it once", h)
		}
	}
}

// Keeps says whether answers are to be kept for when calls fail.
func (p Policy) Keeps() bool {
	return slices.ContainsFunc(p.Fallback, func(f FallbackPolicy) bool { return f.Kind == FallbackStale })
}

// mistakes collects what is wrong.
type mistakes []error

func (m *mistakes) add(key, format string, args ...any) {
	*m = append(*m, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

func (m *mistakes) within(key string, d, least, most time.Duration) {
	if d < least || d > most {
		m.add(key, "%s is out of range: write a duration from %s to %s", d, Short(least), Short(most))
	}
}

func (m *mistakes) share(key string, f float64) {
	if !(f > 0 && f <= 1) {
		m.add(key, "%g%% is out of range: write a share of calls from 1%% to 100%%", f*100)
	}
}

func (m mistakes) err() error { return errors.Join(m...) }

// isToken says whether s may be a header's name, RFC 9110 (5.6.2).
func isToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return true
}

// isName says whether s may be "function" or "function.namespace": labels of
// RFC 1123.
func isName(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) > 2 {
		return false
	}
	for _, l := range parts {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := range len(l) {
			c := l[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}
