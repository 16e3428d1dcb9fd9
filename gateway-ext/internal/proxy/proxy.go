// Package proxy carries a request for a function to one of its replicas, and the
// answer back. It is the handler of /function/ and /async-function/.
//
// It promises that a request which can be answered is answered: while a
// function starts, is updated or sleeps, its requests wait, bounded in number
// and time; a replica that can't be reached before anything of the request was
// sent is no failure, another is asked. What was sent in part is never sent
// again, but for requests that only read, on a kept connection that turns out to
// be closed. Path, query, headers and body arrive as they were sent, both ways, as
// they come: event streams, WebSockets, trailers and informational answers pass.
//
// What happens when a call goes wrong is the function's policy, which its
// annotations ask for: in this order a deadline, kept answers and fallbacks,
// attempts within a budget, and for each replica a breaker and a bulkhead. What
// these are is written in functions/resilience and functions/stale. A function
// that asks for nothing is called as if there were no policies, but for replicas
// that fail: they are avoided while there are others. A policy is read once,
// when its function is first called ([Proxy.Changed]); a call finds it, and what
// is known of the replicas, without a lock.
//
// An error that the platform makes, and not the function, is a sentence, and
// carries the header X-OpenFaaS-Internal.
//
// Where replicas are is known to package discovery, whom to ask is decided by
// package balance; what functions exist, and waking them, is left to who made
// the [Proxy].
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Config is what a [Proxy] needs to know.
type Config struct {
	// Table is where replicas are. Required.
	Table *discovery.Table

	// Known tells of a declared function how many replicas are wanted and, if
	// there is trouble, why fewer are ready; ok is false if there is no such
	// function. It is asked when no replica is ready, and must be quick. Required.
	Known func(faas.Name) (wanted int, reason string, ok bool)

	// Names lists the declared functions, for metrics and to suggest a name to
	// who mistyped it. Nil suggests none and counts only what was called.
	Names func() []faas.Name

	// Wake asks for a replica of a function that wants none. It returns when
	// that is noted, not when the replica is ready. One call at a time is made
	// for each function. Nil wakes nothing.
	Wake func(context.Context, faas.Name) error

	// Dial says how connections to a replica are opened that can't be reached at
	// its address, since it is on another machine; nil for one that can. Nil
	// reaches all at their addresses.
	Dial func(*discovery.Endpoint) func(context.Context) (net.Conn, error)

	// Timeout is how long a function may take for its whole answer, counted
	// from when the request is given to a replica; event streams and
	// WebSockets only have to begin within it. Default 60 s. It is what ends
	// calls that hang, so it must not be unlimited.
	Timeout time.Duration

	// TimeoutSetting is what people change for another Timeout, as the error
	// for it says: "THICKET_…". Default "the gateway's timeout".
	TimeoutSetting string

	// HoldTime is how long a request waits for a replica to become ready.
	// Default 30 s. Longer forgives slower starts; the client must be as patient.
	HoldTime time.Duration

	// HoldQueue is how many requests may wait for one function at a time.
	// Default 256. Each costs a connection and about 20 KB.
	HoldQueue int

	// MaxBody is the largest request body in bytes. Default 256 MiB; negative
	// is unlimited. Bodies are passed on as they come and not kept in memory,
	// so this protects functions and not the gateway.
	MaxBody int64

	// MaxBodySetting is what people change for another MaxBody. Default "the
	// gateway's limit".
	MaxBodySetting string

	// Declared returns what runs of a function or, if nothing does yet, what was
	// declared of it; nil if there is no such function. Its annotations say what
	// policy it has. It is asked at the function's first call, and when
	// [Proxy.Changed] is called. Nil, and no function has a policy.
	Declared func(faas.Name) *faas.Function

	// Node and Zone are where this gateway is: replicas of the same node, or else
	// of the same zone, are preferred. Empty, and none is nearer than another.
	Node, Zone string

	// Cache keeps the answers of functions that ask for it. Nil keeps none. It
	// must be closed after the last call, and before the replicas go.
	Cache *stale.Cache

	// Chaos lets operators make functions fail, see [Proxy.Operate].
	Chaos bool

	// ChaosSetting is what people set for Chaos. Default "Chaos".
	ChaosSetting string

	// Registerer takes the metrics. Nil registers none.
	Registerer prometheus.Registerer

	// Tracer is told of each call and its attempts. Nil tells nobody, and leaves
	// the header traceparent as it came.
	Tracer trace.Tracer

	// Logger gets a line per request at level debug. Required.
	Logger *slog.Logger

	// Version is what X-Served-By says: "thicket/Version".
	Version string
}

