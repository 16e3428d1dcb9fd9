package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxInformational is how many informational answers there may be to one request.
// Who reports each second that it is still at work has some minutes.
const maxInformational = 256

// Answer is what a server answered. It is made by [Transport.Do], and used by one
// goroutine, which must close it.
type Answer struct {
	Status int

	t    *Transport
	link *link
	ctx  *connContext // what aborts the link, or
	stop func() bool  // see [context.AfterFunc]

	pump *pump // nil if the body went with the head

	reader reader
	head   head
	body   bodyReader
	small  []byte             // what the body is read through
	large  *[largeBuffer]byte // in place of it, if the body is large
	gone   bool               // the link is no longer the answer's
}

// Do sends a request to the pool's server and returns the head of the answer. An
// error is a [Failure], whose cause may be a [ProtocolError]: then the server has
// answered something that can't be understood. When ctx ends, so does the
// connection, and whatever is under way on it.
//
// A connection that was kept and turns out to be closed is replaced by another,
// if nothing was sent on it or [Outgoing.Replay] allows it.
func (t *Transport) Do(ctx context.Context, p *Pool, out *Outgoing) (*Answer, error) {
	a, _ := t.answers.Get().(*Answer)
	if a == nil {
		a = &Answer{t: t}
		a.head.values = make([]string, 0, fewFields)
	}
	now := out.Now
	for fresh := false; ; now = time.Now() {
		l, err := p.get(ctx, now, out.Deadline, fresh)
		if err != nil {
			t.answers.Put(a)
			return nil, &Failure{Unreached, err}
		}
		a.link, a.gone = l, false
		a.watch(ctx)
		stage, err := a.exchange(now, out)
		l.looksOut = false
		if err == nil {
			return a, nil
		}
		reused := l.reused
		if l.left {
			err = ErrSilent
		}
		a.abandon()
		a.release()
		switch {
		case !reused || fresh || ctx.Err() != nil:
		case err == errStale:
			continue // and the next that is idle
		case stage == Unsent, stage == Sent && out.Replay && closedIdle(err):
			fresh = true
			continue
		}
		t.answers.Put(a)
		return nil, &Failure{stage, err}
	}
}

