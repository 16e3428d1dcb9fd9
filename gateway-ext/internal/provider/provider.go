// Package provider runs replicas of functions. [Provider] is the contract that
// whatever can run them meets: [Process] starts them as plain processes on this
// machine. Package providertest has the suite that holds each implementation to
// the contract.
//
// A provider is told what is wanted ([Provider.Apply]) and brings it about on
// its own: it fetches the image, starts replicas, waits until they are ready,
// restarts those that crash, moves to a new revision without a gap, and stops
// what is no longer wanted. Nothing in it waits for a caller, and no function's
// trouble delays another's. It tells its [Observer] of each replica's steps, in
// order. Where replicas are placed, how many there should be and what is
// remembered over a restart is decided elsewhere.
package provider

import (
	"context"
	"iter"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Provider runs functions on one node. All methods may be called at the same
// time by any number of goroutines.
type Provider interface {
	// Apply asks for the workload to run, in place of what was asked for under
	// this name before. It returns as soon as the wish is noted: fetching and
	// starting go on behind it, and [Provider.Status] tells how far they are.
	//
	// A new revision is started beside the old one, which goes on serving
	// until enough of the new is ready, and is then drained. With the same
	// revision only the number of replicas and the secrets' values can differ:
	// replicas are added, or drained, and secrets are replaced in place.
	// 0 replicas stop all of them, and keep the name.
	Apply(ctx context.Context, w Workload) error

	// Remove drains and stops all replicas of a function, and forgets it and
	// its secrets. It returns when the last process is gone or ctx ends; the
	// work goes on if ctx ends first. The name may be applied again at once.
	Remove(ctx context.Context, name faas.Name) error

	// Status returns how far a function is, and false if it is not known here.
	Status(name faas.Name) (Status, bool)

	// Logs returns what the function's replicas wrote, oldest first, and what
	// the platform has to say of them (a failed pull, a crash). With Follow it
	// goes on until ctx ends, with replicas that come later too. A reader that
	// is slow loses the oldest lines and delays nobody.
	Logs(ctx context.Context, r logs.Request) iter.Seq2[logs.Message, error]
}

// Workload is what a node should run of one function.
type Workload struct {
	Function faas.Function // Digest set; Replicas is how many this node should run
	Secrets  map[string][]byte
}

// Status is how far a node is with one function.
type Status struct {
	Revision uint64         // the newest revision asked for
	Replicas []faas.Replica // all that are not gone, of any revision
	// Reason says, in words for the function's owner, why fewer replicas than
	// wanted are ready: an image that is not there, a crash with its exit code.
	// It is empty while all goes well.
	Reason string
	Usage  *types.FunctionUsage // nil where it can't be measured
	Used   []Used               // the same for each replica; empty where it can't be measured
}

// Used is what one replica has used, as of less than two seconds ago.
type Used struct {
	Replica string        // its ID
	CPU     time.Duration // CPU time since it was started
	Memory  int64         // bytes that it holds now
}

// Room is what a node has left for more replicas.
type Room struct {
	Node string

	// Memory is how many bytes are free, after what replicas that are just
	// starting asked for (requests.memory, else limits.memory) and a reserve for
	// the machine itself. Negative is unknown.
	Memory int64

	// CPU is how many thousandths of a processor nobody has reserved by
	// requests.cpu. Negative is unknown.
	CPU int64
}

// Ready counts the replicas of any revision that take requests.
func (s Status) Ready() (n uint64) {
	for _, r := range s.Replicas {
		if r.State == faas.Ready {
			n++
		}
	}
	return n
}

// Observer is told of every step of every replica.
type Observer interface {
	// Observe is called in order for each replica, and must not block. When it
	// returns from a replica's Draining, no further request is given to it.
	Observe(faas.Replica)

	// Idle returns nil when no request given to the replica is in flight any
	// more, or ctx's error. It is called between Draining and the replica's
	// stop, so that what is in flight is finished.
	Idle(ctx context.Context, id string) error
}

// Images brings images onto this machine.
type Images interface {
	// Fetch returns the image, from disk if it is there, else pulled. ref names
	// a repository and a digest. The image stays on disk until release is
	// called. An error says what the function's owner can do about it.
	Fetch(ctx context.Context, ref string) (img faas.Image, release func(), err error)
}
