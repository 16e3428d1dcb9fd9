package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
)

// maxKept is the largest answer that is held in memory for the cache, in bytes:
// what the cache keeps by default. What is larger is passed on as it comes.
const maxKept = 256 << 10

// maxBuffered bounds what all recorders hold at a time, in bytes. Beyond it
// answers are passed on as they come, and not kept.
const maxBuffered = 16 << 20

// ownAnswer is an answer of the function for which something else may be given.
type ownAnswer struct{ entry stale.Entry }

// Error says what the function answered.
func (e *ownAnswer) Error() string { return fmt.Sprintf("the function answered %d", e.entry.Status) }

// cached answers from the cache, or fills it.
func (c *call) cached() error {
	f := c.f
	key, ok := stale.KeyFor(c.r, f.name.String(), f.revision, c.target.path, f.policy.Stale.Vary)
	if !ok {
		return c.carry()
	}
	ctx := c.r.Context()
	if !c.callerEnd.IsZero() {
		// Who has little time gets what is kept within it.
		left := c.callerEnd.Sub(c.start)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, c.callerEnd.Add(-min(left/4, 20*time.Millisecond)))
		defer cancel()
	}
	times := f.times
	down := f.down(c.p.cfg.Table, c.start)
	if down {
		// All that this call could do is to look whether a replica is back, which
		// takes long if it hangs. Who can have an old answer gets it at once, and
		// looking goes on behind.
		times.While = max(times.While, times.IfError)
	}
	// The cache may ask for the answer after the call has got one, in the
	// background, when the server uses the request for another.
	c.r, c.lent = c.r.Clone(c.r.Context()), true
	var own handover
	defer own.leave()
	// Loading may go on when the call is over, and its request with it.
	r := c.r.Clone(ctx)
	res, err := c.p.cfg.Cache.Do(ctx, key, times, func(ctx context.Context) (stale.Entry, error) {
		return c.load(ctx, r, &own)
	})
	if rec := own.take(); rec != nil {
		c.trace.cache(stale.Result{Source: stale.Passed})
		return c.pass(rec)
	}
	switch {
	case errors.Is(err, errUnready), err == nil && res.Private && res.Header == nil:
		return c.carry()
	case err != nil && errors.Is(err, context.DeadlineExceeded) && c.r.Context().Err() == nil:
		return c.overtime(&resilience.Error{Kind: resilience.Hurried, Limit: c.callerEnd.Sub(c.start)})
	case err != nil:
		return err
	}
	if down && res.Source == stale.While {
		res.Source = stale.Failed // which is why, whatever comes of looking
	}
	if res.Source == stale.Failed {
		c.note(resilience.FallbackServed, "")
	}
	c.trace.cache(res)
	c.mark(c.w.Header())
	w := &statusWriter{ResponseWriter: c.w}
	_ = res.Serve(w, c.r, "thicket") // the client is gone: nobody to tell
	c.code = w.code
	return nil
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements [http.ResponseWriter].
func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// load gets the answer for the cache. One that turns out not to be for it is
// handed to the caller for whom it was asked, if that one still waits, while it
// comes.
func (c *call) load(ctx context.Context, r *http.Request, own *handover) (stale.Entry, error) {
	// The call may outlive the load, so it has a context of its own.
	callCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer stop()
	r = r.WithContext(callCtx)
	for _, k := range [...]string{"If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range"} {
		r.Header.Del(k) // each caller's are met with what is kept
	}
	rec := &recorder{
		vary: c.f.policy.Stale.Vary, header: make(http.Header), ctx: callCtx, cancel: cancel,
		live: make(chan struct{}), to: make(chan http.ResponseWriter, 1), done: make(chan struct{}),
	}
	inner := newCall()
	inner.p, inner.w, inner.r, inner.target, inner.f, inner.id = c.p, rec, r, c.target, c.f, c.id
	inner.begin(time.Now())
	inner.repeatable, inner.kept, inner.trace = c.f.policy.Attempts > 1, rec, c.trace
	rec.call = inner
	go func() { // whoever has rec waits for it
		defer close(rec.done)
		defer func() {
			if p := recover(); p != nil { // there is no server here that would
				c.p.cfg.Logger.Error("carrying a call panicked", "function", c.f.name.String(), "panic", p, "stack", string(debug.Stack()))
				rec.err = &refusal{code: http.StatusInternalServerError, text: "the gateway made a mistake: its log has more"}
			}
		}()
		defer func() { c.p.buffered.Add(-rec.held) }()
		rec.err = inner.carry()
	}()
	select {
	case <-rec.done:
		cancel(nil)
		return rec.result()
	case <-rec.live:
	}
	stop()
	if !own.offer(rec) {
		rec.end(context.Canceled)
	}
	return stale.Entry{Status: rec.status, Private: true}, nil
}

