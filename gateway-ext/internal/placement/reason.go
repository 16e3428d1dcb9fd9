package placement

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// lack is what a node lacks for a function. The zero lack is nothing.
type lack struct {
	what       shortage
	constraint int   // the index of the one that isn't met
	free       int64 // of what there is too little
}

type shortage int

const (
	platform shortage = 1 + iota
	constraint
	barred
	replicas
	memory
	cpu
)

// lacks returns what a node doesn't have that no waiting changes.
func lacks(n *Node, f *Function) lack {
	if len(n.Platforms) > 0 && len(f.Platforms) > 0 && !slices.ContainsFunc(f.Platforms, func(p string) bool { return slices.Contains(n.Platforms, p) }) {
		return lack{what: platform}
	}
	for i := range f.Constraints {
		if !f.Constraints[i].meets(n) {
			return lack{what: constraint, constraint: i}
		}
	}
	if len(f.Barred) > 0 && f.Barred[n.Name] != "" {
		return lack{what: barred}
	}
	return lack{}
}

// crammed returns of what a node has not enough left for one more replica.
func crammed(n *Node, f *Function, here int, asked amount) lack {
	switch {
	case n.PerFunction > 0 && here >= n.PerFunction:
		return lack{what: replicas}
	case n.Memory > 0 && asked.memory+f.Memory > n.Memory:
		return lack{what: memory, free: max(n.Memory-asked.memory, 0)}
	case n.CPU > 0 && asked.cpu+f.CPU > n.CPU:
		return lack{what: cpu, free: max(n.CPU-asked.cpu, 0)}
	}
	return lack{}
}

// say is the lack in words.
func (l lack) say(n *Node, f *Function) string {
	switch l.what {
	case platform:
		return fmt.Sprintf("%s not in image, which is for %s", readable(n.Platforms[0]), list(f.Platforms))
	case constraint:
		return f.Constraints[l.constraint].say(n)
	case barred:
		return f.Barred[n.Name]
	case replicas:
		return fmt.Sprintf("it runs at most %d of a function", n.PerFunction)
	case memory:
		return fmt.Sprintf("%s asked for, %s of %s free", bytes(f.Memory), bytes(l.free), bytes(n.Memory))
	case cpu:
		return fmt.Sprintf("CPU %s asked for, %s of %s free", cores(f.CPU), cores(l.free), cores(n.CPU))
	}
	return ""
}

// Verdict is what was found of one node.
type Verdict struct {
	Node     string `json:"node"`
	Best     bool   `json:"best,omitempty"`     // the next replica would go there
	Excluded bool   `json:"excluded,omitempty"` // none can
	Why      string `json:"why"`
}

// Explanation is what was found of all nodes: the best first, then the others
// that would do, then those that can't.
type Explanation []Verdict

// maxSaid is how many nodes a sentence names.
const maxSaid = 12

// String returns a sentence: "pi-2: best: image present, 612 MiB free; pi-3
// excluded: arm v7 not in image, which is for amd64 and arm64".
func (e Explanation) String() string {
	return e.of(len(e))
}

