package resilience

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slok/goresilience"
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

// deadline bounds the call by its context alone: no goroutine waits beside it.
// A caller with less time than the policy gives gets a call that is shorter, and
// what stands in for its answer in time.
func (c *Chain) deadline(next goresilience.Runner) goresilience.Runner {
	limit := c.cfg.Policy.Timeout
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		d, why := limit, c.timeout
		if end, ok := ctx.Deadline(); ok {
			left := time.Until(end)
			left -= min(reserve, left/4)
			if d == 0 || left < d {
				d, why = left, &Error{Kind: Hurried, Target: c.cfg.Name, Limit: left}
			}
		} else if d == 0 {
			return next.Run(ctx, f)
		}
		ctx, cancel := context.WithTimeoutCause(ctx, d, why)
		defer cancel()
		return next.Run(ctx, f)
	})
}

// retry tries again what is safe to, while there is time and budget.
func (c *Chain) retry(next goresilience.Runner) goresilience.Runner {
	attempts := c.cfg.Policy.Attempts
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		c.budget.Call(time.Now())
		for n := 1; ; n++ {
			err := next.Run(ctx, f)
			if err == nil {
				return nil
			}
			e := c.judged(ctx, err)
			e.Attempt = n
			if n >= attempts || !c.again(ctx, e.verdict, n) {
				return e
			}
		}
	})
}

// again waits before the attempt that follows the nth, or returns false if there
// must not be one.
func (c *Chain) again(ctx context.Context, v Verdict, n int) bool {
	if v.Retry == RetryNever || v.Retry == RetrySafe && !c.cfg.Idempotent || ctx.Err() != nil {
		return false
	}
	now, pause := time.Now(), max(Backoff(n+1), v.Wait)
	if end, ok := ctx.Deadline(); pause > maxPause || ok && now.Add(pause).After(end) {
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
			return &Error{Kind: Open, Target: c.cfg.Name, Wait: c.breaker.Wait(now), verdict: Verdict{Fallback: true}}
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
			return &Error{Kind: Full, Target: c.cfg.Name, verdict: Verdict{Fallback: true}}
		}
		defer c.bulkhead.Release()
		if recorder != nil {
			recorder.IncBulkheadProcessed()
		}
		return next.Run(ctx, f)
	})
}

// attempts is the innermost: it bounds one attempt, and decides and counts what
// the attempt says.
func (c *Chain) attempts(next goresilience.Runner) goresilience.Runner {
	limit := c.cfg.Policy.Attempt
	return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) (err error) {
		if limit > 0 {
			if end, ok := ctx.Deadline(); !ok || time.Until(end) > limit {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, c.attempt)
				defer cancel()
			}
		}
		defer func() {
			if p := recover(); p != nil {
				err = c.panicked(p)
			}
			if err == nil {
				c.meter.Add(Success, "")
				return
			}
			e := c.judged(ctx, err)
			c.count(e.event())
			err = e
		}()
		return next.Run(ctx, f)
	})
}

// judged returns err with its verdict: what an inner part decided, or what
// follows from the error itself.
func (c *Chain) judged(ctx context.Context, err error) *Error {
	// Not errors.As: what is inside of err may be another chain's.
	if e, ok := err.(*Error); ok && e.Target == c.cfg.Name && e.judged() {
		return e
	}
	r := c.cfg.Result(err)
	r.Err = orElse(r, err)
	v := Classify(ctx, r)
	e := &Error{Kind: Failed, Target: c.cfg.Name, Err: err, Wait: v.Wait, verdict: v}
	if r.Err == nil || ctx.Err() == nil {
		return e
	}
	switch v.Outcome {
	case Late:
		e.Kind, e.Limit = Timeout, cause(ctx).Limit
	case Impatient:
		e.Kind = Hurried
		if why := cause(ctx); why != nil {
			e.Limit = why.Limit
		}
	case Ignored:
		e.Kind = Canceled
	}
	return e
}

// orElse returns the result's error. A result with neither error nor status says
// nothing, and then the call's own error speaks.
func orElse(r Result, err error) error {
	if r.Status == 0 && r.Err == nil {
		return err
	}
	return r.Err
}

func (c *Chain) panicked(p any) error {
	err, ok := p.(error)
	if !ok {
		err = fmt.Errorf("%v", p)
	}
	return &Error{Kind: Panicked, Target: c.cfg.Name, Err: err, verdict: Verdict{Outcome: Broken, Fallback: true}}
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
