package nodes

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

var _ provider.Provider = (*Nodes)(nil)

// function is what was applied of one function. Nodes.mu guards all but apply.
type function struct {
	load     provider.Workload
	place    placement.Function // but for what changes with each round
	shares   map[string]share   // by node
	surge    int
	extra    int                // replicas beyond those wanted while an update interrupts some
	lonely   bool               // there is no other place for them
	short    string             // why it has fewer places than it wants
	troubles map[string]trouble // by node; nil if there are none
	gone     bool               // it was removed

	apply sync.Mutex // held while nodes are told, so that the newest is told last
}

// share is a node's part.
type share struct {
	want int    // replicas that it should run
	told int    // that it was told to run; -1 if it is not known
	rev  uint64 // the revision that it was told
	why  string // it has it
}

// Apply implements [provider.Provider].
func (n *Nodes) Apply(ctx context.Context, w provider.Workload) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	place, err := n.needs(ctx, &w.Function)
	if err != nil {
		return err
	}
	name := w.Function.Name()
	n.mu.Lock()
	f := n.functions[name]
	fresh := f == nil
	if fresh {
		f = &function{shares: make(map[string]share)}
		n.functions[name] = f
		n.names = nil
		for _, d := range n.nodes {
			n.found(d, name, f)
		}
	}
	load, needs := f.load, f.place
	f.load, f.place = w, place
	for node, s := range f.shares { // secrets may have changed with nothing else
		s.told = -1
		f.shares[node] = s
	}
	if n.place(name) || n.waiting() {
		n.decide()
	}
	n.mu.Unlock()
	err = n.tell(ctx, name, f)
	if errors.Is(err, faas.ErrInvalid) {
		// No node takes it: what was before goes on.
		n.mu.Lock()
		defer n.mu.Unlock()
		if f.load, f.place = load, needs; fresh && n.functions[name] == f {
			delete(n.functions, name)
			n.names = nil
			f.gone = true
		}
	}
	return err
}

// needs is what placement has to know of a function.
func (n *Nodes) needs(ctx context.Context, f *faas.Function) (placement.Function, error) {
	p := placement.Function{Name: f.Name(), Replicas: f.Replicas}
	var errs []error
	for _, s := range f.Constraints {
		c, err := placement.ParseConstraint(s)
		errs = append(errs, err)
		p.Constraints = append(p.Constraints, c)
	}
	p.Memory, p.CPU = provider.Needs(f)
	if err := errors.Join(errs...); err != nil {
		return p, faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	p.Platforms = n.madeFor(ctx, f)
	n.mu.Lock()
	defer n.mu.Unlock()
	p.Barred = n.barred(f)
	return p, nil
}

// madeFor returns the platforms of a function's image.
func (n *Nodes) madeFor(ctx context.Context, f *faas.Function) []string {
	if len(f.Platforms) > 0 || n.cfg.Platforms == nil || f.Digest == "" {
		return f.Platforms
	}
	n.mu.Lock()
	list, ok := n.platforms[f.Digest]
	alone := len(n.nodes) == 1
	n.mu.Unlock()
	if ok || alone {
		return list // alone, it is the pull that says it
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := n.cfg.Platforms(ctx, f.Image, f.Digest)
	if err != nil {
		n.log.Debug("it isn't known which platforms an image is for", "image", f.Image, "err", err)
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.platforms) >= 10_000 {
		clear(n.platforms)
	}
	n.platforms[f.Digest] = list
	return list
}

// Possible returns nil if some node of the fleet could run the function, else an
// [faas.ErrInvalid] with each node's reason.
func (n *Nodes) Possible(ctx context.Context, f *faas.Function) error {
	p, err := n.needs(ctx, f)
	if err != nil {
		return err
	}
	n.mu.Lock()
	_, list := n.view()
	n.mu.Unlock()
	return placement.Possible(list, &p)
}

// Explain says for each node how it is for one more replica of a function.
func (n *Nodes) Explain(name faas.Name) (placement.Explanation, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	names, list := n.view()
	functions := n.all()
	all := n.wanted(functions, names, list)
	i := slices.Index(functions, name)
	if i < 0 {
		return nil, faas.Errorf(faas.ErrNotFound, "there is no function %s", name)
	}
	return placement.Explain(list, all, i), nil
}

// decide has the loop decide.
func (n *Nodes) decide() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// loop decides when something has happened, and now and then.
func (n *Nodes) loop(ctx context.Context) {
	var again <-chan time.Time
	var looked time.Time // at this machine
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.kick:
		case <-again:
		}
		if time.Since(looked) >= time.Second { // it reads files
			own := n.cfg.Local.Machine()
			looked = time.Now()
			n.mu.Lock()
			n.local.machine = own
			n.mu.Unlock()
		}
		n.mu.Lock()
		more := n.round()
		pending := n.pending()
		n.mu.Unlock()
		for name, f := range pending {
			n.work.Go(func() {
				if err := n.tell(ctx, name, f); err != nil && ctx.Err() == nil {
					n.log.Warn("a node was not told what to run", "function", name, "err", err)
				}
			})
		}
		// What nobody tells of: leases that are over, calm that has come, nodes
		// that were not told.
		again = time.After(map[bool]time.Duration{true: time.Millisecond, false: time.Second}[more])
	}
}

