package balance_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// A simulation in virtual time: callers who come at random, two gateways that
// pick without knowing of one another, and replicas that have a queue. It is a
// discrete event loop with a seed: the same numbers each time, on any machine
// with the same floating-point arithmetic, as fast as it computes.

// What is simulated, beside the rule.
const (
	simGateways = 2
	simWorkers  = 2                      // calls that a replica works on at the same time; the others queue
	simFixed    = 10 * time.Millisecond  // of the time that a call takes
	simRandom   = 10 * time.Millisecond  // the mean of the rest, which is distributed exponentially
	simLoad     = 0.5                    // of what the replicas can do when all are well
	simLimit    = 5 * time.Second        // who waits longer goes, and has a failure
	simFailure  = 500 * time.Microsecond // how fast one fails that fails fast
	simKeys     = 1000                   // different values of what consistent-hash goes by
	simBefore   = 10 * time.Second       // all is well; not measured
	simAfter    = 40 * time.Second       // measured
	simCold     = 50                     // calls that one who was just started needs to become quick
	simSlow     = 10                     // times that one takes who is slow, or cold
)

// trouble is what one of the replicas, the first, has from simBefore on.
type trouble int

const (
	noTrouble  trouble = iota
	slow               // takes ten times as long
	failsFast          // answers at once, with a failure
	justBegan          // wasn't there before, and takes ten times as long for its first calls
	isSuspect          // who told of it is silent
	someErrors         // fails 3 of 10 calls, after the usual time
)

// setup is what one simulation is about.
type setup struct {
	rule     string
	replicas int
	trouble  trouble
	eject    balance.Eject
	limit    int     // calls at the same time at each replica, of each gateway; 0 is any number
	load     float64 // 0 is simLoad
	zones    int     // how many zones the replicas are spread over; all gateways are in the first
	seed     uint64
}

// result is what was measured.
type result struct {
	calls    int
	p50, p99 time.Duration   // of calls, whatever came of them
	failures float64         // of all calls
	shares   []float64       // of the calls that each replica got
	later    []float64       // the same of the second half
	most     int             // calls that one gateway had at one replica at the same time
	refused  int             // calls for which no replica was picked
	waited   []time.Duration // latencies, sorted
}

