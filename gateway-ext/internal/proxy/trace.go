package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
)

// A call is told to OpenTelemetry as one span of kind server, and each attempt
// within it as one of kind client; what happens between attempts is an event of
// the call's. The names of what is told are those of OpenTelemetry's semantic
// conventions for HTTP and FaaS where these have one, else they begin with
// "thicket.".

// span is what is told of a call, or of one attempt. A nil span tells nothing and
// costs nothing: so is every call's if nobody wants to be told ([Config.Tracer]).
type span struct {
	tracer trace.Tracer
	ctx    context.Context // has the span, for those within it
	span   trace.Span
}

// traceCall begins the span of a call, as part of the caller's trace if its
// header says that there is one.
func (c *call) traceCall() *span {
	tracer := c.p.cfg.Tracer
	if tracer == nil {
		return nil
	}
	r := c.r
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, s := tracer.Start(ctx, r.Method+" "+functionPrefix+c.target.name.String(),
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(c.start))
	if s.IsRecording() {
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		// Neither the query nor any header but these: they may hold secrets.
		s.SetAttributes(
			attribute.String("http.request.method", r.Method),
			attribute.String("http.route", functionPrefix+"{name}"),
			attribute.String("url.scheme", scheme),
			attribute.String("url.path", told(r.URL.Path)),
			attribute.String("network.protocol.version", strconv.Itoa(r.ProtoMajor)+"."+strconv.Itoa(r.ProtoMinor)),
			attribute.String("faas.trigger", "http"),
			attribute.String("faas.name", c.target.name.String()),
			attribute.String("faas.invocation_id", told(c.id)),
		)
		if host, port := address(r.Host); host != "" {
			s.SetAttributes(attribute.String("server.address", told(host)))
			if port > 0 {
				s.SetAttributes(attribute.Int("server.port", port))
			}
		}
		if host, _ := address(r.RemoteAddr); host != "" {
			s.SetAttributes(attribute.String("client.address", told(host)))
		}
		if agent := r.UserAgent(); agent != "" {
			s.SetAttributes(attribute.String("user_agent.original", told(agent)))
		}
	}
	return &span{tracer, ctx, s}
}

// endCall ends the span of a call. whole says whether the client has got an
// answer to its end, as far as that was ours to do.
func (s *span) endCall(c *call, whole bool) {
	if s == nil {
		return
	}
	if c.code > 0 {
		s.span.SetAttributes(attribute.Int("http.response.status_code", c.code))
	}
	if c.taken.replica == nil {
		s.held(c, time.Now())
	}
	switch {
	case c.code >= http.StatusInternalServerError:
		s.fail(strconv.Itoa(c.code), "")
	case !whole:
		s.fail("broken_off", "the answer broke off")
	}
	s.span.End()
}

// held tells how long the call has waited for replicas, if it has.
func (s *span) held(c *call, until time.Time) {
	if !c.heldSince.IsZero() {
		s.span.SetAttributes(attribute.Float64("thicket.held_seconds", until.Sub(c.heldSince).Seconds()))
	}
}

// traceAttempt begins the span of an attempt.
func (c *call) traceAttempt(to *taken) *span {
	s := c.trace
	if s == nil {
		return nil
	}
	s.held(c, to.now)
	s.span.SetAttributes(attribute.Int("thicket.attempts", c.attempts), attribute.String("thicket.replica", to.ID))
	ctx, a := s.tracer.Start(s.ctx, c.r.Method+" "+c.target.name.String(), trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(to.now))
	if a.IsRecording() {
		a.SetAttributes(
			attribute.String("http.request.method", c.r.Method),
			attribute.String("server.address", to.Addr.Addr().String()),
			attribute.Int("server.port", int(to.Addr.Port())),
			attribute.String("url.full", told("http://"+to.Addr.String()+c.target.path)),
			attribute.String("network.protocol.version", "1.1"),
			attribute.String("thicket.replica", to.ID),
		)
		if c.attempts > 1 {
			a.SetAttributes(attribute.Int("http.request.resend_count", c.attempts-1))
		}
	}
	return &span{s.tracer, ctx, a}
}

