package resilience

import "time"

// buckets is how finely a window rolls: what is counted is forgotten at most a
// tenth of the window late.
const buckets = 10

// window counts three things over the last while. It has no goroutine: whoever
// looks at it rolls it to his time. A time before one that was seen counts as
// that one, so clocks of goroutines that overtook one another do no harm.
type window struct {
	width time.Duration // of one bucket
	start time.Time     // of bucket 0
	head  int64         // the newest bucket, counted from start
	ring  [buckets]counts
	sum   counts
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

func newWindow(span time.Duration) window {
	return window{width: max(span/buckets, 1)}
}

// roll forgets what is older than the window.
func (w *window) roll(now time.Time) {
	if w.start.IsZero() {
		w.start = now
	}
	n := int64(now.Sub(w.start) / w.width)
	if n <= w.head {
		return
	}
	if n-w.head >= buckets {
		w.ring, w.sum, w.head = [buckets]counts{}, counts{}, n
		return
	}
	for w.head < n {
		w.head++
		b := &w.ring[w.head%buckets]
		w.sum.sub(*b)
		*b = counts{}
	}
}

func (w *window) add(now time.Time, c counts) {
	w.roll(now)
	w.ring[w.head%buckets].add(c)
	w.sum.add(c)
}

func (w *window) reset() { w.ring, w.sum = [buckets]counts{}, counts{} }
