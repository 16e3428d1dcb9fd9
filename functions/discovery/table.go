package discovery

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// maxReplicas bounds the table, since it is somebody else who fills it.
const maxReplicas = 10_000

// routes says where calls of each function may go. It is never changed, only
// replaced.
type routes map[Name]*route

// table is what the stream has told. Only the goroutine that reads the stream
// uses it; all others use the routes that it makes.
type table struct {
	node     string       // this client's; a loopback address of another one leads nowhere
	zone     string       // its zone, as far as replicas on it tell
	rule     balance.Rule // by which to pick
	targets  map[string]*target
	families map[Name]*family
	routes   routes
}

// family is the replicas of one function, and what picks one of them.
type family struct {
	targets  []*target // in the order they came
	balancer *balance.Balancer
}

// target is a replica that is not gone. What is exported never changes: when
// something is told of the replica another target takes its place.
type target struct {
	Replica
	since time.Time // when it entered its state, by this machine's clock
	*learnt
}

func newTable(node string, rule balance.Rule) *table {
	return &table{node: node, rule: rule, targets: make(map[string]*target), families: make(map[Name]*family), routes: make(routes)}
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
		t.targets, t.routes = make(map[string]*target), make(routes)
		for _, f := range t.families {
			f.targets = nil
		}
		for _, r := range s.Replicas {
			if r.Node == t.node {
				t.zone = cmp.Or(r.Zone, t.zone)
			}
		}
		for _, r := range s.Replicas {
			t.put(r, old[r.ID], now)
		}
		for name := range t.families {
			t.route(name, now)
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
		t.route(r.Function, now)
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
	to := &target{Replica: r, since: now.Add(-age), learnt: &learnt{}}
	if old != nil && old.Addr == r.Addr && old.Function == r.Function {
		to.learnt = old.learnt
	}
	to.limit.Store(int64(max(r.Limit, 0)))
	to.suspect.Store(r.Suspect)
	t.targets[r.ID] = to
	f := t.families[r.Function]
	if f == nil {
		f = &family{balancer: balance.New(balance.Config{
			Rule: t.rule, Node: t.node, Zone: t.zone,
			Penalty: dialTimeout,
		}, now)}
		t.families[r.Function] = f
	}
	f.targets = append(f.targets, to)
}

// remove takes out what put has put in.
func (t *table) remove(old *target) {
	if old == nil {
		return
	}
	delete(t.targets, old.ID)
	f := t.families[old.Function]
	f.targets = slices.DeleteFunc(f.targets, func(o *target) bool { return o == old })
}

// route makes a function's route anew: the replicas that are ready, and that can
// be reached from here.
func (t *table) route(name Name, now time.Time) {
	f := t.families[name]
	if f == nil {
		return
	}
	r := &route{}
	var members []*balance.Member
	for _, to := range f.targets {
		if to.State != StateReady || !t.reaches(to) {
			continue
		}
		if to.member == nil { // nobody else has it yet
			p := balance.Place{ID: to.ID, Node: to.Node, Zone: to.Zone, Since: to.since}
			to.member = f.balancer.Member(to.learnt, p)
		}
		r.targets, members = append(r.targets, to), append(members, to.member)
	}
	if len(f.targets) == 0 {
		delete(t.families, name)
	}
	if len(r.targets) == 0 {
		delete(t.routes, name)
		return
	}
	r.view = f.balancer.View(members)
	t.routes[name] = r
}

// reaches says whether the replica's address means the same here as there.
func (t *table) reaches(to *target) bool {
	addr := to.Addr.Addr()
	return to.Addr.IsValid() && !addr.IsUnspecified() && (!addr.IsLoopback() || t.node != "" && to.Node == t.node)
}
