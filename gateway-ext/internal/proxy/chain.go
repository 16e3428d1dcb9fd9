package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// closedRaces is how often in a row a request is sent again because the
// connection that it was to take had just been closed by the replica. It is a
// race that happens to one connection at a time; whom it happens to more often
// is ill.
const closedRaces = 3

// taken is a replica that holds a call for one attempt.
type taken struct {
	*replica
	f       *function
	permit  resilience.Permit
	now     time.Time // when it was taken
	races   int       // how often it was taken in vain, see closedRaces
	retry   resilience.Retry
	counted bool
	trace   *span // of the attempt
}

// release lets go of the replica, and says what the attempt says about it.
func (t *taken) release(at time.Time, v resilience.Verdict) {
	t.streaming(at, v)
	t.bulkhead.Release()
	t.Endpoint.Release()
}

// streaming says what the attempt says about the replica while it still has the
// call, which may be for hours.
func (t *taken) streaming(at time.Time, v resilience.Verdict) {
	t.permit.Done(at, v)
	if t.counted {
		return
	}
	t.counted = true
	said := balance.Nothing
	switch v.Outcome {
	case resilience.Succeeded:
		t.f.meter.Add(resilience.Success, t.ID)
		said = balance.Good
	case resilience.Broken:
		t.f.meter.Add(resilience.Failure, t.ID)
		said = balance.Failed
	case resilience.Late:
		t.f.meter.Add(resilience.TimeOut, t.ID)
		said = balance.Failed
	case resilience.Impatient:
		t.f.meter.Add(resilience.CallerHurried, t.ID)
		said = balance.Abandoned
	case resilience.Throttled:
		t.f.meter.Add(resilience.Throttling, t.ID)
		said = balance.Busy
	}
	if said == balance.Failed && t.breaker.Trusted() {
		return // nobody is to be judged, or an operator knows better
	}
	t.member.Done(at, at.Sub(t.now), said)
}

// reached notes whether there was a connection to the replica.
func (r *replica) reached(ok bool) {
	if r.away.Load() == ok { // or all calls would write to the same place
		r.away.Store(!ok)
	}
}

// carry gives the request to replicas until one has it, as often and as long as
// the function's policy allows. An error means that nothing was answered yet.
func (c *call) carry() error {
	p, f := c.p, c.f
	c.attempts = 1
	if f.budget != nil {
		f.budget.Call(c.start)
	}
	var lastErr error
	for {
		now := time.Now()
		if !c.callerEnd.IsZero() && !now.Before(c.callerEnd) {
			return c.overtime(&resilience.Error{Kind: resilience.Hurried, Limit: c.callerEnd.Sub(c.start)})
		}
		ts := f.targets(p.cfg.Table)
		to, err := c.take(ts, now)
		if err != nil {
			return err
		}
		if to == nil {
			if err := c.await(ts.route, lastErr); err != nil {
				return err
			}
			c.tried = c.tried[:0]
			if c.attempts == 1 {
				c.end = time.Time{} // nothing was sent: its time begins anew
			}
			continue
		}
		limit, why := c.limit(now)
		if limit <= 0 {
			to.release(now, resilience.Verdict{})
			return c.overtime(why)
		}
		out, err := c.try(to, limit, why)
		to.reached(out != unreached)
		switch {
		case out == answered:
			return nil
		case out == instead || c.r.Context().Err() != nil:
			return err
		case out == failed && c.lost(to):
			c.note(resilience.Retrying, to.ID)
			c.tried, to.races, lastErr = append(c.tried, to.replica), 0, err
			continue
		case out == failed && !c.mayRetry(to, resilience.Verdict{Retry: to.retry}, time.Now()):
			return err
		}
		if out == again || out == failed {
			if !c.pauseBefore(c.attempts) {
				return c.r.Context().Err()
			}
			c.note(resilience.Retrying, to.ID)
			if !c.sameAgain {
				c.tried = append(c.tried, to.replica)
			}
			to.races = 0
			continue
		}
		lastErr = err
		if to.races++; out == unreached || to.races >= closedRaces {
			c.tried, to.races = append(c.tried, to.replica), 0
		}
	}
}

