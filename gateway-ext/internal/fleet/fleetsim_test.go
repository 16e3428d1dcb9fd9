package fleet_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/metrics"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// A simulated fleet: what decides how many replicas a function has, and what
// decides where they are, are the real thing; nodes, images and calls are
// simulated, second by second. Nothing waits.
const (
	readyAfter = 2  // seconds until a replica is ready
	fetchAfter = 8  // and as many more where the image has to be fetched
	simSuspect = 3  // seconds after which a silent node is suspect
	simGone    = 7  // and gone
	simCalm    = 30 // seconds that all nodes must have been there for replicas to be moved

	simMemory   = 48 << 20 // of a replica
	simNodes    = 4096 << 20
	simDay      = 3600 // seconds: a day of loads
	simCallEach = 5    // one function in five is called
)

// fleetSim is a fleet in virtual time.
type fleetSim struct {
	nodes     []placement.Node
	functions []placement.Function
	loads     []simLoad
	rand      *rand.Rand

	now    int         // seconds since it began
	began  time.Time   // what the second 0 is for decisions
	silent map[int]int // nodes that are lost, and since when
	calm   int         // since when all nodes are there
	due    map[int][]simBegun
	used   []int64 // memory of each node
	called bool    // functions are called now
	crowd  bool    // and all of them

	moved int // steps
	took  []time.Duration
	bytes []float64
}

// simLoad is how a function is called.
type simLoad struct {
	scale  faas.Scale
	most   float64 // calls in flight at noon
	phase  float64 // when that is
	spike  int     // until when it is called ten times as much
	sum    float64
	window *fleet.Window
	memory fleet.Memory
}

// simBegun is a replica that becomes ready.
type simBegun struct{ function, node int }

// newFleetSim makes n nodes on twenty shelves, of three kinds, and ten functions
// for each.
func newFleetSim(n int) *fleetSim {
	s := &fleetSim{
		nodes: make([]placement.Node, n), functions: make([]placement.Function, 10*n), loads: make([]simLoad, 10*n), used: make([]int64, n),
		rand: rand.New(rand.NewPCG(uint64(n), 5)), began: time.Unix(1e9, 0), silent: make(map[int]int), due: make(map[int][]simBegun),
	}
	platforms := [][]string{{"linux/arm64", "linux/arm/v7", "linux/arm/v6"}, {"linux/amd64"}, {"linux/arm/v7", "linux/arm/v6"}}
	for i := range s.nodes {
		s.nodes[i] = placement.Node{
			Name: fmt.Sprintf("node-%04d", i), Memory: simNodes, CPU: 4000, Platforms: platforms[i%3],
			Labels: map[string]string{"zone": fmt.Sprint("shelf-", i%20), "disk": []string{"ssd", "sd"}[i/3%2]},
		}
	}
	ssd, err := placement.ParseConstraint("node.labels.disk==ssd")
	if err != nil {
		panic(err)
	}
	for i := range s.functions {
		s.functions[i] = placement.Function{
			Name: faas.Name{Function: fmt.Sprintf("function-%05d", i), Namespace: faas.DefaultNamespace}, Replicas: 1 + i%4, Memory: simMemory, CPU: 20,
			Platforms: [][]string{nil, {"linux/amd64", "linux/arm64"}, {"linux/arm/v6"}}[i%3],
		}
		if i%10 == 0 {
			s.functions[i].Constraints = []placement.Constraint{ssd}
		}
		s.loads[i] = simLoad{
			scale: faas.Scale{Min: 1 + i%4, Max: 8, Factor: 10, Target: 10, Proportion: 0.7, Type: faas.ScaleCapacity, ByLoad: true},
			most:  1 + 24*s.rand.Float64(), phase: s.rand.Float64() / 4,
		}
	}
	return s
}

// second is a second: what was begun is done, then all is decided, and begun.
func (s *fleetSim) second() {
	s.now++
	for _, d := range s.due[s.now] {
		s.ready(d)
	}
	delete(s.due, s.now)
	for node, since := range s.silent {
		switch s.now - since {
		case simSuspect:
			s.nodes[node].State = placement.Suspect
		case simGone:
			s.nodes[node].State = placement.Gone
		}
	}
	if len(s.silent) > 0 {
		s.calm = s.now
	}
	limits := placement.Limits{}
	if s.now-s.calm > simCalm {
		limits.Moves = 1 + len(s.nodes)/10
	}
	s.call()

	before, began := allocated(), coreTime()
	s.scale()
	plan := placement.Decide(s.nodes, s.functions, limits)
	s.took = append(s.took, coreTime()-began)
	s.bytes = append(s.bytes, allocated()-before)
	s.obey(plan)
}

// allocated is how many bytes were ever allocated.
func allocated() float64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return float64(sample[0].Value.Uint64())
}