// Proxy is the handler. It is made by [New].
type Proxy struct {
	cfg      Config
	servedBy string
	engine   *engine
	holds    *holds
	metrics  *metrics
	limits   Limits
	monitor  *resilience.Monitor

	functions functions
	compiling sync.Mutex // held to change functions
	calls     sync.Pool  // of *call

	buffered atomic.Int64 // bytes that recorders hold

	upgrades    context.Context // ends when connections of another protocol are to
	cutUpgrades context.CancelFunc
}

// maxEvents is how many events are remembered, at about 100 bytes each.
const maxEvents = 1024

// New returns a proxy. It starts nothing.
func New(cfg Config) (*Proxy, error) {
	switch {
	case cfg.Table == nil:
		return nil, errors.New("proxy: Config.Table is nil")
	case cfg.Known == nil:
		return nil, errors.New("proxy: Config.Known is nil")
	case cfg.Logger == nil:
		return nil, errors.New("proxy: Config.Logger is nil")
	}
	cfg.Timeout = cmp.Or(max(cfg.Timeout, 0), 60*time.Second)
	cfg.TimeoutSetting = cmp.Or(cfg.TimeoutSetting, "the gateway's timeout")
	cfg.HoldTime = cmp.Or(max(cfg.HoldTime, 0), 30*time.Second)
	cfg.HoldQueue = cmp.Or(max(cfg.HoldQueue, 0), 256)
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 256<<20)
	cfg.ChaosSetting = cmp.Or(cfg.ChaosSetting, "Chaos")
	cfg.MaxBodySetting = cmp.Or(cfg.MaxBodySetting, "the gateway's limit")
	p := &Proxy{
		cfg:      cfg,
		servedBy: "thicket/" + cmp.Or(cfg.Version, "dev"),
		engine:   newEngine(cfg.Logger),
		holds:    &holds{limit: cfg.HoldQueue},
		limits:   Limits{cfg.Timeout, cfg.TimeoutSetting},
		monitor:  resilience.NewMonitor(maxEvents, nil),
	}
	p.metrics = newMetrics(cfg, p.holds.count)
	p.upgrades, p.cutUpgrades = context.WithCancel(context.Background())
	if cfg.Registerer != nil {
		if err := errors.Join(cfg.Registerer.Register(p.metrics), cfg.Registerer.Register(p.monitor)); err != nil {
			return nil, fmt.Errorf("register the proxy's metrics: %w", err)
		}
	}
	return p, nil
}

// Before returns a handler that serves the calls of functions and gives every
// other request to next. It has to stand before a [http.ServeMux], which would
// redirect a path with "//" or ".." in it; functions get theirs as it was sent.
func (p *Proxy) Before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, functionPrefix) || strings.HasPrefix(r.URL.Path, asyncPrefix) {
			p.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Invocations returns how many calls of the function were answered, by it or in
// its place, since the gateway started.
func (p *Proxy) Invocations(name faas.Name) float64 { return p.metrics.invocations(name) }

// Loads yields the load of every function that was called since the gateway
// started. Requests that wait for a replica are in flight, and what clients told
// of calls past the gateway ([Proxy.Direct]) is in it.
func (p *Proxy) Loads(yield func(faas.Name, faas.Load)) { p.metrics.each(yield) }

// Close closes the connections to replicas that are not in use.
func (p *Proxy) Close() { p.engine.close() }

// CutUpgrades cuts the connections that were given over to another protocol, such
// as WebSockets, and those to come. They have no end that could be waited for,
// and would keep their replicas from ending.
func (p *Proxy) CutUpgrades() { p.cutUpgrades() }

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, _ := p.calls.Get().(*call)
	if c == nil {
		c = newCall()
	}
	c.p, c.w, c.r = p, w, r
	c.id = callID(r.Header)
	c.begin(time.Now())
	c.dispatch()
	if !c.lent {
		c.recycle()
		p.calls.Put(c)
	}
}

