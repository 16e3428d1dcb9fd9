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

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// outcome is what became of giving a call to one replica.
type outcome int

const (
	answered  outcome = iota // the client has an answer, or what there was of it
	unreached                // no connection was made; nothing was sent
	unsent                   // there was a connection, but nothing was sent on it
	again                    // there was an answer that the client need not see: another attempt may be made
	instead                  // there was an answer that something else is to be given for
	failed                   // something was sent, and nothing came back
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

// Why an answer is kept from the client. Nobody sees the texts.
var (
	errAgain   = errors.New("another attempt is made")
	errInstead = errors.New("something else is given")
)

// carry gives the call to a replica that it holds, and lets go of it. limit is the
// time that the attempt has, and why what is to blame when it is over. The error
// is nil if the outcome is answered, and else says why there is no answer.
func (en *engine) carry(c *call, to *taken, limit time.Duration, why *resilience.Error) (out outcome, err error) {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	defer cancel(context.Canceled)
	timer := time.AfterFunc(limit, func() { cancel(why) })
	defer timer.Stop()

	a := &attempt{call: c, to: to, ctx: ctx, timer: timer, limit: limit}
	// Deferred, since an answer that breaks off in its middle is a panic.
	defer func() { to.release(a.said()) }()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: a.gotConn})
	r := c.r.WithContext(ctx)
	if c.body != nil {
		a.body = c.body.lend()
		r.Body = a.body
	}
	var transport http.RoundTripper = en.transport
	if x := c.f.fault(to.now); x != nil {
		transport = &faulty{en.transport, x}
	}
	c.through(&httputil.ReverseProxy{
		Rewrite:        a.rewrite,
		Transport:      transport,
		BufferPool:     en.buffers,
		ErrorLog:       en.log,
		ModifyResponse: a.modify,
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { a.err = err },
	}, r)
	if a.err == nil && c.kept != nil {
		a.err = c.kept.finish()
	}
	switch a.err {
	case nil:
		return answered, nil
	case errAgain:
		return again, nil
	case errInstead:
		return instead, &refusal{code: a.status, replaceable: true, retryAfter: a.wait, text: fmt.Sprintf(
			"function %s answered %d, and there was nothing to give in its place", c.target.name, a.status)}
	}

	untouched := a.body.revoke()
	if a.headAt.IsZero() && untouched && ctx.Err() == nil {
		switch conn := a.conn.Load(); {
		case conn == nil:
			a.verdict = resilience.Classify(ctx, resilience.Result{Err: a.err, Unsent: true})
			return unreached, en.unavailable(c, to, a.err)
		case conn.written.Load() == a.written.Load():
			// The replica closed the connection just then; that happens, and
			// says nothing unless it goes on.
			if to.races >= closedRaces-1 {
				a.verdict = resilience.Verdict{Outcome: resilience.Broken}
			}
			return unsent, en.unavailable(c, to, a.err)
		}
	}
	switch {
	case c.body != nil && c.body.tooLarge.Load():
		return failed, c.tooLarge()
	case c.body != nil && c.body.broken.Load():
		return failed, &refusal{code: http.StatusBadRequest, text: "the request's body ended before it was complete"}
	}
	a.verdict = resilience.Classify(ctx, resilience.Result{Err: a.err})
	to.retry = a.verdict.Retry
	if cause, ok := errors.AsType[*resilience.Error](context.Cause(ctx)); ok {
		return failed, c.overtime(cause)
	}
	return failed, en.unavailable(c, to, a.err)
}

// unavailable is the answer when the replica gave none.
func (en *engine) unavailable(c *call, e *taken, err error) error {
	c.p.cfg.Logger.Debug("a replica gave no answer", "function", c.target.name, "replica", e.ID, "err", err)
	return &refusal{code: http.StatusBadGateway, replaceable: true, text: fmt.Sprintf(
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
	to    *taken
	ctx   context.Context
	body  *loan
	timer *time.Timer
	limit time.Duration // of the attempt's time
	err   error         // why there was no answer

	// What the attempt says about the replica, once that is known.
	verdict resilience.Verdict
	status  int
	wait    time.Duration // what the answer's Retry-After asks for
	headAt  time.Time
	answer  answer

	// The connection that was taken, and what had been written to it before.
	// It is the transport's goroutine that says so.
	conn    atomic.Pointer[countedConn]
	written atomic.Int64
}

// answer is the body of a replica's answer. It remembers whether the replica
// broke it off; what the client does is another matter.
type answer struct {
	io.ReadCloser
	err error
}

// Read implements [io.Reader].
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

// said returns what the attempt says about its replica, and when that was known:
// the time that a client takes to read an answer is not the replica's.
func (a *attempt) said() (time.Time, resilience.Verdict) {
	if a.answer.err != nil && a.status < 400 {
		return time.Now(), resilience.Classify(a.ctx, resilience.Result{Status: a.status, Err: a.answer.err})
	}
	if a.headAt.IsZero() {
		return time.Now(), a.verdict
	}
	return a.headAt, a.verdict
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
	if c.f.asked || !c.callerEnd.IsZero() {
		resilience.SetHeader(until{a.ctx, a.to.now.Add(a.limit)}, h)
	}
}

// until is a context that tells of a deadline. The attempt's own has a timer in
// its place, which an event stream stops.
type until struct {
	context.Context
	end time.Time
}

// Deadline implements [context.Context].
func (u until) Deadline() (time.Time, bool) { return u.end, true }

// modify sees the answer's head before the client does.
func (a *attempt) modify(res *http.Response) error {
	c := a.call
	a.status, a.headAt = res.StatusCode, time.Now()
	if res.StatusCode == http.StatusSwitchingProtocols {
		a.verdict = resilience.Verdict{Outcome: resilience.Succeeded}
		a.timer.Stop()
		a.to.streaming(a.headAt, a.verdict)
	} else {
		r := resilience.Result{Status: res.StatusCode}
		if r.Status >= 400 {
			r.RetryAfter = resilience.RetryAfter(res.Header, a.headAt)
		}
		a.verdict = resilience.Classify(a.ctx, r)
		if a.verdict.Fallback {
			a.to.retry = a.verdict.Retry
			a.wait = a.verdict.Wait
			mayRetry := c.mayRetry(a.to, a.verdict, a.headAt)
			if res.StatusCode == http.StatusTooManyRequests {
				// It is this client that is to wait (RFC 6585, section 4), and
				// it must not be able to make all others wait.
				a.verdict.Wait = 0
			}
			switch {
			case mayRetry:
				return errAgain
			case c.kept == nil && c.replaceable():
				return errInstead
			}
		}
		if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind == "text/event-stream" {
			a.timer.Stop()
			a.to.streaming(a.headAt, a.verdict)
		}
		a.answer.ReadCloser = res.Body
		res.Body = &a.answer
	}
	c.code = res.StatusCode
	c.mark(res.Header)
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
