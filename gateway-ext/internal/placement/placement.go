// Package placement decides which nodes run the replicas of a function, and says
// why. It is pure: it looks at the nodes and functions that it is given and at
// nothing else, the same input always gives the same plan, and nothing happens
// until somebody obeys it.
//
// Some things a node must have: a platform that the image is made for, what the
// function's constraints ask for, room for its requests. Among the
// nodes that have it all, replicas are spread: over nodes before zones, away
// from nodes that lately failed, then to where the image is already, then to
// where most is free. A replica that runs is moved only for a reason: its node
// is gone, is being drained, or is no longer right for it; and gently, one at a
// time, when the replicas of a function are crowded on few nodes while others,
// such as one that has come back, have none.
//
// A plan is what each node should run ([Step]), in the same terms as a provider
// is told ([provider.Provider.Apply]). Moving never leaves fewer ready replicas
// than wanted: the new one comes first, and must be ready before the old goes.
//
// [provider.Provider.Apply]: https://pkg.go.dev/github.com/seed-780dceda/thicket/gateway-ext/internal/provider#Provider
package placement

import "github.com/seed-780dceda/thicket/gateway-ext/internal/faas"

// State is whether a node can be counted on.
type State int

const (
	Ready   State = iota // it answers
	Suspect              // not heard of for a while: what it runs counts, and nothing new comes
	Gone                 // what it ran is lost
)

// Node is a machine, or a whole cluster, that can run replicas.
type Node struct {
	Name   string
	State  State
	Labels map[string]string // "zone" is one that spreading knows

	// Cordoned nodes get nothing new. Draining ones give up what they have, too.
	Cordoned, Draining bool

	// Closed is why a node gets nothing new though nobody has cordoned it: "it
	// comes and goes". Full is why it gets only what it has the image of: "its
	// disk is full". Empty if nothing speaks against it.
	Closed, Full string

	// Platforms are those that its replicas can be for, as OCI writes them, its
	// own first: "linux/arm64", "linux/arm/v7". Empty is any, which is right for
	// a cluster that finds out for itself.
	Platforms []string

	// Memory in bytes and CPU in thousandths of a core are what all replicas
	// together may use. 0 is not known, and without a bound.
	Memory, CPU int64

	// PerFunction is how many replicas of one function it can run; 0 is any number.
	PerFunction int

	// Failures is how many functions could lately not be started there. It is
	// for the caller to let it fade.
	Failures int

	// Others is what is taken there by functions that aren't decided on.
	Others Use
}

// Use is what replicas take of a node.
type Use struct{ asked, weight amount }

// Add adds n replicas of a function.
func (u *Use) Add(n int, f *Function) {
	u.asked = u.asked.plus(n, f.asks())
	u.weight = u.weight.plus(n, f.weighs())
}

// Function is what is wanted of one function, and what there is of it.
type Function struct {
	Name     faas.Name
	Replicas int // wanted

	Platforms   []string // that the image is made for; empty is any
	Constraints []Constraint
	// Barred says, by the names of nodes, why it can't be there for a reason that
	// is the node's own: what is there can't do what it needs.
	Barred      map[string]string
	Memory, CPU int64 // that each replica asks for: bytes, thousandths of a core
	Holders     []int // nodes that have the image, as indexes, ascending

	// Failing are nodes, as indexes, on which it could lately not be started:
	// others are better. Only if there are no others it goes there, or stays.
	Failing []int

	// Shares are what nodes were told to run; each node has at most one.
	Shares []Share

	// Surge is how many replicas it has beyond those wanted while one moves: 0 or 1.
	Surge int
}

// Share is one node's part of a function.
type Share struct {
	Node  int // its index
	Want  int // replicas that it was told to run
	Ready int // of these
}

// Step is one change: from now on the node should run so many replicas.
type Step struct {
	Function int // its index
	Node     int // its index
	Replicas int
	Why      string // "best: image present, 612 MiB free"
}

// Short is a function that has fewer places than it wants.
type Short struct {
	Function int
	Missing  int
	Why      string // with a reason for each node
}

// Plan is what should change.
type Plan struct {
	Steps []Step
	Short []Short

	// Surge is the new [Function.Surge] of those functions whose it changes.
	Surge map[int]int

	// More says that the round had to stop before it had looked at all that is
	// missing: another should follow.
	More bool
}

// Limits bound what one round does, so that a large fleet moves in steps.
type Limits struct {
	// Placements is how many replicas one round places. Default 4096.
	Placements int
	// Moves is how many functions may have a replica on the way, to spread them
	// better, at a time. 0 moves nothing: right while nodes come and go.
	Moves int
}

// enough is how many nodes that would do are compared for one replica. In a
// fleet with more, the best of these is taken: comparing all would cost more
// than it gives, as the best of 64 random ones is in the best twentieth with a
// probability of 96 %.
const enough = 64

// Decide returns what should change. Nodes and functions are in any order, which
// has no influence on where a replica goes, but must be the same as in the
// indexes of shares.
func Decide(nodes []Node, functions []Function, limits Limits) Plan {
	if limits.Placements <= 0 {
		limits.Placements = 4096
	}
	r := newRound(nodes, functions)
	r.limits = limits
	for i := range functions {
		r.moving += functions[i].Surge
	}
	for i := range functions {
		r.settle(i, &functions[i])
	}
	return r.plan
}
