package http1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxDrain is how much of a body that the handler didn't read is read for it, so
// that the connection can be used again. Beyond, a new connection is cheaper.
const maxDrain = 256 << 10

// preface is how a client begins that knows the server to speak HTTP/2 (RFC 9113,
// section 3.4), as far as it looks like a request.
const preface = "PRI * HTTP/2.0"

// Why a wait was interrupted, see also ErrBodyStalled.
var (
	errIdle        = errors.New("nothing came for too long")
	errAsleep      = errors.New("time to give the buffers back")
	errHeadStalled = errors.New("the request's head took too long")
)

// conn is a connection, and the memory for one request after the other.
type conn struct {
	srv *Server
	nc  net.Conn
	tcp *socket // nc's, if it is a TCP connection: for what each request does
	in  reader

	head     head
	template http.Request // what all requests have in common, with their context
	req      http.Request
	url      url.URL
	body     *requestBody // nil if the request has none
	spent    *requestBody // for the next request with a body
	res      response
	cancel   context.CancelCauseFunc

	// What the reading side waits for. It is one goroutine at a time: serve's,
	// or who reads the body.
	waits  atomic.Uint32
	number uint32
	kind   wait // as in waits
	drains bool // the body is read for nobody

	writes    atomic.Uint32 // odd while a write is under way
	bodyBytes atomic.Uint64 // of all bodies
	begun     atomic.Bool   // some of the answer was sent
	expect    atomic.Bool   // the client waits to be asked for the body

	mu      sync.Mutex    // guards below
	why     error         // the reading side was interrupted
	watched chan struct{} // closed when watching has ended

	spare  [1]byte // what was read while watching, or asleep
	spared bool

	seen  sweeper // guarded by srv.mu, as is index
	index int     // in srv.conns

	// Deadlines that the handler set.
	readDeadline, writeDeadline atomic.Bool

	vec  [3][]byte // what is written together
	bufs net.Buffers
}

// wire is the connection as its reader sees it.
type wire conn

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, tcp: newSocket(nc), number: waitNext, kind: waitFresh}
	c.waits.Store(c.number | c.kind)
	c.in.src, c.in.buffers = (*wire)(c), &s.buffers
	c.res.c = c
	// The context is the connection's own: nothing above it ends.
	ctx := newConnContext(context.Background())
	c.cancel = ctx.end
	c.template = *(&http.Request{
		ProtoMajor: 1,
		RemoteAddr: nc.RemoteAddr().String(),
	}).WithContext(ctx)
	return c
}

// read reads from the connection.
func (c *conn) read(p []byte) (int, error) {
	if c.tcp != nil {
		return c.tcp.Read(p)
	}
	return c.nc.Read(p)
}

// Read implements [io.Reader]. It says what is waited for, so that it can be
// interrupted when that takes too long.
func (w *wire) Read(p []byte) (int, error) {
	c := (*conn)(w)
	if c.kind != waitBodyLeft {
		if c.in.buffered() > 0 && (c.kind == waitIdle || c.kind == waitFresh) {
			c.enter(waitHead)
		}
		return c.read(p)
	}
	if c.body.framing == byChunks && !c.drains {
		c.enter(waitChunks)
	} else {
		c.enter(waitBody)
	}
	n, err := c.read(p)
	c.bodyBytes.Add(uint64(n))
	if why := c.kicked(err); why != nil {
		err = why
	} else if err != nil && !isTimeout(err) {
		c.cancel(ErrClientGone)
	}
	c.enter(waitBodyLeft)
	return n, err
}

// serve serves the connection until it ends.
func (c *conn) serve() {
	defer c.end()
	if tc, ok := c.nc.(*tls.Conn); ok && !c.handshake(tc) {
		return
	}
	if err := c.in.fill(); err != nil {
		return // nobody asked anything
	}
	if c.srv.HTTP2 != nil && c.prefers2() {
		c.enter(waitBodyLeft) // nobody interrupts it from now on
		c.leave()
		c.srv.HTTP2(&resumed{Conn: c.nc, rest: bytes.Clone(c.in.buf[c.in.pos:c.in.end])})
		return
	}
	for c.next() {
		if c.enter(waitIdle); !c.await() {
			return
		}
	}
}