// dispatch answers the call, or says what is wrong with it.
func (c *call) dispatch() {
	target, err := parseTarget(c.r.URL, &c.p.functions)
	switch {
	case err != nil:
		c.refuse(err)
	case !allowed(c.r.Method):
		c.w.Header().Set("Allow", strings.Join(methods[:], ", "))
		c.text(http.StatusMethodNotAllowed, fmt.Sprintf("method %.20q is not for functions: use one of %s", c.r.Method, strings.Join(methods[:], ", ")))
	case target.async:
		c.text(http.StatusNotImplemented, fmt.Sprintf("asynchronous calls are not available in this version of the gateway: call %s%s and wait for the answer", functionPrefix, target.name))
	default:
		c.target = target
		c.serve()
	}
}

// methods are those that OpenFaaS passes on.
var methods = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func allowed(method string) bool { return slices.Contains(methods[:], method) }

// call is one request on its way.
type call struct {
	p      *Proxy
	w      http.ResponseWriter
	r      *http.Request
	target target
	f      *function
	id     string // X-Call-Id
	body   *body  // nil if the request has none
	code   int    // the answer's status, once it is known

	start     time.Time
	startTime string // X-Start-Time

	// How long the call may wait for replicas, all its waits together, and the
	// next pause of them. Zero until it waits.
	heldSince, holdUntil time.Time
	pause                time.Duration

	end       time.Time // when the function's time is over; zero before the first attempt
	callerEnd time.Time // when the caller waits no longer; zero if it doesn't say
	attempts  int       // of which something was sent, the one under way included

	tried      []*replica // not to be asked again
	taken      taken      // the replica that has the call
	repeatable bool       // the request may be sent twice, and can
	sameAgain  bool       // the next attempt may be at the same replica
	moved      bool       // it was made again because a machine was lost
	standIn    bool       // it is made in place of another function's
	kept       *recorder  // not nil if the answer is for the cache
	lent       bool       // somebody may have the call when it is answered
	trace      *span      // nil if nobody wants to know

	attempt attempt // the one under way, or the last
	inform  func(status int, h http.Header)
	small   []byte // what a small body is kept in
	theBody body   // what body points to
}

// newCall returns a call for one use after the other.
func newCall() *call {
	c := &call{}
	c.inform = c.attempt.informational
	return c
}

// begin says when the call arrived.
func (c *call) begin(now time.Time) {
	c.start = now
	c.startTime = strconv.FormatInt(now.UnixNano(), 10)
}

// recycle forgets what the call was.
func (c *call) recycle() {
	clear(c.tried)
	inform, tried, small := c.inform, c.tried[:0], c.small
	*c = call{} // as one literal it would be made on the stack, which is kept
	c.inform, c.tried, c.small = inform, tried, small
}

// serve answers the call of a function.
func (c *call) serve() {
	p, name := c.p, c.target.name
	if c.f = c.target.f; c.f == nil {
		c.f = p.function(name)
	}
	if c.f == nil {
		c.refuse(p.unknown(name))
		return
	}
	if len(p.cfg.Table.Route(name).Endpoints) == 0 {
		if _, _, ok := p.cfg.Known(name); !ok {
			c.refuse(p.unknown(name))
			return
		}
	}
	counted, whole := p.metrics.begin(name, c.start), false
	c.trace = c.traceCall()
	// Deferred, since the engine panics with [http.ErrAbortHandler] when an
	// answer breaks off in its middle.
	defer func() {
		took := time.Since(c.start)
		p.metrics.end(counted, c.code, c.start, took)
		c.trace.endCall(c, whole)
		if ctx := c.r.Context(); p.cfg.Logger.Enabled(ctx, slog.LevelDebug) {
			p.cfg.Logger.DebugContext(ctx, "function called", "function", name, "method", c.r.Method, "code", c.code, "took", took, "call_id", c.id)
		}
	}()

	if left, ok := resilience.FromHeader(c.r.Header); ok {
		c.callerEnd = c.start.Add(left)
	}
	if c.r.Body != nil && c.r.Body != http.NoBody && c.r.ContentLength != 0 {
		if p.cfg.MaxBody > 0 && c.r.ContentLength > p.cfg.MaxBody {
			c.refuse(c.tooLarge())
			return
		}
		c.theBody = body{r: c.r.Body, w: c.w}
		c.body = &c.theBody
		if c.r.ContentLength < 0 {
			c.body.limit = p.cfg.MaxBody
		}
		// Without it the server swallows what is left of the body as soon as
		// the function begins to answer. Who can't do it needs no telling.
		_ = http.NewResponseController(c.w).EnableFullDuplex()
	}
	err := c.answer()
	if err != nil {
		err = c.instead(err)
	}
	if err != nil {
		c.refuse(err)
	}
	whole = true
}

