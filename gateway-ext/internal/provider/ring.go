package provider

import (
	"sync"
	"time"
)

// maxLine is where a longer line is cut in two. A function that writes no line
// ends must not make the gateway hold all it writes.
const maxLine = 16 << 10

// A line is one line of a function's output, or of what the platform says of it.
type line struct {
	at      time.Time
	replica string
	text    string
}

// lineOverhead is what a line costs beside its text: the struct above, with the
// text's own allocation.
const lineOverhead = 64

// ring keeps the newest lines of one function, bounded in number and bytes.
// Writers never wait for readers: each reader has a cursor of its own, and one
// that is too slow finds out how many lines it has missed.
type ring struct {
	maxLines, maxBytes int

	mu      sync.Mutex // guards below
	lines   []line     // a circle: the oldest at head, count of them
	head    int
	count   int
	bytes   int
	first   uint64        // the number of the oldest line; numbers only grow
	changed chan struct{} // closed by the next line; nil while nobody waits
	readers int
}

func newRing(maxLines, maxBytes int) *ring {
	return &ring{maxLines: maxLines, maxBytes: maxBytes}
}

// add appends a line, at the cost of the oldest ones if a bound is reached.
func (r *ring) add(replica, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Stamped under the lock, so that times only grow whoever writes.
	l := line{at: time.Now(), replica: replica, text: text}
	size := len(l.text) + lineOverhead
	for r.count > 0 && (r.count >= r.maxLines || r.bytes+size > r.maxBytes) {
		r.bytes -= len(r.lines[r.head].text) + lineOverhead
		r.lines[r.head] = line{}
		r.head = (r.head + 1) % len(r.lines)
		r.count--
		r.first++
	}
	if r.count == len(r.lines) {
		r.grow()
	}
	r.lines[(r.head+r.count)%len(r.lines)] = l
	r.count++
	r.bytes += size
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// grow makes room for more lines; a function that writes little pays little.
func (r *ring) grow() {
	bigger := make([]line, min(max(8, 2*len(r.lines)), r.maxLines))
	for i := range r.count {
		bigger[i] = r.lines[(r.head+i)%len(r.lines)]
	}
	r.lines, r.head = bigger, 0
}

// next returns up to batch lines from the line numbered from, how many lines
// before them are lost, and the number to ask for next. If there are none yet,
// it returns a channel that is closed when there is one.
func (r *ring) next(from uint64, batch int) (lines []line, lost uint64, then uint64, wait <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from < r.first {
		lost = r.first - from
		from = r.first
	}
	n := min(batch, int(r.first+uint64(r.count)-from))
	if n == 0 {
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		return nil, lost, from, r.changed
	}
	lines = make([]line, n)
	for i := range n {
		lines[i] = r.lines[(r.head+int(from-r.first)+i)%len(r.lines)]
	}
	return lines, lost, from + uint64(n), nil
}

// find returns the number of the line to start reading at: the first that
// matches and is among the last tail of those that match (all, if tail is not
// positive); the number after the newest line if none does.
func (r *ring) find(match func(line) bool, tail int) (from, end uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	end = r.first + uint64(r.count)
	from = end
	for i := r.count - 1; i >= 0; i-- {
		if !match(r.lines[(r.head+i)%len(r.lines)]) {
			continue
		}
		from = r.first + uint64(i)
		if tail--; tail == 0 {
			break
		}
	}
	return from, end
}