// end frees what the connection has. One that was hijacked stays open.
func (c *conn) end() {
	c.cancel(nil)
	if c.leave() {
		_ = c.nc.Close() // nothing of worth is unsent
	}
	c.in.pos = c.in.end
	c.sleep()
}

// leave takes the connection from the server, and says whether it was its.
func (c *conn) leave() bool {
	c.srv.mu.Lock()
	ours := c.index >= 0
	c.srv.mu.Unlock()
	c.srv.remove(c)
	return ours
}

// handshake begins TLS. It returns false if there is nothing more to serve.
func (c *conn) handshake(tc *tls.Conn) bool {
	if err := tc.Handshake(); err != nil {
		if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_, _ = io.WriteString(plain.Conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThis port speaks HTTPS: write https:// in place of http://\n")
		}
		c.srv.Logger.Debug("no TLS", "client", c.template.RemoteAddr, "err", err)
		return false
	}
	state := tc.ConnectionState()
	if state.NegotiatedProtocol == "h2" {
		if c.srv.HTTP2 != nil {
			c.enter(waitBodyLeft)
			c.leave()
			c.srv.HTTP2(tc)
		}
		return false
	}
	c.template.TLS = &state
	return true
}

func looksLikeHTTP(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		return true
	}
	return false
}

// prefers2 says whether the client begins with HTTP/2, for which it reads as much
// as looks like it.
func (c *conn) prefers2() bool {
	for {
		begin := string(c.in.buf[c.in.pos:c.in.end])
		if len(begin) >= len(preface) {
			return strings.HasPrefix(begin, preface)
		}
		if !strings.HasPrefix(preface, begin) || c.in.fill() != nil {
			return false
		}
	}
}

// resumed is a connection of which some was read too far.
type resumed struct {
	net.Conn
	rest []byte
}

// Read implements [io.Reader].
func (r *resumed) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// NetConn returns the connection below.
func (r *resumed) NetConn() net.Conn { return r.Conn }

// await waits for another request. It returns false if there is to be none.
func (c *conn) await() bool {
	if c.in.buffered() > 0 {
		return true
	}
	err := c.in.fill()
	if err == nil {
		return true
	}
	why := c.kicked(err)
	if why == errAsleep {
		c.sleep()
		c.enter(waitAsleep)
		n, err := c.nc.Read(c.spare[:])
		if n > 0 {
			c.enter(waitIdle)
			c.srv.wake()
			c.in.push(c.spare[0])
			return true
		}
		why = c.kicked(err)
	}
	if why == nil {
		return false
	}
	// What has come just now is answered.
	c.enter(waitLinger)
	_ = c.nc.SetReadDeadline(time.Now().Add(time.Millisecond))
	if c.in.fill() != nil {
		return false
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	c.enter(waitIdle)
	return true
}

// sleep gives back what only requests need.
func (c *conn) sleep() {
	c.in.release()
	c.res.release()
	c.head = head{}
	c.res.header, c.res.values = nil, nil
	c.body, c.spent = nil, nil
	c.req = http.Request{}
	c.url = url.URL{}
}

// next serves one request. It returns false if the connection is to be closed.
func (c *conn) next() bool {
	text, err := c.in.readHead(maxRequestLine)
	if err == nil {
		err = c.head.parseRequest(text)
	}
	if err == nil {
		err = c.setRequest()
	}
	if err != nil {
		c.refuse(err)
		return false
	}
	c.in.release() // if there is no more in it; the answer may take a while
	if !c.call() {
		return false
	}
	return c.finish()
}

// refuse answers what is no request.
func (c *conn) refuse(err error) {
	refused, ok := errors.AsType[*ProtocolError](err)
	if !ok {
		if c.kicked(err) == nil || c.in.buffered() == 0 {
			return // it is gone, or there was nothing
		}
		refused = &ProtocolError{http.StatusRequestTimeout, fmt.Sprintf("the head of the request was not complete after %s", c.srv.headTimeout())}
	}
	c.srv.Logger.Debug("request refused", "client", c.template.RemoteAddr, "status", refused.Status, "err", refused.Text)
	text := fmt.Sprintf("%d %s: %s\n", refused.Status, http.StatusText(refused.Status), refused.Text)
	b := appendStatusLine(nil, refused.Status, http.StatusText(refused.Status))
	b = append(b, *c.srv.date.Load()...)
	b = fmt.Appendf(b, "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	if c.write(b) == nil {
		c.linger()
	}
}

// linger closes the sending side and reads on for a while: to close the whole
// while something comes would have the system throw away what the client hasn't
// read yet (RFC 9112, section 9.6).
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.enter(waitLinger)
	c.in.pos, c.in.end = 0, 0
	for c.in.fill() == nil {
		c.in.pos, c.in.end = 0, 0
	}
}

