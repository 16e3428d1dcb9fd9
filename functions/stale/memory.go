package stale

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

// state is what an item is.
type state uint8

const (
	kept   state = iota // an answer
	marked              // nothing but its mark
	gone                // a tombstone from the Redis: purged
)

// item is what the memory holds for a key. All but mark is immutable.
type item struct {
	entry  Entry
	state  state
	since  time.Time     // when the origin made it; monotonic, so that ages survive a clock that jumps
	delta  time.Duration // what it cost to load
	jitter int8          // how much longer it is fresh, in thousandths: -100 to 100
	fn     *function
	gen    *string // fn's when this was stored; another one now means purged
	mark   atomic.Pointer[mark]
}

// mark says what the next loads for a key are to expect, for a while. A mark
// without anything but its end means that somebody else refreshes.
type mark struct {
	until time.Time
	err   error // what the last load failed with
	pass  bool  // answers are for one caller each
}

// function is what is known of a function's generation: the token that changes
// when all its answers are purged.
type function struct {
	name   string
	gen    atomic.Pointer[string]
	looked atomic.Int64 // when it was last read from the Redis, in unix nanoseconds
}

// set makes the token the function's. What was stored under another is gone.
func (f *function) set(token string) *string {
	for {
		old := f.gen.Load()
		if *old == token {
			return old
		}
		if f.gen.CompareAndSwap(old, &token) {
			return &token
		}
	}
}

const (
	// itemOverhead is what an item costs beside its bytes: itself, the cache's
	// node, the header's map.
	itemOverhead = 512

	// maxFunctions bounds the generations remembered. Beyond it all is forgotten,
	// which costs a round of misses.
	maxFunctions = 4096
)

// memory is the layer in process.
type memory struct {
	cache *otter.Cache[Key, *item]

	mu        sync.Mutex // guards below
	functions map[string]*function
}

func newMemory(bytes int64, spawn func(func()) bool) *memory {
	return &memory{
		functions: make(map[string]*function),
		cache: otter.Must(&otter.Options[Key, *item]{
			MaximumWeight: uint64(bytes),
			Weigher: func(k Key, it *item) uint32 {
				return uint32(len(k.function) + it.entry.size() + itemOverhead)
			},
			Executor: func(f func()) {
				if !spawn(f) {
					f()
				}
			},
		}),
	}
}

// get returns what is there for the key and was not purged, or nil.
func (m *memory) get(k Key) *item {
	it, ok := m.cache.GetIfPresent(k)
	if !ok || it.gen != it.fn.gen.Load() {
		return nil
	}
	return it
}

// put stores an item, unless a younger one is there or it was purged meanwhile,
// and returns what is to be served: the younger one, or the item.
func (m *memory) put(k Key, it *item) *item {
	best := it
	m.cache.Compute(k, func(old *item, found bool) (*item, otter.ComputeOp) {
		switch {
		case it.gen != it.fn.gen.Load():
			return old, otter.CancelOp
		case !found || old.gen != it.gen || old.state != kept:
			return it, otter.WriteOp
		case it.state == marked:
			old.mark.Store(it.mark.Load())
			return old, otter.CancelOp
		case old.since.After(it.since):
			best = old
			return old, otter.CancelOp
		}
		return it, otter.WriteOp
	})
	return best
}

// annotate leaves a mark at the key.
func (m *memory) annotate(k Key, mk mark, gen *string) {
	it := &item{state: marked, fn: m.function(k.function), gen: gen}
	it.mark.Store(&mk)
	m.put(k, it)
}

func (m *memory) forget(k Key) { m.cache.Invalidate(k) }

// function returns the function's record.
func (m *memory) function(name string) *function {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.functions[name]
	if f == nil {
		if len(m.functions) >= maxFunctions {
			clear(m.functions)
			m.cache.InvalidateAll()
		}
		f = &function{name: name}
		f.gen.Store(new(string))
		m.functions[name] = f
	}
	return f
}

// newItem makes an item of what was just loaded.
func (m *memory) newItem(k Key, e Entry, gen *string, now time.Time, delta time.Duration) *item {
	return &item{
		entry: e, since: now.Add(-max(e.Age, 0)), delta: delta,
		jitter: int8(rand.IntN(201) - 100), fn: m.function(k.function), gen: gen,
	}
}

// heard makes the token that of a function that is known here.
func (m *memory) heard(name, token string) {
	m.mu.Lock()
	f := m.functions[name]
	m.mu.Unlock()
	if f != nil {
		f.set(token)
	}
}
