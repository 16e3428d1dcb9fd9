package weather

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/slok/goresilience"
)

const (
	// patience is how long a failure may take and still cost its caller
	// nothing. A quick refusal needs no rest: the next caller learns the same
	// as quickly, and sees at once when the source is back.
	patience = 250 * time.Millisecond

	// maxRest bounds what a Retry-After can ask for.
	maxRest = time.Minute
)

// rest leaves a source alone for a while after a failure that kept its caller
// waiting, and for as long as it asks for by 429 or Retry-After. When the rest
// is over one caller at a time tries again.
func rest(d time.Duration) goresilience.Middleware {
	return func(next goresilience.Runner) goresilience.Runner {
		r := &rester{rest: d}
		return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
			ticket, ok := r.enter(time.Now())
			if !ok {
				return errResting
			}
			outcome := abandoned // what a panic in f leaves behind
			defer func() { r.leave(ticket, outcome, time.Now()) }()
			start := time.Now()
			err := next.Run(ctx, f)
			outcome = judge(ctx, err, time.Since(start), d)
			return err
		})
	}
}

// verdict is what a call says about its source: how long to leave it alone, 0
// for not at all, or that it says nothing.
type verdict time.Duration

const abandoned verdict = -1

// judge decides what the outcome of a call says about its source.
func judge(ctx context.Context, err error, took, rest time.Duration) verdict {
	switch {
	case err == nil, isAnswer(err), errors.Is(err, errNothing):
		return 0
	case errors.Is(ctx.Err(), context.Canceled): // the caller hung up
		return abandoned
	case errors.Is(context.Cause(ctx), errHurry): // or must not decide for others how slow is too slow
		return abandoned
	}
	if failed, ok := errors.AsType[*ServiceError](err); ok {
		if failed.RetryAfter > 0 {
			return verdict(min(max(failed.RetryAfter, rest), maxRest))
		}
		if failed.Status == http.StatusTooManyRequests {
			return verdict(rest)
		}
	}
	if took > patience {
		return verdict(rest)
	}
	return 0
}

// rester is the state of one source.
type rester struct {
	rest time.Duration

	mu    sync.Mutex // guards below
	until time.Time  // when the rest ends; zero while the source is well
	era   uint64     // grows with each change of until: a call of an earlier era has nothing to say
	probe bool       // one caller is trying whether the source is back
}

// ticket says when a call was let in.
type ticket struct {
	era   uint64
	probe bool
}

func (r *rester) enter(now time.Time) (ticket, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until.IsZero() {
		return ticket{era: r.era}, true
	}
	if r.probe || now.Before(r.until) {
		return ticket{}, false
	}
	r.probe = true
	return ticket{era: r.era, probe: true}, true
}

func (r *rester) leave(t ticket, v verdict, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.probe {
		r.probe = false
	}
	if t.era != r.era || v == abandoned {
		return
	}
	switch {
	case v > 0:
		r.until = now.Add(time.Duration(v))
		r.era++
	case t.probe:
		r.until = time.Time{}
		r.era++
	}
}
