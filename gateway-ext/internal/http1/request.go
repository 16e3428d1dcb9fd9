package http1

import (
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// setRequest makes the request of what was parsed, in place of the last one.
func (c *conn) setRequest() error {
	h := &c.head
	if h.expect != "" && h.expect != "100-continue" {
		return &ProtocolError{http.StatusExpectationFailed, "no expectation but 100-continue can be met"}
	}
	if err := c.setURL(); err != nil {
		return err
	}
	r := &c.req
	*r = c.template
	r.Method, r.URL, r.Host, r.RequestURI = h.method, &c.url, h.host, h.target
	if r.Proto, r.ProtoMinor = "HTTP/1.1", 1; h.minor == 0 {
		r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	}
	r.Header = h.header
	r.Close = !h.persistent()
	switch {
	case h.chunked:
		r.TransferEncoding = chunkedCoding
		r.ContentLength = -1
		if len(h.trailer) > 0 {
			r.Trailer = make(http.Header, len(h.trailer))
			for _, name := range h.trailer {
				r.Trailer[name] = nil // is known at the body's end
			}
		}
		c.setBody(byChunks)
	case h.length > 0:
		r.ContentLength = h.length
		c.setBody(byLength)
	default:
		r.Body = http.NoBody
		c.body = nil
		c.expect.Store(false)
		c.enter(waitBusy)
	}
	c.begun.Store(false)
	c.bodyBytes.Add(minProgress) // patience begins anew
	c.res.reset()
	return nil
}

// setBody begins to read a body. Its reader is that of the last one if that was
// read to its end; else somebody may hold it who wants to go on, and must not get
// what isn't theirs.
func (c *conn) setBody(f framing) {
	b := c.spent
	if b == nil {
		b = &requestBody{c: c}
	}
	c.body, c.spent = b, nil
	b.mu.Lock()
	b.bodyReader.reset(&c.in, f, c.head.length, false)
	b.seen = false
	b.mu.Unlock()
	b.closed.Store(false)
	c.req.Body = b
	c.expect.Store(c.head.expect != "" && c.head.minor > 0)
	c.enter(waitBodyLeft)
}

// chunkedCoding is what [http.Request.TransferEncoding] is; nobody changes it.
var chunkedCoding = []string{"chunked"}

// setURL parses the target.
func (c *conn) setURL() error {
	target := c.head.target
	if target[0] == '/' {
		// Nearly all are like this, and need no memory.
		path, query, found := strings.Cut(target, "?")
		if (!found || query != "") && isPlainPath(path) {
			c.url = url.URL{Path: path, RawQuery: query}
			return nil
		}
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return malformed("the request's target has an escape in it that is none, or a host that is none")
	}
	c.url = *u
	return nil
}

// isPlainPath says whether a path is the same escaped and unescaped.
func isPlainPath(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '/' && c != '-' && c != '.' && c != '_' && c != '~' &&
			(c < '0' || '9' < c && c < 'A' || 'Z' < c && c < 'a' || 'z' < c) {
			return false
		}
	}
	return true
}

// requestBody is a request's body as the handler sees it.
type requestBody struct {
	c      *conn
	closed atomic.Bool

	mu sync.Mutex // guards below, and is held while reading
	bodyReader
	seen bool // its end, by Read
}

// Read implements [io.Reader].
func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.c.expect.Load() {
		b.c.res.sendContinue()
	}
	n, err := b.bodyReader.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		if b.seen {
			break
		}
		b.seen = true
		b.c.enter(waitBusy) // the client is watched from now on
		if b.trailer != nil {
			if b.c.req.Trailer == nil {
				b.c.req.Trailer = b.trailer
			}
			maps.Copy(b.c.req.Trailer, b.trailer)
		}
	case isTimeout(err): // a deadline of the handler's, who may set another
		b.bodyReader.err = nil
		if b.closed.Load() {
			err = http.ErrBodyReadAfterClose
		}
	}
	return n, err
}

// Buffered returns how many bytes of the body can be read without waiting, as far
// as its length was declared.
func (b *requestBody) Buffered() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.framing != byLength {
		return 0
	}
	return int(min(b.left, int64(b.r.buffered())))
}

// Close implements [io.Closer]. A Read that waits is interrupted.
func (b *requestBody) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	if b.mu.TryLock() {
		b.mu.Unlock()
		return nil
	}
	b.c.readDeadline.Store(true)
	_ = b.c.nc.SetReadDeadline(longAgo) // a connection that is closed is interrupted
	return nil
}

// end takes the body back from the handler, and says whether there is more of it.
func (b *requestBody) end() (unread bool) {
	_ = b.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.complete()
}
