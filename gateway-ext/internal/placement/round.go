package placement

import (
	"cmp"
	"fmt"
	"slices"
)

// amount is memory in bytes and CPU in thousandths of a core.
type amount struct{ memory, cpu int64 }

// asks is what a replica asks for.
func (f *Function) asks() amount { return amount{f.Memory, f.CPU} }

// weighs is what a replica is taken for where nodes are compared: who asks for
// nothing needs something still.
func (f *Function) weighs() amount { return amount{max(f.Memory, 32<<20), max(f.CPU, 20)} }

func (a amount) plus(n int, b amount) amount {
	return amount{a.memory + int64(n)*b.memory, a.cpu + int64(n)*b.cpu}
}

// round is the state of one Decide.
type round struct {
	nodes  []Node
	zones  []int    // index of each node's zone
	order  []int    // nodes by name: what is first doesn't depend on the caller
	asked  []amount // what its replicas ask for, of each node
	weight []amount // the same, with something for those that ask for nothing
	heavy  []bool   // whether it is much fuller than most
	light  bool     // whether a node is much less full than most

	limits Limits
	placed int
	moving int
	plan   Plan

	classes map[string]*class
	alone   *class // of a function whose class isn't among them
	key     []byte // of a class; kept to be used again

	// Of the function that is looked at:
	class  *class
	seed   seed   // of its name
	here   []int  // replicas that each node has of it
	inZone []int  // and each zone
	holder []bool // whether the node has the image
	better answer // whether there is a node for it on which it doesn't fail
}

// answer is one that is looked for when it is needed.
type answer int8

const (
	unasked answer = iota
	no
	yes
)

func newRound(nodes []Node, functions []Function) *round {
	n := len(nodes)
	r := &round{
		nodes: nodes, zones: make([]int, n), order: make([]int, n),
		asked: make([]amount, n), weight: make([]amount, n), heavy: make([]bool, n),
		here: make([]int, n), holder: make([]bool, n), classes: make(map[string]*class),
	}
	known := make(map[string]int)
	for i := range nodes {
		r.order[i] = i
		r.asked[i], r.weight[i] = nodes[i].Others.asked, nodes[i].Others.weight
		zone := nodes[i].Labels["zone"]
		z, ok := known[zone]
		if !ok {
			z = len(known)
			known[zone] = z
		}
		r.zones[i] = z
	}
	r.inZone = make([]int, len(known))
	slices.SortFunc(r.order, func(a, b int) int { return cmp.Compare(nodes[a].Name, nodes[b].Name) })
	for i := range functions {
		f := &functions[i]
		for _, s := range f.Shares {
			r.asked[s.Node] = r.asked[s.Node].plus(s.Want, f.asks())
			r.weight[s.Node] = r.weight[s.Node].plus(s.Want, f.weighs())
		}
	}
	r.weigh()
	return r
}

// lopsided is by how much a node must be fuller than the average for functions
// to be moved from it, and less full for them to be moved there: of costFull.
const lopsided = 20

// weigh compares the nodes with their average.
func (r *round) weigh() {
	var sum, n int64
	for i := range r.nodes {
		if r.open(i) {
			sum += r.fullness(i, amount{})
			n++
		}
	}
	for i := range r.nodes {
		if n > 0 && r.open(i) {
			full := r.fullness(i, amount{})
			r.heavy[i] = full > sum/n+lopsided
			r.light = r.light || full < sum/n-lopsided
		}
	}
}

// load fills in what is known of the function on each node.
func (r *round) load(f *Function) {
	r.class, r.seed = r.classOf(f), seedOf(f.Name)
	r.better = unasked
	for _, s := range f.Shares {
		r.here[s.Node] += s.Want
		r.inZone[r.zones[s.Node]] += s.Want
	}
	for _, n := range f.Holders {
		r.holder[n] = true
	}
}

// unload takes back what load and the placing since then did.
func (r *round) unload(f *Function, shares []Share) {
	for _, s := range shares {
		r.here[s.Node] = 0
		r.inZone[r.zones[s.Node]] = 0
	}
	for _, n := range f.Holders {
		r.holder[n] = false
	}
}

