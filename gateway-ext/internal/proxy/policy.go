package proxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

const annotationPrefix = "thicket."

// execMargin is how much longer than a function's own limit the gateway waits:
// the function's answer that it ran out of time says more than the gateway's.
const execMargin = time.Second

// limit is a time that ends calls, and who set it.
type limit struct {
	time    time.Duration
	what    string // "its limit for a call"
	change  string // what to do for another
	setting string // the name alone
}

// rules are what is in force for a function.
type rules struct {
	policy resilience.Policy

	// asked says that the function's owner asked for a policy. Without, nothing
	// may change what callers get: a broken replica is avoided while there is
	// another, and that is all.
	asked bool

	// watchdog is the function's own bound of the calls at the same time, of
	// each replica, if that is what binds; 0 if not.
	watchdog int

	limit    limit
	warnings []string
}

// plain is the policy of functions that ask for none.
func plain() resilience.Policy {
	p := resilience.DefaultPolicy()
	p.Attempts = 1
	p.Bulkhead = resilience.BulkheadPolicy{}
	return p
}

// Limits are the gateway's own, which bound what functions may ask for.
type Limits struct {
	Timeout        time.Duration // as in [Config]
	TimeoutSetting string        // as in [Config]
}

// Check reads what a declaration says about its policy. Its error, an
// [faas.ErrInvalid], has a line for every mistake. Else it returns what is in
// force as one line, and what in the declaration contradicts itself, if anything
// does.
func (l Limits) Check(d types.FunctionDeployment) (inForce, warning string, err error) {
	r, err := l.rules(d)
	if err != nil {
		return "", "", faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	return r.String(), strings.Join(r.warnings, "; "), nil
}

// Environment returns what a function that asks for a time is told of it, in the
// words of OpenFaaS's watchdogs and of templates that do without one. So there is
// one number to write; where its environment says more, that is left to it.
func (l Limits) Environment(d types.FunctionDeployment) map[string]string {
	r, err := l.rules(d)
	if err != nil || r.policy.Timeout == 0 {
		return nil
	}
	t := r.limit.time
	if exec, _ := duration(d.EnvVars, "exec_timeout"); exec > 0 {
		t = exec
	}
	// The function's answer that its time is over has to get out.
	out := resilience.Short(t + execMargin)
	return map[string]string{"exec_timeout": resilience.Short(t), "write_timeout": out, "read_timeout": out}
}

// rules returns what is in force, also with an error: then as if the function
// had asked for nothing.
func (l Limits) rules(d types.FunctionDeployment) (rules, error) {
	r := rules{policy: plain(), limit: limit{l.Timeout, "the limit for a call", "raise " + l.TimeoutSetting, l.TimeoutSetting}}
	var err error
	if d.Annotations != nil {
		asked := false
		for key := range *d.Annotations {
			asked = asked || resilience.Asks(key)
		}
		var p resilience.Policy
		if p, err = resilience.ParsePolicy(*d.Annotations); err == nil {
			if asked {
				r.policy, r.asked = p, true
			}
			r.policy.Balance = p.Balance
		}
	}
	r.inflight(d.EnvVars)
	exec, execText := duration(d.EnvVars, "exec_timeout")
	write, writeText := duration(d.EnvVars, "write_timeout")
	asked := r.policy.Timeout
	switch {
	case asked > 0:
		r.limit = limit{asked, "its limit for a call", "raise its annotation thicket.timeout", "thicket.timeout"}
	case exec > 0:
		r.limit = limit{exec + execMargin, "what its exec_timeout allows and a second more", "raise exec_timeout in its environment", "exec_timeout"}
	}
	if l.Timeout < r.limit.time {
		if cmp.Or(asked, exec) > l.Timeout {
			r.warn("%s asks for %s, and this gateway ends every call after %s: raise %s, or ask for less", r.limit.setting, resilience.Short(cmp.Or(asked, exec)), resilience.Short(l.Timeout), l.TimeoutSetting)
		}
		r.limit = limit{l.Timeout, "the limit for a call", "raise " + l.TimeoutSetting, l.TimeoutSetting}
	}
	if asked > 0 && exec > asked {
		r.warn("exec_timeout is %s, and thicket.timeout ends the call after %s: write a shorter exec_timeout, or leave it out", execText, resilience.Short(asked))
	}
	if exec > 0 && write > 0 && write < exec {
		r.warn("write_timeout is %s, shorter than exec_timeout with %s: the answer is cut while the function may still work; write a longer one", writeText, execText)
	}
	return r, err
}

// inflight takes note of how many calls the function's watchdog takes at the same
// time (of-watchdog refuses the rest with 429): a replica that has so many isn't
// asked while there is another, and spared the work of refusing.
func (r *rules) inflight(env map[string]string) {
	const setting = "max_inflight"
	n, err := strconv.ParseUint(strings.TrimSpace(env[setting]), 10, 31)
	if err != nil || n == 0 {
		return // off, or for the watchdog to complain about
	}
	b := &r.policy.Bulkhead
	if b.Limit > 0 && uint64(b.Limit) <= n {
		return
	}
	b.Limit, r.watchdog = int(n), int(n)
}

func (r *rules) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

// duration reads a time of a function's environment as OpenFaaS writes it: "30s",
// or seconds alone. What can't be read is for the function to complain about.
func duration(env map[string]string, key string) (time.Duration, string) {
	s := strings.TrimSpace(env[key])
	if n, err := strconv.ParseUint(s, 10, 20); err == nil {
		return time.Duration(n) * time.Second, s + "s"
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, ""
	}
	return d, s
}

// String returns what is in force as a line of annotations and their values.
func (r rules) String() string {
	a := r.policy.Annotations()
	a[annotationPrefix+"timeout"] = resilience.Short(r.limit.time)
	if r.limit.setting != annotationPrefix+"timeout" {
		a[annotationPrefix+"timeout"] += " (" + r.limit.setting + ")"
	}
	if r.policy.Attempt > 0 {
		a[annotationPrefix+"timeout"] += ", " + resilience.Short(r.policy.Attempt) + " each attempt"
	}
	if r.watchdog > 0 {
		a[annotationPrefix+"bulkhead"] += " (max_inflight)"
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if b.Len() > 0 {
			b.WriteString(" · ")
		}
		b.WriteString(strings.TrimPrefix(key, annotationPrefix) + " " + a[key])
	}
	return b.String()
}

// function is what calls of one function share, made at its first call from what
// was declared. What of it was declared never changes: another declaration makes
// another function.
type function struct {
	name faas.Name
	rules
	revision string      // what answers depend on beside the request
	running  uint64      // the revision of the replicas that give them; 0 if nobody knows
	times    stale.Times // of kept answers
	budget   *resilience.Budget
	meter    *resilience.Meter
	late     *resilience.Error // why contexts end that took longer than limit
	slow     *resilience.Error // and those of one attempt
	chaos    *atomic.Pointer[chaos]

	table     *discovery.Table
	transport *http1.Transport // of its replicas' connections
	dial      func(*discovery.Endpoint) func(context.Context) (net.Conn, error)

	balancer *balance.Balancer
	now      atomic.Pointer[targets]

	mu     sync.Mutex // guards below, and is held to replace now
	closed bool
}

// targets are a function's replicas as of one route.
type targets struct {
	route    discovery.Route
	replicas []*replica
	view     *balance.View // of them, in this order
}

// replica is an endpoint and what is known of it.
type replica struct {
	*discovery.Endpoint
	breaker  *resilience.Breaker
	bulkhead *resilience.Bulkhead
	pool     *http1.Pool // the connections to it
	host     string      // its address, as a request has it
	member   *balance.Member
	away     atomic.Bool // nothing took a connection there the last time
	far      bool        // it is on another machine
}

// Look implements [balance.Replica].
func (r *replica) Look(now time.Time) balance.Look {
	return balance.Look{
		InFlight: r.InFlight(),
		Full:     r.bulkhead.Full(),
		Out:      !r.breaker.Ready(now),
		Suspect:  r.Suspect(),
		Trusted:  r.breaker.Trusted(),
	}
}

// function returns what calls of a function share; nil if there is none.
func (p *Proxy) function(name faas.Name) *function {
	if f := p.functions.named(name); f != nil {
		return f
	}
	p.compiling.Lock()
	defer p.compiling.Unlock()
	if f := p.functions.named(name); f != nil {
		return f
	}
	if _, _, ok := p.cfg.Known(name); !ok {
		return nil
	}
	f := p.compile(name)
	p.functions.set(name, f)
	return f
}

// compile reads a function's declaration.
func (p *Proxy) compile(name faas.Name) *function {
	var d faas.Function
	if p.cfg.Declared != nil {
		if declared := p.cfg.Declared(name); declared != nil {
			d = *declared
		}
	}
	r, err := p.limits.rules(d.FunctionDeployment)
	if err != nil {
		// An older release took it. It was told when it was declared.
		p.cfg.Logger.Warn("a function's policy can't be read and is not in force", "function", name.String(), "err", err)
	}
	f := &function{
		name: name, rules: r,
		revision: revisionOf(&d), running: d.Revision,
		meter: p.monitor.Meter(name.String()),
		late:  &resilience.Error{Kind: resilience.Timeout, Target: name.String(), Limit: r.limit.time},
		slow:  &resilience.Error{Kind: resilience.Timeout, Target: name.String(), Limit: r.policy.Attempt},
		chaos: new(atomic.Pointer[chaos]),

		table:     p.cfg.Table,
		transport: p.engine.transport,
		dial:      p.cfg.Dial,
	}
	if r.policy.Attempts > 1 {
		f.budget = resilience.NewBudget(r.policy.Budget)
	}
	s := r.policy.Stale
	f.times = stale.Times{
		Fresh: s.Fresh, While: s.Fresh, IfError: s.For,
		Negative: min(s.Fresh, 10*time.Second),
		// The call has its own limits; this is for what might get past them.
		Load: r.limit.time + p.cfg.HoldTime + time.Second,
	}
	eject := balance.EjectNone
	if r.policy.Breaker.Mode == resilience.ModeAuto {
		eject = balance.EjectByRate // breakers count failures in a row
	}
	f.balancer = balance.New(balance.Config{
		Rule: r.policy.Balance, Node: p.cfg.Node, Zone: p.cfg.Zone, Penalty: r.policy.Attempt, Eject: eject,
	}, time.Now())
	f.now.Store(&targets{view: f.balancer.View(nil)})
	return f
}

// revisionOf names what a function's answers depend on beside the request: its
// image, and what it is told in its environment. Who goes back to it finds the
// answers of that time.
func revisionOf(d *faas.Function) string {
	if len(d.EnvVars) == 0 {
		return d.Digest
	}
	env, err := json.Marshal(d.EnvVars) // sorted by name
	if err != nil {
		return d.Digest // not reached: strings always can be
	}
	sum := sha256.Sum256(env)
	return d.Digest + "+" + hex.EncodeToString(sum[:8])
}

// Changed says that a function was declared anew, is pinned to another image, or
// is no more. It must be called after [Config.Declared] tells so, and without a
// lock that that takes.
func (p *Proxy) Changed(name faas.Name) {
	p.compiling.Lock()
	defer p.compiling.Unlock()
	_, _, known := p.cfg.Known(name)
	if old := p.functions.named(name); old != nil {
		var f *function
		if known {
			f = p.compile(name)
			f.chaos = old.chaos
		}
		p.functions.set(name, f)
		old.close()
	}
	if !known {
		p.metrics.forget(name)
		p.monitor.Forget(name.String())
	}
}

// Forget drops what is kept of a function that is no more.
func (p *Proxy) Forget(name faas.Name) {
	p.compiling.Lock()
	defer p.compiling.Unlock()
	if f := p.functions.named(name); f != nil {
		p.functions.set(name, nil)
		f.close()
	}
	p.metrics.forget(name)
	p.monitor.Forget(name.String())
}

// targets returns the function's replicas now. What was known of one that is no
// more is forgotten when its function is next called or looked at, so there are
// never more than were there at that time.
func (f *function) targets(t *discovery.Table) *targets {
	if now := f.now.Load(); now.of(t.Route(f.name)) {
		return now
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// Read again, or a caller who was slow would put an old route back.
	route, old := t.Route(f.name), f.now.Load()
	if old.of(route) {
		return old
	}
	known := make(map[*discovery.Endpoint]*replica, len(old.replicas))
	for _, r := range old.replicas {
		known[r.Endpoint] = r
	}
	next := &targets{route: route, replicas: make([]*replica, len(route.Endpoints))}
	members := make([]*balance.Member, len(next.replicas))
	for i, e := range route.Endpoints {
		r := known[e]
		if r == nil {
			r = f.replica(e)
		}
		delete(known, e)
		next.replicas[i], members[i] = r, r.member
	}
	next.view = f.balancer.View(members)
	for _, r := range known {
		r.close()
	}
	f.now.Store(next)
	return next
}

// down says whether all replicas are left alone: a call can only be a look at one
// of them.
func (f *function) down(t *discovery.Table, now time.Time) bool {
	replicas := f.targets(t).replicas
	return len(replicas) > 0 && !slices.ContainsFunc(replicas, func(r *replica) bool {
		// The first is cheap, and all there is to ask of one that is well.
		return r.breaker.Ready(now) && r.breaker.Snapshot(now).State != resilience.StateOpen
	})
}

// replica is called with mu held.
func (f *function) replica(e *discovery.Endpoint) *replica {
	meter := f.meter
	if f.closed {
		meter = nil // nobody would take it off
	}
	r := &replica{
		Endpoint: e,
		host:     cmp.Or(e.Host, e.Addr.String()),
		breaker:  resilience.NewBreaker(f.policy.Breaker, meter, e.ID),
		bulkhead: resilience.NewBulkhead(f.policy.Bulkhead),
	}
	r.pool, r.far = f.pool(e)
	r.member = f.balancer.Member(r, balance.Place{ID: e.ID, Node: e.Node, Zone: e.Zone, Since: e.Ready})
	return r
}

// pool is the connections to an endpoint, and whether it is on another machine.
func (f *function) pool(e *discovery.Endpoint) (_ *http1.Pool, far bool) {
	if f.dial != nil {
		if dial := f.dial(e); dial != nil {
			return f.transport.PoolOver(dial, func() bool { return e.Suspect() && f.other() }), true
		}
	}
	return f.transport.Pool(e.Addr), false
}

// other says whether there is a replica that can be asked in place of one whose
// machine is not heard of.
func (f *function) other() bool {
	now := time.Now()
	return slices.ContainsFunc(f.targets(f.table).replicas, func(r *replica) bool {
		return !r.Suspect() && r.breaker.Ready(now)
	})
}

// close forgets a replica that is no more. Calls that are under way go on.
func (r *replica) close() {
	r.breaker.Close()
	r.pool.Close()
}

// of says whether the targets are those of a route.
func (t *targets) of(r discovery.Route) bool {
	n := len(r.Endpoints)
	// A route's list is never changed, and this one is still held: the same
	// place in memory is the same list.
	return n == len(t.route.Endpoints) && (n == 0 || &r.Endpoints[0] == &t.route.Endpoints[0])
}

// close forgets what is known of the replicas. Calls that are under way go on.
func (f *function) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, r := range f.now.Load().replicas {
		r.close()
	}
}