// of is String of the first of so many.
func (e Explanation) of(total int) string {
	if total == 0 {
		return "there are no nodes"
	}
	var b strings.Builder
	for i, v := range e {
		if i == maxSaid && total > maxSaid+1 {
			fmt.Fprintf(&b, "; and %d more", total-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(v.Node)
		switch {
		case v.Excluded:
			b.WriteString(" excluded")
		case v.Best:
			b.WriteString(": best")
		}
		b.WriteString(": " + v.Why)
	}
	return b.String()
}

// Explain says for each node how it is for one more replica of the function at
// the given index.
func Explain(nodes []Node, functions []Function, index int) Explanation {
	r := newRound(nodes, functions)
	f := &functions[index]
	r.load(f)
	return r.explain(f)
}

func (r *round) explain(f *Function) Explanation {
	best := r.best(f)
	all := make(Explanation, 0, len(r.nodes))
	for _, i := range r.order {
		v := Verdict{Node: r.nodes[i].Name, Best: i == best}
		if v.Why = r.objection(f, i); v.Why != "" {
			v.Excluded = true
		} else {
			v.Why = r.praise(f, i)
		}
		all = append(all, v)
	}
	slices.SortStableFunc(all, func(a, b Verdict) int { return a.rank() - b.rank() })
	return all
}

// lament says why no node can take one more replica. It is the same for all of a
// class that ask for as much, unless a node has all it may have of one of them.
func (r *round) lament(f *Function) string {
	if s, ok := r.class.said[f.asks()]; ok {
		return s
	}
	some := make(Explanation, 0, maxSaid+1)
	own := false
	for _, i := range r.order {
		own = own || r.nodes[i].PerFunction > 0 || r.nodes[i].Full != ""
		if len(some) <= maxSaid {
			some = append(some, Verdict{Node: r.nodes[i].Name, Excluded: true, Why: r.objection(f, i)})
		}
	}
	s := some.of(len(r.order))
	if !own {
		if r.class.said == nil {
			r.class.said = make(map[amount]string)
		}
		r.class.said[f.asks()] = s
	}
	return s
}

func (v Verdict) rank() int {
	switch {
	case v.Best:
		return 0
	case v.Excluded:
		return 2
	}
	return 1
}

// objection says why a node can't take one more replica, or nothing.
func (r *round) objection(f *Function, node int) string {
	n := &r.nodes[node]
	if l := lacks(n, f); l != (lack{}) {
		return l.say(n, f)
	}
	switch {
	case n.State == Gone:
		return "it is gone"
	case n.State == Suspect:
		return "it was not heard of lately"
	case n.Draining:
		return "it is being drained"
	case n.Cordoned:
		return "it is cordoned"
	case n.Closed != "":
		return n.Closed
	case !r.fetches(node):
		return n.Full
	}
	return crammed(n, f, r.here[node], r.asked[node]).say(n, f)
}

// praise says what speaks for a node, and against it.
func (r *round) praise(f *Function, node int) string {
	n := &r.nodes[node]
	said := make([]string, 0, 4)
	if r.holder[node] {
		said = append(said, "image present")
	} else {
		said = append(said, "image to be fetched")
	}
	if n.Memory > 0 {
		said = append(said, bytes(max(n.Memory-r.asked[node].memory, 0))+" free")
	}
	if here := r.here[node]; here > 0 {
		said = append(said, "has "+strconv.Itoa(here)+" of it")
	}
	switch {
	case r.failing(f, node):
		said = append(said, "could not be started there lately")
	case n.Failures == 1:
		said = append(said, "another function could not be started there lately")
	case n.Failures > 1:
		said = append(said, strconv.Itoa(n.Failures)+" other functions could not be started there lately")
	}
	return strings.Join(said, ", ")
}

// Possible returns nil if a node could run a replica of the function if it had
// nothing else to do, and was there. Else it returns an [faas.ErrInvalid] with
// the reason of each node, for who declares it.
func Possible(nodes []Node, f *Function) error {
	said := make(Explanation, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		l := lacks(n, f)
		if l == (lack{}) {
			l = crammed(n, f, 0, amount{})
		}
		if l == (lack{}) {
			return nil
		}
		said = append(said, Verdict{Node: n.Name, Why: l.say(n, f)})
	}
	slices.SortFunc(said, func(a, b Verdict) int { return strings.Compare(a.Node, b.Node) })
	return faas.Errorf(faas.ErrInvalid, "no node can run %s: %s", f.Name, said)
}

// readable is a platform in the words of people: "amd64", "arm v7". Linux needs
// no mention.
func readable(p string) string {
	p = strings.TrimPrefix(p, "linux/")
	return strings.Replace(p, "/v", " v", 1)
}

// list is platforms in a sentence.
func list(platforms []string) string {
	said := make([]string, len(platforms))
	for i, p := range platforms {
		said[i] = readable(p)
	}
	if n := len(said); n > 1 {
		return strings.Join(said[:n-1], ", ") + " and " + said[n-1]
	}
	return said[0]
}

// bytes is an amount of memory in the unit that people read.
func bytes(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20 || n == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// cores is an amount of CPU: "0.25".
func cores(milli int64) string { return strconv.FormatFloat(float64(milli)/1000, 'g', 4, 64) }
