package stale

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// flight is one load of a key, and who waits for it.
type flight struct {
	key     Key
	times   Times
	load    Load
	born    *string // the function's generation when it began
	gen     *string // the same, or what the Redis says; for fly only
	behind  bool    // began as a refresh that nobody waits for
	ctx     context.Context
	cancel  context.CancelCauseFunc
	waiters int // guarded by Cache.mu; a refresh waits for itself

	have   atomic.Pointer[item] // the best that may be served if the load fails
	purged atomic.Bool          // what is loaded was purged meanwhile

	done   chan struct{} // closed when the rest is there
	result Result
	err    error
}

// join returns the key's flight, and whether it was begun for this caller. One
// from before a purge is not joined. It is nil if the cache is closed.
func (c *Cache) join(ctx context.Context, key Key, t Times, load Load, have *item) (f *flight, first bool) {
	gen := c.memory.function(key.function).gen.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil && f.born == gen {
		f.waiters++
		return f, false
	}
	return c.begin(ctx, key, t, load, have, false), true
}

// refresh begins a flight that nobody waits for, unless there is one or there
// are too many.
func (c *Cache) refresh(ctx context.Context, key Key, t Times, load Load, have *item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[key] == nil && c.refreshes < maxRefreshes {
		c.begin(ctx, key, t, load, have, true)
	}
}

// begin starts a flight. The caller holds mu.
func (c *Cache) begin(ctx context.Context, key Key, t Times, load Load, have *item, behind bool) *flight {
	if c.closed {
		return nil
	}
	f := &flight{key: key, times: t, load: load, behind: behind, waiters: 1, done: make(chan struct{})}
	f.born = c.memory.function(key.function).gen.Load()
	f.gen = f.born
	f.have.Store(have)
	// The first caller's values, but neither its end nor its deadline: others
	// may wait for the same.
	f.ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(c.ctx, func() { f.cancel(ErrClosed) })
	c.flights[key] = f
	if behind {
		c.refreshes++
	}
	c.work.Go(func() {
		defer stop()
		f.result, f.err = c.fly(f)
		c.mu.Lock()
		if c.flights[key] == f {
			delete(c.flights, key)
		}
		if behind {
			c.refreshes--
		}
		c.mu.Unlock()
		close(f.done)
		f.cancel(nil)
	})
	return f
}

// leave is for a caller that waits no longer.
func (c *Cache) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		if c.flights[f.key] == f {
			delete(c.flights, f.key)
		}
		f.cancel(errAbandoned)
	}
}

// fly gets the answer: from the Redis, from who else is getting it, or from the
// origin.
func (c *Cache) fly(f *flight) (Result, error) {
	var held *lease
	if c.shared != nil {
		var r *Result
		if r, held = c.fromShared(f); r != nil {
			return *r, nil
		}
	}
	ctx, cancel := context.WithTimeout(f.ctx, cmp.Or(max(f.times.Load, 0), defaultLoad))
	defer cancel()
	began := c.cfg.Now()
	e, err := call(ctx, f.load)
	now := c.cfg.Now()
	switch {
	case err != nil:
		held.release()
		if left := context.Cause(f.ctx); errors.Is(left, errAbandoned) || errors.Is(left, ErrClosed) {
			return Result{Key: f.key, Err: left}, left
		}
		if wait := cmp.Or(f.times.Errors, time.Second); wait > 0 {
			c.memory.annotate(f.key, mark{until: now.Add(wait), err: err}, f.gen)
		}
		return c.fallback(f.key, f.times, f.have.Load(), err)
	case e.Private:
		held.release()
		c.memory.annotate(f.key, mark{until: now.Add(passFor), pass: true}, f.gen)
		return Result{Entry: e, Key: f.key, Source: Miss, Age: e.Age}, nil
	}
	it := c.memory.newItem(f.key, e, f.gen, now, now.Sub(began))
	p, age, ttl := it.phase(f.times, now)
	r := Result{Entry: e, Key: f.key, Source: Miss, Age: age, TTL: ttl}
	if p == expired || e.size() > c.cfg.MaxEntry || f.purged.Load() {
		held.release()
		return r, nil
	}
	c.memory.put(f.key, it)
	if c.shared != nil {
		c.shared.write(f.key, it, f.times, held)
	}
	r.Stored = true
	return r, nil
}
