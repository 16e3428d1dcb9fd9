package proxy

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// body is a request's body. It is read by one goroutine at a time: by the one
// that carries the call before it gives it to a replica, and then, if it is not
// at hand, by the one that sends it there, for which the former waits.
type body struct {
	r     io.Reader
	w     http.ResponseWriter // of the same request
	limit int64               // of r, ≤ 0 for none
	read  int64               // of r

	left     bool   // in its middle, by interrupt
	tooLarge bool   // reading it ended at the limit
	broken   bool   // reading it ended with another error: the client's
	kept     []byte // all of it, if it was read ahead so that it can be sent again
}

// maxRepeated bounds the bodies that are kept to be sent twice, in bytes.
const maxRepeated = 64 << 10

// maxReady bounds the bodies that go with the head because they came with it, in
// bytes. That saves a goroutine, and as many system calls as it takes.
const maxReady = 4 << 10

// errTooLarge is what a body ends with that is over the limit.
var errTooLarge = errors.New("the body is too large")

// keep reads the body ahead, of which there are that many bytes, into buf if it
// is large enough.
func (b *body) keep(size int64, buf []byte) error {
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(b, buf); err != nil {
		return err
	}
	b.kept = buf
	return nil
}

// ahead is the body of a request as package http1 serves it, which tells what has
// come of it.
type ahead interface{ Buffered() int }

// known says whether the server knows where the body ends, also if it is left in
// its middle.
func (b *body) known() bool {
	_, ok := b.r.(ahead)
	return ok
}

// atHand says whether that many bytes of the body can be read without waiting.
func (b *body) atHand(size int64) bool {
	r, ok := b.r.(ahead)
	return ok && int64(r.Buffered()) >= size
}

// Read implements [io.Reader].
func (b *body) Read(p []byte) (int, error) {
	if b.limit > 0 && int64(len(p)) > b.limit-b.read+1 {
		p = p[:b.limit-b.read+1]
	}
	n, err := b.r.Read(p)
	b.read += int64(n)
	if b.limit > 0 && b.read > b.limit {
		b.tooLarge = true
		return n - int(b.read-b.limit), errTooLarge
	}
	if err != nil && err != io.EOF {
		b.broken = true
	}
	return n, err
}

// interrupt has a Read that waits for the client return.
func (b *body) interrupt() {
	b.left = true
	// Who can't do it has the whole body at hand, as recorders have.
	_ = http.NewResponseController(b.w).SetReadDeadline(time.Unix(1, 0))
}
