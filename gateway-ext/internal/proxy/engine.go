package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
)

// outcome is what became of giving a call to one replica.
type outcome int

const (
	answered  outcome = iota // the client has an answer, or what there was of it
	unreached                // no connection was made; nothing was sent
	unsent                   // there was a connection, but nothing was sent on it
	failed                   // something was sent: it can't be sent again
)

// engine carries one call to one replica and back. It knows HTTP and nothing of
// functions; all that it shows is carry.
type engine struct {
	transport *http.Transport
	buffers   *buffers
	log       *log.Logger
}

func newEngine(logger *slog.Logger) *engine {
	dialer := &net.Dialer{
		// Replicas are on this machine or in the same network. One that takes
		// longer to accept is ill, and another can be asked.
		Timeout: 2 * time.Second,
	}
	return &engine{
		transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &countedConn{Conn: conn}, nil
			},
			// Bytes pass as they are: what a client accepts is between it and
			// the function.
			DisableCompression: true,
			// An idle connection costs about 20 KB here, and as much there.
			MaxIdleConns:        512,
			MaxIdleConnsPerHost: 64,
			// Node's HTTP server closes its idle connections after 5 s. To be
			// first makes it rare that a request meets a connection that is
			// being closed; it is sent again if it does.
			IdleConnTimeout: 4 * time.Second,
			// A function that has refused says so at once; one that hasn't
			// answered the expectation in a second gets the body.
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: 256 << 10,
		},
		buffers: &buffers{},
		log:     slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

func (en *engine) close() { en.transport.CloseIdleConnections() }

// errTimeout is why a call's context ends when its function took too long.
var errTimeout = errors.New("the function's timeout")

// carry gives the call to an endpoint that it holds, and releases it. The error
// is nil if the outcome is answered, and else says why there is no answer.
func (en *engine) carry(c *call, e *discovery.Endpoint) (outcome, error) {
	defer e.Release()
	ctx, cancel := context.WithCancelCause(c.r.Context())
	defer cancel(context.Canceled)
	timeout := c.p.cfg.Timeout
	timer := time.AfterFunc(timeout, func() { cancel(errTimeout) })
	defer timer.Stop()

	a := &attempt{call: c, to: e, timer: timer}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: a.gotConn})
	r := c.r.WithContext(ctx)
	if c.body != nil {
		a.body = c.body.lend()
		r.Body = a.body
	}
	(&httputil.ReverseProxy{
		Rewrite:        a.rewrite,
		Transport:      en.transport,
		BufferPool:     en.buffers,
		ErrorLog:       en.log,
		ModifyResponse: a.modify,
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { a.err = err },
	}).ServeHTTP(c.w, r)
	if a.err == nil {
		return answered, nil
	}

	untouched := a.body.revoke()
	switch conn := a.conn.Load(); {
	case untouched && conn == nil && ctx.Err() == nil:
		return unreached, en.unavailable(c, e, a.err)
	case untouched && conn != nil && conn.written.Load() == a.written.Load() && ctx.Err() == nil:
		return unsent, en.unavailable(c, e, a.err)
	}
	switch {
	case context.Cause(ctx) == errTimeout:
		return failed, &refusal{code: http.StatusGatewayTimeout, text: fmt.Sprintf(
			"function %s took longer than %s, the limit for a call: have it answer sooner, or raise %s", c.target.name, timeout, c.p.cfg.TimeoutSetting)}
	case c.body != nil && c.body.tooLarge.Load():
		return failed, c.tooLarge()
	case c.body != nil && c.body.broken.Load():
		return failed, &refusal{code: http.StatusBadRequest, text: "the request's body ended before it was complete"}
	}
	return failed, en.unavailable(c, e, a.err)
}

// unavailable is the answer when the replica gave none.
func (en *engine) unavailable(c *call, e *discovery.Endpoint, err error) error {
	c.p.cfg.Logger.Debug("a replica gave no answer", "function", c.target.name, "replica", e.ID, "err", err)
	return &refusal{code: http.StatusBadGateway, text: fmt.Sprintf(
		"function %s gave no answer: replica %s: %s", c.target.name, e.ID, reason(err))}
}

// reason says what went wrong without the addresses inside the platform.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return "no connection in time"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it closed the connection without an answer"
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "the connection broke"
	}
	return err.Error()
}

// attempt is a call on its way to one replica.
type attempt struct {
	call  *call
	to    *discovery.Endpoint
	body  *loan
	timer *time.Timer
	err   error // why there was no answer

	// The connection that was taken, and what had been written to it before.
	// It is the transport's goroutine that says so.
	conn    atomic.Pointer[countedConn]
	written atomic.Int64
}

func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	if conn, ok := info.Conn.(*countedConn); ok {
		a.written.Store(conn.written.Load())
		a.conn.Store(conn)
	}
}

// rewrite makes the replica's request of the client's. Hop-by-hop headers are
// gone by now.
func (a *attempt) rewrite(pr *httputil.ProxyRequest) {
	in, out, c := pr.In, pr.Out, a.call
	path, err := url.PathUnescape(c.target.path)
	if err != nil {
		path = c.target.path // not reached: the server has parsed it
	}
	out.URL = &url.URL{
		Scheme: "http", Host: a.to.Addr.String(),
		Path: path, RawPath: c.target.path,
		// As it came, also if it is nothing that Go would parse.
		RawQuery: in.URL.RawQuery, ForceQuery: in.URL.ForceQuery,
	}
	out.Host = ""
	// The values come with the body's end, into this map.
	out.Trailer = in.Trailer

	h := out.Header
	h["X-Forwarded-For"] = in.Header["X-Forwarded-For"]
	pr.SetXForwarded()
	// A proxy before this one knows better what the client asked for.
	for _, k := range [...]string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v := in.Header[k]; len(v) > 0 {
			h[k] = v
		}
	}
	if v := in.Header["Forwarded"]; len(v) > 0 {
		h["Forwarded"] = v
	}
	c.mark(h)
	h.Del("X-Served-By")
}

// modify sees the answer's head before the client does.
func (a *attempt) modify(res *http.Response) error {
	a.call.code = res.StatusCode
	a.call.mark(res.Header)
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode == http.StatusSwitchingProtocols || kind == "text/event-stream" {
		a.timer.Stop()
	}
	return nil
}

// countedConn counts what is written to a connection, since whether a request
// may be given to another replica depends on whether any of it was sent.
type countedConn struct {
	net.Conn
	written atomic.Int64
}

// Write implements [io.Writer].
func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// CloseWrite lets an upgraded connection be half closed.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// buffers are what answers are copied through.
type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

// Get implements [httputil.BufferPool].
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p[:]
	}
	return new(buffer)[:]
}

// Put implements [httputil.BufferPool].
func (b *buffers) Put(s []byte) { b.pool.Put((*buffer)(s)) }
