// Package discovery knows where every replica is. Whoever runs replicas tells
// the [Table] of each step in their lives; whoever carries requests asks it for
// the [Route] of a function.
//
// Reading a route takes no lock and asks nobody: routes are an immutable
// snapshot that is swapped atomically. A request holds the endpoint it uses
// ([Endpoint.Acquire], [Endpoint.Release]), which is what makes an update
// lossless: when Observe has returned from a replica's Draining nobody can
// acquire it any more, and [Table.Idle] returns when the last who did has let
// go, so that the replica can be stopped without cutting anybody off.
//
// There are two kinds of witnesses. The provider inside this process calls
// [Table.Observe]: it can't fall silent while the table lives, and is believed.
// Everybody else has a [Source], whose word holds for as long as was agreed
// ([Lease]). A source that is silent makes its replicas suspect, which gets them
// less traffic. Silence alone removes nobody: before that, the table asks the
// address itself. Who answers stays, and while a large part of a kind falls
// silent at once and still answers, nobody of that kind is removed. All times are
// measured here, from when something was received; no clock of another machine
// is read. These decisions are pure ([decide]); [Table.Run] obeys them, and keeps
// on disk what sources said last, for the next start.
//
// Which endpoint of a route to take is decided by package balance; how many
// there should be, by the fleet.
package discovery

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxSources is how many sources a table takes: far above what the machines
// hold that this is for. With their details they are 32 MB at most.
const maxSources = 2000

// Config is what a table works with.
type Config struct {
	// Path is the file that keeps what sources said last. Empty keeps nothing.
	Path string

	// Probe asks an address whether it still answers. Nil is [Ask].
	Probe func(context.Context, Target) Answer

	// Logger gets a line for each source that falls silent, comes back or is
	// removed. Required.
	Logger *slog.Logger
}

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
	InFlight int64     `json:"inFlight"` // requests that it holds now
	Source   string    `json:"source"`   // who told of it: [Local], or a source's kind
	Suspect  bool      `json:"suspect"`  // that source has been silent for longer than agreed
	LastSeen time.Time `json:"lastSeen"` // when the source was last heard; zero if not since the start
}

// Local is the source of what [Table.Observe] was told.
const Local = "local"

// Table is the table of all replicas. All methods may be called at the same
// time by any number of goroutines.
type Table struct {
	cfg    Config
	routes atomic.Pointer[map[faas.Name]Route] // replaced, never changed; written under mu
	kick   chan struct{}                       // wakes Run; holds at most one

	mu       sync.Mutex // guards below
	version  uint64     // grows with each step that is told to watchers
	replicas map[string]*Endpoint
	waits    map[faas.Name]*wait // for a change of a route; only while somebody waits
	watchers map[*watcher]struct{}
	sources  map[sourceKey]*Source
	changed  bool // what is on disk is another
}

// wait is shared by all who wait for the next change of one route.
type wait struct {
	changed chan struct{}
	waiting int
}

// New returns an empty table that keeps nothing on disk.
func New() *Table { return Open(Config{Logger: slog.New(slog.DiscardHandler)}) }

// Open returns a table with the replicas that sources told of before the last
// stop. They are used at once, as suspects, until their sources are heard again
// or their addresses don't answer. Replicas of this process's own provider are
// not among them: they died with it, and their ports may be somebody else's.
//
// A file that can't be read is a line in the log, and the table is empty.
func Open(cfg Config) *Table {
	if cfg.Probe == nil {
		cfg.Probe = Ask
	}
	t := &Table{
		cfg:      cfg,
		kick:     make(chan struct{}, 1),
		replicas: make(map[string]*Endpoint),
		waits:    make(map[faas.Name]*wait),
		watchers: make(map[*watcher]struct{}),
		sources:  make(map[sourceKey]*Source),
	}
	t.routes.Store(&map[faas.Name]Route{})
	if cfg.Path != "" {
		t.restore()
	}
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

// Observe takes note of a replica's state, on the word of this process's own
// provider. It doesn't block. A state that is older than what is known of the
// replica is ignored: states only grow.
//
// When it returns from Draining or Gone, [Endpoint.Acquire] of this replica
// returns false for everybody, whatever route they hold.
func (t *Table) Observe(r faas.Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.observe(r, nil)
}

// observe is Observe on the word of a source; nil is the provider here. It is
// called with mu held.
func (t *Table) observe(r faas.Replica, from *Source) {
	e, known := t.replicas[r.ID]
	switch {
	case !known && r.State == faas.Gone, known && r.State < e.replica.State:
		return
	case known && e.source != from: // nobody speaks for another's replicas
		return
	case !known:
		e = newEndpoint(r, from)
		t.replicas[r.ID] = e
		if from != nil {
			from.replicas[r.ID] = e
		}
	}
	wasReady := known && e.replica.State == faas.Ready
	if from != nil && (!known || e.replica.State != r.State || e.replica.Reason != r.Reason) {
		t.keep()
	}
	// Where it is and what it runs can't change, and is read without the lock.
	e.replica.State, e.replica.Since, e.replica.Reason = r.State, r.Since, r.Reason
	switch {
	case r.State == faas.Ready && !wasReady:
		e.Ready = time.Now()
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
		if from != nil {
			delete(from.replicas, r.ID)
		}
	}
	if r.State == faas.Draining && e.told.IsZero() {
		e.told = time.Now().Add(t.notice())
	}
	t.tell(e)
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

// Idle returns nil when no request holds the replica any more, and watchers that
// asked for time to act upon its Draining have had it; or the cause of ctx's end.
// It makes sense after the replica's Draining: before that, requests keep coming.
// A replica that is not known is idle.
func (t *Table) Idle(ctx context.Context, id string) error {
	t.mu.Lock()
	e := t.replicas[id]
	var told time.Time
	if e != nil {
		told = e.told
	}
	t.mu.Unlock()
	if e == nil {
		return nil
	}
	select {
	case <-e.idle:
	case <-ctx.Done():
		return fmt.Errorf("wait for %d requests at %s: %w", e.InFlight(), id, context.Cause(ctx))
	}
	wait := time.Until(told)
	if wait <= 0 {
		return nil
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until callers know that %s drains: %w", id, context.Cause(ctx))
	}
}

// Replicas returns all replicas that are not gone, sorted by function and id.
func (t *Table) Replicas() []Status {
	_, all := t.Snapshot()
	return all
}

// Snapshot returns what [Table.Replicas] does, and the version of the table that
// it is of.
func (t *Table) Snapshot() (version uint64, all []Status) {
	t.mu.Lock()
	version, all = t.version, t.all()
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(
			cmp.Compare(a.Function.Namespace, b.Function.Namespace),
			cmp.Compare(a.Function.Function, b.Function.Function),
			cmp.Compare(a.ID, b.ID))
	})
	return version, all
}

// all returns the status of all replicas, in no order. mu is held.
func (t *Table) all() []Status {
	now := time.Now()
	all := make([]Status, 0, len(t.replicas))
	for _, e := range t.replicas {
		all = append(all, e.status(now))
	}
	return all
}