// settle decides about one function.
func (r *round) settle(index int, f *Function) {
	if r.calm(f) {
		return
	}
	r.load(f)
	shares := slices.Clone(f.Shares)
	defer func() { r.unload(f, shares) }()
	why := make(map[int]string)

	// What is lost, what stays, and what stays only until it is replaced.
	keep, ready := 0, 0
	for i := range shares {
		s := &shares[i]
		switch n := &r.nodes[s.Node]; {
		case n.State == Gone:
			r.add(f, s, -s.Want)
			why[s.Node] = "it is gone"
		case r.leaving(f, s.Node):
		default:
			keep += s.Want
			ready += s.Ready
		}
	}
	surge := f.Surge
	arrived := surge > 0 && ready > f.Replicas
	if arrived || keep <= f.Replicas {
		surge = 0 // the one that moves is there, or was lost on its way
	}
	if keep < f.Replicas {
		shares, keep = r.place(f, shares, keep, why)
	}
	if missing := f.Replicas - keep; missing > 0 && r.placed < r.limits.Placements {
		r.plan.Short = append(r.plan.Short, Short{index, missing, r.lament(f)})
	}
	if keep > f.Replicas+surge {
		r.reduce(f, shares, keep-f.Replicas-surge, arrived, why)
	}
	for i := range shares {
		s := &shares[i]
		if s.Want == 0 || r.nodes[s.Node].State == Gone || !r.leaving(f, s.Node) {
			continue
		}
		// As many as are needed until others are ready, or for good if there is
		// no other place.
		if left := min(s.Want, max(f.Replicas-ready, 0)); left < s.Want {
			r.add(f, s, left-s.Want)
			why[s.Node] = "its replicas run elsewhere"
		}
	}
	if surge == 0 && f.Surge == 0 && keep == f.Replicas && ready == keep && r.moving < r.limits.Moves {
		if from, to := r.crowded(f, shares); to >= 0 {
			surge = 1
			r.moving++
			shares = r.put(f, shares, to)
			why[to] = fmt.Sprintf("to spread: %s has %d", r.nodes[from].Name, r.here[from])
		}
	}
	r.note(index, f, shares, surge, why)
}

// calm says quickly that there is nothing to decide about a function, which is
// so for nearly all in nearly all rounds.
func (r *round) calm(f *Function) bool {
	if len(f.Failing) > 0 {
		return false
	}
	keep, crowded := 0, false
	for _, s := range f.Shares {
		if s.Want == 0 {
			continue
		}
		if r.nodes[s.Node].State == Gone || r.leaving(f, s.Node) {
			return false
		}
		keep += s.Want
		crowded = crowded || s.Want > 1 || r.heavy[s.Node] && r.light
	}
	if keep != f.Replicas || f.Surge != 0 {
		return false
	}
	return r.moving >= r.limits.Moves || !crowded
}

// leaving says whether the function's replicas have to leave a node.
func (r *round) leaving(f *Function, node int) bool {
	return r.nodes[node].Draining || lacks(&r.nodes[node], f) != lack{} || r.failing(f, node) && r.elsewhere(f)
}

// failing says whether the function could lately not be started on a node.
func (r *round) failing(f *Function, node int) bool { return slices.Contains(f.Failing, node) }

// elsewhere says whether there is a node for the function on which it doesn't
// fail, or is already.
func (r *round) elsewhere(f *Function) bool {
	if r.better == unasked {
		r.better = no
		for i := range r.nodes {
			if r.open(i) && r.class.takes(i, &r.nodes[i], f) && r.fetches(i) && !r.failing(f, i) &&
				(r.here[i] > 0 || crammed(&r.nodes[i], f, 0, r.asked[i]) == lack{}) {
				r.better = yes
				break
			}
		}
	}
	return r.better == yes
}

// note turns what has become of the shares into steps.
func (r *round) note(index int, f *Function, shares []Share, surge int, why map[int]string) {
	for i, s := range shares {
		before := 0
		if i < len(f.Shares) {
			before = f.Shares[i].Want
		}
		if s.Want != before {
			r.plan.Steps = append(r.plan.Steps, Step{index, s.Node, s.Want, why[s.Node]})
		}
	}
	if surge != f.Surge {
		if r.plan.Surge == nil {
			r.plan.Surge = make(map[int]int)
		}
		r.plan.Surge[index] = surge
	}
}

// place adds the replicas that are missing one by one, each where it is best.
func (r *round) place(f *Function, shares []Share, keep int, why map[int]string) ([]Share, int) {
	for ; keep < f.Replicas; keep++ {
		if r.placed >= r.limits.Placements {
			r.plan.More = true
			break
		}
		best := r.best(f)
		if best < 0 {
			break
		}
		why[best] = r.praise(f, best) // before it is there
		shares = r.put(f, shares, best)
	}
	return shares, keep
}

// put adds a replica to a node.
func (r *round) put(f *Function, shares []Share, node int) []Share {
	r.placed++
	for i := range shares {
		if shares[i].Node == node {
			r.add(f, &shares[i], 1)
			return shares
		}
	}
	shares = append(shares, Share{Node: node})
	r.add(f, &shares[len(shares)-1], 1)
	return shares
}

// add changes a share, and what is used because of it.
func (r *round) add(f *Function, s *Share, n int) {
	s.Want += n
	r.here[s.Node] += n
	r.inZone[r.zones[s.Node]] += n
	r.asked[s.Node] = r.asked[s.Node].plus(n, f.asks())
	r.weight[s.Node] = r.weight[s.Node].plus(n, f.weighs())
}

