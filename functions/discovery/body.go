package discovery

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// body is a request's body, which more than one attempt may need. A transport
// closes the body that it is given, also if it never began to read it, so each
// attempt gets a loan.
type body struct {
	r        *http.Request
	loan     *loan // the last one
	original bool  // it is of r.Body itself
	gone     bool  // r.Body has been read from, and can't be had again
}

// lend returns a body for an attempt. ok is false if there is none any more: it
// has been sent, if only in part, and can't be read again.
func (b *body) lend() (_ io.ReadCloser, ok bool) {
	switch {
	case b.r.Body == nil || b.r.Body == http.NoBody:
		return b.r.Body, true
	case !b.gone:
		b.loan, b.original = &loan{from: b.r.Body}, true
	case b.r.GetBody == nil:
		return nil, false
	default:
		again, err := b.r.GetBody()
		if err != nil {
			return nil, false
		}
		b.loan, b.original = &loan{from: again}, false
	}
	return b.loan, true
}

// there says whether lend has a body to lend.
func (b *body) there() bool { return !b.gone || b.r.GetBody != nil }

// back takes the body back from an attempt that failed, and says whether nothing
// was read of it. If something was, it may still be being read.
func (b *body) back() (untouched bool) {
	if b.loan == nil {
		return true
	}
	untouched = b.loan.revoke()
	switch {
	case b.original:
		b.gone = !untouched
	case untouched:
		b.loan.from.Close()
	}
	return untouched
}

// leave gives the body up to an attempt that got an answer: it is closed when
// the transport is done with it, which may be later.
func (b *body) leave() {
	if b.loan == nil {
		return
	}
	b.loan.keep()
	if !b.original {
		b.r.Body.Close()
	}
}

// close is for when no attempt got an answer.
func (b *body) close() {
	if b.r.Body != nil {
		b.r.Body.Close() // what it says is the sender's affair
	}
}

var errRevoked = errors.New("the request's body is read by another attempt")

// loan is a body that is closed only once somebody has begun to read it, or is
// to keep it.
type loan struct {
	from io.ReadCloser

	mu                             sync.Mutex // guards below
	touched, revoked, closed, kept bool
}

// Read implements [io.Reader].
func (l *loan) Read(p []byte) (int, error) {
	l.mu.Lock()
	refused := l.revoked
	l.touched = l.touched || !refused
	l.mu.Unlock()
	if refused {
		return 0, errRevoked
	}
	return l.from.Read(p)
}

// Close implements [io.Closer].
func (l *loan) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	mine := first && (l.touched || l.kept)
	l.mu.Unlock()
	if !mine {
		return nil
	}
	return l.from.Close()
}

func (l *loan) revoke() (untouched bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = true
	return !l.touched
}

func (l *loan) keep() {
	l.mu.Lock()
	l.kept = true
	now := l.closed && !l.touched
	l.mu.Unlock()
	if now {
		l.from.Close()
	}
}
