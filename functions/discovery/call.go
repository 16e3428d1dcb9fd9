package discovery

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

const (
	// HeaderReplica says on a direct call which replica is meant, so that a
	// process which has got the address of one that is gone can refuse it with
	// 421; and on an answer to one, which replica gave it.
	HeaderReplica = "X-Thicket-Replica"

	headerCallID    = "X-Call-Id"
	headerStartTime = "X-Start-Time"

	// mostBroken is how often a call is made that breaks off after it was sent.
	mostBroken = 3

	// dialTimeout bounds a connection's making. Replicas are near, and one that
	// takes longer is ill.
	dialTimeout = time.Second
)

func newTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &countedConn{Conn: conn}, nil
		},
		DisableCompression:  true, // bytes pass as they are, as through the gateway
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 32,
		// Shorter than servers keep theirs (Node's for 5 s): to be first makes it
		// rare that a request meets a connection that is being closed.
		IdleConnTimeout:        4 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// countedConn counts what is written to a connection: whether a call may be sent
// elsewhere depends on whether any of it was sent.
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

// call is a request on its way.
type call struct {
	*Client
	r      *http.Request // the caller's, which is not changed
	to     destination
	body   body
	tried  []*learnt // since the table was last looked at
	broken int       // attempts that were sent and not answered
	start  time.Time
	id     string
}

// RoundTrip implements [http.RoundTripper].
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	x := &call{Client: c, r: r, body: body{r: r}, start: time.Now(), id: r.Header.Get(headerCallID)}
	if x.id == "" {
		x.id = rand.Text()
	}
	resp, err := x.do()
	if err != nil {
		x.body.close()
		return nil, err
	}
	x.body.leave()
	resp.Request = r
	return resp, nil
}

func (x *call) do() (*http.Response, error) {
	if x.r.URL == nil {
		return nil, errors.New("call a function: the request has no address")
	}
	var err error
	if x.to, err = x.destinationOf(x.r.URL); err != nil {
		return nil, fmt.Errorf("call a function: %w", err)
	}
	if x.to.name != (Name{}) {
		x.budget.Call(x.start)
	}
	for round := 1; ; round++ {
		resp, again, err := x.direct()
		if err == nil && resp == nil {
			resp, again, err = x.via()
		}
		if err == nil || !again {
			return resp, err
		}
		pause := resilience.Backoff(round + 2)
		if time.Since(x.start)+pause > x.cfg.Wait {
			return nil, err
		}
		select {
		case <-x.r.Context().Done():
			return nil, context.Cause(x.r.Context())
		case <-time.After(pause):
		}
		x.tried = x.tried[:0]
	}
}

// direct gives the call to one replica after the other. Without an answer and
// without an error it is the gateway's turn. After an error, again says whether
// the call may be made once more.
func (x *call) direct() (resp *http.Response, again bool, err error) {
	key := x.rule.Key(x.r.Header, x.r.URL.RawQuery)
	for x.to.name != (Name{}) {
		now := time.Now()
		if !x.fresh(now) {
			return nil, false, nil
		}
		to := (*x.routes.Load())[x.to.name].pick(now, key, x.tried)
		if to == nil {
			return nil, false, nil
		}
		x.tried = append(x.tried, to.learnt)
		out := x.outgoing(&url.URL{Scheme: "http", Host: to.Addr.String()}, x.to.path)
		out.Header.Set(HeaderReplica, to.ID)

		to.inFlight.Add(1)
		x.ledger.start(x.to.name, now)
		resp, verdict, err := x.attempt(out)
		ended := time.Now()
		to.learn(ended, ended.Sub(now), verdict)
		if err == nil && !misdirected(resp) {
			resp.Header.Set(HeaderReplica, to.ID)
			x.follow(resp, to, now)
			return resp, false, nil
		}
		to.inFlight.Add(-1)
		if err == nil { // somebody else has the address now, and nothing was done
			resp.Body.Close()
			verdict.Retry = resilience.RetryAlways
			err = fmt.Errorf("replica %s is gone", to.ID)
		}
		if !x.mayRepeat(verdict) {
			x.ledger.end(x.to.name, x.unanswered(), ended.Sub(now), ended)
			return nil, false, x.failed(err)
		}
		x.ledger.takeBack(x.to.name, ended)
	}
	return nil, false, nil
}

