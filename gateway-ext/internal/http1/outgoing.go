package http1

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Field is one field of a header.
type Field struct{ Name, Value string }

// Outgoing is a request as it is to be sent. Who sends it must not change it
// until the [Answer] is closed.
type Outgoing struct {
	Method string

	// Path is escaped and begins with "/". Prefix is the same, or empty, and comes
	// before it. Query is sent as it is; HasQuery says whether there is one, and be
	// it empty.
	Prefix, Path, Query string
	HasQuery            bool

	Host string

	// Header is sent but for what concerns one hop only (RFC 9110, section
	// 7.6.1), which is decided anew here, and for the fields in Own, which are
	// sent in place of Header's fields of the same name. An Own field without a
	// value only takes Header's away. Names are canonical.
	Header http.Header
	Own    []Field

	// Upgrade is the protocol that is asked for by Upgrade, or "".
	Upgrade string

	// Now is the time. Deadline is when all must be done, the answer's body included. Zero is
	// never; see also [Answer.Unlimited].
	Now, Deadline time.Time

	// Replay says that the request may be sent twice: if a connection that was
	// kept turns out to be closed, and nobody can tell whether the request
	// arrived.
	Replay bool

	// Ready is the body, if all of it is at hand; it may be sent again.
	Ready []byte

	// Body is the body otherwise, nil for none; it is read while the answer
	// already comes, by another goroutine, which ends before Answer.Close or
	// [Transport.Do] with an error return. Length is its length, -1 if nobody
	// knows. Interrupt must make a Read of Body that waits return; it is called
	// when the answer is done with and the body is not.
	Body      io.Reader
	Length    int64
	Interrupt func()

	// Expect says that the body is sent only if the server says that it is
	// welcome, or nothing in time.
	Expect bool

	// Trailer are the fields that come after a Body of unknown length. The names
	// are announced, the values read once the body has ended. TrailerOK says
	// that fields after the answer's body are understood.
	Trailer   http.Header
	TrailerOK bool

	// Inform is told of informational answers (RFC 9110, section 15.2), with a
	// header that is good until it returns. Nil is told nothing.
	Inform func(status int, h http.Header)
}

// Stage says how far a request came that has no answer.
type Stage int

// How far it came.
const (
	Unreached Stage = iota // there was no connection
	Unsent                 // there was one, but nothing was sent on it, nor read of Body
	Sent                   // something was sent
)

