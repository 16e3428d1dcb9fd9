package discovery

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// maxReplicas bounds the table, since it is somebody else who fills it.
const maxReplicas = 10_000

// routes says where calls of each function may go. It is never changed, only
// replaced.
type routes map[Name][]*target

// table is what the stream has told. Only the goroutine that reads the stream
// uses it; all others use the routes that it makes.
type table struct {
	node      string // this client's; a loopback address of another one leads nowhere
	targets   map[string]*target
	functions map[Name][]*target // the same, each function's in the order they came
	routes    routes
}

// target is a replica that is not gone. What is exported never changes: when
// something is told of the replica another target takes its place.
type target struct {
	Replica
	since time.Time // when it entered its state, by this machine's clock
	*learnt
}

func newTable(node string) *table {
	t := &table{node: node}
	t.clear()
	return t
}

func (t *table) clear() {
	t.targets, t.functions, t.routes = make(map[string]*target), make(map[Name][]*target), make(routes)
}

// apply takes note of an event. When it returns, t.routes are what follows.
func (t *table) apply(e event, now time.Time) error {
	switch e.name {
	case EventSnapshot:
		var s Snapshot
		if err := json.Unmarshal(e.data, &s); err != nil {
			return fmt.Errorf("read a snapshot: %w", err)
		}
		old := t.targets
		t.clear()
		for _, r := range s.Replicas {
			t.put(r, old[r.ID], now)
		}
		for name := range t.functions {
			t.route(name)
		}
	case EventReplica:
		var r Replica
		if err := json.Unmarshal(e.data, &r); err != nil {
			return fmt.Errorf("read what became of a replica: %w", err)
		}
		old := t.targets[r.ID]
		t.remove(old)
		t.put(r, old, now)
		t.routes = maps.Clone(t.routes) // others are reading it
		t.route(r.Function)
	}
	return nil
}

// put takes a replica into the table. old is what was known of it, if anything:
// what was learnt from calling it stays.
func (t *table) put(r Replica, old *target, now time.Time) {
	if r.ID == "" || r.State == StateGone || len(t.targets) >= maxReplicas {
		return
	}
	age := time.Duration(min(max(r.Age, 0), 1e6) * float64(time.Second))
	to := &target{Replica: r, since: now.Add(-age)}
	if old != nil && old.Addr == r.Addr {
		to.learnt = old.learnt
	} else {
		to.learnt = newLearnt()
	}
	t.targets[r.ID] = to
	t.functions[r.Function] = append(t.functions[r.Function], to)
}

// remove takes out what put has put in.
func (t *table) remove(old *target) {
	if old == nil {
		return
	}
	delete(t.targets, old.ID)
	left := slices.DeleteFunc(t.functions[old.Function], func(o *target) bool { return o == old })
	if t.functions[old.Function] = left; len(left) == 0 {
		delete(t.functions, old.Function)
	}
}

// route makes a function's route anew: the replicas that are ready, and that can
// be reached from here.
func (t *table) route(name Name) {
	var ready []*target
	for _, to := range t.functions[name] {
		if to.State == StateReady && t.reaches(to) {
			ready = append(ready, to)
		}
	}
	if len(ready) == 0 {
		delete(t.routes, name)
	} else {
		t.routes[name] = ready
	}
}

// reaches says whether the replica's address means the same here as there.
func (t *table) reaches(to *target) bool {
	addr := to.Addr.Addr()
	return to.Addr.IsValid() && !addr.IsUnspecified() && (!addr.IsLoopback() || t.node != "" && to.Node == t.node)
}

// zone returns the zone of this client's node, as far as replicas on it tell.
func (t *table) zone() string {
	for _, to := range t.targets {
		if to.Node == t.node && to.Zone != "" {
			return to.Zone
		}
	}
	return ""
}