// pass gives the caller an answer that is not for the cache.
func (c *call) pass(rec *recorder) error {
	defer context.AfterFunc(c.r.Context(), func() { rec.cancel(context.Canceled) })()
	c.code = rec.status
	rec.to <- c.w
	<-rec.done
	rec.cancel(nil)
	if rec.out == nil {
		return rec.err // it broke before this
	}
	if rec.err != nil {
		panic(http.ErrAbortHandler) // the answer broke off, and its head is gone
	}
	return nil
}

// handover is how a load gives its caller an answer that is still coming.
type handover struct {
	mu   sync.Mutex // guards below
	rec  *recorder
	left bool
}

// offer returns false if the caller has left.
func (h *handover) offer(rec *recorder) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left || h.rec != nil {
		return false
	}
	h.rec = rec
	return true
}

func (h *handover) take() *recorder {
	h.mu.Lock()
	defer h.mu.Unlock()
	rec := h.rec
	h.rec, h.left = nil, true
	return rec
}

// leave ends what was not taken.
func (h *handover) leave() {
	if rec := h.take(); rec != nil {
		rec.end(context.Canceled)
	}
}

// recorder takes an answer for the cache: a [http.ResponseWriter] that keeps what
// may be kept, and waits for somebody to pass on what may not.
type recorder struct {
	call   *call
	vary   []string
	ctx    context.Context
	cancel context.CancelCauseFunc

	live chan struct{}            // closed when it is known that the answer is not to be kept
	to   chan http.ResponseWriter // then: who gets it
	done chan struct{}            // closed when nothing more comes
	err  error                    // written before done is closed

	header http.Header
	status int
	body   bytes.Buffer
	held   int64               // of Proxy.buffered
	out    http.ResponseWriter // not nil once the answer is passed on
	broken error               // nobody is there to pass it on to
	failed bool                // the status is one that something else is given for
	cut    bool                // it is, and is too large to be held until then
	entry  *stale.Entry        // what is kept, once the answer is whole
}

// Header implements [http.ResponseWriter].
func (w *recorder) Header() http.Header {
	if w.out != nil {
		return w.out.Header()
	}
	return w.header
}

// WriteHeader implements [http.ResponseWriter].
func (w *recorder) WriteHeader(code int) {
	if code < 200 || w.status != 0 {
		return
	}
	w.status = code
	w.failed = resilience.Classify(w.ctx, resilience.Result{Status: code}).Fallback
	kind, _, _ := mime.ParseMediaType(w.header.Get("Content-Type"))
	length, _ := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64)
	switch {
	case w.failed:
	case kind == "text/event-stream", kind == "application/x-ndjson", w.header.Get("Trailer") != "", length > maxKept,
		stale.Storable(w.call.r, code, w.header, w.vary) != nil:
		w.passOn()
	}
}

