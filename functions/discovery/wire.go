package discovery

import (
	"net/netip"
	"time"
)

// What travels between a gateway and its clients. The gateway serves, below the
// address that a function finds in THICKET_DISCOVERY_URL (which ends in
// /system/discovery), to who sends "Authorization: Bearer" and the token in
// THICKET_DISCOVERY_TOKEN:
//
//	GET  /system/discovery         a Snapshot, as JSON
//	GET  /system/discovery/events  an event stream, text/event-stream
//	POST /system/discovery/usage   a Usage, as JSON; answered 204
//
// The stream begins with an event "snapshot", whose data is a [Snapshot]. Each
// step in a replica's life follows as an event "replica", whose data is a
// [Replica], in the order in which they happened. A snapshot may also come in
// between, and replaces all that was known. Who comes again is told all anew.
// Events have the version as their id. Those of other names are to be ignored, and
// so are fields that are not known. While nothing happens a comment is sent every
// [Heartbeat].
//
// A replica's draining is told before it is stopped, and it is stopped no sooner
// than [Notice] after that, so that clients have stopped to send to it.
const (
	// Path is where a gateway has all of it.
	Path = "/system/discovery"

	EventSnapshot = "snapshot" // the stream's event with a Snapshot
	EventReplica  = "replica"  // the stream's event with a Replica

	// Heartbeat is the longest time for which the stream is silent. A client
	// that hears nothing for three times as long takes it for dead.
	Heartbeat = 2 * time.Second

	// Notice is how long clients have to learn that a replica drains.
	Notice = 100 * time.Millisecond
)

// Snapshot is all replicas at one moment.
type Snapshot struct {
	// Version grows with each step in a replica's life, until the gateway is
	// started anew. It is the id of the stream's event.
	Version  uint64    `json:"version"`
	Replicas []Replica `json:"replicas"`
}

// Name is a function's full name.
type Name struct {
	Function  string `json:"name"`
	Namespace string `json:"namespace"`
}

// String returns "function.namespace".
func (n Name) String() string { return n.Function + "." + n.Namespace }

// The states of a replica. Only one that is ready gets requests. One that is
// draining finishes those it has.
const (
	StateStarting = "starting"
	StateReady    = "ready"
	StateDraining = "draining"
	StateGone     = "gone" // the last event about a replica; never in a snapshot
)

// Replica is one running copy of a function, as a client sees it.
type Replica struct {
	ID       string         `json:"id"` // never used again
	Function Name           `json:"function"`
	Node     string         `json:"node"`           // the machine that it runs on
	Zone     string         `json:"zone,omitempty"` // what its node shares with others: a switch, a room
	Addr     netip.AddrPort `json:"addr"`           // a loopback address is one of its node
	State    string         `json:"state"`

	// Age is for how many seconds it has been in this state, as of when this
	// was sent: clocks of different machines are not compared.
	Age float64 `json:"age"`

	// Suspect says that whoever told of the replica has been silent for longer
	// than agreed. It gets less until that is cleared up.
	Suspect bool `json:"suspect,omitempty"`

	// Limit is how many requests it takes at the same time, from all clients
	// together; 0 is no limit.
	Limit int `json:"limit,omitempty"`

	// Weight is the share of traffic that it deserves, compared with others of
	// its function: 1, or 0.25 of a suspect.
	Weight float64 `json:"weight"`

	// The rest is for people.

	Revision uint64 `json:"revision"` // which declaration of the function it runs
	InFlight int64  `json:"inFlight"` // requests that the gateway has there now
	Source   string `json:"source"`   // who told of it: "local", "eureka"

	Since    time.Time `json:"since"`             // when it entered its state
	LastSeen time.Time `json:"lastSeen,omitzero"` // when its source was last heard; not since the gateway's start if it is missing
	Reason   string    `json:"reason,omitempty"`  // why it isn't ready, if it registered itself
}

// Usage tells the gateway about calls that it hasn't seen, since they went
// straight to replicas, so that it counts them and scales by them. It is sent
// once a second, and not when there is nothing to tell.
type Usage struct {
	// Client is who called: a replica's id where it is one.
	Client string `json:"client"`

	// Seconds is how long the period was that this tells of. Periods of one
	// client follow one another without an overlap; they are longer than a second,
	// up to some minutes, after the gateway couldn't be told.
	Seconds float64 `json:"seconds"`

	// Functions has those that were called or had calls in flight, at most
	// [MaxUsage] of them.
	Functions []FunctionUsage `json:"functions"`
}

// MaxUsage is how many functions one [Usage] may tell of.
const MaxUsage = 100

// FunctionUsage is what happened to one function's direct calls in a period.
// What the client sent through the gateway is not in it.
type FunctionUsage struct {
	Function Name `json:"function"`

	// A call is counted once, however often it was sent, and not at all if it went
	// through the gateway in the end. Started is how many calls began, InFlight how many had not ended when the
	// period did.
	Started  uint64 `json:"started"`
	InFlight int    `json:"inFlight"`

	// Busy is the sum, over all calls, of the seconds of this period in which
	// they were in flight: divided by the period's length, how many were in
	// flight on average.
	Busy float64 `json:"busy"`

	// Ended is how many calls ended, by the status of their answer. One that
	// got none counts as a 502, as a 504 if its time was over, and as a 499 if its
	// caller left.
	Ended []Ended `json:"ended,omitempty"`
}

// Ended is how many calls ended with one status, and how long all of them took
// together.
type Ended struct {
	Status  int     `json:"status"`
	Calls   uint64  `json:"calls"`
	Seconds float64 `json:"seconds"`
}