// limit returns the time that an attempt has which begins now, and what is to
// blame when it is over. The time of the call begins with its first attempt:
// what it has waited for a replica to start is not the function's.
func (c *call) limit(now time.Time) (time.Duration, *resilience.Error) {
	f := c.f
	if c.end.IsZero() {
		c.end = now.Add(f.rules.limit.time)
	}
	limit, why := c.end.Sub(now), f.late
	if !c.callerEnd.IsZero() && c.callerEnd.Before(c.end) {
		limit, why = c.callerEnd.Sub(now), &resilience.Error{Kind: resilience.Hurried, Target: f.late.Target, Limit: c.callerEnd.Sub(c.start)}
	}
	if each := f.policy.Attempt; each > 0 && each < limit {
		limit, why = each, f.slow
	}
	return limit, why
}

// take finds a replica for the next attempt and holds it. It is nil if there is
// none that is worth to be asked now; an error says that there is none and that
// nobody should wait for one.
func (c *call) take(ts *targets, now time.Time) (*taken, error) {
	f, to := c.f, &c.taken
	key := f.policy.Balance.Key(c.r.Header, c.r.URL.RawQuery)
	for {
		var skip func(i int) bool
		if len(c.tried) > 0 {
			skip = func(i int) bool { return slices.Contains(c.tried, ts.replicas[i]) }
		}
		var permit resilience.Permit
		var ok bool
		i := ts.view.Pick(now, key, skip)
		if i >= 0 {
			if permit, ok = ts.replicas[i].breaker.Allow(now); !ok {
				continue // somebody else probes it
			}
		} else if i, permit, ok = c.last(ts, now); !ok {
			return nil, c.none(ts, now)
		}
		r := ts.replicas[i]
		if !r.Acquire() {
			permit.Done(now, resilience.Verdict{})
			ts = f.targets(c.p.cfg.Table) // there is a newer route
			continue
		}
		if !r.bulkhead.Acquire(c.r.Context()) {
			permit.Done(now, resilience.Verdict{})
			r.Endpoint.Release()
			if err := c.r.Context().Err(); err != nil {
				return nil, err
			}
			if r.bulkhead.Full() && f.policy.Bulkhead.Wait > 0 {
				return nil, c.none(ts, now) // it has waited
			}
			continue // somebody else took the last place
		}
		races := 0
		if to.replica == r {
			races = to.races
		}
		*to = taken{replica: r, f: f, permit: permit, now: now, races: races}
		return to, nil
	}
}

// last finds a replica where none can be picked. Where callers may wait for a
// place, it is one of those that are full. Else it is one that is left alone, for
// never all are: a function with a policy has each of them looked at once a
// second, and its other callers get something else meanwhile. The callers of one
// without would get nothing, so all replicas are asked as if nothing were known.
func (c *call) last(ts *targets, now time.Time) (int, resilience.Permit, bool) {
	n := len(ts.replicas)
	if n == 0 {
		return 0, resilience.Permit{}, false
	}
	from, full := rand.IntN(n), -1
	for k := range n {
		i := (from + k) % n
		r := ts.replicas[i]
		if slices.Contains(c.tried, r) {
			continue
		}
		if r.bulkhead.Full() {
			if full < 0 && r.breaker.Ready(now) {
				full = i
			}
			continue
		}
		if permit, ok := r.breaker.Probe(now); ok {
			return i, permit, true
		}
		if !c.f.asked && r.breaker.Snapshot(now).Mode != resilience.ModeForcedOpen {
			return i, resilience.Permit{}, true
		}
	}
	if full >= 0 && c.f.policy.Bulkhead.Wait > 0 {
		permit, ok := ts.replicas[full].breaker.Allow(now)
		return full, permit, ok
	}
	return 0, resilience.Permit{}, false
}