// event is something that happens at a time.
type event struct {
	at  time.Duration
	seq int // those of the same time happen in the order in which they were planned
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// world is a simulation that runs.
type world struct {
	setup
	random *rand.Rand
	now    time.Duration
	seq    int
	plan   events
	server []*server
	gates  []*gateway
	result
	half []int // calls of the second half, for each replica
	got  []int
}

// server is a replica.
type server struct {
	w     *world
	i     int
	busy  int
	queue []func()
	calls int // since it began
}

// gateway is one who picks.
type gateway struct {
	view  *balance.View
	faces []*face
}

// face is a replica as one gateway sees it.
type face struct {
	w        *world
	i        int
	inFlight int
	member   *balance.Member
}

// Look implements [balance.Replica].
func (f *face) Look(time.Time) balance.Look {
	return balance.Look{
		InFlight: int64(f.inFlight),
		Full:     f.w.limit > 0 && f.inFlight >= f.w.limit,
		Suspect:  f.w.trouble == isSuspect && f.i == 0 && f.w.now >= simBefore,
	}
}

// simulate runs a simulation to its end.
func simulate(s setup) result {
	w := &world{setup: s, random: rand.New(rand.NewPCG(7, s.seed)), got: make([]int, s.replicas), half: make([]int, s.replicas)}
	rule, err := balance.Parse(s.rule)
	if err != nil {
		panic(err) // of the test's own words
	}
	for i := range s.replicas {
		w.server = append(w.server, &server{w: w, i: i})
	}
	for range simGateways {
		b := balance.New(balance.Config{Rule: rule, Eject: s.eject, Zone: "zone-0", Random: w.random.Uint64}, start)
		g := &gateway{}
		for i := range s.replicas {
			place := balance.Place{ID: fmt.Sprintf("replica-%d", i)}
			if s.zones > 0 {
				place.Zone = fmt.Sprintf("zone-%d", i%s.zones)
			}
			if s.trouble == justBegan && i == 0 {
				place.Since = start.Add(simBefore)
			}
			f := &face{w: w, i: i}
			f.member = b.Member(f, place)
			g.faces = append(g.faces, f)
		}
		first := 0
		if s.trouble == justBegan {
			first = 1
			all := g.faces
			w.at(simBefore, func() { g.show(b, all) })
		}
		g.show(b, g.faces[first:])
		w.gates = append(w.gates, g)
	}
	mean := simFixed + simRandom
	load := s.load
	if load == 0 {
		load = simLoad
	}
	every := time.Duration(float64(mean) / (load * float64(s.replicas*simWorkers)))
	var arrive func()
	arrive = func() {
		w.call(w.gates[w.random.IntN(simGateways)])
		w.at(w.now+time.Duration(w.random.ExpFloat64()*float64(every)), arrive)
	}
	w.at(0, arrive)
	for w.now < simBefore+simAfter {
		e := heap.Pop(&w.plan).(event)
		w.now = e.at
		e.do()
	}
	slices.Sort(w.waited)
	if n := len(w.waited); n > 0 {
		w.p50, w.p99 = w.waited[n/2], w.waited[n*99/100]
		w.failures /= float64(n)
	}
	w.calls = len(w.waited)
	w.shares, w.later = shareOf(w.got), shareOf(w.half)
	return w.result
}

func shareOf(calls []int) (shares []float64) {
	sum := 0
	for _, n := range calls {
		sum += n
	}
	for _, n := range calls {
		shares = append(shares, float64(n)/float64(max(sum, 1)))
	}
	return shares
}

// show has the gateway pick from these from now on.
func (g *gateway) show(b *balance.Balancer, faces []*face) {
	var members []*balance.Member
	for _, f := range faces {
		members = append(members, f.member)
	}
	g.faces, g.view = faces, b.View(members)
}

func (w *world) at(t time.Duration, do func()) {
	w.seq++
	heap.Push(&w.plan, event{t, w.seq, do})
}

// call is one call, from its arrival at a gateway to its end there.
func (w *world) call(g *gateway) {
	arrived := w.now
	key := mixed(w.random.Uint64N(simKeys) + 1)
	i := g.view.Pick(start.Add(w.now), key, nil)
	if i < 0 {
		w.refused++
		return
	}
	f := g.faces[i]
	f.inFlight++
	w.most = max(w.most, f.inFlight)
	measured := arrived >= simBefore
	if measured {
		w.got[f.i]++
		if arrived >= simBefore+simAfter/2 {
			w.half[f.i]++
		}
	}
	over := false
	end := func(ok bool) {
		if over {
			return
		}
		over = true
		f.inFlight--
		took, said := w.now-arrived, balance.Good
		if !ok {
			said = balance.Failed
		}
		f.member.Done(start.Add(w.now), took, said)
		if measured {
			w.waited = append(w.waited, took)
			if !ok {
				w.failures++
			}
		}
	}
	w.at(arrived+simLimit, func() { end(false) })
	w.server[f.i].call(end)
}

// mixed spreads keys as hashes would.
func mixed(k uint64) uint64 { return k * 0x9e3779b97f4a7c15 }

// call works on a call, or lets it wait until it can.
func (s *server) call(end func(ok bool)) {
	ill := s.i == 0 && s.w.now >= simBefore
	if ill && s.w.trouble == failsFast {
		s.w.at(s.w.now+simFailure, func() { end(false) })
		return
	}
	work := func() {
		s.busy++
		s.calls++
		took := simFixed + time.Duration(s.w.random.ExpFloat64()*float64(simRandom))
		ill := s.i == 0 && s.w.now >= simBefore
		if ill && (s.w.trouble == slow || s.w.trouble == justBegan && s.calls <= simCold) {
			took *= simSlow
		}
		fails := ill && s.w.trouble == someErrors && s.w.random.IntN(10) < 3
		s.w.at(s.w.now+took, func() {
			s.busy--
			end(!fails)
			if len(s.queue) > 0 {
				next := s.queue[0]
				s.queue = s.queue[1:]
				next()
			}
		})
	}
	if s.busy < simWorkers {
		work()
		return
	}
	s.queue = append(s.queue, work)
}
