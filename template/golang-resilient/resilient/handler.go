//go:build go1.26

package resilient

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// internalHeader marks answers that the function didn't give.
const internalHeader = "X-OpenFaaS-Internal"

// replicaHeader says which replica is meant, where a caller sends straight to one
// and not through a gateway.
const replicaHeader = "X-Thicket-Replica"

// handler stands between the server and the function.
type handler struct {
	settings Settings
	function http.Handler
	logger   *slog.Logger
	metrics  *metrics

	draining atomic.Bool
	inFlight atomic.Int64 // calls of the function that have not returned

	mu     sync.Mutex
	waiter chan struct{} // guarded by mu; closed when inFlight falls to 0, nil if nobody waits
}

func newHandler(s Settings, function http.Handler, logger *slog.Logger) *handler {
	return &handler{settings: s, function: function, logger: logger, metrics: newMetrics()}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/_/health":
		h.health(w)
	case "/_/ready":
		h.ready(w, r)
	default:
		h.serve(w, r)
	}
}

func (h *handler) health(w http.ResponseWriter) {
	if h.draining.Load() {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "OK")
}

func (h *handler) ready(w http.ResponseWriter, r *http.Request) {
	limit := int64(h.settings.MaxInflight)
	switch {
	case h.draining.Load():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case limit > 0 && h.inFlight.Load() >= limit:
		http.Error(w, "as busy as max_inflight allows", http.StatusTooManyRequests)
	case h.settings.ReadyPath != "":
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = h.settings.ReadyPath, ""
		h.serve(w, r)
	default:
		io.WriteString(w, "OK")
	}
}

// serve calls the function, within its limits.
func (h *handler) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	a := &answer{w: w, control: http.NewResponseController(w), header: make(http.Header), start: start}
	if id := callID(r); id != "" {
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, id))
	}
	h.metrics.inFlight.Add(1)
	defer func() {
		h.metrics.inFlight.Add(-1)
		took := time.Since(start)
		code := a.code()
		h.metrics.observe(r.Method, code, took)
		if h.settings.LogRequests || code >= 500 {
			level := slog.LevelInfo
			if code >= 500 {
				level = slog.LevelWarn
			}
			h.logger.LogAttrs(r.Context(), level, "request",
				slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", code),
				slog.Int64("bytes", a.written()), slog.Duration("took", took))
		}
	}()
	if to := r.Header.Get(replicaHeader); to != "" && h.settings.Replica != "" && to != h.settings.Replica {
		a.refuse(http.StatusMisdirectedRequest, "golang-resilient",
			fmt.Sprintf("this is replica %s, and not the one that was meant: that one is gone, and its address given to another", h.settings.Replica))
		return
	}
	if !h.enter() {
		a.refuse(http.StatusTooManyRequests, "faas-middleware",
			fmt.Sprintf("the function is as busy as max_inflight (%d) allows: try again, or run more replicas", h.settings.MaxInflight))
		return
	}
	if h.settings.ReadTimeout > 0 && r.Body != nil && r.Body != http.NoBody {
		a.control.SetReadDeadline(start.Add(h.settings.ReadTimeout))
		r.Body = &body{r.Body, a.control}
	}
	l := h.limit(r)
	if l.time <= 0 {
		defer h.leave()
		h.call(a, r)
		a.finish()
		return
	}
	out := &outOfTime{l}
	ctx, cancel := context.WithTimeoutCause(r.Context(), l.time, out)
	defer cancel()
	r = r.WithContext(ctx)
	done := make(chan any, 1) // what the function panicked with, or nil
	go func() {               // counted in inFlight, which a stop waits for
		defer func() {
			p := recover()
			h.leave()
			done <- p
		}()
		h.call(a, r)
	}()
	timer := time.NewTimer(l.time)
	defer timer.Stop()
	select {
	case p := <-done:
		switch {
		case p != nil:
			panic(p)
		case context.Cause(ctx) == out && a.expire() == unanswered: // it gave up
			a.refuse(http.StatusGatewayTimeout, "golang-resilient", out.Error())
		default:
			a.finish()
		}
	case <-timer.C:
		h.expire(ctx, a, out, done)
	}
}

// expire answers in place of a function that is out of time. What the function
// still writes is refused.
func (h *handler) expire(ctx context.Context, a *answer, out *outOfTime, done <-chan any) {
	switch a.expire() {
	case taken: // it is no longer HTTP: the function ends it, its context has ended
		<-done
	case begun:
		h.logger.WarnContext(ctx, "cut an answer that was not complete", "limit", out.name, "after", out.time)
		panic(http.ErrAbortHandler) // so that the caller doesn't take it for a whole one
	case unanswered:
		a.refuse(http.StatusGatewayTimeout, "golang-resilient", out.Error())
	}
}

// call runs the function. If it panics that is logged and answered with 500.
func (h *handler) call(a *answer, r *http.Request) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		h.logger.ErrorContext(r.Context(), "the function panicked", "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		if !a.panicked() {
			panic(http.ErrAbortHandler) // its answer has begun, and must not look whole
		}
	}()
	h.function.ServeHTTP(a, r)
}

// enter takes a place among the calls in flight, and leave gives it back.
func (h *handler) enter() bool {
	limit := int64(h.settings.MaxInflight)
	for {
		n := h.inFlight.Load()
		if limit > 0 && n >= limit {
			return false
		}
		if h.inFlight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (h *handler) leave() {
	if h.inFlight.Add(-1) > 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiter != nil && h.inFlight.Load() == 0 {
		close(h.waiter)
		h.waiter = nil
	}
}

// idle returns when no call is in flight, or ctx's error. One may wait at a time.
func (h *handler) idle(ctx context.Context) error {
	h.mu.Lock()
	if h.inFlight.Load() == 0 {
		h.mu.Unlock()
		return nil
	}
	waiter := make(chan struct{})
	h.waiter = waiter
	h.mu.Unlock()
	select {
	case <-waiter:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// limit is the shortest of the times that a request may take, and its name.
type limit struct {
	name string
	time time.Duration
}

func (h *handler) limit(r *http.Request) limit {
	l := limit{"exec_timeout", h.settings.ExecTimeout}
	if t := h.settings.WriteTimeout; t > 0 && (l.time <= 0 || t < l.time) {
		l = limit{"write_timeout", t}
	}
	if t, ok := parseDuration(r.Header.Get("X-Timeout")); ok && t > 0 && (l.time <= 0 || t < l.time) {
		l = limit{"X-Timeout", t} // a caller may ask for less, never for more
	}
	return l
}

// outOfTime is the cause that the context of a request ends with.
type outOfTime struct{ limit }

func (l *outOfTime) Error() string {
	if l.name == "X-Timeout" {
		return fmt.Sprintf("the function did not answer within the %s that the request's header X-Timeout gives it", l.time)
	}
	return fmt.Sprintf("the function did not answer within its %s of %s: if it needs longer, raise exec_timeout and write_timeout in its environment", l.name, l.time)
}

// body ends the read deadline when all has been read: from then on the
// connection is only watched, to notice when the caller goes away.
type body struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