// answer has the function answer, or its cache.
func (c *call) answer() error {
	policy, size := &c.f.policy, c.r.ContentLength
	if c.body != nil && 0 < size {
		again := size <= maxRepeated && policy.Attempts > 1 && resilience.Idempotent(c.r.Method, c.r.Header)
		if again || size <= maxReady && c.body.atHand(size) {
			if c.small == nil && size <= maxReady {
				c.small = make([]byte, maxReady)
			}
			if err := c.body.keep(size, c.small); err != nil {
				return &refusal{code: http.StatusBadRequest, text: "the request's body ended before it was complete"}
			}
		}
	}
	c.repeatable = policy.Attempts > 1 && (c.body == nil || c.body.kept != nil) && resilience.Idempotent(c.r.Method, c.r.Header)
	if c.p.cfg.Cache != nil && policy.Keeps() && c.body == nil {
		return c.cached()
	}
	return c.carry()
}

// refuse answers with the platform's error.
func (c *call) refuse(err error) {
	var e *refusal
	switch {
	case c.r.Context().Err() != nil:
		// The client is gone. Nobody reads this, but metrics should tell it
		// from a failure; 499 is what proxies call it.
		c.code = statusClientGone
		c.w.WriteHeader(statusClientGone)
		return
	case errors.As(err, &e):
	case errors.Is(err, faas.ErrInvalid):
		e = &refusal{code: http.StatusBadRequest, text: err.Error()}
	case errors.Is(err, faas.ErrNotFound):
		e = &refusal{code: http.StatusNotFound, text: err.Error()}
	default:
		e = &refusal{code: http.StatusBadGateway, text: err.Error()}
	}
	if e.retryAfter > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
	}
	c.text(e.code, e.text)
}

// text answers with a sentence of the platform's.
func (c *call) text(code int, text string) {
	c.code = code
	h := c.w.Header()
	c.mark(h)
	if b := c.body; b != nil && b.left && !b.known() && c.r.ProtoMajor == 1 {
		h.Set("Connection", "close") // or net/http takes the rest for a request
	}
	h.Set("X-OpenFaaS-Internal", "proxy")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(code)
	fmt.Fprintln(c.w, text)
}

// mark puts on an answer what OpenFaaS's gateway puts there.
func (c *call) mark(h http.Header) {
	values := [...]string{c.id, c.startTime, c.p.servedBy}
	h["X-Call-Id"] = values[0:1:1]
	h["X-Start-Time"] = values[1:2:2]
	h["X-Served-By"] = values[2:3:3]
}

// statusClientGone is the code of calls whose client did not wait.
const statusClientGone = 499

// refusal is an error that is an answer.
type refusal struct {
	code       int
	text       string
	retryAfter time.Duration // for the header Retry-After, 0 for none

	// replaceable says that something else may be given in its place.
	replaceable bool
}

// Error returns the sentence.
func (e *refusal) Error() string { return e.text }

func (c *call) tooLarge() error {
	return &refusal{code: http.StatusRequestEntityTooLarge, text: fmt.Sprintf(
		"the request's body is larger than %d bytes, the most that this gateway passes on: send less, or raise %s", c.p.cfg.MaxBody, c.p.cfg.MaxBodySetting)}
}
