package weather

import (
	"container/list"
	"sync"
	"time"
)

// memory holds the last good report of each query: at most size of them, the
// least recently used going first, and none older than keep.
type memory struct {
	size int
	keep time.Duration

	mu    sync.Mutex              // guards below
	order *list.List              // of remembered, most recently used first
	byKey map[Query]*list.Element // the same ones
}

type remembered struct {
	query  Query
	report Report
	since  time.Time // when report was fresh; its monotonic reading makes ages survive a clock that jumps
}

func newMemory(size int, keep time.Duration) *memory {
	return &memory{size: size, keep: keep, order: list.New(), byKey: make(map[Query]*list.Element)}
}

// put remembers a report, unless a younger one is remembered already: replicas
// of a producer can know answers of different ages.
func (m *memory) put(q Query, r Report) {
	entry := remembered{query: q, report: r, since: time.Now().Add(-time.Duration(r.AgeSeconds) * time.Second)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.byKey[q]; ok {
		m.order.MoveToFront(e)
		if !e.Value.(remembered).since.After(entry.since) {
			e.Value = entry
		}
		return
	}
	m.byKey[q] = m.order.PushFront(entry)
	for m.order.Len() > m.size {
		m.forget(m.order.Back())
	}
}

// get returns the report with its age, marked stale.
func (m *memory) get(q Query) (Report, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.byKey[q]
	if !ok {
		return Report{}, false
	}
	entry := e.Value.(remembered)
	age := time.Since(entry.since)
	if age > m.keep {
		m.forget(e)
		return Report{}, false
	}
	m.order.MoveToFront(e)
	r := entry.report
	r.Stale = true
	r.AgeSeconds = int64(age / time.Second)
	return r, true
}

// forget drops an entry. The caller holds mu.
func (m *memory) forget(e *list.Element) {
	delete(m.byKey, e.Value.(remembered).query)
	m.order.Remove(e)
}