// closedIdle says whether an error is what a connection gives that the server had
// closed before it saw the request.
func closedIdle(err error) bool {
	return err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// exchange sends the request and reads the head of the answer. An error io.EOF
// says that nothing came.
func (a *Answer) exchange(now time.Time, out *Outgoing) (Stage, error) {
	l := a.link
	a.reader = reader{src: l, buffers: &a.t.buffers}
	a.reader.buf = a.reader.buffers.get()
	// The head, and the body if it is at hand, are where the answer will be: if
	// they fit, since by then they are gone.
	request := append(out.appendTo(a.reader.buf[:0]), out.Ready...)

	l.looksOut = out.Body == nil && out.Replay && l.pool.silent != nil
	if out.Body == nil {
		l.until(now, out.Deadline)
		written, read, err := l.roundTrip(request, a.reader.buf)
		a.reader.end = read
		switch {
		case err != nil && written == 0:
			return Unsent, err
		case err != nil:
			return Sent, err
		}
		return Sent, a.readHead(out)
	}

	l.exactly(out.Deadline)
	if l.stale() {
		return Unsent, errStale
	}
	if written, err := l.write(request); err != nil {
		if written == 0 {
			return Unsent, err
		}
		return Sent, err
	}
	a.pump = &pump{body: out.Body, length: out.Length, trailer: out.Trailer, link: l, interrupt: out.Interrupt, done: make(chan struct{})}
	if !out.Expect {
		a.pump.start()
		return Sent, a.readHead(out)
	}
	soon := now.Add(a.t.cfg.ExpectTimeout)
	if out.Deadline.IsZero() || soon.Before(out.Deadline) {
		l.exactly(soon)
	}
	err := a.readHead(out)
	if err != nil && !a.pump.started && errors.Is(err, os.ErrDeadlineExceeded) && (out.Deadline.IsZero() || time.Now().Before(out.Deadline)) {
		l.exactly(out.Deadline)
		a.pump.start()
		err = a.readHead(out)
	}
	if err == nil && !a.pump.started {
		l.exactly(out.Deadline)
	}
	return Sent, err
}

// readHead reads the head of the answer; informational ones it passes on.
func (a *Answer) readHead(out *Outgoing) error {
	h := &a.head
	for n := 0; ; n++ {
		if err := a.looksRight(); err != nil {
			return err
		}
		text, err := a.reader.readHead(0)
		if err != nil {
			return badHead(err)
		}
		if err := h.parseResponse(text, out.Method == http.MethodHead); err != nil {
			return badHead(err)
		}
		a.Status = h.status
		switch {
		case h.status >= 200:
			return a.begin(out)
		case h.status == http.StatusSwitchingProtocols:
			return a.switched(out)
		case n >= maxInformational:
			return garbled("more than %d informational answers came before the one that counts", maxInformational)
		case h.status == http.StatusContinue && a.pump != nil && !a.pump.started:
			a.link.exactly(out.Deadline)
			a.pump.start()
			continue // to read the body tells the client
		}
		if out.Inform != nil {
			stripHops(h.header)
			out.Inform(h.status, h.header)
		}
	}
}

// looksRight waits for the first bytes and says whether they begin an answer: who
// speaks another protocol may wait for us to go on, and never end its line.
func (a *Answer) looksRight() error {
	const begin = "HTTP/1."
	r := &a.reader
	if r.buffered() == 0 {
		if err := r.fill(); err != nil {
			return err
		}
	}
	text := r.buf[r.pos:r.end]
	if n := min(len(text), len(begin)); string(text[:n]) != begin[:n] {
		return garbled("the answer is not HTTP/1.0 or HTTP/1.1: it begins with %.20q", text)
	}
	return nil
}

// badHead says of an answer that it is one, if that can be known.
func badHead(err error) error {
	if e, ok := err.(*ProtocolError); ok {
		e.Status = http.StatusBadGateway
	}
	return err
}

func garbled(format string, args ...any) *ProtocolError {
	return &ProtocolError{http.StatusBadGateway, fmt.Sprintf(format, args...)}
}

// begin makes the body ready to be read.
func (a *Answer) begin(out *Outgoing) error {
	h := &a.head
	f := untilClose
	switch {
	case out.Method == http.MethodHead, h.status == http.StatusNoContent, h.status == http.StatusNotModified:
		f = noBody
	case h.chunked:
		f = byChunks
	case h.length >= 0:
		f = byLength
	}
	a.body.reset(&a.reader, f, h.length, true)
	stripHops(h.header)
	return nil
}

// switched checks that the server switched to what it was asked for.
func (a *Answer) switched(out *Outgoing) error {
	protocol := strings.Join(a.head.header["Upgrade"], ", ")
	if out.Upgrade == "" || !a.head.upgrade || !strings.EqualFold(protocol, out.Upgrade) {
		return garbled("it switched to the protocol %.40q when %.40q was asked for", protocol, out.Upgrade)
	}
	a.body.reset(&a.reader, noBody, 0, false)
	stripHops(a.head.header)
	a.head.header["Connection"] = []string{"Upgrade"}
	a.head.header["Upgrade"] = []string{protocol}
	return nil
}

// Header returns the answer's end-to-end fields: Content-Length is among them,
// what concerns one hop only isn't. It is good until [Answer.MoveHeader] or Close.
func (a *Answer) Header() http.Header { return a.head.header }

// fewFields is how many fields most answers don't exceed.
const fewFields = 16

// MoveHeader adds the answer's fields to the header of w, which may keep them.
func (a *Answer) MoveHeader(w http.ResponseWriter) {
	if w, ok := w.(*response); ok && len(w.header) == 0 {
		w.header, a.head.header = a.head.header, w.header
		w.values, a.head.values = a.head.values, w.values
		if a.head.values == nil {
			a.head.values = make([]string, 0, fewFields)
		}
		return
	}
	h := w.Header()
	for name, values := range a.head.header {
		if old, ok := h[name]; ok {
			values = append(old, values...)
		}
		h[name] = values
	}
	clear(a.head.header)
	a.head.values = make([]string, 0, fewFields)
}

// Trailers returns the names of the fields that the answer announces for after
// its body.
func (a *Answer) Trailers() []string { return a.head.trailer }

// Trailer returns the fields that came after the body, once that has ended.
func (a *Answer) Trailer() http.Header { return a.body.trailer }

// Unlimited takes the deadline away from what is still to come.
func (a *Answer) Unlimited() { a.link.exactly(time.Time{}) }

// Sending says whether there is something of the request's body that was not read.
func (a *Answer) Sending() bool { return a.pump != nil && !a.pump.all.Load() }

// Next waits for the next piece of the body and returns it, good until the next
// call. After the last one the error is io.EOF; that may be together with it.
// io.ErrUnexpectedEOF says that the body was cut short.
func (a *Answer) Next() ([]byte, error) {
	b, r := &a.body, &a.reader
	if b.err != nil {
		return nil, b.err
	}
	if b.framing == byLength && r.buffered() > 0 { // most answers: they are in the buffer
		n := int(min(b.left, int64(r.buffered())))
		piece := r.buf[r.pos : r.pos+n]
		r.pos += n
		if b.left -= int64(n); b.left == 0 {
			b.err = io.EOF
		}
		return piece, b.err
	}
	into := a.small
	switch {
	case a.large != nil:
		into = a.large[:]
	case b.framing == byLength && b.left > smallBuffer:
		into = a.grow()
	case into == nil:
		a.small = r.buffers.get()
		into = a.small
	}
	n, err := b.Read(into)
	if n == smallBuffer && a.large == nil {
		defer a.grow() // there will be more; what was read stays where it is
	}
	return into[:n], err
}

// grow has the rest of the body read in large pieces.
func (a *Answer) grow() []byte {
	if a.large, _ = a.t.large.Get().(*[largeBuffer]byte); a.large == nil {
		a.large = new([largeBuffer]byte)
	}
	return a.large[:]
}

// Ready says whether [Answer.Next] would return at once, with what has come.
func (a *Answer) Ready() bool {
	b := &a.body
	for b.err == nil && b.framing == byChunks && b.state != chunkData {
		err := b.step(false)
		if err == errMore {
			return false
		}
		b.err = err
	}
	return b.err != nil || a.reader.buffered() > 0
}

// Hijack returns the connection of an answer that switches protocols, and what
// has come on it already. It is the caller's from now on.
func (a *Answer) Hijack() (io.ReadWriteCloser, []byte) {
	l := a.link
	l.pool.disown(l)
	l.exactly(time.Time{})
	a.unwatch()
	a.gone = true
	return l.conn, a.reader.buf[a.reader.pos:a.reader.end]
}

// Close ends the exchange. The connection is kept if everything was sent and
// read, and nothing else came.
func (a *Answer) Close() {
	t := a.t
	switch {
	case a.gone:
	case a.reusable():
		a.link.pool.put(a.link)
	default:
		a.abandon()
	}
	a.release()
	t.answers.Put(a)
}

// reusable says whether another request may follow on the connection.
func (a *Answer) reusable() bool {
	// What has come of a body that nobody wanted may be all of it.
	for n := 0; n < smallBuffer && a.body.err == nil && a.Ready(); {
		piece, _ := a.Next()
		n += len(piece)
	}
	whole := a.body.complete() && a.reader.buffered() == 0 && a.head.persistent() &&
		(a.pump == nil || a.pump.started && a.pump.finished())
	return a.unwatch() && whole // if it can't be stopped, it closes the connection
}

// abandon closes the connection, and waits until nobody reads the request's body.
func (a *Answer) abandon() {
	a.unwatch()
	a.link.close()
	if p := a.pump; p != nil && p.started {
		if !p.ended() && !p.all.Load() {
			p.interrupt()
		}
		<-p.done
	}
}

// release gives the buffers back.
func (a *Answer) release() {
	b := &a.t.buffers
	b.put(a.reader.buf)
	b.put(a.small)
	if a.large != nil {
		a.t.large.Put(a.large)
	}
	a.link, a.small, a.large = nil, nil, nil
	a.reader, a.body, a.pump = reader{}, bodyReader{}, nil
}