// round decides on all functions, and notes what each node should run. It returns
// true if another should follow at once. mu is held.
func (n *Nodes) round() (more bool) {
	n.giveUp()
	nodes, list := n.view()
	limits := placement.Limits{}
	if n.settled(list) {
		limits.Moves = 1 + len(list)/10
	}
	return n.decideOn(n.all(), nodes, list, limits)
}

// place decides on one function, as a round would: to look at all of them for each
// that is declared would take minutes where there are ten thousand. mu is held.
func (n *Nodes) place(name faas.Name) (more bool) {
	if f := n.functions[name]; f.load.Function.Replicas == 0 && len(f.shares) == 0 {
		f.short = ""
		return false
	}
	nodes, list := n.view()
	n.except(name, nodes, list)
	return n.decideOn([]faas.Name{name}, nodes, list, placement.Limits{})
}

// decideOn is what round and place share.
func (n *Nodes) decideOn(names []faas.Name, nodes []string, list []placement.Node, limits placement.Limits) (more bool) {
	functions := n.wanted(names, nodes, list)
	if n.waiting() {
		return false
	}
	plan := placement.Decide(list, functions, limits)
	for _, name := range names {
		n.functions[name].short, n.functions[name].lonely = "", false
	}
	for _, s := range plan.Short {
		f := n.functions[names[s.Function]]
		if f.extra > 0 && s.Missing <= f.extra {
			f.lonely = true
			continue
		}
		f.short = fmt.Sprintf("%d of %d replicas have no place: %s", s.Missing, f.load.Function.Replicas, s.Why)
	}
	for i, surge := range plan.Surge {
		n.functions[names[i]].surge = surge
	}
	for _, step := range plan.Steps {
		f, node := n.functions[names[step.Function]], nodes[step.Node]
		s, ok := f.shares[node]
		if !ok {
			s.told = -1
		}
		s.want, s.why = step.Replicas, step.Why
		f.shares[node] = s
		if len(n.nodes) > 1 {
			n.log.Info("placed", "function", names[step.Function], "node", node, "replicas", step.Replicas, "why", step.Why)
		}
	}
	return plan.More
}

// unheard is how long a node may be silent from the beginning before it is called
// gone: one that was heard of has a lease, one that never was has none.
const unheard = 10 * time.Second

// giveUp calls nodes gone that were never heard of. mu is held.
func (n *Nodes) giveUp() {
	for _, d := range n.nodes {
		if !d.local && d.state == placement.Suspect && d.source == nil && !d.opened.IsZero() && time.Since(d.opened) > unheard {
			d.state = placement.Gone
		}
	}
}

// waiting says whether nodes that are known may still tell what they run, so
// that nothing should be started twice. mu is held.
func (n *Nodes) waiting() bool {
	if !n.began.IsZero() && time.Since(n.began) > n.cfg.Settle {
		return false // what is declared before Run waits, too
	}
	for _, d := range n.nodes {
		if !d.synced && d.state != placement.Gone {
			return true
		}
	}
	return false
}