// call calls the handler. It returns false if the connection is to be cut.
func (c *conn) call() (ok bool) {
	defer func() {
		if ok {
			return
		}
		p := recover()
		if p == nil {
			return // runtime.Goexit
		}
		if p != http.ErrAbortHandler {
			c.srv.Logger.Error("a handler panicked", "method", c.head.method, "path", c.url.Path, "panic", p, "stack", string(debug.Stack()))
		}
		c.broken()
	}()
	if c.head.target == "*" {
		c.res.Header().Set("Content-Length", "0")
	} else {
		c.srv.Handler.ServeHTTP(&c.res, &c.req)
	}
	return true
}

// broken cuts an answer so that the client can tell that it isn't whole.
func (c *conn) broken() {
	c.res.mu.Lock()
	defer c.res.mu.Unlock()
	if c.res.endsByClose() {
		c.abort()
	}
}

// finish completes the answer and makes ready for the next request. It returns
// false if there is to be none.
func (c *conn) finish() bool {
	if c.res.hijacked {
		return false
	}
	body := c.body
	unread := body != nil && body.end()
	switch {
	case !unread:
	case c.expect.Load(), body.err != nil, body.framing == byLength && body.left > maxDrain:
		c.res.closeAfter = true
	}
	if !c.res.finish() {
		c.broken()
		return false
	}
	if c.writeDeadline.Swap(false) {
		_ = c.nc.SetWriteDeadline(time.Time{})
	}
	if c.readDeadline.Swap(false) {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	if unread && !c.res.closeAfter {
		c.drains = true
		if n, err := io.CopyN(io.Discard, &body.bodyReader, maxDrain); n == maxDrain || err != io.EOF {
			c.res.closeAfter = true
		}
		c.drains = false
	}
	if body != nil && !unread && body.seen {
		c.spent = body
	}
	if c.res.closeAfter {
		if unread || c.in.buffered() > 0 {
			c.linger()
		}
		return false
	}
	return c.req.Context().Err() == nil
}

// write writes to the connection. An error is the end of the request.
func (c *conn) write(b []byte) error {
	for !seesSending && len(b) > writePiece {
		if err := c.write(b[:writePiece]); err != nil {
			return err
		}
		b = b[writePiece:]
	}
	c.writes.Add(1)
	var err error
	if c.tcp != nil {
		_, err = c.tcp.Write(b)
	} else {
		_, err = c.nc.Write(b)
	}
	c.writes.Add(1)
	return c.wrote(err)
}

// writePiece is how much is written at a time where it isn't known how much of it
// is on its way, so that a client which takes it slowly is seen to take it.
const writePiece = 16 << 10

// writeAll writes several slices, in one system call if the connection can.
func (c *conn) writeAll(a, b, d []byte) error {
	if !seesSending && len(b) > writePiece {
		for _, piece := range [...][]byte{a, b, d} {
			if err := c.write(piece); err != nil {
				return err
			}
		}
		return nil
	}
	c.vec = [3][]byte{a, b, d}
	c.bufs = c.vec[:]
	c.writes.Add(1)
	_, err := c.bufs.WriteTo(c.nc)
	c.writes.Add(1)
	c.vec = [3][]byte{}
	return c.wrote(err)
}

func (c *conn) wrote(err error) error {
	c.begun.Store(true)
	switch {
	case err == nil:
		return nil
	case isTimeout(err): // the handler's deadline
		c.cancel(ErrClientStalled)
	default:
		c.cancel(ErrClientGone)
	}
	return err
}

// abort closes the connection and drops what is unsent, which the client can
// tell from a regular end.
func (c *conn) abort() {
	if l, ok := plain(c.nc).(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = plain(c.nc).Close()
}

// plain returns the connection below TLS.
func plain(nc net.Conn) net.Conn {
	for {
		above, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		nc = above.NetConn()
	}
}
