// Package openfaas makes a node of anything that speaks the OpenFaaS provider
// API: a faasd, a faas-netes with a Kubernetes behind it, another Thicket.
// [Client] is the [provider.Provider] that the gateway sees, as remote.Client is
// of our own nodes.
//
// Such a provider tells less than a node of ours. It shows how many replicas of a
// function answer, and not which; it has no stream, so it is asked once a second;
// and one takes what another refuses. What it can do is found out ([Try]), shown
// and respected ([Capabilities]). What a provider tells is turned into replicas
// as the gateway knows them: as many as answer there, at one address, under the
// path at which the provider calls them itself. They have names of their own.
//
// A function that this fleet has deployed there carries the fleet's mark in its
// annotations, and its revision: so it is known again after a restart. All others
// were there before, or belong to somebody else. They are shown ([Client.Found])
// and never touched, unless they are asked for ([Client.Adopt]).
//
// Nothing that is there can hurt the gateway: each answer is bounded in size and
// in time, and who answers wrongly, late or not at all is silent, which ends in
// its lease being over.
package openfaas

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// Config is what a [Client] needs.
type Config struct {
	Node     string // the node's name, which its replicas get
	Zone     string // given to them, too
	Endpoint Endpoint

	// Fleet marks what this fleet has deployed: another gateway that uses the
	// same provider has another. Required.
	Fleet string

	// Replicas are those of this node that its observer knows from before the
	// gateway's start. They are taken back, or observed as gone.
	Replicas []faas.Replica

	// Adopted are functions that were there before and belong to this fleet now.
	Adopted []faas.Name

	// Registry is the port of the gateway's registry: an image that is called by
	// this machine's loopback is fetched from there. 0 changes no image.
	Registry int

	// Gateway is the URL at which functions there reach this gateway, whose
	// machine the provider reaches at host. Nil tells them none: they call the
	// provider's own, where the functions that they want may not be.
	Gateway func(host string) string

	Observer provider.Observer    // is told of the replicas. Required.
	Beat     func(remote.Machine) // is called after each time that it answered; it must be quick. Nil is not told.
	Lost     func(error)          // is called after each time that it didn't. Nil is not told.

	// Every is how often it is asked: once a second. The lease of a node that is
	// silent for three seconds is in doubt.
	Every time.Duration

	// Grace is how long a function's calls may take to end before it is removed
	// or interrupted all the same: 30 s.
	Grace time.Duration

	Logger *slog.Logger // required
}

// The annotations by which the fleet knows what it has deployed.
const (
	markFleet    = "com.thicket.fleet"
	markRevision = "com.thicket.revision"
	markSecrets  = "com.thicket.secrets" // a hash of their names
)

// Client is a provider of the OpenFaaS kind as a [provider.Provider]. Make one
// with [New]; it knows nothing before [Client.Run] has asked.
type Client struct {
	cfg   Config
	line  *line
	dial  *net.Dialer
	slots chan struct{} // of deployments that are under way
	work  sync.WaitGroup

	mu        sync.Mutex // guards below; never held over I/O
	ctx       context.Context
	caps      Capabilities
	probed    time.Time // when caps were found out; zero: never
	synced    chan struct{}
	listed    bool // synced is closed
	functions map[faas.Name]*function
	found     map[faas.Name]types.FunctionStatus // there, and not this fleet's
	adopted   map[faas.Name]bool
	spaces    map[string]bool // namespaces that were seen to exist
	polls     int
	turn      int // whose turn it is to be asked for one by one
}

var _ provider.Provider = (*Client)(nil)

// New returns the gateway's end of a line to a provider. It starts nothing. The
// error is an [faas.ErrInvalid].
func New(cfg Config) (*Client, error) {
	cfg.Every = cmp.Or(cfg.Every, time.Second)
	cfg.Grace = cmp.Or(cfg.Grace, 30*time.Second)
	if cfg.Beat == nil {
		cfg.Beat = func(remote.Machine) {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(error) {}
	}
	l, err := newLine(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, line: l, dial: &net.Dialer{Timeout: 2 * time.Second},
		slots: make(chan struct{}, 4), synced: make(chan struct{}),
		functions: make(map[faas.Name]*function), found: make(map[faas.Name]types.FunctionStatus),
		adopted: make(map[faas.Name]bool), spaces: make(map[string]bool),
	}
	for _, name := range cfg.Adopted {
		c.adopted[name] = true
	}
	for _, r := range cfg.Replicas {
		if r.State == faas.Ready {
			f := c.function(r.Function)
			f.replicas = append(f.replicas, r)
		}
	}
	return c, nil
}

// Run asks the provider until ctx ends, and has it do what is wished. What runs
// there then goes on.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.line.close()
	defer c.work.Wait()
	defer cancel()
	c.mu.Lock()
	c.ctx = ctx
	for _, f := range c.functions {
		c.wake(f)
	}
	c.mu.Unlock()
	said := ""
	for {
		err := c.poll(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.cfg.Lost(err)
			if err.Error() != said {
				said = err.Error()
				c.cfg.Logger.Warn("a provider doesn't answer as it should", "node", c.cfg.Node, "err", err)
			}
		default:
			said = ""
			c.cfg.Beat(c.machine())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.cfg.Every - c.cfg.Every/8 + rand.N(c.cfg.Every/4)):
		}
	}
}

