package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
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
//
// One goroutine does it, the one that has the call, with the connection that the
// client's side and the replica's side of package http1 have between them. The
// request's head, and its body if that has come, are one write; the answer's head
// goes to the client with what has come of its body. After that, and as often as
// nothing more has come, it is flushed: so all bodies stream, whatever they are.
type engine struct {
	transport *http1.Transport
	log       *slog.Logger
}

func newEngine(logger *slog.Logger) *engine {
	return &engine{transport: http1.NewTransport(http1.TransportConfig{}), log: logger}
}

func (en *engine) close() { en.transport.Close() }

// Why an answer is kept from the client. Nobody sees the texts.
var (
	errAgain   = errors.New("another attempt is made")
	errInstead = errors.New("something else is given")
)

// carry gives the call to a replica that it holds, and lets go of it. limit is the
// time that the attempt has, and why what is to blame when it is over. The error
// is nil if the outcome is answered, and else says why there is no answer.
func (en *engine) carry(c *call, to *taken, limit time.Duration, why *resilience.Error) (out outcome, err error) {
	a := &c.attempt
	a.call, a.to, a.why = c, to, why
	a.now, a.end = to.now, to.now.Add(limit)
	a.said = said{}
	a.err = nil
	// Deferred, since an answer that breaks off in its middle is a panic.
	defer func() { to.release(a.says()) }()
	if c.kept != nil {
		c.kept.through(a.run)
	} else {
		a.run(c.w)
	}
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

	ctx := a.context()
	if f, ok := a.err.(*http1.Failure); ok && f.Stage != http1.Sent && ctx.Err() == nil {
		if f.Stage == http1.Unreached {
			a.verdict = resilience.Classify(ctx, resilience.Result{Err: a.err, Unsent: true})
			return unreached, en.unavailable(c, to, a.err)
		}
		// The replica closed the connection just then; that happens, and says
		// nothing unless it goes on.
		if to.races >= closedRaces-1 {
			a.verdict = resilience.Verdict{Outcome: resilience.Broken}
		}
		return unsent, en.unavailable(c, to, a.err)
	}
	switch {
	case c.body != nil && c.body.tooLarge:
		return failed, c.tooLarge()
	case c.body != nil && c.body.broken:
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
	en.log.Debug("a replica gave no answer", "function", c.target.name, "replica", e.ID, "err", err)
	text := "gave no answer"
	if _, ok := errors.AsType[*http1.ProtocolError](err); ok {
		text = "gave an answer that is none"
	}
	return &refusal{code: http.StatusBadGateway, replaceable: true, text: fmt.Sprintf(
		"function %s %s: replica %s: %s", c.target.name, text, e.ID, reason(err))}
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
	call *call
	to   *taken
	w    http.ResponseWriter // who gets the answer
	now  time.Time           // when it began
	end  time.Time           // when it is over; zero for an answer that may go on for ever
	why  *resilience.Error   // what is to blame then
	out  outgoing
	err  error // why there was no answer
	said
}

// said is what an attempt says about the replica, once that is known.
type said struct {
	verdict resilience.Verdict
	status  int
	wait    time.Duration // what the answer's Retry-After asks for
	headAt  time.Time
	cut     error // why the answer's body broke off, if it was the replica that did it
}

// context returns the attempt's context as it is now: that of the call, or one
// that has ended because the time is over. It is for those who ask for the cause;
// the time itself is kept by the connection.
func (a *attempt) context() context.Context {
	ctx := a.call.r.Context()
	if ctx.Err() != nil || a.end.IsZero() || time.Now().Before(a.end) {
		return ctx
	}
	ctx, cancel := context.WithCancelCause(ctx)
	cancel(a.why)
	return ctx
}

// says returns what the attempt says about its replica, and when that was known:
// the time that a client takes to read an answer is not the replica's.
func (a *attempt) says() (time.Time, resilience.Verdict) {
	if a.cut != nil && a.status < 400 {
		return time.Now(), resilience.Classify(a.context(), resilience.Result{Status: a.status, Err: a.cut})
	}
	if a.headAt.IsZero() {
		return time.Now(), a.verdict
	}
	return a.headAt, a.verdict
}

// run gives the request to the replica, and its answer to w.
func (a *attempt) run(w http.ResponseWriter) {
	c := a.call
	a.w = w
	if x := c.f.fault(a.to.now); x != nil {
		if reply, err := x.suffer(c.r.Context(), a.end); err != nil {
			a.err = err
			return
		} else if reply != nil {
			a.pass(x.status, reply)
			return
		}
	}
	a.prepare()
	answer, err := c.p.engine.transport.Do(c.r.Context(), a.to.pool, &a.out.Outgoing)
	if err != nil {
		a.err = err
		return
	}
	defer answer.Close()
	if answer.Status == http.StatusSwitchingProtocols {
		a.upgrade(answer)
		return
	}
	a.pass(answer.Status, answer)
}

// reply is what a replica answered, or would have.
type reply interface {
	Header() http.Header
	MoveHeader(http.ResponseWriter)
	Trailers() []string
	Trailer() http.Header
	Next() ([]byte, error)
	Ready() bool
	Sending() bool
	Unlimited()
}

// pass gives the client an answer, if it is for the client.
func (a *attempt) pass(status int, answer reply) {
	c, w := a.call, a.w
	a.status, a.headAt = status, time.Now()
	if a.err = a.judge(answer.Header()); a.err != nil {
		return
	}
	if kinds := answer.Header()["Content-Type"]; len(kinds) > 0 && isEvents(kinds[0]) {
		answer.Unlimited()
		a.end = time.Time{}
		a.to.streaming(a.headAt, a.verdict)
	}
	c.code = status
	answer.MoveHeader(w)
	h := w.Header()
	c.mark(h)
	announced := answer.Trailers()
	if len(announced) > 0 {
		h["Trailer"] = []string{strings.Join(announced, ", ")}
	}
	if answer.Sending() && c.r.ProtoMajor == 1 && !c.body.known() {
		// Of the request there is more to come than anybody may want. So that
		// net/http can't take it for another request the connection ends with it.
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(status)
	for {
		if !answer.Ready() {
			a.flush()
		}
		piece, err := answer.Next()
		if len(piece) > 0 && c.r.Method != http.MethodHead {
			if _, err := w.Write(piece); err != nil {
				panic(http.ErrAbortHandler) // the client is gone
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			a.cut = err
			a.flush()                   // so that it can be seen to break off
			panic(http.ErrAbortHandler) // or the client would take this for all
		}
	}
	if trailer := answer.Trailer(); len(trailer) > 0 {
		a.flush() // there are no trailers after a body of known length
		for name, values := range trailer {
			if !slices.Contains(announced, name) {
				name = http.TrailerPrefix + name
			}
			h[name] = values
		}
	}
}

// flush sends what the client was written. Who can't do it has no need to.
func (a *attempt) flush() { _ = http.NewResponseController(a.w).Flush() }

// isEvents says whether a Content-Type is that of an event stream.
func isEvents(kind string) bool {
	const events = "text/event-stream"
	if len(kind) < len(events) || kind[0]|0x20 != 't' {
		return false
	}
	kind, _, _ = mime.ParseMediaType(kind)
	return kind == events
}

// judge decides what an answer says about the replica, and whether the client is
// to get it.
func (a *attempt) judge(h http.Header) error {
	c := a.call
	r := resilience.Result{Status: a.status}
	if r.Status >= 400 {
		r.RetryAfter = resilience.RetryAfter(h, a.headAt)
	}
	a.verdict = resilience.Classify(c.r.Context(), r)
	if !a.verdict.Fallback {
		return nil
	}
	a.to.retry = a.verdict.Retry
	a.wait = a.verdict.Wait
	mayRetry := c.mayRetry(a.to, a.verdict, a.headAt)
	if a.status == http.StatusTooManyRequests {
		// It is this client that is to wait (RFC 6585, section 4), and it must
		// not be able to make all others wait.
		a.verdict.Wait = 0
	}
	switch {
	case mayRetry:
		return errAgain
	case c.kept == nil && c.replaceable():
		return errInstead
	}
	return nil
}

// informational passes on an answer that isn't the last.
func (a *attempt) informational(status int, from http.Header) {
	if !a.call.r.ProtoAtLeast(1, 1) {
		return // RFC 9110, section 15.2
	}
	h := a.w.Header()
	var before http.Header // what is for the last answer alone
	if len(h) > 0 {
		before = h.Clone()
		clear(h)
	}
	for name, values := range from {
		h[name] = slices.Clone(values)
	}
	a.w.WriteHeader(status)
	clear(h)
	maps.Copy(h, before)
}

// upgrade gives the connection to the client and the replica, for whatever they
// agreed on, and returns when both have no more to say.
func (a *attempt) upgrade(answer *http1.Answer) {
	c := a.call
	a.status, a.headAt = answer.Status, time.Now()
	a.verdict = resilience.Verdict{Outcome: resilience.Succeeded}
	answer.MoveHeader(a.w)
	h := a.w.Header()
	c.mark(h)
	client, buffered, err := http.NewResponseController(a.w).Hijack()
	if err != nil {
		clear(h)
		a.err = &http1.Failure{Stage: http1.Sent, Err: fmt.Errorf("it switched to another protocol, and the client's connection can't: %w", err)}
		return
	}
	defer client.Close()
	replica, early := answer.Hijack()
	defer replica.Close()
	c.code = a.status
	a.end = time.Time{}
	a.to.streaming(a.headAt, a.verdict)

	cut := func() {
		_ = client.Close()
		_ = replica.Close()
	}
	defer context.AfterFunc(c.r.Context(), cut)()
	defer context.AfterFunc(c.p.upgrades, cut)()
	head := http.Response{StatusCode: a.status, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := head.Write(buffered); err != nil {
		return // the client is gone
	}
	if _, err := buffered.Write(early); err != nil {
		return
	}
	if err := buffered.Flush(); err != nil {
		return
	}
	sent := make(chan struct{})
	go func() { // waited for below
		defer close(sent)
		first := make([]byte, buffered.Reader.Buffered())
		_, _ = io.ReadFull(buffered, first)
		if _, err := replica.Write(first); err != nil || !tunnel(replica, client) {
			cut()
		}
	}()
	if !tunnel(client, replica) {
		cut()
	}
	<-sent
}

// tunnel copies until from has no more to say, and tells to. It returns false if
// one of them is gone.
func tunnel(to io.Writer, from io.Reader) bool {
	if _, err := io.Copy(to, from); err != nil {
		return false
	}
	half, ok := to.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}
