package resilience

import (
	"context"
	"time"
)

// Bulkhead bounds the calls of a target at the same time, so that a slow one
// fills with its own callers and not the whole ship. It is a semaphore: it
// starts no goroutine, and who waits hears its context. A nil Bulkhead lets
// everybody in.
type Bulkhead struct {
	sem  chan struct{}
	wait time.Duration
}

// NewBulkhead returns an empty bulkhead, or nil if the policy has no bound.
func NewBulkhead(p BulkheadPolicy) *Bulkhead {
	if p.Limit <= 0 {
		return nil
	}
	return &Bulkhead{sem: make(chan struct{}, p.Limit), wait: p.Wait}
}

// Acquire takes a place, waiting for one as long as the policy says and the
// context lasts. Whoever gets true must call [Bulkhead.Release].
func (b *Bulkhead) Acquire(ctx context.Context) bool {
	if b == nil {
		return true
	}
	select {
	case b.sem <- struct{}{}:
		return true
	default:
	}
	if b.wait <= 0 {
		return false
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
	if b != nil {
		<-b.sem
	}
}

// Full says whether all places are taken.
func (b *Bulkhead) Full() bool { return b != nil && len(b.sem) == cap(b.sem) }

// InUse returns how many places are taken.
func (b *Bulkhead) InUse() int {
	if b == nil {
		return 0
	}
	return len(b.sem)
}
