package placement_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
)

const mib = 1 << 20

var (
	arm64 = []string{"linux/arm64", "linux/arm/v7", "linux/arm/v6"}
	armv7 = []string{"linux/arm/v7", "linux/arm/v6"}
	amd64 = []string{"linux/amd64"}
)

// shelf is six Pis and a NUC.
func shelf() []placement.Node {
	nodes := []placement.Node{{Name: "nuc", Platforms: amd64, Memory: 4096 * mib, CPU: 4000, Labels: map[string]string{"zone": "desk"}}}
	for i := 1; i <= 6; i++ {
		platforms := arm64
		if i > 4 {
			platforms = armv7
		}
		nodes = append(nodes, placement.Node{
			Name: fmt.Sprint("pi-", i), Platforms: platforms, Memory: 768 * mib, CPU: 4000,
			Labels: map[string]string{"zone": fmt.Sprint("shelf-", 1+i%2)},
		})
	}
	return nodes
}

func name(s string) faas.Name { return faas.Name{Function: s, Namespace: faas.DefaultNamespace} }

// cluster obeys plans: what it is told to run is ready a round later.
type cluster struct {
	t         *testing.T
	nodes     []placement.Node
	functions []placement.Function
	limits    placement.Limits
	stuck     map[int]bool // nodes on which nothing becomes ready
	steps     int
	log       []string
}

// round makes one round, and returns whether anything changed.
func (c *cluster) round() bool {
	c.t.Helper()
	plan := placement.Decide(c.nodes, c.functions, c.limits)
	for i, s := range plan.Surge {
		c.functions[i].Surge = s
	}
	for _, s := range plan.Steps {
		if s.Why == "" {
			c.t.Errorf("a step without a reason: %+v", s)
		}
		f := &c.functions[s.Function]
		c.log = append(c.log, fmt.Sprintf("%s on %s: %d: %s", f.Name.Function, c.nodes[s.Node].Name, s.Replicas, s.Why))
		i := slices.IndexFunc(f.Shares, func(o placement.Share) bool { return o.Node == s.Node })
		if i < 0 {
			f.Shares = append(f.Shares, placement.Share{Node: s.Node})
			i = len(f.Shares) - 1
		}
		f.Shares[i].Want = s.Replicas
		f.Shares[i].Ready = min(f.Shares[i].Ready, s.Replicas)
	}
	c.steps += len(plan.Steps)
	return len(plan.Steps) > 0 || plan.More
}

// start makes ready what was told to run, and forgets empty shares.
func (c *cluster) start() {
	for i := range c.functions {
		f := &c.functions[i]
		f.Shares = slices.DeleteFunc(f.Shares, func(s placement.Share) bool { return s.Want == 0 })
		for k := range f.Shares {
			s := &f.Shares[k]
			s.Ready = s.Want
			if c.stuck[s.Node] || c.nodes[s.Node].State == placement.Gone {
				s.Ready = 0
			}
		}
	}
}

// calm makes rounds until nothing changes, and calls each between a plan and its effect.
func (c *cluster) calm(each func()) {
	c.t.Helper()
	for range 200 {
		changed := c.round()
		if each != nil {
			each()
		}
		c.start()
		if !changed {
			return
		}
	}
	c.t.Fatalf("the plans don't come to rest; the last steps:\n%s", strings.Join(c.log[max(len(c.log)-20, 0):], "\n"))
}

func (c *cluster) places(function int) map[string]int {
	all := make(map[string]int)
	for _, s := range c.functions[function].Shares {
		if s.Want > 0 {
			all[c.nodes[s.Node].Name] = s.Want
		}
	}
	return all
}

func (c *cluster) ready(function int) (n int) {
	for _, s := range c.functions[function].Shares {
		if c.nodes[s.Node].State != placement.Gone {
			n += s.Ready
		}
	}
	return n
}

func (c *cluster) node(name string) int {
	c.t.Helper()
	i := slices.IndexFunc(c.nodes, func(n placement.Node) bool { return n.Name == name })
	if i < 0 {
		c.t.Fatalf("no node %s", name)
	}
	return i
}