// try gives the call to a replica that it holds, and tells of it.
func (c *call) try(to *taken, limit time.Duration, why *resilience.Error) (out outcome, err error) {
	to.trace = c.traceAttempt(to)
	if s := to.trace; s != nil {
		broken := true // unless carry returns
		defer func() {
			if broken {
				err = errBroken
			}
			s.endAttempt(c, to, err)
		}()
		out, err = c.p.engine.carry(c, to, limit, why)
		broken = false
		return out, err
	}
	return c.p.engine.carry(c, to, limit, why)
}

// errBroken is what is told of an attempt whose answer broke off in its middle.
var errBroken = errors.New("the answer broke off")

// endAttempt ends the span of an attempt, after its replica has been told what
// came of it. err is why there is no whole answer.
func (s *span) endAttempt(c *call, to *taken, err error) {
	if s.span.IsRecording() {
		status := c.attempt.status
		s.span.SetAttributes(attribute.String("thicket.breaker", to.breaker.Snapshot(time.Now()).State.String()))
		if status > 0 {
			s.span.SetAttributes(attribute.Int("http.response.status_code", status))
		}
		switch {
		case status >= http.StatusInternalServerError:
			s.fail(strconv.Itoa(status), "")
		case err == errBroken:
			s.fail("broken_off", err.Error())
		case err != nil && status == 0:
			kind := "no_answer"
			if e, ok := errors.AsType[*refusal](err); ok && e.code == http.StatusGatewayTimeout {
				kind = "timeout"
			}
			s.fail(kind, err.Error())
		}
	}
	s.span.End()
}

// fail says that the span's work failed. kind is one of few.
func (s *span) fail(kind, text string) {
	s.span.SetAttributes(attribute.String("error.type", kind))
	s.span.SetStatus(codes.Error, text)
}

// inject gives the request for the function the attempt as its parent, in place
// of whatever the caller sent. A nil span leaves that as it came.
func (s *span) inject(o *outgoing) {
	if s == nil {
		return
	}
	carrier := make(propagation.MapCarrier, 2)
	propagation.TraceContext{}.Inject(s.ctx, carrier)
	o.set("Traceparent", carrier["traceparent"])
	o.set("Tracestate", carrier["tracestate"])
}

// event tells that something has happened.
func (s *span) event(name, replica string) {
	if s == nil || !s.span.IsRecording() {
		return
	}
	if replica == "" {
		s.span.AddEvent(name)
		return
	}
	s.span.AddEvent(name, trace.WithAttributes(attribute.String("thicket.replica", replica)))
}

// cache tells where the answer comes from.
func (s *span) cache(res stale.Result) {
	if s == nil || !s.span.IsRecording() {
		return
	}
	s.span.SetAttributes(attribute.String("thicket.cache", res.Source.String()))
	if res.Source == stale.Hit || res.Source.Stale() {
		s.span.SetAttributes(attribute.Float64("thicket.cache_age_seconds", res.Age.Seconds()))
	}
}

// note counts what has happened to the call, and tells it.
func (c *call) note(kind resilience.EventKind, replica string) {
	c.f.meter.Add(kind, replica)
	if c.trace != nil {
		c.trace.event(kind.String(), replica)
	}
}

// told is what a client sent as it may be told: not more of it than a bounded
// queue of spans may hold, and UTF-8, without which the spans that are sent
// together would all be lost.
func told(s string) string {
	const most = 512
	return strings.ToValidUTF8(strings.Clone(s[:min(len(s), most)]), "\uFFFD")
}

// address takes "host:port" apart. The port is 0 if there is none.
func address(hostport string) (host string, port int) {
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		return hostport, 0
	}
	port, _ = strconv.Atoi(p)
	return host, port
}