// settled says whether all nodes have been there long enough for replicas to be
// moved for no other reason than to spread them better. mu is held.
func (n *Nodes) settled(list []placement.Node) bool {
	const calm = 30 * time.Second
	for _, d := range n.nodes {
		if d.state != placement.Ready || time.Since(d.flaps.last) < calm {
			return false
		}
	}
	return len(list) > 1 && !n.began.IsZero() && time.Since(n.began) > calm
}

// pending returns the functions of which a node that is there should run
// something else than it was told. mu is held.
func (n *Nodes) pending() map[faas.Name]*function {
	all := make(map[faas.Name]*function)
	for name, f := range n.functions {
		for node, s := range f.shares {
			if d := n.nodes[node]; d != nil && d.state != placement.Gone && d.p != nil && (s.told != s.want || s.rev != f.load.Function.Revision) {
				all[name] = f
			}
		}
	}
	return all
}

// tell tells the nodes what they should run of a function, each that was told
// something else before. The error is this machine's, or says that the function
// can't be run as it is; all else is for the other nodes to get over, and for the
// loop to try again.
func (n *Nodes) tell(ctx context.Context, name faas.Name, f *function) error {
	f.apply.Lock()
	defer f.apply.Unlock()
	n.mu.Lock()
	if f.gone {
		n.mu.Unlock()
		return nil
	}
	type order struct {
		d    *node
		p    provider.Provider
		load provider.Workload
	}
	var orders []order
	for node, s := range f.shares {
		d := n.nodes[node]
		if d == nil || d.p == nil || s.told == s.want && s.rev == f.load.Function.Revision || n.mustWait(name, f, d, s) {
			continue
		}
		o := order{d: d, p: d.p, load: f.load}
		o.load.Function.Replicas = s.want
		if env := n.environment(d); len(env) > 0 {
			maps.Copy(env, o.load.Function.EnvVars)
			o.load.Function.EnvVars = env
		}
		orders = append(orders, o)
	}
	n.mu.Unlock()
	errs := make([]error, len(orders))
	var wg sync.WaitGroup
	for i, o := range orders {
		give := func() {
			if errs[i] = o.p.Apply(ctx, o.load); errs[i] != nil {
				return
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			if s, ok := f.shares[o.d.Name]; ok {
				s.told, s.rev = o.load.Function.Replicas, o.load.Function.Revision
				f.shares[o.d.Name] = s
			}
		}
		if o.d.local {
			give() // without waiting for others
			continue
		}
		wg.Go(give)
	}
	wg.Wait()
	for i, o := range orders {
		if errs[i] != nil && !o.d.local && !errors.Is(errs[i], faas.ErrInvalid) {
			n.log.Debug("a node was not told what to run", "function", name, "node", o.d.Name, "err", errs[i])
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// found takes over what a node runs of a function. mu is held.
func (n *Nodes) found(d *node, name faas.Name, f *function) {
	if d.client == nil {
		return
	}
	if w, ok := d.client.Wanted()[name]; ok {
		f.shares[d.Name] = d.found(w)
	}
}

// found is the share of a node that was told so before.
func (d *node) found(w remote.Share) share {
	s := share{want: w.Replicas, told: w.Replicas, rev: w.Revision, why: "it ran there"}
	if d.Foreign != nil {
		s.told = -1 // it knows how many, and not of what
	}
	return s
}

// adopt takes over all that a node runs, and removes from it what nobody has
// declared.
func (n *Nodes) adopt(d *node) {
	n.mu.Lock()
	client := d.client
	n.mu.Unlock()
	runs := client.Wanted()
	n.mu.Lock()
	var strange []faas.Name
	for name, w := range runs {
		if f := n.functions[name]; f != nil {
			f.shares[d.Name] = d.found(w)
		} else if d.Foreign == nil || w.Revision > 0 { // 0 was there before
			strange = append(strange, name)
		}
	}
	for name, f := range n.functions {
		if _, ok := runs[name]; !ok {
			delete(f.shares, d.Name) // it has started anew, with nothing
		}
	}
	ctx := n.ctx
	source := d.source
	n.mu.Unlock()
	if n.cfg.Replicas != nil && source != nil && d.Foreign == nil {
		n.bury(client, source, n.cfg.Replicas(d.Name))
	}
	for _, name := range strange {
		if n.cfg.Known == nil || n.cfg.Known(name) { // it is about to be applied
			continue
		}
		n.work.Go(func() {
			if err := client.Remove(ctx, name); err != nil && !errors.Is(err, faas.ErrNotFound) {
				n.log.Warn("what nobody declares any more was not removed from a node", "function", name, "node", d.Name, "err", err)
			}
		})
	}
}

// bury tells of replicas that are still known, and that a node which has told all
// doesn't run: they ended while the gateway was away, so that nobody saw it.
func (n *Nodes) bury(m member, s Source, known []faas.Replica) {
	for _, r := range known {
		st, _ := m.Status(r.Function)
		if r.State == faas.Gone || slices.ContainsFunc(st.Replicas, func(o faas.Replica) bool { return o.ID == r.ID }) {
			continue
		}
		r.State, r.Since, r.Reason = faas.Gone, time.Now(), "it ended while its node was not heard of"
		s.Observe(r)
	}
}

// Remove implements [provider.Provider].
func (n *Nodes) Remove(ctx context.Context, name faas.Name) error {
	n.mu.Lock()
	f := n.functions[name]
	delete(n.functions, name)
	n.names = nil
	if f != nil {
		f.gone = true
	}
	type holder struct {
		p     provider.Provider
		local bool
	}
	var all []holder
	for _, d := range n.nodes {
		if d.p != nil && d.state != placement.Gone {
			all = append(all, holder{d.p, d.local})
		}
	}
	n.mu.Unlock()
	if f == nil {
		return faas.Errorf(faas.ErrNotFound, "function %s is on no node", name)
	}
	f.apply.Lock() // whoever tells the nodes of it comes first
	defer f.apply.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, d := range all {
		wg.Go(func() {
			if _, known := d.p.Status(name); !known {
				return
			}
			if err := d.p.Remove(ctx, name); err != nil && !errors.Is(err, faas.ErrNotFound) && (d.local || !errors.Is(err, faas.ErrUnavailable)) {
				errs[i] = err // who can't be reached is told when it is back
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Status implements [provider.Provider].
func (n *Nodes) Status(name faas.Name) (provider.Status, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.functions[name]
	if f == nil {
		return provider.Status{}, false
	}
	st := provider.Status{Revision: f.load.Function.Revision}
	var reasons []string
	for _, node := range slices.Sorted(maps.Keys(f.shares)) {
		d := n.nodes[node]
		if d == nil || d.p == nil || d.state == placement.Gone {
			continue
		}
		s, ok := d.p.Status(name)
		if !ok {
			continue
		}
		st.Replicas = append(st.Replicas, s.Replicas...)
		if s.Reason != "" {
			reason := s.Reason
			if len(n.nodes) > 1 {
				reason = node + ": " + reason
			}
			reasons = append(reasons, reason)
		}
		if s.Usage != nil {
			if st.Usage == nil {
				st.Usage = &types.FunctionUsage{}
			}
			st.Usage.CPU += s.Usage.CPU
			st.Usage.TotalMemoryBytes += s.Usage.TotalMemoryBytes
		}
	}
	if f.short != "" {
		reasons = append(reasons, f.short)
	}
	st.Reason = strings.Join(reasons, "; ")
	return st, true
}

// Logs implements [provider.Provider]: those of all nodes, merged.
func (n *Nodes) Logs(ctx context.Context, q logs.Request) iter.Seq2[logs.Message, error] {
	n.mu.Lock()
	var all []provider.Provider
	for _, name := range slices.Sorted(maps.Keys(n.nodes)) {
		if d := n.nodes[name]; d.p != nil && d.state != placement.Gone {
			all = append(all, d.p)
		}
	}
	n.mu.Unlock()
	if len(all) == 1 {
		return all[0].Logs(ctx, q)
	}
	return merge(ctx, all, q)
}

// Watch returns what stands between the local provider and its observer.
func (n *Nodes) Watch(o provider.Observer) provider.Observer { return &watch{Observer: o, n: n} }

type watch struct {
	provider.Observer
	n *Nodes
}

// Observe implements [provider.Observer].
func (w *watch) Observe(r faas.Replica) {
	w.Observer.Observe(r)
	w.n.decide()
}