// none says why there is no replica to ask: nil if it is worth to wait for one.
func (c *call) none(ts *targets, now time.Time) error {
	f, full := c.f, false
	for _, r := range ts.replicas {
		if r.bulkhead.Full() && !slices.Contains(c.tried, r) && r.breaker.Ready(now) {
			c.note(resilience.BulkheadFull, r.ID)
			full = true
		}
	}
	if full && f.watchdog > 0 {
		// It is what the function itself would have said.
		return &refusal{code: http.StatusTooManyRequests, replaceable: true, retryAfter: time.Second, text: fmt.Sprintf(
			"function %s has as many calls at the same time as its max_inflight allows, %d at each replica: try again later, scale it up, or raise max_inflight in its environment", c.target.name, f.watchdog)}
	}
	if full {
		return &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: time.Second, text: fmt.Sprintf(
			"function %s has as many calls at the same time as its bulkhead allows, %d at each replica: try again later, scale it up, or raise its annotation thicket.bulkhead", c.target.name, f.policy.Bulkhead.Limit)}
	}
	var wait time.Duration
	left, forced, away := 0, true, true
	for _, r := range ts.replicas {
		if slices.Contains(c.tried, r) {
			continue
		}
		b := r.breaker.Snapshot(now)
		if b.State == resilience.StateOpen {
			b.Wait = min(b.Wait, time.Second) // it is looked at each second
		}
		if left == 0 || b.Wait < wait {
			wait = b.Wait
		}
		left++
		forced = forced && b.Mode == resilience.ModeForcedOpen
		away = away && r.away.Load()
	}
	switch {
	case left == 0, away && !forced && !c.replaceable():
		// Nothing was sent, and whoever runs them will notice that they are
		// gone: another will be there in a moment.
		return nil
	case forced:
		wait = time.Second
	}
	c.note(resilience.ShortCircuit, "")
	e := &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: max(wait, 1)}
	if forced {
		e.text = fmt.Sprintf("function %s is switched off by an operator, who has forced its breaker open: PUT {\"mode\":\"auto\"} to /system/resilience/%[1]s/breaker switches it on", c.target.name)
	} else {
		e.text = fmt.Sprintf("function %s is left alone for a moment: all its replicas (%d) failed too often, or asked for it; GET /system/resilience/%[1]s shows how they are", c.target.name, len(ts.replicas))
	}
	return e
}

// lost says whether a call is to be made again because the machine that had it may
// be lost: what ran there is started elsewhere, and the caller, who did nothing
// wrong, need not know. It is so once, whatever the function's policy, for what
// is safe to repeat and had no answer from a replica on another machine. Whether
// that machine or the replica itself has ended can't be told by the connection.
func (c *call) lost(to *taken) bool {
	if c.moved || !to.far || c.attempt.verdict.Outcome != resilience.Broken || c.attempt.status != 0 ||
		c.body != nil && c.body.kept == nil || c.kept != nil && c.kept.isLive() || !resilience.Idempotent(c.r.Method, c.r.Header) {
		return false
	}
	if _, ok := c.attempt.err.(*http1.Failure); !ok {
		return false
	}
	c.moved = true
	return true
}

// mayRetry says whether another attempt may be made after one that said v, and
// notes it. What the client would get else is not yet given away.
func (c *call) mayRetry(to *taken, v resilience.Verdict, now time.Time) bool {
	f := c.f
	if v.Retry != resilience.RetrySafe || c.attempts >= f.policy.Attempts || !c.repeatable {
		return false
	}
	if c.kept != nil && c.kept.isLive() {
		return false // somebody has some of it
	}
	if c.r.Context().Err() != nil || c.end.Sub(now) <= resilience.Backoff(c.attempts+1) {
		return false
	}
	if !c.callerEnd.IsZero() && !now.Before(c.callerEnd) {
		return false
	}
	other := false
	for _, r := range f.now.Load().replicas {
		other = other || r != to.replica && !slices.Contains(c.tried, r) && r.breaker.Ready(now)
	}
	if !other {
		if v.Wait > 0 {
			return false // it wants to be left alone, and there is nobody else
		}
		c.tried = c.tried[:0] // the same again, after a pause
	}
	if !f.budget.Take(now) {
		c.note(resilience.BudgetSpent, to.ID)
		return false
	}
	c.attempts++
	c.sameAgain = !other
	return true
}

// pauseBefore waits before the nth attempt. It returns false if the client left.
func (c *call) pauseBefore(n int) bool {
	timer := time.NewTimer(resilience.Backoff(n))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.r.Context().Done():
		return false
	}
}

// overtime is the answer when a time is over: whose it was, how long, and what
// changes it.
func (c *call) overtime(why *resilience.Error) error {
	f := c.f
	e := &refusal{code: http.StatusGatewayTimeout, replaceable: true}
	switch {
	case why.Kind == resilience.Hurried:
		e.text = fmt.Sprintf("function %s was not done within the %s that the request's header %s gives it: give it more time, or have it answer sooner",
			f.name, resilience.Short(why.Limit.Round(time.Millisecond)), resilience.Header)
	case why == f.slow:
		e.text = fmt.Sprintf("function %s took longer than %s, the limit for each attempt: have it answer sooner, or raise the second time of its annotation thicket.timeout",
			f.name, resilience.Short(why.Limit))
	default:
		l := f.rules.limit
		e.text = fmt.Sprintf("function %s took longer than %s, %s: have it answer sooner, or %s", f.name, l.time, l.what, l.change)
	}
	return e
}
