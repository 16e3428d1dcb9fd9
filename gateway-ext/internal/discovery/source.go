package discovery

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Lease is what is agreed with a source.
type Lease struct {
	// Suspect is how long the source may be silent before its replicas get less
	// traffic: two or three of its heartbeats. Shorter is quicker, and more
	// often wrong.
	Suspect time.Duration

	// Gone is how long it may be silent before its replicas are removed, if
	// Probe doesn't answer either. It is more than Suspect.
	Gone time.Duration

	// Probe is where the source, or what it tells of, can be asked whether it
	// still answers. Without a valid address silence alone decides.
	Probe Target

	// Ask, if not nil, is asked in place of Probe.Addr, which must be valid still:
	// by who knows better than a connection whether the source is there.
	Ask func(context.Context) Answer `json:"-"`

	// Detail is what the owner of the source wants to find again after a restart:
	// at most 16 KiB of JSON, or nil.
	Detail json.RawMessage
}

// maxDetail bounds Lease.Detail in bytes.
const maxDetail = 16 << 10

// Target is what a probe asks.
type Target struct {
	Addr netip.AddrPort `json:"addr"`

	// Health is a path that is asked over HTTP. Empty only opens a connection.
	Health string `json:"health,omitempty"`
}

// Source is somebody who tells of replicas and may fall silent. It is one node,
// or one instance that registered itself. Make it with [Table.Source].
type Source struct {
	t          *Table
	kind, name string
	lost       func()

	// The table's mu guards all below.
	lease     Lease
	replicas  map[string]*Endpoint
	opened    time.Time
	heard     time.Time // zero if not since the start
	suspected bool
	turns     [maxTurns]time.Time // when it last became suspect, newest first
	probing   bool
	asked     time.Time // when the last probe was begun
	answered  bool      // the last probe that told anything got an answer
	failed    int       // probes in a row that got none, since it was last heard
	failedAt  time.Time // when the first of these ended
}

type sourceKey struct{ kind, name string }

// Source opens a source. kind is what it has in common with others ("eureka",
// "node"): they are counted together when it is decided whether too many fell
// silent at once. If there is one of this kind and name already, from before the
// start or from a connection that was lost, the new one takes over its replicas,
// and the old one speaks for nobody any more.
//
// lost is called when the table has removed the source with all its replicas
// because it was silent and didn't answer. It may be nil.
//
// The error is an [faas.ErrOverloaded] if there are too many, or an
// [faas.ErrTooLarge] for the detail.
func (t *Table) Source(kind, name string, l Lease, lost func()) (*Source, error) {
	if len(l.Detail) > maxDetail {
		return nil, faas.Errorf(faas.ErrTooLarge, "%s is told of with %d bytes of details, at most %d are allowed", name, len(l.Detail), maxDetail)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	s := &Source{t: t, kind: kind, name: name, lost: lost, lease: l, replicas: map[string]*Endpoint{}, opened: now, heard: now}
	key := sourceKey{kind, name}
	old := t.sources[key]
	switch {
	case old != nil:
		s.opened, s.heard, s.suspected, s.turns = old.opened, old.heard, old.suspected, old.turns
		s.asked, s.answered, s.failed, s.failedAt = old.asked, old.answered, old.failed, old.failedAt
		s.replicas, old.replicas = old.replicas, nil
		for _, e := range s.replicas {
			e.source = s
		}
	case len(t.sources) >= maxSources:
		return nil, faas.Errorf(faas.ErrOverloaded, "%d others have told of replicas already, as many as are taken: cancel one", maxSources)
	}
	t.sources[key] = s
	t.keep()
	t.wake()
	return s, nil
}

// Saved is a source that was known before the start.
type Saved struct {
	Name     string
	Lease    Lease
	Replicas []faas.Replica
}

// Saved returns the sources of a kind: right after [Open], those from before the
// start. Who owns the kind opens each of them anew ([Table.Source]), or closes it.
func (t *Table) Saved(kind string) []Saved {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Saved
	for key, s := range t.sources {
		if key.kind == kind {
			all = append(all, s.saved())
		}
	}
	return all
}

func (s *Source) saved() Saved {
	r := Saved{Name: s.name, Lease: s.lease}
	for _, e := range s.replicas {
		r.Replicas = append(r.Replicas, e.replica)
	}
	return r
}

// live says whether the source still speaks for its replicas. mu is held.
func (s *Source) live() bool { return s.t.sources[sourceKey{s.kind, s.name}] == s }

// Observe takes note of a replica's state as [Table.Observe] does, on this
// source's word. What it says of others' replicas is ignored. It counts as heard.
func (s *Source) Observe(r faas.Replica) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if !s.live() {
		return
	}
	s.hear(time.Now())
	s.t.observe(r, s)
}

// Idle is [Table.Idle].
func (s *Source) Idle(ctx context.Context, id string) error { return s.t.Idle(ctx, id) }

// Heard notes a sign of life. It returns false if the source is removed, or
// another has taken its place.
func (s *Source) Heard() bool {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if !s.live() {
		return false
	}
	s.hear(time.Now())
	return true
}

// hear notes a sign of life. mu is held.
func (s *Source) hear(now time.Time) {
	s.heard = now
	s.failed, s.answered = 0, false
	if s.suspected {
		s.t.wake() // for Run to decide whether it is trusted again
	}
}

// Agree changes what is agreed with the source.
func (s *Source) Agree(l Lease) error {
	if len(l.Detail) > maxDetail {
		return faas.Errorf(faas.ErrTooLarge, "%s is told of with %d bytes of details, at most %d are allowed", s.name, len(l.Detail), maxDetail)
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.lease = l
	if s.live() {
		s.t.keep()
		s.t.wake()
	}
	return nil
}

// Close removes the source, and all its replicas.
func (s *Source) Close() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.live() {
		s.remove("its source said goodbye")
	}
}

// remove takes the source and its replicas out of the table. mu is held.
func (s *Source) remove(why string) {
	now := time.Now()
	for _, e := range s.replicas {
		r := e.replica
		r.State, r.Since, r.Reason = faas.Gone, now, why
		s.t.observe(r, s)
	}
	delete(s.t.sources, sourceKey{s.kind, s.name})
	s.t.keep()
}

// suspect sets whether the source's replicas are suspect. mu is held.
func (s *Source) suspect(is bool, now time.Time) {
	s.suspected = is
	if is {
		copy(s.turns[1:], s.turns[:])
		s.turns[0] = now
	}
	for _, e := range s.replicas {
		e.suspect.Store(is)
		s.t.tell(e)
	}
}

// wake has Run look at once.
func (t *Table) wake() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// keep notes that what is on disk is not what is known. mu is held.
func (t *Table) keep() {
	if t.cfg.Path != "" && !t.changed {
		t.changed = true
		t.wake()
	}
}