// Failure is why there is no answer.
type Failure struct {
	Stage Stage
	Err   error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// appendTo writes the head of the request.
func (o *Outgoing) appendTo(b []byte) []byte {
	b = append(b, o.Method...)
	b = append(b, ' ')
	b = appendTarget(b, o.Prefix)
	b = appendTarget(b, o.Path)
	if o.HasQuery {
		b = append(b, '?')
		b = appendTarget(b, o.Query)
	}
	b = append(b, " HTTP/1.1\r\n"...)
	b = appendField(b, "Host", o.Host)
	named := o.Header["Connection"]
fields:
	for name, values := range o.Header {
		if isHop(name) || name == "Content-Length" || name == "Expect" || len(named) > 0 && HasToken(named, name) {
			continue
		}
		for i := range o.Own {
			if o.Own[i].Name == name {
				continue fields
			}
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	for i := range o.Own {
		if v := o.Own[i].Value; v != "" {
			b = appendField(b, o.Own[i].Name, v)
		}
	}
	if o.TrailerOK {
		b = append(b, "Te: trailers\r\n"...)
	}
	if o.Upgrade != "" {
		b = append(b, "Connection: Upgrade\r\n"...)
		b = appendField(b, "Upgrade", o.Upgrade)
	}
	switch {
	case o.Body == nil:
		if len(o.Ready) == 0 && !bodyExpected(o.Method) {
			break
		}
		b = appendLength(b, int64(len(o.Ready)))
	case o.Length >= 0:
		b = appendLength(b, o.Length)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for name := range o.Trailer {
			if mayTrail(name) {
				b = appendField(b, "Trailer", name)
			}
		}
	}
	if o.Body != nil && o.Expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return append(b, '\r', '\n')
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '\r', '\n')
}

// bodyExpected says whether a request without a body has to say that it has none
// (RFC 9110, section 8.6).
func bodyExpected(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// appendTarget writes a part of the request line. What would end it, or is no
// part of any, is percent-encoded.
func appendTarget(b []byte, s string) []byte {
	if badTargetByte(s) < 0 {
		return append(b, s...)
	}
	for i := range len(s) {
		if c := s[i]; classes[c]&targetByte != 0 {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "%%%02X", c)
		}
	}
	return b
}

// isHop says whether a field, by its canonical name, concerns one hop only (RFC
// 9110, section 7.6.1, and what older clients send).
func isHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// HasToken says whether a token is among those that the values of a field list
// (RFC 9110, section 5.6.1), whatever the case of its letters.
func HasToken(values []string, token string) bool {
	for _, v := range values {
		for v != "" {
			var t string
			t, v, _ = strings.Cut(v, ",")
			if strings.EqualFold(trimOWS(t), token) {
				return true
			}
		}
	}
	return false
}

// stripHops takes off a header what concerned the hop that it came by.
func stripHops(h http.Header) {
	named := h["Connection"]
	if len(named) == 1 && (named[0] == "keep-alive" || named[0] == "close") {
		named = nil
	}
	for name := range h {
		if isHop(name) || named != nil && HasToken(named, name) {
			delete(h, name)
		}
	}
}

// pump is a request's body on its way.
type pump struct {
	body    io.Reader
	length  int64 // -1 in chunks
	trailer http.Header
	link    *link

	interrupt func()
	started   bool
	all       atomic.Bool   // all of body was read
	done      chan struct{} // closed when nothing of body is read any more
	err       error         // why it broke off; written before done is closed
}

// largeBuffer is what large bodies are copied through: with less, more system
// calls; with more, no fewer, since sockets rarely have more at a time.
const largeBuffer = 32 << 10

// The room that a chunk's size and its ends take.
const (
	chunkHead = len("7fff\r\n")
	chunkTail = len("\r\n")
)

// run copies the body. If the body breaks off, so does the connection, or the
// server would take what it has for the whole.
func (p *pump) run() {
	defer close(p.done)
	err := p.copy()
	if err != nil {
		p.err = err
		if _, ok := err.(*sendError); !ok {
			p.link.abort()
		}
	}
}

// sendError is an error of writing to the server, which may have answered
// nonetheless.
type sendError struct{ error }

// Unwrap returns the cause.
func (e *sendError) Unwrap() error { return e.error }

func (p *pump) copy() error {
	t := p.link.pool.t
	large, _ := t.large.Get().(*[largeBuffer]byte)
	if large == nil {
		large = new([largeBuffer]byte)
	}
	defer t.large.Put(large)
	if p.length < 0 {
		return p.copyChunks(large[:])
	}
	for left := p.length; left > 0; {
		n, err := p.body.Read(large[:min(left, largeBuffer)])
		if left -= int64(n); left == 0 {
			p.all.Store(true)
		}
		if n > 0 {
			if _, err := p.link.conn.Write(large[:n]); err != nil {
				return &sendError{err}
			}
		}
		switch {
		case left == 0:
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

func (p *pump) copyChunks(buf []byte) error {
	for {
		n, err := p.body.Read(buf[chunkHead : len(buf)-chunkTail])
		if err == io.EOF {
			p.all.Store(true)
		}
		if n > 0 {
			// The size ends where the data begin.
			var size [chunkHead]byte
			s := strconv.AppendInt(size[:0], int64(n), 16)
			s = append(s, '\r', '\n')
			from := chunkHead - len(s)
			copy(buf[from:], s)
			copy(buf[chunkHead+n:], "\r\n")
			if _, err := p.link.conn.Write(buf[from : chunkHead+n+chunkTail]); err != nil {
				return &sendError{err}
			}
		}
		if err == nil {
			continue
		}
		if err != io.EOF {
			return err
		}
		end := append(buf[:0], "0\r\n"...)
		for name, values := range p.trailer {
			for _, v := range values {
				if mayTrail(name) {
					end = appendField(end, name, v)
				}
			}
		}
		if _, err := p.link.conn.Write(append(end, '\r', '\n')); err != nil {
			return &sendError{err}
		}
		return nil
	}
}

// ended says whether nobody reads the body any more.
func (p *pump) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// finished says whether the body was sent as a whole. A server may have got the
// last of it and answered before we know that we sent it.
func (p *pump) finished() bool {
	const moment = 10 * time.Millisecond
	if !p.ended() && p.all.Load() {
		timer := time.NewTimer(moment)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
	}
	return p.ended() && p.err == nil
}

// start begins to send the body.
func (p *pump) start() {
	p.started = true
	go p.run() // Answer.Close waits for it
}
