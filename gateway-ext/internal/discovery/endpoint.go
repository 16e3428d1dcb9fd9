package discovery

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// closed is the bit of [Endpoint.load] that says that the endpoint takes no more
// requests. The bits below it count those in flight; 2^62 are enough.
const closed = 1 << 62

// Endpoint is a replica as requests see it. Its exported fields never change once
// it is in a [Route].
type Endpoint struct {
	ID       string
	Function faas.Name
	Revision uint64
	Node     string
	Zone     string // what the node shares with others near it; may be empty
	Addr     netip.AddrPort
	// Path is what the paths of its requests begin with, and Host by what name it
	// is called, of one that hasn't the address for itself; see [faas.Replica].
	Path, Host string
	Ready      time.Time // when this process learnt that it is

	// load is the number of requests in flight, and the closed bit. Because
	// both are one word, who adds a request learns in the same step whether
	// it came too late: there is no moment in which a request can slip in
	// between the look at the bit and the count.
	load atomic.Int64
	idle chan struct{} // closed when load becomes closed with none in flight
	once sync.Once     // closes idle

	suspect atomic.Bool

	source *Source // nil if it is this process's own provider

	// The table's mu guards these.
	replica faas.Replica
	told    time.Time // when watchers that need notice know that it drains
}

func newEndpoint(r faas.Replica, from *Source) *Endpoint {
	e := &Endpoint{
		ID: r.ID, Function: r.Function, Revision: r.Revision, Node: r.Node, Zone: r.Zone, Addr: r.Addr, Path: r.Path, Host: r.Host,
		idle:    make(chan struct{}),
		source:  from,
		replica: r,
	}
	if from != nil {
		e.suspect.Store(from.suspected)
	}
	return e
}

// Kind is what the source that told of the replica has in common with others, or
// [Local].
func (e *Endpoint) Kind() string {
	if e.source == nil {
		return Local
	}
	return e.source.kind
}

// status tells what is known of it. The table's mu is held.
func (e *Endpoint) status(now time.Time) Status {
	s := Status{Replica: e.replica, InFlight: e.InFlight(), Source: e.Kind(), Suspect: e.Suspect(), LastSeen: now}
	if e.source != nil {
		s.LastSeen = e.source.heard
	}
	return s
}

// Acquire holds the endpoint for one request. It returns false if the endpoint
// takes none any more; its function's route is then another than the one it was
// found in. After true, call [Endpoint.Release] exactly once.
func (e *Endpoint) Acquire() bool {
	if e.load.Add(1)&closed == 0 {
		return true
	}
	e.Release()
	return false
}

// Release says that the request which acquired the endpoint is finished.
func (e *Endpoint) Release() {
	if e.load.Add(-1) == closed {
		e.once.Do(func() { close(e.idle) })
	}
}

// Suspect says that whoever told of the replica has been silent for longer than
// agreed: it may be gone. It deserves less traffic than others, and is the right
// one to ask if there are no others.
func (e *Endpoint) Suspect() bool { return e.suspect.Load() }

// InFlight returns how many requests hold the endpoint.
func (e *Endpoint) InFlight() int64 { return e.load.Load() &^ closed }

// close lets nobody acquire the endpoint any more.
func (e *Endpoint) close() {
	if e.load.Or(closed)&^closed == 0 {
		e.once.Do(func() { close(e.idle) })
	}
}
