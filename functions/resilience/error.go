package resilience

import (
	"context"
	"errors"
	"fmt"
	"time"

	resilienceerrors "github.com/slok/goresilience/errors"
)

// Kind says which part of a chain ended a call.
type Kind uint8

// The kinds of errors. Each maps to what goresilience and the standard library
// call it, see [Error.Is].
const (
	Failed   Kind = iota // the target was asked and failed; Err says how
	Timeout              // the target took longer than its policy allows
	Hurried              // the caller's own deadline came first
	Canceled             // the caller left
	Open                 // the breaker is open: the target was not asked
	Full                 // the bulkhead is full: the target was not asked
	Panicked             // the call panicked
)

var kindNames = [...]string{"failed", "timeout", "hurried", "canceled", "open", "full", "panicked"}

// String returns the kind in lower case.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Error is why a call has no answer. It wraps what the call itself returned, so
// that a caller who knows better than the chain can read it.
//
// It is also what contexts of this package end with: [context.Cause] returns an
// *Error of kind [Timeout] or [Hurried], which tells a target that is too slow
// from a caller that is too impatient.
type Error struct {
	Kind    Kind
	Target  string        // the name of what was to be called
	Replica string        // which of its replicas, if that is known
	Attempt int           // the number of the last attempt, from 1; 0 if there was none
	Limit   time.Duration // for Timeout and Hurried: the limit that fired
	Wait    time.Duration // when to try again; 0 if nobody knows
	Err     error         // what the call returned, if it was made

	Stack []byte // for Panicked: where

	decided bool    // a chain has: its verdict is below
	verdict Verdict // what follows
}

// Error says what went wrong and, where a setting decides it, which.
func (e *Error) Error() string {
	who := e.Target
	if e.Replica != "" {
		who += " (replica " + e.Replica + ")"
	}
	switch e.Kind {
	case Timeout:
		return fmt.Sprintf("%s did not answer within %s, its limit for a call", who, e.Limit)
	case Hurried:
		return fmt.Sprintf("%s was not done when its caller's time was over: %s were left for it", who, e.Limit.Round(time.Millisecond))
	case Canceled:
		return fmt.Sprintf("the caller of %s left", who)
	case Open:
		return fmt.Sprintf("%s failed too often and is left alone: it is tried again in %s", who, e.Wait.Round(time.Millisecond))
	case Full:
		return fmt.Sprintf("%s has as many calls at the same time as its bulkhead allows", who)
	case Panicked:
		return fmt.Sprintf("the call of %s panicked: %v", who, e.Err)
	}
	return fmt.Sprintf("%s failed: %v", who, e.Err)
}

// Unwrap returns what the call itself returned.
func (e *Error) Unwrap() error { return e.Err }

// Is maps the kinds to the errors that others know them by:
//
//	Timeout   goresilience's ErrTimeout, context.DeadlineExceeded
//	Hurried   context.DeadlineExceeded
//	Canceled  goresilience's ErrContextCanceled, context.Canceled
//	Open      goresilience's ErrCircuitOpen
//	Full      goresilience's ErrRejectedExecution
func (e *Error) Is(target error) bool {
	switch e.Kind {
	case Timeout:
		return target == resilienceerrors.ErrTimeout || target == context.DeadlineExceeded
	case Hurried:
		return target == context.DeadlineExceeded
	case Canceled:
		return target == resilienceerrors.ErrContextCanceled || target == context.Canceled
	case Open:
		return target == resilienceerrors.ErrCircuitOpen
	case Full:
		return target == resilienceerrors.ErrRejectedExecution
	}
	return false
}

// RetryAfter returns when the caller may try again, rounded up to whole seconds
// as the header Retry-After wants it. Without such a time it is 0.
func (e *Error) RetryAfter() time.Duration {
	return (max(e.Wait, 0) + time.Second - 1).Truncate(time.Second)
}

// cause returns the *Error that a context ended with, or nil.
func cause(ctx context.Context) *Error {
	e, _ := errors.AsType[*Error](context.Cause(ctx))
	return e
}

// event returns what the error of an attempt is counted as.
func (e *Error) event() EventKind {
	switch e.Kind {
	case Timeout:
		return TimeOut
	case Hurried:
		return CallerHurried
	case Canceled:
		return CallerLeft
	case Panicked:
		return Panic
	}
	return e.verdict.Event()
}
