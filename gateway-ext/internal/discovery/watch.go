package discovery

import (
	"context"
	"iter"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxBehind is how many events a watcher may be behind before it is given up:
// about 200 KB of them.
const maxBehind = 1024

// Change is what [Table.Watch] yields.
type Change struct {
	// Version is the table's after this change. It grows.
	Version uint64

	// Replicas are, in a watcher's first change, all replicas there are, in no
	// order; in later ones each step that was observed since, in order, one of
	// faas.Gone being a replica's last.
	Replicas []Status
}

// Watch returns first every replica there is, then each step as it is observed,
// in order, until ctx ends. That a replica becomes suspect, or is so no longer,
// is a step too. Nothing is lost in between and nobody is held up by a slow
// watcher: one that is too far behind gets an error, which ends the sequence,
// and should watch anew.
//
// notice is how long the watcher needs to act when a replica drains: while it
// watches, [Table.Idle] returns no sooner than that after the Draining. It is for
// those who send requests that the table doesn't count; for all others it is 0.
func (t *Table) Watch(ctx context.Context, notice time.Duration) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		w := &watcher{more: make(chan struct{}, 1), notice: notice}
		t.mu.Lock()
		now := Change{Version: t.version, Replicas: t.all()}
		t.watchers[w] = struct{}{}
		t.mu.Unlock()
		defer func() {
			t.mu.Lock()
			delete(t.watchers, w)
			t.mu.Unlock()
		}()

		for {
			if ctx.Err() != nil || !yield(now, nil) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-w.more:
			}
			t.mu.Lock()
			behind := w.behind
			now = Change{Version: t.version, Replicas: w.events}
			w.events = nil
			t.mu.Unlock()
			if behind {
				yield(Change{}, faas.Errorf(faas.ErrOverloaded, "watch replicas: more than %d events behind", maxBehind))
				return
			}
		}
	}
}

// watcher is what one Watch has not yet read. The table's mu guards it.
type watcher struct {
	notice time.Duration
	events []Status
	behind bool
	more   chan struct{} // has a token when there is something to read
}

func (w *watcher) add(s Status) {
	if len(w.events) == maxBehind {
		w.events, w.behind = nil, true
	}
	if !w.behind {
		w.events = append(w.events, s)
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// tell tells all watchers of an endpoint's state. mu is held.
func (t *Table) tell(e *Endpoint) {
	t.version++
	if len(t.watchers) == 0 {
		return
	}
	s := e.status(time.Now())
	for w := range t.watchers {
		w.add(s)
	}
}

// notice is the longest that any watcher asked for. mu is held.
func (t *Table) notice() (longest time.Duration) {
	for w := range t.watchers {
		longest = max(longest, w.notice)
	}
	return longest
}
