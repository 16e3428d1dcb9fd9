package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// What changes all the time (how often functions were called, and how many
// replicas load made of them) is stored when the fleet stops, and every few
// minutes while it changes: memory cards die of writes. A kill loses what is
// younger than that.
const keepEvery = 5 * time.Minute

// keepBytes is how much of it may be written in an hour: with many functions it is
// written more rarely.
const keepBytes = 512 << 10

// keptRecord is how the store holds it, by the functions' keys.
type keptRecord map[string]keptFunction

type keptFunction struct {
	Calls uint64 `json:"calls,omitempty"`

	// Replicas is set if it is not Of, which is what the function's own record
	// says. It counts for that revision and that number alone: what was declared
	// or set by hand after it is newer.
	Replicas *int   `json:"replicas,omitempty"`
	Of       int    `json:"of,omitempty"`
	Revision uint64 `json:"revision,omitempty"`
}

// kept is what was stored last, and when to look again.
type kept struct {
	last []byte
	next time.Time
}

// keep stores what has changed, if it is time, or at the end.
func (f *Fleet) keep(ctx context.Context, end bool) {
	now := time.Now()
	if f.kept.next.IsZero() {
		f.kept.next = now.Add(keepEvery)
	}
	if !end && now.Before(f.kept.next) {
		return
	}
	f.kept.next = now.Add(keepEvery)
	record := make(keptRecord)
	f.mu.RLock()
	for name, e := range f.functions {
		k := keptFunction{Calls: f.callsOf(name, e)}
		if e.replicas != e.stored {
			k.Replicas, k.Of, k.Revision = new(e.replicas), e.stored, e.declared.Revision
		}
		if k != (keptFunction{}) {
			record[keyOf(name)] = k
		}
	}
	f.mu.RUnlock()
	b, err := json.Marshal(record)
	if err != nil || bytes.Equal(b, f.kept.last) || len(record) == 0 && f.kept.last == nil {
		return // there is no error: the record is made of strings and numbers
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	if err := f.cfg.Store.Put(ctx, scalingKey, b); err != nil {
		f.log.Warn("how often functions were called is not stored", "err", err)
		return
	}
	f.kept.last = b
	f.kept.next = now.Add(max(keepEvery, time.Hour*time.Duration(len(b))/keepBytes))
}

// keepTimeout bounds one attempt to store it.
const keepTimeout = 10 * time.Second

// callsOf is how often a function was called, ever.
func (f *Fleet) callsOf(name faas.Name, e *entry) uint64 {
	calls := e.calls
	if f.cfg.Invocations != nil {
		calls += uint64(f.cfg.Invocations(name))
	}
	return calls
}

// Invocations returns how often a function was called since it was deployed, also
// before this start.
func (f *Fleet) Invocations(name faas.Name) float64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	e := f.functions[name]
	if e == nil {
		return 0
	}
	return float64(f.callsOf(name, e))
}

// loadKept reads it. The functions themselves have been read.
func (f *Fleet) loadKept(b []byte) {
	if b == nil {
		return
	}
	var record keptRecord
	if err := json.Unmarshal(b, &record); err != nil {
		f.log.Error("how often functions were called can't be read and is forgotten", "key", scalingKey, "err", err)
		return
	}
	f.kept.last = b
	for name, e := range f.functions {
		k := record[keyOf(name)]
		e.calls = k.Calls
		most := e.scale.Value().Max
		if k.Replicas != nil && k.Revision == e.declared.Revision && k.Of == e.stored && 0 <= *k.Replicas && *k.Replicas <= most {
			e.replicas = *k.Replicas
		}
	}
}
