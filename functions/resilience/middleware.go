package resilience

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/slok/goresilience"
	resilienceerrors "github.com/slok/goresilience/errors"
)

const (
	// reserve is what is kept of the caller's own time to give a fallback in.
	reserve = 20 * time.Millisecond

	// maxPause is how long a call waits to be tried again because the target
	// asked for it. Who asks for more is not waited for.
	maxPause = time.Second
)

// guard is the outermost: it makes errors of panics, in the middlewares too, and
// takes off what the parts told one another.
func (c *Chain) guard(next goresilience.Runner) goresilience.Runner {
	recorder := c.meter.recorder
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) (err error) {
		var start time.Time
		if recorder != nil {
			start = time.Now()
		}
		defer func() {
			if p := recover(); p != nil {
				err = c.panicked(p)
			}
			if recorder != nil {
				recorder.ObserveCommandExecution(start, err == nil)
			}
		}()
		err = next.Run(ctx, f)
		if e, ok := err.(*Error); ok && e.Kind == Failed && !e.verdict.Fallback {
			return e.Err // an answer, and no failure
		}
		return err
	})
}

// retry gives the call its time, and tries again what is safe to while there is
// time and budget. Contexts alone end an attempt: no goroutine waits beside it.
func (c *Chain) retry(next goresilience.Runner) goresilience.Runner {
	attempts := c.cfg.Policy.Attempts
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		now := time.Now()
		c.budget.Call(now)
		end, why := c.end(ctx, now)
		for n := 1; ; n++ {
			e := c.try(ctx, next, f, now, end, why)
			if e == nil {
				return nil
			}
			e.Attempt = n
			if n >= attempts || ctx.Err() != nil || !c.again(ctx, e.verdict, n, end) {
				return e
			}
			now = time.Now()
		}
	})
}

// end returns when the call's time is over, and what is to blame then. Who has
// less time than the policy gives gets a call that is shorter, and what stands
// in for its answer in time. The zero time is never.
func (c *Chain) end(ctx context.Context, now time.Time) (time.Time, *Error) {
	var end time.Time
	if limit := c.cfg.Policy.Timeout; limit > 0 {
		end = now.Add(limit)
	}
	if until, ok := ctx.Deadline(); ok {
		left := until.Sub(now)
		left -= min(reserve, left/4)
		if until = now.Add(left); end.IsZero() || until.Before(end) {
			return until, &Error{Kind: Hurried, Target: c.cfg.Name, Limit: left}
		}
	}
	return end, c.timeout
}

// try makes one attempt. Its own time is part of the context that it gets, so
// that there is one timer and not two.
func (c *Chain) try(ctx context.Context, next goresilience.Runner, f goresilience.Func, now, end time.Time, why *Error) *Error {
	if limit := c.cfg.Policy.Attempt; limit > 0 {
		if each := now.Add(limit); end.IsZero() || each.Before(end) {
			end, why = each, c.attempt
		}
	}
	if !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, end, why)
		defer cancel()
	}
	if err := next.Run(ctx, f); err != nil {
		return c.judged(ctx, err)
	}
	return nil
}

// again waits before the attempt that follows the nth, or returns false if there
// must not be one.
func (c *Chain) again(ctx context.Context, v Verdict, n int, end time.Time) bool {
	if v.Retry == RetryNever || v.Retry == RetrySafe && !c.cfg.Idempotent {
		return false
	}
	now, pause := time.Now(), max(Backoff(n+1), v.Wait)
	if pause > maxPause || !end.IsZero() && now.Add(pause).After(end) {
		return false
	}
	if v.Retry == RetrySafe && !c.budget.Take(now) {
		c.count(BudgetSpent)
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		c.count(Retrying)
		return true
	}
}

