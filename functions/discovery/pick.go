package discovery

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
)

// route is where calls of one function may go: it has at least one target.
type route struct {
	targets []*target
	view    *balance.View // of them, in this order
}

// learnt is what calling a replica has taught, and what was last told of it.
type learnt struct {
	member   *balance.Member // nil until the replica is ready for the first time
	inFlight atomic.Int64
	limit    atomic.Int64 // of inFlight; 0 is none
	suspect  atomic.Bool
	quiet    atomic.Pointer[time.Time] // until when it wants to be left alone
}

// Look implements [balance.Replica].
func (l *learnt) Look(now time.Time) balance.Look {
	n, limit := l.inFlight.Load(), l.limit.Load()
	quiet := l.quiet.Load()
	return balance.Look{
		InFlight: n,
		Full:     limit > 0 && n >= limit,
		Out:      quiet != nil && now.Before(*quiet),
		Suspect:  l.suspect.Load(),
	}
}

// pick returns the replica that a call is to go to, or nil if none can take it.
// Those that were tried are not tried again.
func (r *route) pick(now time.Time, key uint64, tried []*learnt) *target {
	if r == nil {
		return nil
	}
	var skip func(i int) bool
	if len(tried) > 0 {
		skip = func(i int) bool { return slices.Contains(tried, r.targets[i].learnt) }
	}
	i := r.view.Pick(now, key, skip)
	if i < 0 {
		return nil
	}
	return r.targets[i]
}

// learn takes note of what an attempt has said about the replica, and how long
// that took.
func (l *learnt) learn(now time.Time, took time.Duration, v resilience.Verdict) {
	said := balance.Nothing
	switch v.Outcome {
	case resilience.Succeeded:
		said = balance.Good
	case resilience.Broken, resilience.Late:
		said = balance.Failed
	case resilience.Impatient:
		said = balance.Abandoned
	case resilience.Throttled:
		said = balance.Busy
	}
	l.member.Done(now, took, said)
	if v.Wait > 0 {
		l.quiet.Store(new(now.Add(v.Wait)))
	}
}
