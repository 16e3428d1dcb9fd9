package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// body is a request's body, which is lent to one attempt after the other until
// one has read of it.
type body struct {
	r        io.Reader
	tooLarge atomic.Bool // reading it ended at the limit
	broken   atomic.Bool // reading it ended with another error: the client's
	kept     []byte      // all of it, if it was read ahead so that it can be sent twice
}

// maxRepeated bounds the bodies that are kept to be sent twice, in bytes.
const maxRepeated = 64 << 10

// keep reads the body ahead, of which there are that many bytes.
func (b *body) keep(size int64) error {
	kept := make([]byte, size)
	if _, err := io.ReadFull(b.lend(), kept); err != nil {
		return err
	}
	b.kept = kept
	return nil
}

// newBody returns r as a body of at most limit bytes; limit ≤ 0 is none.
func newBody(w http.ResponseWriter, r io.ReadCloser, limit int64) *body {
	if limit > 0 {
		r = http.MaxBytesReader(w, r, limit)
	}
	return &body{r: r}
}

// lend returns a reader of the body for one attempt.
func (b *body) lend() *loan {
	if b.kept != nil {
		return &loan{body: &body{r: bytes.NewReader(b.kept)}}
	}
	return &loan{body: b}
}

// loan is a body in the hands of one attempt. The transport may go on reading in
// a goroutine of its own after it has returned an error; a loan that was revoked
// keeps it from taking what the next attempt needs.
type loan struct {
	body *body

	mu      sync.Mutex // guards below, and is held while reading
	touched bool
	revoked bool
}

var errRevoked = errors.New("the request's body was taken back")

// Read implements [io.Reader].
func (l *loan) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.revoked {
		return 0, errRevoked
	}
	l.touched = true
	n, err := l.body.r.Read(p)
	if err != nil && err != io.EOF {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			l.body.tooLarge.Store(true)
		} else {
			l.body.broken.Store(true)
		}
	}
	return n, err
}

// Close implements [io.Closer]. It leaves the body open: the server closes it.
func (l *loan) Close() error { return nil }

// revoke takes the body back and reports whether nothing of it was read. A nil
// loan is that of a request without a body.
func (l *loan) revoke() bool {
	if l == nil {
		return true
	}
	if !l.mu.TryLock() {
		return false // it is being read at this moment
	}
	defer l.mu.Unlock()
	l.revoked = true
	return !l.touched
}
