package resilience

import (
	"sync/atomic"
	"time"
)

// buckets is how finely a window rolls: what is counted is forgotten at most a
// tenth of the window late.
const buckets = 10

// window counts three things over the last while. It has no goroutine: whoever
// looks at it rolls it to his time. A time before one that was seen counts as
// that one, so clocks of goroutines that overtook one another do no harm.
//
// Its owner guards it with a lock, but for tick: nearly all calls are good ones
// in the bucket of the call before, and these are counted without it.
type window struct {
	width time.Duration // of one bucket
	start time.Time     // of bucket 0; doesn't change once open is set
	head  int64         // the newest bucket, counted from start
	ring  [buckets]counts
	sum   counts

	open  atomic.Int64  // head and 1; 0 until there is a start
	ticks atomic.Uint32 // of the newest bucket, not yet in ring and sum
}

type counts [3]uint32

func (c *counts) add(d counts) {
	for i := range c {
		c[i] += d[i]
	}
}

func (c *counts) sub(d counts) {
	for i := range c {
		c[i] -= d[i]
	}
}

// span sets over how long the window counts, once, before anything else.
func (w *window) span(d time.Duration) { w.width = max(d/buckets, 1) }

// tick adds one to the first count without a lock, if the newest bucket is that
// of now. Else it returns false, and the caller adds it with the lock held.
func (w *window) tick(now time.Time) bool {
	open := w.open.Load()
	if open == 0 || int64(now.Sub(w.start)/w.width) >= open {
		return false
	}
	w.ticks.Add(1)
	return true
}

// gather takes in what ticked, and returns how much that was.
func (w *window) gather() uint32 {
	n := w.ticks.Swap(0)
	w.ring[w.head%buckets][0] += n
	w.sum[0] += n
	return n
}

// roll forgets what is older than the window. It returns how much has ticked
// since it was gathered last.
func (w *window) roll(now time.Time) (ticked uint32) {
	ticked = w.gather()
	if w.start.IsZero() {
		w.start = now
	}
	n := int64(now.Sub(w.start) / w.width)
	defer func() { w.open.Store(w.head + 1) }()
	if n <= w.head {
		return ticked
	}
	if n-w.head >= buckets {
		w.ring, w.sum, w.head = [buckets]counts{}, counts{}, n
		return ticked
	}
	for w.head < n {
		w.head++
		b := &w.ring[w.head%buckets]
		w.sum.sub(*b)
		*b = counts{}
	}
	return ticked
}

// add counts, and returns what roll does.
func (w *window) add(now time.Time, c counts) (ticked uint32) {
	ticked = w.roll(now)
	w.ring[w.head%buckets].add(c)
	w.sum.add(c)
	return ticked
}

// reset forgets everything.
func (w *window) reset() {
	w.ticks.Store(0)
	w.ring, w.sum = [buckets]counts{}, counts{}
}