// best returns the node for one more replica, or -1.
func (r *round) best(f *Function) int {
	if r.class.hopeless(f.asks()) {
		return -1
	}
	best, least, seen := -1, int64(0), 0
	var lot uint64         // of the best, if it was needed
	var limited, lots bool // whether a node has all it may have of the function; whether lot is known
	// Each function begins elsewhere, so that not all find the same nodes.
	start := r.seed.start(len(r.order))
	for k := range r.order {
		at := start + k
		if at >= len(r.order) {
			at -= len(r.order)
		}
		n := r.order[at]
		if !r.open(n) || !r.class.takes(n, &r.nodes[n], f) {
			continue
		}
		if l := crammed(&r.nodes[n], f, r.here[n], r.asked[n]); l != (lack{}) || !r.fetches(n) {
			limited = limited || l.what == replicas || l == lack{}
			continue
		}
		c := r.cost(f, n)
		if r.failing(f, n) {
			c += costFailing
		}
		switch {
		case best < 0 || c < least:
			best, least, lots = n, c, false
		case c == least:
			if !lots {
				lot, lots = r.seed.lot(r.nodes[best].Name), true
			}
			if l := r.seed.lot(r.nodes[n].Name); l < lot {
				best, lot = n, l
			}
		}
		if seen++; seen == enough {
			break
		}
	}
	if best < 0 && !limited {
		r.class.despair(f.asks())
	}
	return best
}

// open says whether a node takes anything new.
func (r *round) open(node int) bool {
	n := &r.nodes[node]
	return n.State == Ready && !n.Cordoned && !n.Draining && n.Closed == ""
}

// fetches says whether a node has the function's image, or can fetch it.
func (r *round) fetches(node int) bool { return r.nodes[node].Full == "" || r.holder[node] }

// The costs of a place, in points. Only their order of size matters: a second
// replica on a node is worse than anything else; one more failure there, than
// the wrong zone; a zone with one replica more, than an image to be fetched or
// a node that is fuller by a fifth.
const (
	costFailing = 1 << 20 // where it can't be started nothing else counts
	costReplica = 2000
	costFailure = 300
	costZone    = 200
	costFetch   = 20
	costFull    = 100 // of a node with no room left
)

// cost is how bad a node is for one more replica.
func (r *round) cost(f *Function, node int) int64 {
	n := &r.nodes[node]
	c := costReplica*int64(r.here[node]) +
		costFailure*int64(min(n.Failures, 5)) +
		costZone*int64(r.inZone[r.zones[node]])
	if !r.holder[node] {
		c += costFetch
	}
	return c + r.fullness(node, f.weighs())
}

// held is how bad a node is for the last of the replicas that it has.
func (r *round) held(f *Function, node int) int64 {
	one := Share{Node: node, Want: 1}
	r.add(f, &one, -1)
	defer r.add(f, &one, 1)
	return r.cost(f, node)
}

// fullness is how full the node would be with so much more, of costFull: by
// memory or by CPU, whichever is worse.
func (r *round) fullness(node int, more amount) int64 {
	n, a := &r.nodes[node], r.weight[node].plus(1, more)
	var c int64
	if n.Memory > 0 {
		c = costFull * a.memory / n.Memory
	}
	if n.CPU > 0 {
		c = max(c, costFull*a.cpu/n.CPU)
	}
	return min(c, 2*costFull)
}

// reduce takes n replicas away, each from where it is worst: first those that
// are not ready, unless one has arrived in whose place another goes.
func (r *round) reduce(f *Function, shares []Share, n int, arrived bool, why map[int]string) {
	for ; n > 0; n-- {
		worst, most, unready := -1, int64(0), false
		for i, s := range shares {
			if s.Want == 0 || r.nodes[s.Node].State == Gone || r.leaving(f, s.Node) {
				continue
			}
			c := r.held(f, s.Node)
			if !r.open(s.Node) {
				c += costReplica
			}
			u := !arrived && s.Ready < s.Want
			switch {
			case worst < 0, u && !unready, u == unready && c > most,
				u == unready && c == most && r.seed.lot(r.nodes[shares[worst].Node].Name) < r.seed.lot(r.nodes[s.Node].Name):
				worst, most, unready = i, c, u
			}
		}
		if worst < 0 {
			return
		}
		r.add(f, &shares[worst], -1)
		why[shares[worst].Node] = "one less is wanted"
		if arrived {
			why[shares[worst].Node] = "another has taken its place"
		}
	}
}

// crowded finds a node from which a replica should move, and the node where to;
// to is -1 if too little is to be gained for the trouble.
func (r *round) crowded(f *Function, shares []Share) (from, to int) {
	from = -1
	var most int64
	for _, s := range shares {
		if s.Want == 0 {
			continue
		}
		if c := r.held(f, s.Node); from < 0 || c > most {
			from, most = s.Node, c
		}
	}
	if from < 0 || r.here[from] < 2 && !(r.heavy[from] && r.light) {
		return from, -1 // no node is better by as much as it has to be: see below
	}
	to = r.best(f)
	if to < 0 || r.nodes[to].Failures > 0 || most-r.cost(f, to) < lopsided {
		return from, -1
	}
	if r.here[from] >= r.here[to]+2 || r.heavy[from] && r.here[from] > r.here[to] && r.fullness(from, amount{})-r.fullness(to, f.weighs()) >= lopsided {
		return from, to
	}
	return from, -1
}