// unanswered is the status that a call counts with which got no answer.
func (x *call) unanswered() int {
	switch x.r.Context().Err() {
	case nil:
		return http.StatusBadGateway
	case context.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return statusClientGone
}

// statusClientGone is what gateways write of a client that didn't wait.
const statusClientGone = 499

// via gives the call to the gateway.
func (x *call) via() (resp *http.Response, again bool, err error) {
	out := x.outgoing(x.throughGateway(x.r.URL, x.to), "")
	resp, verdict, err := x.attempt(out)
	if err != nil {
		return nil, x.mayRepeat(verdict), x.failed(err)
	}
	return resp, false, nil
}

// attempt sends the call once. Its error has a verdict that says whether another
// attempt may be made.
func (x *call) attempt(out *http.Request) (*http.Response, resilience.Verdict, error) {
	ctx := x.r.Context()
	var ok bool
	if out.Body, ok = x.body.lend(); !ok {
		return nil, resilience.Verdict{}, errors.New("its body has been sent, and can't be read again")
	}
	var conn atomic.Pointer[countedConn]
	var before atomic.Int64
	out = out.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			counted, ok := info.Conn.(*countedConn)
			if !ok { // over TLS: it counts as sent
				counted = &countedConn{}
				before.Store(-1)
			} else {
				before.Store(counted.written.Load())
			}
			conn.Store(counted)
		},
	}))
	resp, err := x.transport.RoundTrip(out)
	if err == nil {
		return resp, resilience.Classify(ctx, resilience.Result{
			Status: resp.StatusCode, RetryAfter: resilience.RetryAfter(resp.Header, time.Now()),
		}), nil
	}
	untouched := x.body.back()
	got := conn.Load()
	unsent := untouched && (got == nil || got.written.Load() == before.Load())
	return nil, resilience.Classify(ctx, resilience.Result{Err: err, Unsent: unsent}), err
}

// mayRepeat says whether a call that got no answer may be made again.
func (x *call) mayRepeat(v resilience.Verdict) bool {
	if x.r.Context().Err() != nil {
		return false
	}
	switch v.Retry {
	case resilience.RetryAlways:
		return true
	case resilience.RetrySafe:
		x.broken++
		return x.broken < mostBroken && resilience.Idempotent(x.r.Method, x.r.Header) && x.body.there() && x.budget.Take(time.Now())
	}
	return false
}

// outgoing returns the request as it is sent to base. An escaped path replaces
// base's own.
func (x *call) outgoing(base *url.URL, path string) *http.Request {
	out := x.r.Clone(x.r.Context())
	out.GetBody = nil // it is attempts that are repeated
	u := *base
	if path != "" {
		setPath(&u, path)
		u.RawQuery, u.ForceQuery = x.r.URL.RawQuery, x.r.URL.ForceQuery
	}
	out.URL = &u

	h := out.Header
	if h == nil {
		h = make(http.Header)
		out.Header = h
	}
	if path != "" {
		// What the gateway would tell.
		setDefault(h, "X-Forwarded-Host", cmp.Or(x.r.Host, x.r.URL.Host))
		setDefault(h, "X-Forwarded-Proto", x.r.URL.Scheme)
		setDefault(h, headerStartTime, strconv.FormatInt(x.start.UnixNano(), 10))
	}
	if out.URL.Host != x.r.URL.Host {
		out.Host = ""
	}
	h.Set(headerCallID, x.id)
	resilience.SetHeader(x.r.Context(), h)
	return out
}

func setDefault(h http.Header, key, value string) {
	if len(h[key]) == 0 {
		h[key] = []string{value}
	}
}

// failed says who was called, without the address.
func (x *call) failed(err error) error {
	if x.to.name == (Name{}) {
		return fmt.Errorf("call the gateway: %w", err)
	}
	return fmt.Errorf("call function %s: %w", x.to.name, err)
}

// misdirected says whether an answer is that of a server which is not the replica
// that was meant; a function may say 421 for reasons of its own.
func misdirected(resp *http.Response) bool {
	return resp.StatusCode == http.StatusMisdirectedRequest && resp.Header.Get("X-OpenFaaS-Internal") != ""
}

// follow has the call counted out when the answer has been read or closed.
func (x *call) follow(resp *http.Response, to *target, begun time.Time) {
	code, name, ledger := resp.StatusCode, x.to.name, x.ledger
	ctx := x.r.Context()
	a := &answer{ReadCloser: resp.Body}
	a.done = func(err error) {
		now := time.Now()
		if err != nil && code < 400 { // it broke off
			to.learn(now, now.Sub(begun), resilience.Classify(ctx, resilience.Result{Status: code, Err: err}))
		}
		to.inFlight.Add(-1)
		ledger.end(name, code, now.Sub(begun), now)
	}
	switch w, ok := resp.Body.(io.Writer); {
	case resp.Body == http.NoBody:
		a.finish(nil)
	case ok: // the connection was taken over
		resp.Body = &upgraded{a, w}
	default:
		resp.Body = a
	}
}

// answer is the body of a replica's answer.
type answer struct {
	io.ReadCloser
	once sync.Once
	done func(error)
}

func (a *answer) finish(err error) { a.once.Do(func() { a.done(err) }) }

// Read implements [io.Reader].
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		a.finish(nil)
	case err != nil:
		a.finish(err)
	}
	return n, err
}

// Close implements [io.Closer].
func (a *answer) Close() error {
	err := a.ReadCloser.Close()
	a.finish(nil)
	return err
}

// upgraded is what is left of HTTP after a 101.
type upgraded struct {
	*answer
	io.Writer
}