// call is what functions are called in a second: of those that are, as the time
// of the day has it, and some of them ten times as much for half a minute.
func (s *fleetSim) call() {
	if !s.called {
		return
	}
	if s.now%20 == 0 {
		for range 1 + len(s.functions)/500 {
			s.loads[s.rand.IntN(len(s.loads)/simCallEach)*simCallEach].spike = s.now + 30
		}
	}
	for i := range s.loads {
		if i%simCallEach != 0 && !s.crowd {
			continue
		}
		l := &s.loads[i]
		calls := l.most * (1 - math.Cos(2*math.Pi*(float64(s.now)/simDay+l.phase))) / 2
		if s.now < l.spike {
			calls *= 10
		}
		if s.crowd {
			calls = max(calls, 40)
		}
		l.sum += calls
		if l.window == nil {
			l.window = new(fleet.Window)
		}
	}
}

// scale decides how many replicas functions have that were called.
func (s *fleetSim) scale() {
	now := s.began.Add(time.Duration(s.now) * time.Second)
	var rooms *fleet.Rooms
	for i := range s.loads {
		l, f := &s.loads[i], &s.functions[i]
		if l.window == nil {
			continue
		}
		ready := 0
		for _, sh := range f.Shares {
			ready += sh.Ready
		}
		in := fleet.Scaling{Scale: l.scale, Wanted: f.Replicas, Ready: ready, Room: fleet.Room{More: faas.MaxReplicas}, Memory: l.memory}
		in.Stable, in.Panic, in.Peak = l.window.Load(now, l.sum)
		v := fleet.DecideScale(in, now)
		if v.Replicas > f.Replicas {
			if rooms == nil {
				nodes := make([]provider.Room, len(s.nodes))
				for n := range s.nodes {
					nodes[n] = provider.Room{Node: s.nodes[n].Name, Memory: simNodes - s.used[n], CPU: -1}
				}
				rooms = fleet.NewRooms(nodes)
			}
			in.Room = rooms.Of(f.Memory, 0)
			v = fleet.DecideScale(in, now)
		}
		l.memory, f.Replicas = v.Memory, v.Replicas
		if !s.called && f.Replicas == l.scale.Min {
			l.window, l.memory = nil, fleet.Memory{} // at rest
		}
	}
}

// obey begins what a plan asks for.
func (s *fleetSim) obey(plan placement.Plan) {
	for i, surge := range plan.Surge {
		s.functions[i].Surge = surge
	}
	s.moved += len(plan.Steps)
	for _, step := range plan.Steps {
		f := &s.functions[step.Function]
		at := slices.IndexFunc(f.Shares, func(o placement.Share) bool { return o.Node == step.Node })
		if at < 0 {
			at = len(f.Shares)
			f.Shares = append(f.Shares, placement.Share{Node: step.Node})
		}
		sh := &f.Shares[at]
		s.used[step.Node] += int64(step.Replicas-sh.Want) * f.Memory
		wait := readyAfter
		if !slices.Contains(f.Holders, step.Node) {
			wait += fetchAfter
		}
		for ; sh.Want < step.Replicas; sh.Want++ {
			s.due[s.now+wait] = append(s.due[s.now+wait], simBegun{step.Function, step.Node})
		}
		sh.Want, sh.Ready = step.Replicas, min(sh.Ready, step.Replicas)
		if sh.Want == 0 {
			f.Shares = slices.Delete(f.Shares, at, at+1)
		}
	}
}

// ready has a replica become ready, if it is wanted still and its node is there.
func (s *fleetSim) ready(d simBegun) {
	f := &s.functions[d.function]
	if _, lost := s.silent[d.node]; lost {
		return
	}
	if at, found := slices.BinarySearch(f.Holders, d.node); !found {
		f.Holders = slices.Insert(f.Holders, at, d.node)
	}
	for i := range f.Shares {
		if sh := &f.Shares[i]; sh.Node == d.node && sh.Ready < sh.Want {
			sh.Ready++
		}
	}
}

// lose has nodes fall silent; what ran there doesn't answer any more.
func (s *fleetSim) lose(nodes ...int) {
	for _, n := range nodes {
		s.silent[n] = s.now
	}
	for i := range s.functions {
		for k := range s.functions[i].Shares {
			if sh := &s.functions[i].Shares[k]; slices.Contains(nodes, sh.Node) {
				sh.Ready = 0
			}
		}
	}
}

// back has all nodes return, with their images and nothing else.
func (s *fleetSim) back() {
	for n := range s.silent {
		s.nodes[n].State = placement.Ready
	}
	clear(s.silent)
}

// missing is how many replicas are wanted and aren't ready, and how many of them
// have no place.
func (s *fleetSim) missing() (unready, unplaced int) {
	for i := range s.functions {
		f := &s.functions[i]
		want, ready := 0, 0
		for _, sh := range f.Shares {
			if s.nodes[sh.Node].State != placement.Gone {
				want += sh.Want
				ready += sh.Ready
			}
		}
		unready += max(0, f.Replicas-ready)
		unplaced += max(0, f.Replicas-want)
	}
	return unready, unplaced
}

// imbalance is by how much of its memory the fullest node is fuller than the
// average, in percent, and how many functions have replicas beside each other that
// could be apart.
func (s *fleetSim) imbalance() (percent float64) {
	var sum, most int64
	n := int64(0)
	for i := range s.nodes {
		if s.nodes[i].State == placement.Ready {
			sum += s.used[i]
			most = max(most, s.used[i])
			n++
		}
	}
	return 100 * float64(most-sum/max(n, 1)) / simNodes
}

