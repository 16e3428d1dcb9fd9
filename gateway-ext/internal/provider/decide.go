package provider

import (
	"fmt"
	"time"
)

// How fast a function that ends by itself is started again: at once would burn
// the CPU, late would lengthen a short trouble.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 30 * time.Second

	// provenAfter is how long a replica must have been ready for its end to
	// count as a new trouble and not as the last one going on.
	provenAfter = time.Minute
)

// backoff remembers how often in a row the replicas of one revision failed. The
// zero value has seen no failure.
type backoff struct {
	failures int
	last     time.Time // of the newest failure
	until    time.Time // nothing is started before
}

// fail notes that a replica, asked for at started and ready since readySince
// (or never: zero), ended by itself at now.
func (b *backoff) fail(started, readySince, now time.Time) {
	switch {
	case !readySince.IsZero() && now.Sub(readySince) >= provenAfter:
		b.failures = 1
	case b.failures > 0 && !started.After(b.last):
		// It belongs to the failure that was counted already: ten replicas
		// which die of one cause are one trouble, not ten.
		return
	default:
		b.failures++
	}
	b.last = now
	b.until = now.Add(delay(b.failures))
}

// delay returns how long to wait after so many failures in a row.
func delay(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	if failures > 16 { // 100 ms << 16 is more than an hour; no need to overflow
		return maxDelay
	}
	return min(firstDelay<<(failures-1), maxDelay)
}

// A view is what [decide] looks at: one function at one moment.
type view struct {
	Want     int // how many replicas are wanted
	Newest   generation
	Previous *generation // still serving until enough of the newest are ready
}

// A generation is the replicas of one revision that are neither draining nor
// gone.
type generation struct {
	Want     int  // how many replicas it was last asked for
	Runnable bool // its image is on disk
	Failing  bool // what was tried last went wrong
	Retry    time.Time
	Starting []string // IDs, oldest first
	Ready    []string // IDs, oldest first
}

func (g *generation) live() int { return len(g.Starting) + len(g.Ready) }

// A plan is what to do now, and when to look again if nothing happens before.
type plan struct {
	StartNewest   int
	StartPrevious int
	Drain         []string
	Forget        bool      // the previous generation is not needed any more
	Wake          time.Time // zero: only when something happens
}

// decide says what brings a function closer to what is wanted of it. It holds
// to three rules: as many replicas as wanted are ready at any time, as long as
// they have ever been; a revision that never gets ready replaces nothing; and
// an update needs at most a quarter more replicas (at least one) than wanted.
func decide(v view, now time.Time) plan {
	var p plan
	newest := &v.Newest

	if excess := newest.live() - v.Want; excess > 0 {
		// Those that serve nobody yet go first, then the youngest.
		order := append(reversed(newest.Starting), reversed(newest.Ready)...)
		p.Drain = append(p.Drain, order[:excess]...)
	}

	before := 0
	if v.Previous != nil {
		prev := v.Previous
		keep := max(0, min(prev.Want, v.Want-len(newest.Ready)))
		if excess := prev.live() - keep; excess > 0 {
			order := append(reversed(prev.Starting), prev.Ready...)
			p.Drain = append(p.Drain, order[:excess]...)
		}
		if missing := keep - prev.live(); missing > 0 && prev.Runnable {
			// It serves as long as the newest can't, so what of it crashes
			// is started again.
			if now.Before(prev.Retry) {
				p.wake(prev.Retry)
			} else {
				p.StartPrevious = missing
			}
		}
		before = min(prev.live(), keep) + p.StartPrevious
		// All asleep, the next to be woken may be the one that works.
		p.Forget = keep == 0 && (v.Want > 0 || !newest.Failing)
	}

	if missing := v.Want - newest.live(); missing > 0 && newest.Runnable {
		room := v.Want + surge(v.Want) - newest.live() - before
		if start := min(missing, room); start > 0 {
			if now.Before(newest.Retry) {
				p.wake(newest.Retry)
			} else {
				p.StartNewest = start
			}
		}
	}
	return p
}

// surge is how many replicas more than wanted may run during an update.
func surge(want int) int { return max(1, (want+3)/4) }

func (p *plan) wake(at time.Time) {
	if p.Wake.IsZero() || at.Before(p.Wake) {
		p.Wake = at
	}
}

func reversed(ids []string) []string {
	r := make([]string, 0, len(ids))
	for i := len(ids) - 1; i >= 0; i-- {
		r = append(r, ids[i])
	}
	return r
}

// reason puts together why fewer replicas than wanted are ready.
func reason(trouble string, b backoff, now time.Time, previous bool) string {
	if trouble == "" {
		return ""
	}
	s := trouble
	if wait := b.until.Sub(now); b.failures > 0 {
		s += fmt.Sprintf(" (failure %d in a row", b.failures)
		if wait > 0 {
			s += fmt.Sprintf(", next attempt in %s", round(wait))
		}
		s += ")"
	}
	if previous {
		s += "; the revision before it goes on serving"
	}
	return s
}

// round makes a wait readable: 1.6s, not 1.583920134s.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return max(d.Round(10*time.Millisecond), 10*time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}
