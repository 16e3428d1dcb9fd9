// Package balance decides which of several replicas gets a request. The gateway
// and the functions that call replicas directly share it, so that what people
// write as thicket.balance means the same wherever the choice is made.
//
// A [Balancer] belongs to one target and to one who calls it. It has a [Rule],
// and a [Member] for each replica, which is told what came of every call
// ([Member.Done]) and remembers what matters: how long calls take lately, and how
// many fail. A [View] is one list of members; its Pick returns the index of the
// one to ask.
//
// What it promises: to pick takes no lock and allocates nothing, and so does to
// tell of a call. Time and chance are given to it, so that what it does can be
// repeated. A replica that is full or left alone ([Look]) is never picked, and one
// that was left out because it fails more than its siblings (it is ejected) is
// picked if nothing better is left: the list is never empty because of what was
// learnt.
//
// What it leaves to others: to know the replicas, to count what they have in
// flight, to bound that, and to judge a replica by itself, which is what the
// breakers of functions/resilience do. This package judges it by its siblings.
package balance

import (
	"cmp"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// The numbers by which replicas are judged. docs/balancing.md shows what they do.
const (
	// What was learnt of a replica is half forgotten after 7 s: that is fast
	// enough to notice that it is well again, and slow enough that one odd
	// call in a hundred doesn't drive everybody to and fro.
	memory = 10 * time.Second

	// A replica that has just become ready gets a tenth of its share of the
	// picks, and more of them evenly until it gets all.
	// Meanwhile it learns ten times as fast, since it changes as fast.
	slowStart      = 15 * time.Second
	slowStartFirst = 0.1
	warmingHaste   = 10

	// Who told of a replica is silent: it may be gone.
	suspectWeight = 0.25

	// The nearest replicas get all calls until they cost so many times what the
	// others do, or fewer than half of them are well.
	nearAdvantage = 1.5

	// Costs that differ by less are the same: otherwise the replica that was a
	// millisecond slower the last time would get nothing on a quiet day.
	sameCost = 1.25

	// A call that failed costs so many times the usual latency at least, or to
	// fail fast would look like being fast.
	failureCost = 10
)

// Eject says which replicas are left out for a while because they do worse than
// their siblings: 10 s the first time, 20 s the second, up to 120 s, a fifth more
// or less at random; never more than half of them, and never the last.
type Eject uint8

// The ways to eject.
const (
	EjectOutliers Eject = iota // who fails several times in a row, or clearly more often than its siblings
	EjectByRate                // only the latter: somebody else watches for failures in a row
	EjectNone
)

// Config says how a [Balancer] picks. The zero value is the default rule,
// everywhere alike.
type Config struct {
	// Rule is how to pick. The zero Rule is the default, p2c.
	Rule Rule

	// Node and Zone are where the one is who picks. Replicas of the same node,
	// or else of the same zone, are preferred by the rules that look at it. Both
	// empty, and no replica is nearer than another.
	Node, Zone string

	// Penalty is the least that a call which failed costs, on top of the time that
	// it took, and should be what it costs its caller to notice and to ask
	// another: the limit of each attempt. It is never less than ten times what
	// calls usually take.
	Penalty time.Duration

	// Eject says who is left out. Default [EjectOutliers].
	Eject Eject

	// Random returns random numbers. Nil is [rand.Uint64]; tests pass a seeded one.
	Random func() uint64
}

// Balancer picks replicas of one target. It is made by [New], and all that is
// made by it may be used by any number of goroutines at the same time.
type Balancer struct {
	cfg   Config
	epoch time.Time // times are kept as nanoseconds since then

	turn   atomic.Uint64 // of the rules that take turns
	median atomic.Uint64 // of the members' latencies, as bits of nanoseconds; 0 if nothing is known
	next   atomic.Int64  // when members are compared again

	comparing atomic.Bool // somebody compares; guards below, and what a Member says of it
	scratch   []float64
	compared  int64 // when members were compared last
}

// New returns a balancer without members. now is any time of the clock by which
// it is asked later.
func New(cfg Config, now time.Time) *Balancer {
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	return &Balancer{cfg: cfg, epoch: now}
}

// Replica is what a [Member] stands for. It is asked at each pick, and must be quick.
type Replica interface {
	Look(now time.Time) Look
}

// Look is how a replica looks at one moment to the one who picks.
type Look struct {
	InFlight int64 // calls that it has
	Full     bool  // that is as many as it takes
	Out      bool  // it is to be left alone: its breaker is open
	Suspect  bool  // who told of it is silent; it gets a quarter
	Trusted  bool  // somebody says that it is well: it isn't left out for doing worse than others
}

// Place is where a replica is, and since when it is ready.
type Place struct {
	ID    string // names it everywhere alike, for consistent hashing
	Node  string
	Zone  string
	Since time.Time // it is warming up for 15 s from then on; zero if it is warm
}

// Member makes a member for a replica. It is to be kept as long as the replica
// lives, through all lists that it is in.
func (b *Balancer) Member(r Replica, p Place) *Member {
	m := &Member{b: b, replica: r, hash: hash(p.ID)}
	m.since.Store(longAgo)
	m.ejected.Store(longAgo)
	if !p.Since.IsZero() {
		m.since.Store(int64(p.Since.Sub(b.epoch)))
	}
	switch {
	case p.Node != "" && p.Node == b.cfg.Node:
		m.near = sameNode
	case p.Zone != "" && p.Zone == b.cfg.Zone:
		m.near = sameZone
	}
	return m
}

// How near a member is.
const (
	elsewhere = iota
	sameZone
	sameNode
)

// View is a list of members to pick from. It never changes, and is made anew
// when a replica comes or goes.
type View struct {
	b       *Balancer
	members []*Member

	// Indices of members: all, and those that are near and the others where
	// the rule makes a difference between them. int32 halves what a pick reads.
	all, near, far []int32

	panic   atomic.Bool // fewer than half are well
	nearIll atomic.Bool // fewer than half of those near are well
}

// View returns a view of members, which it keeps and nobody may change.
func (b *Balancer) View(members []*Member) *View {
	v := &View{b: b, members: members, all: make([]int32, len(members))}
	nearest := elsewhere
	for i, m := range members {
		v.all[i] = int32(i)
		nearest = max(nearest, m.near)
	}
	if b.cfg.Rule.kind == zonePreference {
		nearest = min(nearest, sameZone)
	}
	if nearest > elsewhere && b.cfg.Rule.looksAround() {
		for i, m := range members {
			if m.near >= nearest {
				v.near = append(v.near, int32(i))
			} else {
				v.far = append(v.far, int32(i))
			}
		}
	}
	if len(v.far) == 0 {
		v.near = nil
	}
	b.next.Store(math.MinInt64)
	return v
}

// Len returns how many members the view has.
func (v *View) Len() int { return len(v.members) }

// usual returns the latency to assume of who is not known, in nanoseconds.
func (b *Balancer) usual() float64 {
	return cmp.Or(math.Float64frombits(b.median.Load()), float64(time.Millisecond))
}
