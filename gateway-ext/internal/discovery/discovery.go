// Package discovery knows where every replica is. Providers tell the [Table] of
// each step in a replica's life; whoever carries requests asks it for the
// [Route] of a function.
//
// Reading a route takes no lock and asks nobody: routes are an immutable
// snapshot that is swapped atomically. A request holds the endpoint it uses
// ([Endpoint.Acquire], [Endpoint.Release]), which is what makes an update
// lossless: when Observe has returned from a replica's Draining nobody can
// acquire it any more, and [Table.Idle] returns when the last who did has let
// go, so that the replica can be stopped without cutting anybody off.
//
// Which endpoint of a route to take is decided by package balance; how many
// there should be, by the fleet.
package discovery

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxBehind is how many events a watcher may be behind before it is given up:
// about 100 KB of them.
const maxBehind = 1024

// Route is where a function's requests may go at one moment. It is a value that
// never changes; the zero Route is that of a function with no ready replica.
type Route struct {
	// Endpoints are the replicas that are ready. Who reads it must not change it.
	Endpoints []*Endpoint

	version uint64 // different for every change of any route; 0 for none
}

// Status is one replica, as people want to see it.
type Status struct {
	faas.Replica
	InFlight int64 `json:"inFlight"` // requests that it holds now
}

// Table is the table of all replicas. All methods may be called at the same
// time by any number of goroutines.
type Table struct {
	routes atomic.Pointer[map[faas.Name]Route] // replaced, never changed; written under mu

	mu       sync.Mutex // guards below
	version  uint64
	replicas map[string]*Endpoint // by id; all that are not gone
	waits    map[faas.Name]*wait  // for a change of a route; only while somebody waits
	watchers map[*watcher]struct{}
}

// wait is shared by all who wait for the next change of one route.
type wait struct {
	changed chan struct{}
	waiting int
}

// New returns an empty table.
func New() *Table {
	t := &Table{
		replicas: make(map[string]*Endpoint),
		waits:    make(map[faas.Name]*wait),
		watchers: make(map[*watcher]struct{}),
	}
	t.routes.Store(&map[faas.Name]Route{})
	return t
}

// Route returns where the function's requests may go now. It never blocks.
func (t *Table) Route(name faas.Name) Route {
	return (*t.routes.Load())[name]
}

// Wait returns the function's route as soon as it is another than seen, at once
// if it already is, or the cause of ctx's end. A route changes when a replica
// becomes ready or stops being so.
func (t *Table) Wait(ctx context.Context, name faas.Name, seen Route) (Route, error) {
	t.mu.Lock()
	if r := t.Route(name); r.version != seen.version {
		t.mu.Unlock()
		return r, nil
	}
	w := t.waits[name]
	if w == nil {
		w = &wait{changed: make(chan struct{})}
		t.waits[name] = w
	}
	w.waiting++
	t.mu.Unlock()

	select {
	case <-w.changed:
		return t.Route(name), nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.waiting--; w.waiting == 0 && t.waits[name] == w {
		delete(t.waits, name)
	}
	return Route{}, context.Cause(ctx)
}

// Observe takes note of a replica's state. It doesn't block. A state that is
// older than what is known of the replica is ignored: states only grow.
//
// When it returns from Draining or Gone, [Endpoint.Acquire] of this replica
// returns false for everybody, whatever route they hold.
func (t *Table) Observe(r faas.Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()

	e, known := t.replicas[r.ID]
	switch {
	case !known && r.State == faas.Gone, known && r.State < e.replica.State:
		return
	case !known:
		e = newEndpoint(r)
		t.replicas[r.ID] = e
	}
	wasReady := known && e.replica.State == faas.Ready
	// Where it is and what it runs can't change, and is read without the lock.
	e.replica.State, e.replica.Since, e.replica.Reason = r.State, r.Since, r.Reason
	switch {
	case r.State == faas.Ready && !wasReady:
		t.publish(e.Function, func(ready []*Endpoint) []*Endpoint { return append(ready, e) })
	case r.State > faas.Ready && wasReady:
		// First out of the route, then closed: who can't acquire it finds
		// another route when they look again, and need not spin.
		t.publish(e.Function, func(ready []*Endpoint) []*Endpoint {
			return slices.DeleteFunc(ready, func(o *Endpoint) bool { return o == e })
		})
	}
	if r.State > faas.Ready {
		e.close()
	}
	if r.State == faas.Gone {
		delete(t.replicas, r.ID)
	}
	for w := range t.watchers {
		w.add(e.replica)
	}
}

// publish swaps in a snapshot in which one function's route is changed. It is
// called with mu held.
func (t *Table) publish(name faas.Name, change func([]*Endpoint) []*Endpoint) {
	old := *t.routes.Load()
	ready := change(slices.Clone(old[name].Endpoints))
	next := maps.Clone(old)
	if len(ready) == 0 {
		delete(next, name)
	} else {
		t.version++
		next[name] = Route{Endpoints: slices.Clip(ready), version: t.version}
	}
	t.routes.Store(&next)
	if w := t.waits[name]; w != nil {
		close(w.changed)
		delete(t.waits, name)
	}
}

// Idle returns nil when no request holds the replica any more, or the cause of
// ctx's end. It makes sense after the replica's Draining: before that, requests
// keep coming. A replica that is not known is idle.
func (t *Table) Idle(ctx context.Context, id string) error {
	t.mu.Lock()
	e := t.replicas[id]
	t.mu.Unlock()
	if e == nil {
		return nil
	}
	select {
	case <-e.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %d requests at %s: %w", e.InFlight(), id, context.Cause(ctx))
	}
}

// Replicas returns all replicas that are not gone, sorted by function and id.
func (t *Table) Replicas() []Status {
	t.mu.Lock()
	all := make([]Status, 0, len(t.replicas))
	for _, e := range t.replicas {
		all = append(all, Status{Replica: e.replica, InFlight: e.InFlight()})
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(
			cmp.Compare(a.Function.Namespace, b.Function.Namespace),
			cmp.Compare(a.Function.Function, b.Function.Function),
			cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Watch returns first every replica there is, then each step as it is observed,
// in order, until ctx ends. Nothing is lost in between and nobody is held up by
// a slow watcher: one that is too far behind gets an error, which ends the
// sequence, and should watch anew.
func (t *Table) Watch(ctx context.Context) iter.Seq2[faas.Replica, error] {
	return func(yield func(faas.Replica, error) bool) {
		w := &watcher{more: make(chan struct{}, 1)}
		t.mu.Lock()
		now := make([]faas.Replica, 0, len(t.replicas))
		for _, e := range t.replicas {
			now = append(now, e.replica)
		}
		t.watchers[w] = struct{}{}
		t.mu.Unlock()
		defer func() {
			t.mu.Lock()
			delete(t.watchers, w)
			t.mu.Unlock()
		}()

		for {
			for _, r := range now {
				if ctx.Err() != nil || !yield(r, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-w.more:
			}
			t.mu.Lock()
			behind := w.behind
			now, w.events = w.events, nil
			t.mu.Unlock()
			if behind {
				yield(faas.Replica{}, faas.Errorf(faas.ErrOverloaded, "watch replicas: more than %d events behind", maxBehind))
				return
			}
		}
	}
}

// watcher is what one Watch has not yet read. The table's mu guards it.
type watcher struct {
	events []faas.Replica
	behind bool
	more   chan struct{} // has a token when there is something to read
}

func (w *watcher) add(r faas.Replica) {
	if len(w.events) == maxBehind {
		w.events, w.behind = nil, true
	}
	if !w.behind {
		w.events = append(w.events, r)
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
}
