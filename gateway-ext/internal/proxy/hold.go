package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// errHeld is why a request stops waiting for a replica.
var errHeld = errors.New("no replica became ready in time")

// errUnready is why a call that fills the cache does not wait: no replica can be
// reached, and there may be a kept answer that need not wait for one.
var errUnready = errors.New("no replica is ready")

// Between two looks at whether a function still exists, and at replicas that
// could not be reached, lies at first the one, in the end the other time. Any
// change of the function's route ends the pause.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// holds are the requests that wait for a replica, by function.
type holds struct {
	limit int // of each function's

	mu      sync.Mutex // guards below
	waiting map[faas.Name]*held
}

// held is what the waiting requests of one function share.
type held struct {
	n    int   // how many they are
	wake *wake // under way; nil if none is
}

// wake is one attempt to wake a function.
type wake struct {
	done chan struct{}
	err  error // written before done is closed
}

// hold is one waiting request. A nil hold waits for nothing.
type hold struct {
	of     *holds
	name   faas.Name
	shared *held
	ctx    context.Context // ends with the request, or when it has waited long enough
	cancel context.CancelFunc
}

// enter lets a request wait until a time, if not too many do already.
func (hs *holds) enter(ctx context.Context, name faas.Name, until time.Time) (*hold, error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	s := hs.waiting[name]
	if s == nil {
		s = &held{}
		if hs.waiting == nil {
			hs.waiting = make(map[faas.Name]*held)
		}
		hs.waiting[name] = s
	}
	if s.n >= hs.limit {
		return nil, &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: time.Second, text: fmt.Sprintf(
			"function %s has no ready replica, and %d requests wait for one already, which is the limit: try again later", name, hs.limit)}
	}
	s.n++
	ctx, cancel := context.WithDeadlineCause(ctx, until, errHeld)
	return &hold{of: hs, name: name, shared: s, ctx: ctx, cancel: cancel}, nil
}

// count is how many requests of a function wait.
func (hs *holds) count(name faas.Name) int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if s := hs.waiting[name]; s != nil {
		return s.n
	}
	return 0
}

// leave makes room for another.
func (h *hold) leave() {
	if h == nil {
		return
	}
	h.cancel()
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	if h.shared.n--; h.shared.n == 0 {
		delete(h.of.waiting, h.name)
	}
}

// wake has the function waked: by this request, or by the one that already does.
// It is the request's own goroutine that wakes, so that nobody has to wait for
// another; it goes on when the client leaves, for the others that wait.
func (h *hold) wake(cfg *Config, m *metrics) error {
	h.of.mu.Lock()
	if under := h.shared.wake; under != nil {
		h.of.mu.Unlock()
		select {
		case <-under.done:
			return under.err
		case <-h.ctx.Done():
			return context.Cause(h.ctx)
		}
	}
	w := &wake{done: make(chan struct{})}
	h.shared.wake = w
	h.of.mu.Unlock()

	// Somebody may have waked it between the look that led here and this.
	if wanted, _, _ := cfg.Known(h.name); wanted == 0 {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(h.ctx), cfg.HoldTime, errHeld)
		w.err = cfg.Wake(ctx, h.name)
		cancel()
		if w.err == nil {
			m.of(h.name).wakes.Add(1)
		}
	}
	h.of.mu.Lock()
	h.shared.wake = nil
	h.of.mu.Unlock()
	close(w.done)
	return w.err
}

// await returns when it is worth to look for a replica again: the function's
// route is another than the one that had none to offer, or a while has gone by.
// lastErr is why the last replica that was asked could not be reached.
func (c *call) await(seen discovery.Route, lastErr error) error {
	p, name := c.p, c.target.name
	if c.holdUntil.IsZero() {
		c.heldSince, c.pause = time.Now(), firstPause
		c.trace.event("held", "")
		c.holdUntil = c.heldSince.Add(p.cfg.HoldTime)
		if c.f.asked && len(seen.Endpoints) > 0 {
			// They are there and can't be reached. That may last longer than
			// callers were told to wait.
			c.holdUntil = c.heldSince.Add(min(p.cfg.HoldTime, c.f.rules.limit.time))
		}
		if !c.callerEnd.IsZero() && c.callerEnd.Before(c.holdUntil) {
			c.holdUntil = c.callerEnd
		}
	}
	h, err := p.holds.enter(c.r.Context(), name, c.holdUntil)
	if err != nil {
		return err
	}
	defer h.leave()

	wanted, reason, ok := p.cfg.Known(name)
	if !ok {
		return p.unknown(name)
	}
	if c.kept != nil && wanted > 0 {
		return errUnready
	}
	if wanted == 0 && len(seen.Endpoints) == 0 {
		if p.cfg.Wake == nil {
			return &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: p.cfg.HoldTime, text: fmt.Sprintf(
				"function %s is scaled to 0 replicas: scale it to 1 or more", name)}
		}
		c.trace.event("wake", "")
		if err := h.wake(&p.cfg, p.metrics); err != nil && h.ctx.Err() == nil {
			if errors.Is(err, faas.ErrNotFound) {
				return p.unknown(name)
			}
			p.cfg.Logger.Error("a function could not be waked", "function", name, "err", err)
			return &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: time.Second, text: fmt.Sprintf(
				"function %s sleeps and could not be waked: %v", name, err)}
		}
	}
	pause, cancel := context.WithTimeout(h.ctx, c.pause)
	defer cancel()
	_, err = p.cfg.Table.Wait(pause, name, seen)
	if err == nil {
		c.pause = firstPause
		return nil
	}
	if h.ctx.Err() == nil {
		c.pause = min(2*c.pause, lastPause)
		return nil
	}
	if lastErr != nil {
		return lastErr
	}
	why := "it is still starting"
	if reason != "" {
		why = reason
	}
	return &refusal{code: http.StatusServiceUnavailable, replaceable: true, retryAfter: 5 * time.Second, text: fmt.Sprintf(
		"function %s had no ready replica within %s: %s", name, c.holdUntil.Sub(c.heldSince).Round(time.Millisecond), why)}
}
