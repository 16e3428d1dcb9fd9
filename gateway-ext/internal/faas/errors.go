package faas

import (
	"errors"
	"fmt"
)

// The kinds of error that callers tell apart, with [errors.Is]. [StatusOf] says
// which HTTP status each becomes.
var (
	ErrInvalid     = errors.New("invalid")            // the request is wrong: 400
	ErrForbidden   = errors.New("forbidden")          // it is switched off here: 403
	ErrNotFound    = errors.New("not found")          // 404
	ErrConflict    = errors.New("already exists")     // 409
	ErrTooLarge    = errors.New("too large")          // 413
	ErrOverloaded  = errors.New("overloaded")         // a bound is reached: 429 or 503
	ErrUnavailable = errors.New("unavailable")        // not now, perhaps later: 503
	ErrNoSpace     = errors.New("no space on device") // the disk is full: 507
)

// Error is an error whose text may be shown to the stranger who caused it.
type Error struct {
	Kind error // one of the Err… above
	err  error
}

// Errorf returns an [*Error] of the given kind. The text is for the caller: a
// sentence that says what is wrong, where, and what to write instead. The verb
// %w wraps as in [fmt.Errorf].
func Errorf(kind error, format string, args ...any) error {
	return &Error{Kind: kind, err: fmt.Errorf(format, args...)}
}

// Error returns the sentence.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the kind and what was wrapped.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.err} }