// machine is what is said of it as a node.
func (c *Client) machine() remote.Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	return remote.Machine{
		Version: strings.TrimSpace(c.caps.Provider + " " + c.caps.Version), Platforms: c.caps.Platforms,
		Time: c.line.clock(), Constraints: c.caps.Lacks(),
	}
}

// Capabilities returns what is known of what it can do, and false before it has
// answered for the first time.
func (c *Client) Capabilities() (Capabilities, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.caps, !c.probed.IsZero()
}

// Excludes says why a function can't run there, or "".
func (c *Client) Excludes(f *faas.Function) string {
	name := f.Name()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.probed.IsZero() {
		return ""
	}
	mine := c.functions[name]
	if there, ok := c.found[name]; ok && !c.adopted[name] && (mine == nil || !mine.there) {
		return "there is a function of this name already, which " + owner(there) + ": gateway-ext nodes adopt " + c.cfg.Node + " " + name.Function + " would take it over"
	}
	if mine != nil && mine.objection != "" && mine.objected == f.Revision && time.Now().Before(mine.until) {
		return mine.objection
	}
	if c.caps.MaxFunctions > 0 && (mine == nil || !mine.there) {
		if n := c.count(); n >= c.caps.MaxFunctions {
			return fmt.Sprintf("it has %s, as many as %s takes", count(n, "function"), c.caps.Provider)
		}
	}
	return c.caps.Excludes(f)
}

// count is how many functions there are. c.mu is held.
func (c *Client) count() int {
	n := len(c.found)
	for _, f := range c.functions {
		if f.there {
			n++
		}
	}
	return n
}

// owner says whose a function is that isn't this fleet's.
func owner(s types.FunctionStatus) string {
	if s.Annotations != nil && (*s.Annotations)[markFleet] != "" {
		return "another gateway has deployed"
	}
	return "is not this fleet's"
}

// Apply implements [provider.Provider].
func (c *Client) Apply(ctx context.Context, w provider.Workload) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := provider.Check(w); err != nil {
		return err
	}
	name := w.Function.Name()
	c.mu.Lock()
	defer c.mu.Unlock()
	if most := c.caps.MaxReplicas; most > 0 && w.Function.Replicas > most {
		return faas.Errorf(faas.ErrInvalid, "node %s: %s runs at most %d of a function, and %d of %s are asked for", c.cfg.Node, c.caps.Provider, most, w.Function.Replicas, name)
	}
	f := c.function(name)
	if f.wished && same(f.wish, w) && !f.leaving {
		return nil
	}
	f.wish, f.wished = w, true
	c.changed(f)
	return nil
}

// same says whether two wishes are one.
func same(a, b provider.Workload) bool {
	return a.Function.Revision == b.Function.Revision && a.Function.Replicas == b.Function.Replicas && a.Function.Digest == b.Function.Digest &&
		maps.EqualFunc(a.Secrets, b.Secrets, slices.Equal)
}

// function returns the function of that name, a new one if it isn't known. c.mu
// is held.
func (c *Client) function(name faas.Name) *function {
	f := c.functions[name]
	if f == nil {
		f = &function{name: name, change: make(chan struct{}), told: make(map[string][sha256.Size]byte)}
		c.functions[name] = f
	}
	return f
}

