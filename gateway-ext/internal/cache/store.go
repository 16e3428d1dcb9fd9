package cache

import (
	"container/list"
	"sync"
	"time"
)

// store holds strings with an end, within a bound of bytes: beyond it those that
// were used least recently go.
type store struct {
	limit int64

	mu    sync.Mutex // guards below
	size  int64
	byKey map[string]*list.Element // of *value
	used  *list.List               // most recently used first
	swept time.Time
}

type value struct {
	key   string
	bytes []byte
	end   time.Time // zero for none
}

const (
	// overhead is what a value costs beside its key and bytes: itself, its place
	// in the list and in the map.
	overhead = 200

	// sweepEvery is how often a write looks for what has ended. What has isn't
	// seen by anybody, so this is only about memory.
	sweepEvery = time.Minute
)

func (v *value) size() int64 { return int64(len(v.key)+cap(v.bytes)) + overhead }

func (v *value) ended(now time.Time) bool { return !v.end.IsZero() && !now.Before(v.end) }

func newStore(limit int64) *store {
	return &store{limit: limit, byKey: make(map[string]*list.Element), used: list.New(), swept: time.Now()}
}

// get returns a key's value, or nil. The caller holds mu.
func (s *store) get(key []byte) *value {
	e, ok := s.byKey[string(key)]
	if !ok {
		return nil
	}
	v := e.Value.(*value)
	if v.ended(time.Now()) {
		s.drop(e)
		return nil
	}
	s.used.MoveToFront(e)
	return v
}

// set stores a copy of b, for life if that isn't 0. The caller holds mu.
func (s *store) set(key, b []byte, life time.Duration) {
	now := time.Now()
	v := &value{key: string(key), bytes: append(make([]byte, 0, len(b)), b...)}
	if life > 0 {
		v.end = now.Add(life)
	}
	s.del(key)
	s.byKey[v.key] = s.used.PushFront(v)
	s.size += v.size()
	if now.Sub(s.swept) >= sweepEvery {
		s.swept = now
		for e := s.used.Back(); e != nil; {
			before := e.Prev()
			if e.Value.(*value).ended(now) {
				s.drop(e)
			}
			e = before
		}
	}
	for s.size > s.limit {
		s.drop(s.used.Back())
	}
}

// del deletes a key and says whether it was there. The caller holds mu.
func (s *store) del(key []byte) bool {
	e, ok := s.byKey[string(key)]
	if !ok {
		return false
	}
	there := !e.Value.(*value).ended(time.Now())
	s.drop(e)
	return there
}

func (s *store) drop(e *list.Element) {
	v := s.used.Remove(e).(*value)
	delete(s.byKey, v.key)
	s.size -= v.size()
}

// left is how much of a value's life is left in ms, as PTTL says it: -1 for no
// end, -2 for no value.
func left(v *value) int64 {
	switch {
	case v == nil:
		return -2
	case v.end.IsZero():
		return -1
	}
	return max(time.Until(v.end).Milliseconds(), 0)
}

// hub passes messages to who subscribed.
type hub struct {
	mu       sync.Mutex // guards below
	channels map[string]map[*conn]struct{}
}

func newHub() *hub { return &hub{channels: make(map[string]map[*conn]struct{})} }

func (h *hub) join(c *conn, channel string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.channels[channel] == nil {
		h.channels[channel] = make(map[*conn]struct{})
	}
	h.channels[channel][c] = struct{}{}
}

// leave ends the client's subscriptions to the channels, or all of them.
func (h *hub) leave(c *conn, channels ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(channels) == 0 {
		channels = c.subs
	}
	for _, name := range channels {
		delete(h.channels[name], c)
		if len(h.channels[name]) == 0 {
			delete(h.channels, name)
		}
	}
}

// of returns who listens to a channel.
func (h *hub) of(channel string) []*conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*conn, 0, len(h.channels[channel]))
	for c := range h.channels[channel] {
		list = append(list, c)
	}
	return list
}