// Write implements [io.Writer].
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.out == nil && w.broken == nil && !w.hold(len(b)) {
		if w.failed {
			w.cut = true
		} else {
			w.passOn()
		}
	}
	switch {
	case w.cut:
		return len(b), nil
	case w.broken != nil:
		return 0, w.broken
	case w.out != nil:
		return w.out.Write(b)
	}
	return w.body.Write(b)
}

// hold says whether there is room for n bytes more, and takes it.
func (w *recorder) hold(n int) bool {
	if w.body.Len()+n > maxKept {
		return false
	}
	if w.call.p.buffered.Add(int64(n)) > maxBuffered {
		w.call.p.buffered.Add(-int64(n))
		return false
	}
	w.held += int64(n)
	return true
}

// reset forgets what there is of an answer.
func (w *recorder) reset() {
	w.call.p.buffered.Add(-w.held)
	w.held = 0
	clear(w.header)
	w.status, w.failed, w.cut, w.broken, w.entry = 0, false, false, nil, nil
	w.body.Reset()
}

// FlushError is for [http.ResponseController].
func (w *recorder) FlushError() error {
	if w.out == nil {
		return nil
	}
	return http.NewResponseController(w.out).Flush()
}

// passOn waits for who gets the answer, and gives it what there is.
func (w *recorder) passOn() {
	close(w.live)
	select {
	case w.out = <-w.to:
	case <-w.ctx.Done():
		w.broken = context.Cause(w.ctx)
		return
	}
	h := w.out.Header()
	maps.Copy(h, w.header)
	h.Add("Cache-Status", "thicket; fwd=bypass")
	w.out.WriteHeader(w.status)
	if _, err := w.out.Write(w.body.Bytes()); err != nil && w.body.Len() > 0 {
		w.broken = err
	}
}

// end gives up an answer that nobody wants.
func (w *recorder) end(why error) {
	w.cancel(why)
	<-w.done
}

// isLive says whether the answer is being passed on, or would be.
func (w *recorder) isLive() bool {
	select {
	case <-w.live:
		return true
	default:
		return false
	}
}

// through makes an attempt whose answer is recorded.
func (w *recorder) through(run func(http.ResponseWriter)) {
	if !w.isLive() {
		w.reset()
	}
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler:
			if w.broken == nil {
				w.broken = io.ErrUnexpectedEOF
			}
		default:
			panic(p)
		}
	}()
	run(w)
}

// finish checks an answer that has come to its end. One that broke off, or is
// not what it says, is none.
func (w *recorder) finish() error {
	if w.broken != nil || w.isLive() {
		return w.broken
	}
	if w.status == 0 || w.cut {
		return nil
	}
	length := int64(-1)
	if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil && !w.failed {
		length = n
	}
	header := w.header.Clone()
	if w.failed {
		header.Del("Content-Type") // whatever it is, it is passed on or replaced
	}
	e, err := stale.ReadEntry(&http.Response{
		StatusCode: w.status, Header: header, ContentLength: length, Request: w.call.r, Body: io.NopCloser(&w.body),
	}, maxKept)
	if err != nil {
		return err
	}
	if kind := w.header.Get("Content-Type"); kind != "" {
		e.Header.Set("Content-Type", kind)
	}
	if running := w.call.taken.Revision; w.call.f.running != 0 && running != w.call.f.running {
		e.Private = true // an older release's, which is being replaced
	}
	w.entry = &e
	return nil
}

// result is what the cache gets once the answer is whole.
func (w *recorder) result() (stale.Entry, error) {
	switch {
	case w.err != nil:
		return stale.Entry{}, w.err
	case w.cut:
		return stale.Entry{}, &refusal{code: w.status, replaceable: true, text: fmt.Sprintf(
			"function %s answered %d, with more text than is held while something else is looked for", w.call.f.name, w.status)}
	case w.entry == nil:
		return stale.Entry{}, io.ErrUnexpectedEOF
	case w.failed:
		return stale.Entry{}, &ownAnswer{*w.entry}
	}
	return *w.entry, nil
}