func constraints(t *testing.T, all ...string) (list []placement.Constraint) {
	t.Helper()
	for _, s := range all {
		c, err := placement.ParseConstraint(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

func TestWhere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func([]placement.Node)
		f      placement.Function
		want   []string // one of these for each replica
		n      int      // replicas that find a place; 0 is all
	}{
		{"by the image's platforms", nil, placement.Function{Replicas: 3, Platforms: amd64}, []string{"nuc"}, 0},
		{"an older platform on a newer node", nil, placement.Function{Replicas: 6, Platforms: []string{"linux/arm/v6"}}, []string{"pi-1", "pi-2", "pi-3", "pi-4", "pi-5", "pi-6"}, 0},
		{"by a label", nil, placement.Function{Replicas: 2, Constraints: constraints(t, "node.labels.zone==desk")}, []string{"nuc"}, 0},
		{"by what isn't", nil, placement.Function{Replicas: 7, Constraints: constraints(t, "node!=nuc", "arch!=arm/v7")}, []string{"pi-1", "pi-2", "pi-3", "pi-4"}, 0},
		{"by memory", nil, placement.Function{Replicas: 9, Memory: 1024 * mib}, []string{"nuc"}, 4},
		{"by CPU", nil, placement.Function{Replicas: 99, CPU: 3000}, []string{"nuc", "pi-1", "pi-2", "pi-3", "pi-4", "pi-5", "pi-6"}, 7},
		{"where the image is", nil, placement.Function{Replicas: 1, Holders: []int{3}}, []string{"pi-3"}, 0},
		{"never a newer platform on an older node", func(n []placement.Node) { n[6].Platforms = []string{"linux/arm/v6"} }, placement.Function{Replicas: 9, Platforms: []string{"linux/arm/v7"}, Constraints: constraints(t, "arch==arm")}, []string{"pi-5"}, 0},
		{"not on a full disk", func(n []placement.Node) { n[0].Full = "its disk is full" }, placement.Function{Replicas: 1, Platforms: amd64}, nil, -1},
		{"on a full disk that has the image", func(n []placement.Node) { n[0].Full = "its disk is full" }, placement.Function{Replicas: 2, Platforms: amd64, Holders: []int{0}}, []string{"nuc"}, 0},
		{"not where something is wrong", func(n []placement.Node) { n[0].Closed = "it comes and goes" }, placement.Function{Replicas: 1, Platforms: amd64, Holders: []int{0}}, nil, -1},
		{"not where it fails", nil, placement.Function{Replicas: 6, Failing: []int{2}}, []string{"nuc", "pi-1", "pi-3", "pi-4", "pi-5", "pi-6"}, 0},
		{"where it fails if there is nothing else", nil, placement.Function{Replicas: 1, Platforms: amd64, Failing: []int{0}}, []string{"nuc"}, 0},
		{"not on a cordoned node", func(n []placement.Node) { n[3].Cordoned = true }, placement.Function{Replicas: 1, Constraints: constraints(t, "node==pi-3")}, nil, -1},
		{"not on a suspect", func(n []placement.Node) { n[0].State = placement.Suspect }, placement.Function{Replicas: 1, Platforms: amd64}, nil, -1},
		{"away from failures", func(n []placement.Node) { n[0].Failures = 2 }, placement.Function{Replicas: 1, Constraints: constraints(t, "arch!=arm64"), Holders: []int{0}}, []string{"pi-5", "pi-6"}, 0},
		{"as many as a provider can", func(n []placement.Node) { n[0].PerFunction = 1 }, placement.Function{Replicas: 3, Platforms: amd64}, []string{"nuc"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &cluster{t: t, nodes: shelf()}
			if tt.change != nil {
				tt.change(c.nodes)
			}
			tt.f.Name = name("f")
			c.functions = []placement.Function{tt.f}
			c.calm(nil)
			n := 0
			for node, replicas := range c.places(0) {
				if !slices.Contains(tt.want, node) {
					t.Errorf("%d replicas on %s, want them on %v", replicas, node, tt.want)
				}
				n += replicas
			}
			want := tt.n
			if want == 0 {
				want = tt.f.Replicas
			}
			if n != max(want, 0) {
				t.Errorf("%d replicas have a place, want %d", n, want)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	c := &cluster{t: t, nodes: shelf(), functions: []placement.Function{{Name: name("two"), Replicas: 2}, {Name: name("seven"), Replicas: 7}, {Name: name("nine"), Replicas: 9}}}
	c.calm(nil)
	if p := c.places(0); len(p) != 2 {
		t.Errorf("2 replicas are on %v, want 2 nodes", p)
	}
	zones := make(map[string]bool)
	for n := range c.places(0) {
		zones[c.nodes[c.node(n)].Labels["zone"]] = true
	}
	if len(zones) != 2 {
		t.Errorf("2 replicas are in zones %v, want two", zones)
	}
	if p := c.places(1); len(p) != 7 {
		t.Errorf("7 replicas are on %v, want one on each node", p)
	}
	for n, replicas := range c.places(2) {
		if replicas > 2 {
			t.Errorf("%d of 9 replicas are on %s, want at most 2", replicas, n)
		}
	}
}

// TestLoss: what a lost node ran is placed elsewhere, and nothing else moves.
func TestLoss(t *testing.T) {
	c := &cluster{t: t, nodes: shelf()}
	for i := range 20 {
		c.functions = append(c.functions, placement.Function{Name: name(fmt.Sprint("f", i)), Replicas: 2, Memory: 64 * mib, Platforms: []string{"linux/arm/v6", "linux/amd64"}})
	}
	c.calm(nil)
	lost := c.node("pi-2")
	had := 0
	for i := range c.functions {
		had += c.places(i)["pi-2"]
	}
	if had == 0 {
		t.Fatal("pi-2 runs nothing: the test shows nothing")
	}
	c.nodes[lost].State = placement.Gone
	c.start()
	c.steps = 0
	c.calm(nil)
	if c.steps != 2*had {
		t.Errorf("%d steps for %d lost replicas, want one to forget and one to place each:\n%s", c.steps, had, strings.Join(c.log[len(c.log)-c.steps:], "\n"))
	}
	for i := range c.functions {
		if p := c.places(i); p["pi-2"] != 0 || c.ready(i) != 2 || len(p) != 2 {
			t.Errorf("%s is on %v", c.functions[i].Name, p)
		}
	}
	// It comes back, empty. Moves are one at a time, and lose nothing.
	c.nodes[lost].State = placement.Ready
	c.steps = 0
	c.calm(nil)
	if c.steps != 0 {
		t.Errorf("%d steps though nothing may be moved", c.steps)
	}
}

// TestDrain: a node is emptied without fewer replicas being ready at any moment.
func TestDrain(t *testing.T) {
	c := &cluster{t: t, nodes: shelf()}
	for i := range 12 {
		c.functions = append(c.functions, placement.Function{Name: name(fmt.Sprint("f", i)), Replicas: 1 + i%3, Memory: 32 * mib})
	}
	only := len(c.functions)
	c.functions = append(c.functions, placement.Function{Name: name("only"), Replicas: 1, Constraints: constraints(t, "node==pi-4")})
	c.calm(nil)
	c.nodes[c.node("pi-4")].Draining = true
	c.calm(func() {
		for i, f := range c.functions {
			if c.ready(i) < f.Replicas {
				t.Errorf("%s has %d ready, wants %d", f.Name, c.ready(i), f.Replicas)
			}
		}
	})
	for i, f := range c.functions[:only] {
		if p := c.places(i); p["pi-4"] != 0 {
			t.Errorf("%s is still on the drained node: %v", f.Name, p)
		}
	}
	if p := c.places(only); p["pi-4"] != 1 {
		t.Errorf("what can run nowhere else was stopped: %v", p)
	}
	plan := placement.Decide(c.nodes, c.functions, c.limits)
	if len(plan.Short) != 1 || !strings.Contains(plan.Short[0].Why, "pi-4 excluded: it is being drained") {
		t.Errorf("the plan says %+v, want why one function can't leave", plan.Short)
	}
}

// TestFailing: what can't be started on a node goes elsewhere; what can be started
// nowhere stays.
func TestFailing(t *testing.T) {
	c := &cluster{t: t, nodes: shelf(), functions: []placement.Function{{Name: name("f"), Replicas: 2}}}
	c.calm(nil)
	for on := range c.places(0) {
		bad := c.node(on)
		c.stuck = map[int]bool{bad: true}
		c.start()
		c.functions[0].Failing = []int{bad}
		if why := placement.Explain(c.nodes, c.functions, 0).String(); !strings.Contains(why, "could not be started there lately") {
			t.Errorf("Explain() = %s, want that it fails on %s", why, on)
		}
		c.calm(func() {
			if c.ready(0) < 1 {
				t.Error("what was ready elsewhere was stopped")
			}
		})
		if p := c.places(0); p[on] != 0 || c.ready(0) != 2 {
			t.Errorf("it fails on %s and is on %v", on, p)
		}
		break
	}
	all := make([]int, len(c.nodes))
	for i := range all {
		all[i] = i
	}
	before := fmt.Sprint(c.places(0))
	c.functions[0].Failing = all
	c.calm(nil)
	if after := fmt.Sprint(c.places(0)); after != before {
		t.Errorf("it fails everywhere, and is moved from %v to %v", before, after)
	}
}

// TestGentle: a node that comes back gets its share, one move at a time.
func TestGentle(t *testing.T) {
	c := &cluster{t: t, nodes: shelf()[:3]}
	for i := range 10 {
		c.functions = append(c.functions, placement.Function{Name: name(fmt.Sprint("f", i)), Replicas: 3, Memory: 16 * mib})
	}
	c.nodes[0].State = placement.Gone
	c.calm(nil)
	c.nodes[0].State = placement.Ready
	c.limits.Moves = 1
	c.steps = 0
	c.calm(func() {
		moving := 0
		for i, f := range c.functions {
			moving += f.Surge
			if c.ready(i) < 3 {
				t.Errorf("%s has %d ready while one moves", f.Name, c.ready(i))
			}
		}
		if moving > 1 {
			t.Errorf("%d functions move at a time, want 1", moving)
		}
	})
	for i, f := range c.functions {
		if p := c.places(i); len(p) != 3 {
			t.Errorf("%s is on %v, want all 3 nodes", f.Name, p)
		}
	}
	if want := 2 * 10; c.steps != want {
		t.Errorf("%d steps, want %d: one there and one away for each function", c.steps, want)
	}
	// Functions of one replica move from what is full to what is empty.
	c = &cluster{t: t, nodes: shelf()[1:3], limits: placement.Limits{Moves: 1}}
	for i := range 10 {
		c.functions = append(c.functions, placement.Function{Name: name(fmt.Sprint("f", i)), Replicas: 1, Memory: 64 * mib})
	}
	c.nodes[0].State = placement.Gone
	c.calm(nil)
	c.nodes[0].State = placement.Ready
	c.calm(nil)
	n := 0
	for i := range c.functions {
		n += c.places(i)[c.nodes[0].Name]
	}
	if n < 3 || n > 5 {
		t.Errorf("the node that came back has %d of 10 functions, want about 4", n)
	}
}

func TestScaleDown(t *testing.T) {
	c := &cluster{t: t, nodes: shelf(), functions: []placement.Function{{Name: name("f"), Replicas: 9}}}
	c.calm(nil)
	c.functions[0].Replicas = 7
	c.calm(nil)
	if p := c.places(0); len(p) != 7 {
		t.Errorf("7 of 9 are left on %v, want one on each node", p)
	}
	c.stuck = map[int]bool{c.node("pi-5"): true}
	c.start()
	c.functions[0].Replicas = 6
	c.calm(nil)
	if p := c.places(0); p["pi-5"] != 0 || len(p) != 6 {
		t.Errorf("%v are left, want those that are ready", p)
	}
	c.functions[0].Replicas = 0
	c.calm(nil)
	if p := c.places(0); len(p) != 0 {
		t.Errorf("%v are left of a function that sleeps", p)
	}
}

// TestOrder: what is decided doesn't depend on the order of what is given.
func TestOrder(t *testing.T) {
	decide := func(seed uint64) string {
		c := &cluster{t: t, nodes: shelf()}
		for i := range 30 {
			c.functions = append(c.functions, placement.Function{Name: name(fmt.Sprint("f", i)), Replicas: 1 + i%4})
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		rng.Shuffle(len(c.nodes), func(i, k int) { c.nodes[i], c.nodes[k] = c.nodes[k], c.nodes[i] })
		c.calm(nil)
		var said []string
		for i, f := range c.functions {
			said = append(said, fmt.Sprint(f.Name, c.places(i)))
		}
		return strings.Join(said, "\n")
	}
	first := decide(1)
	for seed := range uint64(10) {
		if got := decide(seed + 2); got != first {
			t.Fatalf("with the nodes in another order the places are\n%s\nnot\n%s", got, first)
		}
	}
}

// TestStorm does everything at once at random, and looks at what must always hold.
func TestStorm(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		c := &cluster{t: t, nodes: shelf()}
		for i := range 30 {
			c.functions = append(c.functions, placement.Function{
				Name: name(fmt.Sprint("f", i)), Replicas: rng.IntN(5), Memory: int64(rng.IntN(3)) * 48 * mib, CPU: int64(rng.IntN(3)) * 100,
			})
		}
		for range 60 {
			n := &c.nodes[rng.IntN(len(c.nodes))]
			switch rng.IntN(9) {
			case 8:
				n.Full = [...]string{"", "its disk is full"}[rng.IntN(2)]
			case 6:
				n.Closed = [...]string{"", "it comes and goes"}[rng.IntN(2)]
			case 7:
				f := &c.functions[rng.IntN(len(c.functions))]
				f.Failing = nil
				for i := range c.nodes { // only where none of it is ready
					if rng.IntN(3) == 0 && !slices.ContainsFunc(f.Shares, func(s placement.Share) bool { return s.Node == i && s.Ready > 0 }) {
						f.Failing = append(f.Failing, i)
					}
				}
			case 0:
				n.State = placement.State(rng.IntN(3))
			case 1:
				n.Cordoned = !n.Cordoned
			case 2:
				n.Draining = !n.Draining
			case 3:
				c.functions[rng.IntN(len(c.functions))].Replicas = rng.IntN(6)
			case 4:
				c.limits.Moves = rng.IntN(3)
			case 5:
				n.Failures = rng.IntN(3)
			}
			before := make([]int, len(c.functions))
			for i := range c.functions {
				before[i] = c.ready(i)
			}
			c.round()
			used := make([]int64, len(c.nodes))
			for i, f := range c.functions {
				if now := c.ready(i); now < before[i] && now < f.Replicas {
					t.Fatalf("seed %d: %s had %d ready, wants %d, and a plan leaves it %d:\n%s", seed, f.Name, before[i], f.Replicas, now, strings.Join(c.log[max(len(c.log)-10, 0):], "\n"))
				}
				if f.Surge < 0 || f.Surge > 1 {
					t.Fatalf("seed %d: a surge of %d", seed, f.Surge)
				}
				for _, s := range f.Shares {
					used[s.Node] += int64(s.Want) * f.Memory
				}
			}
			for i, n := range c.nodes {
				if used[i] > n.Memory && n.State != placement.Gone {
					t.Fatalf("seed %d: %s has %d MiB, and %d are asked for of it", seed, n.Name, n.Memory/mib, used[i]/mib)
				}
			}
			c.start()
		}
		for i := range c.nodes {
			c.nodes[i].State, c.nodes[i].Cordoned, c.nodes[i].Draining, c.nodes[i].Failures = placement.Ready, false, false, 0
			c.nodes[i].Closed, c.nodes[i].Full = "", ""
			c.nodes[i].Memory *= 4 // room for a spread that is even
		}
		for i := range c.functions {
			c.functions[i].Failing = nil
		}
		c.limits.Moves = 1
		c.start()
		c.calm(nil)
		for i, f := range c.functions {
			if c.ready(i) != f.Replicas {
				t.Errorf("seed %d: %s has %d ready after all, wants %d", seed, f.Name, c.ready(i), f.Replicas)
			}
			if p := c.places(i); len(p) != min(f.Replicas, 7) {
				t.Errorf("seed %d: the %d replicas of %s are on %v after all", seed, f.Replicas, f.Name, p)
			}
		}
	}
}

func TestPossible(t *testing.T) {
	for _, tt := range []struct {
		f    placement.Function
		want []string
	}{
		{placement.Function{Platforms: []string{"linux/riscv64"}}, []string{"no node can run f.openfaas-fn: ", "nuc: amd64 not in image, which is for riscv64", "pi-5: arm v7 not in image"}},
		{placement.Function{Memory: 8192 * mib}, []string{"nuc: 8192 MiB asked for, 4096 MiB of 4096 MiB free"}},
		{placement.Function{CPU: 4500}, []string{"pi-1: CPU 4.5 asked for, 4 of 4 free"}},
		{placement.Function{Constraints: constraints(t, "node.labels.zone==shelf-9")}, []string{"nuc: node.labels.zone==shelf-9 is asked for, and it is desk"}},
		{placement.Function{Constraints: constraints(t, "node.labels.disk==ssd")}, []string{"pi-1: node.labels.disk==ssd is asked for, and it has no label disk"}},
		{placement.Function{Constraints: constraints(t, "arch==arm64"), Platforms: amd64}, []string{"nuc: arch==arm64 is asked for, and it is amd64", "pi-1: arm64 not in image, which is for amd64"}},
		{placement.Function{Platforms: amd64, Memory: 1024 * mib}, nil},
	} {
		tt.f.Name = name("f")
		err := placement.Possible(shelf(), &tt.f)
		if tt.want == nil {
			if err != nil {
				t.Errorf("Possible(%+v) = %v, want nil", tt.f, err)
			}
			continue
		}
		if !errors.Is(err, faas.ErrInvalid) {
			t.Errorf("Possible(%+v) = %v, want an ErrInvalid", tt.f, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("Possible(%+v) = %v, want it to say %q", tt.f, err, w)
			}
		}
	}
}

func TestParseConstraint(t *testing.T) {
	for in, want := range map[string]string{
		"node.labels.zone==shelf-1":        "node.labels.zone==shelf-1",
		"node.labels.zone = shelf-1":       "node.labels.zone==shelf-1",
		"node!=nuc":                        "node!=nuc",
		"node.hostname==pi-1":              "node==pi-1",
		"kubernetes.io/arch=aarch64":       "arch==arm64",
		"node.platform.os == linux":        "os==linux",
		"arch!=armhf":                      "arch!=arm/v7",
		"node.openfaas.com/kind==edge":     "node.openfaas.com/kind==edge",
		"arch":                             "",
		"==arm64":                          "",
		"zone==":                           "",
		"engine.labels.operatingsystem==x": "",
		"node.labels.==x":                  "",
	} {
		c, err := placement.ParseConstraint(in)
		if want == "" {
			if !errors.Is(err, faas.ErrInvalid) {
				t.Errorf("ParseConstraint(%q) = %v, %v, want an ErrInvalid", in, c, err)
			}
			continue
		}
		if err != nil || c.String() != want {
			t.Errorf("ParseConstraint(%q) = %v, %v, want %s", in, c, err, want)
		}
	}
}

func FuzzParseConstraint(f *testing.F) {
	f.Add("node.labels.zone==shelf-1")
	f.Add("a/b!==c")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := placement.ParseConstraint(s)
		if err != nil {
			return
		}
		again, err := placement.ParseConstraint(c.String())
		if err != nil || again != c {
			t.Errorf("ParseConstraint(%q) = %v, which reads as %v, %v", s, c, again, err)
		}
	})
}

func ExampleExplain() {
	nodes := []placement.Node{
		{Name: "pi-2", Platforms: []string{"linux/arm64"}, Memory: 768 << 20},
		{Name: "pi-3", Platforms: []string{"linux/arm/v7"}, Memory: 768 << 20},
		{Name: "nuc", Platforms: []string{"linux/amd64"}, Memory: 4 << 30, Cordoned: true},
	}
	functions := []placement.Function{
		{Name: faas.Name{Function: "busy", Namespace: "openfaas-fn"}, Memory: 156 << 20, Shares: []placement.Share{{Node: 0, Want: 1}}},
		{Name: faas.Name{Function: "weather", Namespace: "openfaas-fn"}, Replicas: 1, Platforms: []string{"linux/amd64", "linux/arm64"}, Holders: []int{0}},
	}
	fmt.Println(placement.Explain(nodes, functions, 1))
	// Output:
	// pi-2: best: image present, 612 MiB free; nuc excluded: it is cordoned; pi-3 excluded: arm v7 not in image, which is for amd64 and arm64
}
