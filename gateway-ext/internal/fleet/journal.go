package fleet

import (
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	maxDecisions    = 2048 // that are remembered, at about 300 bytes each
	maxDecisionsOne = 16   // of one function
)

// Decision is why a function has as many replicas as it has.
type Decision struct {
	ID       uint64    `json:"id"`       // grows with each decision
	Function string    `json:"function"` // with its namespace
	At       time.Time `json:"at"`       // when it was made
	Last     time.Time `json:"last"`     // when it was last made again,
	Times    int       `json:"times"`    // and how often it was made in all
	From     int       `json:"from"`     // replicas wanted before
	To       int       `json:"to"`       // and since then
	Asked    int       `json:"asked"`    // what the load alone asks for
	Sentence string    `json:"sentence"`

	name faas.Name
	kind kind
}

// journal remembers decisions, the oldest first. Fleet.mu guards it.
type journal struct {
	list []*Decision
	last map[faas.Name]*Decision
	next uint64
}

// note remembers a decision. One that is the same as the function's last is
// counted.
func (j *journal) note(name faas.Name, from int, v verdict, now time.Time) {
	if d := j.last[name]; d != nil && d.kind == v.Kind && d.To == v.Replicas && from == v.Replicas && v.Kind != handKind {
		d.Last, d.Asked = now.UTC(), v.Asked
		d.Times++
		return
	}
	j.next++
	d := &Decision{
		ID: j.next, Function: name.String(), At: now.UTC(), Last: now.UTC(), Times: 1,
		From: from, To: v.Replicas, Asked: v.Asked, Sentence: v.Sentence(),
		name: name, kind: v.Kind,
	}
	if j.last == nil {
		j.last = make(map[faas.Name]*Decision)
	}
	j.last[name] = d
	j.list = append(j.list, d)
	drop, count := -1, 0
	for i, other := range j.list {
		if other.name == name {
			if count++; count == 1 {
				drop = i
			}
		}
	}
	if count <= maxDecisionsOne {
		drop = -1
	}
	if drop < 0 && len(j.list) > maxDecisions {
		drop = 0
	}
	if drop < 0 {
		return
	}
	if gone := j.list[drop]; j.last[gone.name] == gone {
		delete(j.last, gone.name)
	}
	j.list = slices.Delete(j.list, drop, drop+1)
}

// forget drops what is known of a function that is no more.
func (j *journal) forget(name faas.Name) {
	delete(j.last, name)
	j.list = slices.DeleteFunc(j.list, func(d *Decision) bool { return d.name == name })
}

// Decisions returns what was decided, the newest first: of one function, or of
// all if name is nil; and only those with a larger ID than since.
func (f *Fleet) Decisions(name *faas.Name, since uint64) []Decision {
	f.mu.RLock()
	defer f.mu.RUnlock()
	list := []Decision{}
	for _, d := range slices.Backward(f.journal.list) {
		if d.ID <= since {
			break
		}
		if name == nil || d.name == *name {
			list = append(list, *d)
		}
	}
	return list
}