// breaking asks the breaker.
func (c *Chain) breaking(next goresilience.Runner) goresilience.Runner {
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		now := time.Now()
		permit, ok := c.breaker.Allow(now)
		if !ok {
			c.count(ShortCircuit)
			return &Error{Kind: Open, Target: c.cfg.Name, Wait: c.breaker.Wait(now), decided: true, verdict: Verdict{Fallback: true}}
		}
		// What a goroutine that ends within f leaves behind says nothing.
		verdict := Verdict{}
		defer func() { permit.Done(time.Now(), verdict) }()
		err := next.Run(ctx, f)
		if err == nil {
			verdict = Verdict{Outcome: Succeeded}
			return nil
		}
		e := c.judged(ctx, err)
		verdict = e.verdict
		return e
	})
}

// limit asks the bulkhead.
func (c *Chain) limit(next goresilience.Runner) goresilience.Runner {
	if c.bulkhead == nil {
		return next
	}
	recorder := c.meter.recorder
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		if recorder != nil {
			recorder.IncBulkheadQueued()
		}
		if !c.bulkhead.Acquire(ctx) {
			if err := ctx.Err(); err != nil {
				return c.judged(ctx, err)
			}
			c.count(BulkheadFull)
			return &Error{Kind: Full, Target: c.cfg.Name, decided: true, verdict: Verdict{Fallback: true}}
		}
		defer c.bulkhead.Release()
		if recorder != nil {
			recorder.IncBulkheadProcessed()
		}
		return next.Run(ctx, f)
	})
}

// judge is the innermost: it decides and counts what the attempt says.
func (c *Chain) judge(next goresilience.Runner) goresilience.Runner {
	if reflect.TypeOf(next) == reflect.TypeOf(goresilience.SanitizeRunner(nil)) {
		next = goresilience.RunnerFunc(call)
	}
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) (err error) {
		returned := false
		defer func() {
			if !returned { // or the goroutine ends within f, which says nothing
				p := recover()
				if p == nil {
					return
				}
				err = c.panicked(p)
			}
			if err == nil {
				c.count(Success)
				return
			}
			e := c.judged(ctx, err)
			c.count(e.event())
			err = e
		}()
		err = next.Run(ctx, f)
		returned = true
		return err
	})
}

// call does what the runner at the end of each [goresilience.RunnerChain] does.
// That one asks for ctx.Done(), and so has a channel made that a call which
// never waits doesn't need: an allocation in six.
func call(ctx context.Context, f goresilience.Func) error {
	if ctx.Err() != nil {
		return resilienceerrors.ErrContextCanceled
	}
	return f(ctx)
}

// judged returns err with its verdict: what an inner part decided, or what
// follows from the error itself.
func (c *Chain) judged(ctx context.Context, err error) *Error {
	// Not errors.As: what is inside of err may be another chain's.
	if e, ok := err.(*Error); ok && e.decided && e.Target == c.cfg.Name {
		return e
	}
	r := c.cfg.Result(err)
	if r.Status == 0 && r.Err == nil {
		r.Err = err
	}
	ended := ctx.Err() != nil // asked before, so that Classify knows it as well
	v := Classify(ctx, r)
	e := &Error{Kind: Failed, Target: c.cfg.Name, Err: err, Wait: v.Wait, decided: true, verdict: v}
	if r.Status >= 400 || !ended {
		return e
	}
	switch {
	case v.Outcome == Late:
		e.Kind = Timeout
	case v.Outcome == Impatient:
		e.Kind = Hurried
	case !v.Fallback:
		e.Kind = Canceled
	}
	if why := cause(ctx); why != nil {
		e.Limit = why.Limit
	}
	return e
}

func (c *Chain) panicked(p any) error {
	err, ok := p.(error)
	if !ok {
		err = fmt.Errorf("%v", p)
	}
	return &Error{Kind: Panicked, Target: c.cfg.Name, Err: err, Stack: debug.Stack(), decided: true, verdict: Verdict{Outcome: Broken, Fallback: true}}
}

// replaceable says whether something else may be given for a call that failed.
func (c *Chain) replaceable(ctx context.Context, err error) bool {
	e, ok := errors.AsType[*Error](err)
	switch {
	case ok:
		return e.Kind != Canceled
	case c != nil:
		return false // the chain let it pass as an answer
	}
	return !errors.Is(err, context.Canceled)
}
