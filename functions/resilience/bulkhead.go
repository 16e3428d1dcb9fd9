package resilience

import (
	"context"
	"sync/atomic"
	"time"
)

// Bulkhead bounds the calls of a target at the same time, so that a slow one
// fills with its own callers and not the whole ship. It is a semaphore: it
// starts no goroutine, and who waits hears its context. Where nobody waits it
// takes no lock. A nil Bulkhead lets everybody in.
type Bulkhead struct {
	limit int64
	inUse atomic.Int64 // where nobody waits

	wait time.Duration
	sem  chan struct{} // where somebody may; else nil
}

// NewBulkhead returns an empty bulkhead, or nil if the policy has no bound.
func NewBulkhead(p BulkheadPolicy) *Bulkhead {
	if p.Limit <= 0 {
		return nil
	}
	b := &Bulkhead{limit: int64(p.Limit), wait: p.Wait}
	if p.Wait > 0 {
		b.sem = make(chan struct{}, p.Limit)
	}
	return b
}

// Acquire takes a place, waiting for one as long as the policy says and the
// context lasts. Whoever gets true must call [Bulkhead.Release].
func (b *Bulkhead) Acquire(ctx context.Context) bool {
	if b == nil {
		return true
	}
	if b.sem == nil {
		for {
			n := b.inUse.Load()
			if n >= b.limit {
				return false
			}
			if b.inUse.CompareAndSwap(n, n+1) {
				return true
			}
		}
	}
	select {
	case b.sem <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(b.wait)
	defer timer.Stop()
	select {
	case b.sem <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// Release gives a place back.
func (b *Bulkhead) Release() {
	switch {
	case b == nil:
	case b.sem == nil:
		b.inUse.Add(-1)
	default:
		<-b.sem
	}
}

// Full says whether all places are taken.
func (b *Bulkhead) Full() bool { return b != nil && int64(b.InUse()) >= b.limit }

// InUse returns how many places are taken.
func (b *Bulkhead) InUse() int {
	switch {
	case b == nil:
		return 0
	case b.sem == nil:
		return int(b.inUse.Load())
	}
	return len(b.sem)
}