// Remove implements [provider.Provider].
func (c *Client) Remove(ctx context.Context, name faas.Name) error {
	c.mu.Lock()
	f := c.functions[name]
	if f == nil || f.leaving && !f.wished {
		c.mu.Unlock()
		return faas.Errorf(faas.ErrNotFound, "function %s is not on %s", name, c.cfg.Node)
	}
	if !f.leaving {
		f.leaving, f.left = true, make(chan struct{})
	}
	f.wished, f.wish = false, provider.Workload{}
	left := f.left
	c.changed(f)
	c.mu.Unlock()
	select {
	case <-left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Status implements [provider.Provider].
func (c *Client) Status(name faas.Name) (provider.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.functions[name]
	if f == nil || !f.wished && (f.leaving || !f.there && c.listed) {
		return provider.Status{}, false
	}
	st := provider.Status{Revision: f.revision, Replicas: slices.Clone(f.replicas), Reason: f.reason, Usage: f.usage}
	if f.wished {
		st.Revision = f.wish.Function.Revision
	}
	return st, true
}

// Wanted returns how many replicas of each function it was told to run, and of
// which revision.
func (c *Client) Wanted() map[faas.Name]remote.Share {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[faas.Name]remote.Share, len(c.functions))
	for name, f := range c.functions {
		switch {
		case f.wished:
			all[name] = remote.Share{Revision: f.wish.Function.Revision, Replicas: f.wish.Function.Replicas}
		case f.there && !f.leaving:
			all[name] = remote.Share{Revision: f.revision, Replicas: f.reported}
		}
	}
	return all
}

// Forget has all of its replicas observed as gone, when it is counted out. If it
// is heard of again, what answers there comes back.
func (c *Client) Forget(why string) {
	c.mu.Lock()
	var lost []faas.Replica
	for _, f := range c.functions {
		lost = append(lost, c.hide(f, 0)...)
		f.live, f.stale = false, f.there || f.wished
	}
	c.mu.Unlock()
	c.observe(lost, faas.Gone, why)
}

// Found returns what is there that isn't this fleet's, by name.
func (c *Client) Found() []types.FunctionStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Collect(maps.Values(c.found))
	slices.SortFunc(all, func(a, b types.FunctionStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Adopt lets a function that is there be this fleet's, from the next time that it
// is applied; false takes that back.
func (c *Client) Adopt(name faas.Name, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !mine {
		delete(c.adopted, name)
		if f := c.functions[name]; f != nil && !f.wished && !f.working && len(f.replicas) == 0 {
			delete(c.functions, name) // the next poll finds it
		}
		return
	}
	c.adopted[name] = true
	if s, ok := c.found[name]; ok {
		c.take(name, s)
	}
}

// take notes that what is there is this fleet's. c.mu is held.
func (c *Client) take(name faas.Name, s types.FunctionStatus) *function {
	delete(c.found, name)
	f := c.function(name)
	f.there, f.reported = true, int(min(s.Replicas, 10_000))
	f.revision = revisionOf(s)
	f.secrets = annotation(s, markSecrets)
	return f
}

func annotation(s types.FunctionStatus, key string) string {
	if s.Annotations == nil {
		return ""
	}
	return (*s.Annotations)[key]
}

func revisionOf(s types.FunctionStatus) uint64 {
	n, _ := strconv.ParseUint(annotation(s, markRevision), 10, 64) // 0 of one that was adopted
	return n
}

// Dialer returns what opens connections to the provider, for calls of what runs
// there. It knows nothing of its password.
func (c *Client) Dialer() func(context.Context) (net.Conn, error) {
	return c.line.dialer(c.dial)
}

// changed has a function's wish looked at. c.mu is held.
func (c *Client) changed(f *function) {
	f.version++
	close(f.change)
	f.change = make(chan struct{})
	c.wake(f)
}

// wake has somebody bring a function about. c.mu is held.
func (c *Client) wake(f *function) {
	if f.working || c.ctx == nil || c.ctx.Err() != nil || !f.due() {
		return
	}
	f.working = true
	ctx := c.ctx
	c.work.Go(func() { c.tend(ctx, f) })
}

// observe tells of replicas' steps. c.mu is not held.
func (c *Client) observe(list []faas.Replica, state faas.State, why string) {
	for _, r := range list {
		r.State, r.Since, r.Reason = state, time.Now(), why
		c.cfg.Observer.Observe(r)
	}
}

// at is where a function is called.
func (c *Client) at(name faas.Name) (addr netip.AddrPort, path, host string) {
	addr, _ = c.line.where()
	return addr, c.line.base.Path + "/function/" + name.String(), c.line.base.Host
}

// errClash is why a function is not deployed where there is one of its name.
var errClash = errors.New("there is a function of this name already, which is not this fleet's")