// simRow is what came of one scenario.
type simRow struct {
	nodes     int
	name      string
	rounds    int
	mean      time.Duration
	p50, p99  time.Duration
	max       time.Duration
	bytes     float64 // allocated in a round, mean
	most      float64 // and at most
	steps     int
	short     int // replicas without a place, at most
	left      int // replicas that were not ready at the end
	until     int // seconds until all had a place
	ready     int // and were ready
	imbalance float64
}

// run makes rounds while more says so, of the seconds since it began, and reports.
func (s *fleetSim) run(name string, more func(second int) bool) simRow {
	s.took, s.bytes, s.moved = s.took[:0], s.bytes[:0], 0
	row := simRow{nodes: len(s.nodes), name: name, until: -1, ready: -1}
	began := s.now
	for more(s.now - began) {
		s.second()
		unready, unplaced := s.missing()
		row.short, row.left = max(row.short, unplaced), unready
		// The last second in which something was missing counts.
		switch {
		case unplaced > 0:
			row.until, row.ready = -1, -1
		case row.until < 0:
			row.until = s.now - began
		}
		switch {
		case unready > 0:
			row.ready = -1
		case row.ready < 0:
			row.ready = s.now - began
		}
	}
	row.rounds, row.steps, row.imbalance = len(s.took), s.moved, s.imbalance()
	var total time.Duration
	for i, d := range s.took {
		total += d
		row.bytes += s.bytes[i] / float64(row.rounds)
		row.most = max(row.most, s.bytes[i])
	}
	row.mean = total / time.Duration(row.rounds)
	slices.Sort(s.took)
	row.p50, row.p99, row.max = s.took[row.rounds/2], s.took[row.rounds*99/100], s.took[row.rounds-1]
	return row
}

// scenarios lets the fleet live through all of them, one after the other.
func (s *fleetSim) scenarios(day int) (rows []simRow) {
	n := len(s.nodes)
	add := func(name string, more func(int) bool) { rows = append(rows, s.run(name, more)) }
	settled := func(least, most int) func(int) bool {
		return func(t int) bool {
			unready, _ := s.missing()
			return t < least || unready > 0 && t < most
		}
	}
	quiet := func(least, most int) func(int) bool { // until nothing was moved for a minute
		last, at := s.moved, 0
		return func(t int) bool {
			if s.moved != last {
				last, at = s.moved, t
			}
			return t < least || t-at < 60 && t < most
		}
	}
	add("cold start: all functions are new", settled(10, 300))
	s.called = true
	add("a day of calls to a fifth of them, with spikes", func(t int) bool { return t < day })
	s.crowd = true
	add("all functions are called at once", func(t int) bool { return t < 60 })
	s.called, s.crowd = false, false
	add("nobody calls any more", quiet(120, 900))
	fifth := make([]int, 0, n/5)
	for i := 0; i < n; i += 5 {
		fifth = append(fifth, i)
	}
	s.lose(fifth...)
	add("a fifth of the nodes is lost", settled(10, 300))
	s.back()
	add("they return", quiet(60, 1800))
	zone := []int{}
	for i := 3; i < n; i += 20 {
		zone = append(zone, i)
	}
	s.lose(zone...)
	add("a zone is lost", settled(10, 300))
	s.back()
	add("it returns", quiet(60, 1800))
	node := -1
	add("nodes are drained and taken back, one by one: all, or 500", func(int) bool {
		if node >= 0 && s.used[node] > 0 {
			return true
		}
		if node >= 0 {
			s.nodes[node].Draining, s.nodes[node].Cordoned = false, false
		}
		if node++; node == min(n, 500) {
			return false
		}
		s.nodes[node].Draining, s.nodes[node].Cordoned = true, true
		return true
	})
	platforms := make([][]string, 0, n)
	for i := 0; i < len(s.functions); i += 10 {
		f := &s.functions[i]
		platforms = append(platforms, f.Platforms)
		f.Platforms = []string{"linux/riscv64"}
		for _, sh := range f.Shares {
			s.used[sh.Node] -= int64(sh.Want) * f.Memory
		}
		f.Shares, f.Holders = nil, nil // it is deployed anew, or what runs would go on
	}
	add("a tenth of the functions, new, is for no node's processor", func(t int) bool { return t < 60 })
	for i := range platforms {
		s.functions[10*i].Platforms = platforms[i]
	}
	add("the right images are there", settled(10, 300))
	return rows
}

// exponent is by which power of the number of nodes a value grows: the slope of a
// line through the logarithms. 1 is linear.
func exponent(rows []simRow, value func(*simRow) float64) float64 {
	var n, x, y, xx, xy float64
	for i := range rows {
		a, b := math.Log(float64(rows[i].nodes)), math.Log(cmp.Or(value(&rows[i]), 1))
		n, x, y, xx, xy = n+1, x+a, y+b, xx+a*a, xy+a*b
	}
	return (n*xy - x*y) / (n*xx - x*x)
}
