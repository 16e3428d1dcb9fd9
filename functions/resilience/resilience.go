// Package resilience makes one chain of a policy: what stands between a caller
// and a target that may be slow, broken or gone, so that the caller never waits
// for the dead and the target is not kept down by those who wait for it.
//
// A [Policy] is written in Go or read from a function's annotations by
// [ParsePolicy]. [New] makes a [Chain] of it, a runner of goresilience, and [Do]
// calls within it. Its parts, outermost first:
//
//	guard     panics become errors; everything is counted
//	deadline  the policy's time, or what the caller has left if that is less
//	retry     what is safe to repeat, with jitter, within a shared budget
//	breaker   a target that fails is left alone, and looked at gently
//	bulkhead  so many calls at the same time
//	attempt   the time of one attempt; here is decided what its end says
//
// The order is what makes it work. The deadline is outside the retries, or they
// would multiply it. The breaker is inside of them, so that it sees each attempt
// for what it was, and outside the bulkhead, so that nobody queues for a target
// that is known to be down. The place in the bulkhead is held by an attempt and
// not during the pause between two. The fallbacks are outside of all of it, and
// the deadline leaves them a little of the caller's time.
//
// Everything works through contexts: no part starts a goroutine, and nothing
// needs to be closed. Times come from the caller or from [time.Now], and only
// their monotonic part matters, so a clock that is set does no harm.
//
// A gateway that asks another replica for each attempt composes the parts
// itself: a [Budget] for each function, a [Breaker] and a [Bulkhead] for each
// replica, [Classify] for what each attempt says, a [Meter] to count. The frame,
// goresilience v0.2.0, is used without its own middlewares: its breaker ignores
// its threshold and counts callers who left, and its timeout leaks a goroutine
// each time.
package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/slok/goresilience"
)

// Fallback gives something else for a call that failed with err. If it has
// nothing either it returns an error, and the next one is asked.
type Fallback[T any] func(ctx context.Context, err error) (T, error)

// Static returns a fallback that always gives v: to fail silently, what is empty.
func Static[T any](v T) Fallback[T] {
	return func(context.Context, error) (T, error) { return v, nil }
}

// Do calls f within the chain r and returns what f returned. If that is an error
// that something else may be given for, the fallbacks are asked in turn; without
// any, the call fails fast.
//
// Each attempt has a result of its own, and the first good one is the call's. It
// doesn't matter if r abandons attempts or makes several at once, as
// goresilience's own runners do: what comes after Do has returned is dropped.
func Do[T any](ctx context.Context, r goresilience.Runner, f func(context.Context) (T, error), fallbacks ...Fallback[T]) (T, error) {
	s := &slot[T]{}
	err := r.Run(ctx, func(ctx context.Context) error {
		v, err := f(ctx)
		if err == nil {
			s.put(v)
		}
		return err
	})
	v, ok := s.take()
	switch {
	case err == nil && ok:
		return v, nil
	case err == nil:
		err = errNoResult
	}
	var none T
	if len(fallbacks) == 0 || errors.Is(ctx.Err(), context.Canceled) {
		return none, err
	}
	chain, _ := r.(*Chain)
	if !chain.replaceable(ctx, err) {
		return none, err
	}
	for _, fallback := range fallbacks {
		v, failed := fallback(ctx, err)
		if failed == nil {
			chain.count(FallbackServed)
			return v, nil
		}
		chain.count(FallbackFailed)
		err = fmt.Errorf("%w; instead: %w", err, failed)
	}
	return none, err
}

// errNoResult is for runners that report success and have called nothing.
var errNoResult = errors.New("the chain reported success without a result")

// slot hands one result over.
type slot[T any] struct {
	mu    sync.Mutex // guards below
	v     T
	full  bool
	taken bool
}

func (s *slot[T]) put(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full && !s.taken {
		s.v, s.full = v, true
	}
}

func (s *slot[T]) take() (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = true
	return s.v, s.full
}
