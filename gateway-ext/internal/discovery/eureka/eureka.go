// Package eureka lets services and clients of Netflix's Eureka meet functions.
// [Registry] speaks Eureka's REST interface (the one that Spring mounts below
// /eureka, and Netflix below /eureka/v2) over the table of package discovery:
//
//   - Functions appear as applications, with an instance for each replica.
//   - A service that registers itself is found by others, and is called like a
//     function, at /function/NAME. It can't take the place of a function: a name
//     that is declared is refused, and who declares a name that is registered
//     gets it.
//
// Leases are kept by the table: with the durations that a client asks for,
// bounded, counted from when its heartbeat arrived here, and not over while its
// address still answers. There is no self-preservation by thresholds, no cache
// that answers with what was true half a minute ago, and there are no peers.
//
// An address that a stranger registers is one that this gateway will connect to.
// So all of it is behind the gateway's password; addresses that have a meaning
// only on this machine or this link are refused (see [checkAddr]); no name is
// looked up; and all that can be registered is bounded in number and size.
package eureka

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Kind is what the sources of registered instances are called in the table.
const Kind = "eureka"

// Config is what a [Registry] works with.
type Config struct {
	Table  *discovery.Table // required
	Logger *slog.Logger     // required

	// Declared returns a function, or nil if there is none of that name. Required.
	Declared func(faas.Name) *faas.Function

	// Check looks at the declaration that a service's metadata makes of it: its
	// entries that begin with "thicket." are annotations. Its error refuses the
	// service. Nil checks nothing, and no metadata are annotations.
	Check func(types.FunctionDeployment) error

	// Changed is told of a service that came, went, or has other annotations. Nil
	// is not told.
	Changed func(faas.Name)

	// Own says whether an address is the gateway's own: a call of a service there
	// would come back. Nil knows none.
	Own func(netip.AddrPort) bool

	// MaxInstances is how many instances may be registered: 1,000. Each costs up
	// to 16 KB.
	MaxInstances int
}

// Registry is the applications that are registered here, and the functions. All
// its methods may be called at the same time by any number of goroutines.
type Registry struct {
	cfg Config

	mu        sync.RWMutex                      // guards below
	apps      map[string]map[string]*registered // by application and id
	count     int                               // of all that are registered
	functions map[string]map[string]*Instance   // by application and replica
	version   uint64                            // grows with each change
	recent    []change                          // what a delta tells, oldest first
}

// registered is an instance that registered itself.
type registered struct {
	source  *discovery.Source
	renewed atomic.Int64 // milliseconds of this machine's clock

	// The registry's mu guards these. The instance is replaced, never changed.
	instance *Instance
	own      Status // what the instance says of itself, whatever overrides it
	replica  faas.Replica
}

// New returns a registry with the instances that the table knows from before the
// start.
func New(cfg Config) *Registry {
	cfg.MaxInstances = cmp.Or(cfg.MaxInstances, 1000)
	r := &Registry{cfg: cfg, apps: make(map[string]map[string]*registered), functions: make(map[string]map[string]*Instance)}
	for _, saved := range cfg.Table.Saved(Kind) {
		if err := r.restore(saved); err != nil {
			cfg.Logger.Warn("an instance that was registered before the start is left out", "instance", saved.Name, "err", err)
		}
	}
	return r
}

// kept is what of an instance is kept on disk.
type kept struct {
	Instance *Instance `json:"instance"`
	Own      Status    `json:"own"`
}

// restore takes an instance back that was registered before the start.
func (r *Registry) restore(saved discovery.Saved) error {
	reg := &registered{}
	var err error
	if reg.source, err = r.cfg.Table.Source(Kind, saved.Name, saved.Lease, func() { r.lost(reg) }); err != nil {
		return err
	}
	var k kept
	if err = json.Unmarshal(saved.Lease.Detail, &k); err == nil && k.Instance == nil {
		err = faas.Errorf(faas.ErrInvalid, "nothing is known of it")
	}
	if err == nil {
		// It was let in with its address before, so it may be a loopback one.
		err = r.check(k.Instance, true)
	}
	if err != nil {
		reg.source.Close()
		return err
	}
	reg.instance, reg.own = k.Instance, k.Own
	reg.renewed.Store(time.Now().UnixMilli())
	for _, replica := range saved.Replicas { // it is one, if any
		reg.replica = replica
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(reg)
	return nil
}

// put adds an instance. mu is held.
func (r *Registry) put(reg *registered) {
	i := reg.instance
	if r.apps[i.App] == nil {
		r.apps[i.App] = make(map[string]*registered)
	}
	r.apps[i.App][i.ID] = reg
	r.count++
}

// drop removes an instance that is there. mu is held.
func (r *Registry) drop(reg *registered) {
	i := reg.instance
	delete(r.apps[i.App], i.ID)
	if len(r.apps[i.App]) == 0 {
		delete(r.apps, i.App)
	}
	r.count--
	r.note(actionDeleted, i)
}

// find returns a registered instance. mu is held, at least for reading.
func (r *Registry) find(app, id string) *registered { return r.apps[strings.ToUpper(app)][id] }

// Register takes an instance in, or anew what it has changed. local says that
// the caller is on this machine.
func (r *Registry) Register(i *Instance, local bool) error {
	if err := r.check(i, local); err != nil {
		return err
	}
	name, callable := i.service()
	err := r.register(i)
	if err == nil && callable && r.cfg.Changed != nil {
		r.cfg.Changed(name)
	}
	return err
}

func (r *Registry) register(i *Instance) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.free(i.App); err != nil {
		return err
	}
	now := time.Now()
	i = i.clone()
	reg := r.find(i.App, i.ID)
	added := reg == nil
	if added {
		if r.count >= r.cfg.MaxInstances {
			return faas.Errorf(faas.ErrOverloaded, "%d instances are registered, as many as are taken: cancel one", r.count)
		}
		reg = &registered{}
		i.Lease.Registered, i.Lease.ServiceUp = now.UnixMilli(), 0
	} else {
		i.Lease.Registered, i.Lease.ServiceUp = reg.instance.Lease.Registered, reg.instance.Lease.ServiceUp
		if reg.instance.Overridden != StatusUnknown {
			i.Overridden = reg.instance.Overridden // what an operator said stays
		}
	}
	own := i.Status
	if err := r.agree(reg, i, own, now); err != nil {
		return err
	}
	if added {
		r.put(reg)
		r.note(actionAdded, reg.instance)
		r.cfg.Logger.Info("an instance registered itself", "app", i.App, "instance", i.ID, "addr", i.addr().String(), "status", string(reg.instance.Status))
	} else {
		r.note(actionModified, reg.instance)
	}
	return nil
}

// function returns the function that appears under an application's name, or nil:
// that of another namespace than the default has it behind a dot.
func (r *Registry) function(app string) *faas.Function {
	name, err := faas.ParseName(strings.ToLower(app))
	if err != nil {
		return nil
	}
	return r.cfg.Declared(name)
}

// free returns an error if an application's name is a function's. mu is held.
func (r *Registry) free(app string) error {
	if f := r.function(app); f != nil {
		return faas.Errorf(faas.ErrConflict, "%s is the name of a function here: give the service another spring.application.name, or remove the function %s", app, f.Name())
	}
	return nil
}

// agree makes i what is known of an instance: its status follows from what it
// says and what overrides that, the table gets its lease, and its place in the
// route is as the status says. mu is held.
func (r *Registry) agree(reg *registered, i *Instance, own Status, now time.Time) error {
	i.Status = effective(own, i.Overridden)
	if i.Status == StatusUp && i.Lease.ServiceUp == 0 {
		i.Lease.ServiceUp = now.UnixMilli()
	}
	i.Updated = Quoted(now.UnixMilli())
	detail, err := json.Marshal(kept{i, own})
	if err != nil {
		return err
	}
	lease := discovery.Lease{
		Suspect: i.Lease.suspect(), Gone: i.Lease.duration(), Probe: i.target(), Detail: detail,
	}
	if reg.source == nil {
		reg.source, err = r.cfg.Table.Source(Kind, i.App+"/"+i.ID, lease, func() { r.lost(reg) })
	} else {
		err = reg.source.Agree(lease)
	}
	if err != nil {
		return err
	}
	reg.instance, reg.own = i, own
	reg.renewed.Store(now.UnixMilli())
	reg.source.Heard()
	r.route(reg, now)
	return nil
}

// route gives an instance the place in the table that its status deserves. A
// replica's state only grows, so who comes back comes back as a new one. mu is
// held.
func (r *Registry) route(reg *registered, now time.Time) {
	i := reg.instance
	name, callable := i.service()
	state, reason := i.Status.state()
	if !callable {
		state = faas.Draining
	}
	addr := i.addr()
	if old := reg.replica; old.ID != "" && (old.Addr != addr || state < old.State || old.Zone != i.zone() || old.Node != i.node()) {
		old.State, old.Since, old.Reason = faas.Gone, now, "it registered anew"
		reg.source.Observe(old)
		reg.replica = faas.Replica{}
	}
	if reg.replica.ID == "" {
		if state == faas.Draining {
			return // it has no place, and gets none
		}
		reg.replica = faas.Replica{
			ID: name.Function + "-" + strings.ToLower(rand.Text()[:7]), Function: name,
			Node: i.node(), Zone: i.zone(), Addr: addr, State: state, Since: now,
		}
	}
	if reg.replica.State != state {
		reg.replica.State, reg.replica.Since = state, now
	}
	reg.replica.Reason = reason
	reg.source.Observe(reg.replica)
}

// errUnknown is what a heartbeat of an instance gets that isn't here: upon a 404
// clients register again.
func errUnknown(app, id string) error {
	return faas.Errorf(faas.ErrNotFound, "there is no instance %.100q of %.100q: register it", id, app)
}

// errFunction is what who wants to change a function's replica gets.
func (r *Registry) errFunction(app string) error {
	if r.function(app) != nil {
		return faas.Errorf(faas.ErrForbidden, "%s is a function: it is deployed, scaled and removed with faas-cli", app)
	}
	return nil
}

// Heartbeat renews an instance's lease. dirty is when the client last changed
// what it says of itself, by its own clock; 0 if it didn't tell. If that is later
// than what is known here, a change was missed: the error is an ErrNotFound, upon
// which the client registers again.
func (r *Registry) Heartbeat(app, id string, dirty int64) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	reg := r.find(app, id)
	if reg == nil {
		if err := r.errFunction(app); err != nil {
			return err
		}
		return errUnknown(app, id)
	}
	if dirty > int64(reg.instance.Dirty) {
		return faas.Errorf(faas.ErrNotFound, "instance %s of %s has changed since it registered: register it again", id, reg.instance.App)
	}
	if !reg.source.Heard() {
		return errUnknown(app, id)
	}
	reg.renewed.Store(time.Now().UnixMilli())
	return nil
}

// Cancel removes an instance.
func (r *Registry) Cancel(app, id string) error {
	reg, err := r.cancel(app, id)
	if err != nil {
		return err
	}
	r.cfg.Logger.Info("an instance cancelled its registration", "app", reg.instance.App, "instance", id)
	r.changed(reg.instance)
	return nil
}

func (r *Registry) cancel(app, id string) (*registered, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reg := r.find(app, id)
	if reg == nil {
		return nil, cmp.Or(r.errFunction(app), errUnknown(app, id))
	}
	reg.source.Close()
	r.drop(reg)
	return reg, nil
}

// changed tells who asked of a service's change. mu is not held.
func (r *Registry) changed(i *Instance) {
	if name, ok := i.service(); ok && r.cfg.Changed != nil {
		r.cfg.Changed(name)
	}
}

// lost is called when the table gave an instance up.
func (r *Registry) lost(reg *registered) {
	r.mu.Lock()
	gone := r.find(reg.instance.App, reg.instance.ID) == reg
	if gone {
		r.drop(reg)
	}
	r.mu.Unlock()
	if gone {
		r.changed(reg.instance)
	}
}

// change replaces what is known of an instance.
func (r *Registry) change(app, id string, edit func(i *Instance, own Status) (Status, error)) error {
	r.mu.Lock()
	reg := r.find(app, id)
	if reg == nil {
		defer r.mu.Unlock()
		return cmp.Or(r.errFunction(app), errUnknown(app, id))
	}
	i := reg.instance.clone()
	own, err := edit(i, reg.own)
	if err == nil {
		if err = r.agree(reg, i, own, time.Now()); err == nil {
			r.note(actionModified, i)
		}
	}
	r.mu.Unlock()
	if err == nil {
		r.changed(i)
	}
	return err
}

// Override sets the status that an operator wants an instance to have, until
// [Registry.Restore]. It has no effect while the instance says that it is DOWN or
// STARTING.
func (r *Registry) Override(app, id string, s Status) error {
	return r.change(app, id, func(i *Instance, own Status) (Status, error) {
		i.Overridden = s
		return own, nil
	})
}

// Restore ends an override. s is what the instance is from now on; if it is
// empty, it is what the instance says itself.
func (r *Registry) Restore(app, id string, s Status) error {
	return r.change(app, id, func(i *Instance, own Status) (Status, error) {
		i.Overridden = StatusUnknown
		return cmp.Or(s, own), nil
	})
}

// SetMetadata adds to an instance's metadata.
func (r *Registry) SetMetadata(app, id string, metadata map[string]string) error {
	return r.change(app, id, func(i *Instance, own Status) (Status, error) {
		i.Metadata = maps.Clone(i.Metadata)
		if i.Metadata == nil {
			i.Metadata = Metadata{}
		}
		maps.Copy(i.Metadata, metadata)
		return own, r.check(i, true)
	})
}

// Declare is to be called when a function was declared: a service of its name has
// to go. Its clients are told why when they register again.
func (r *Registry) Declare(name faas.Name) {
	if r.cfg.Declared(name) == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, reg := range r.apps[appOf(name)] {
		r.cfg.Logger.Warn("a registered service is removed: a function of its name was declared", "app", reg.instance.App, "instance", id)
		reg.source.Close()
		r.drop(reg)
	}
}

// Run follows the replicas of functions, for deltas, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		r.follow(ctx)
	}
	return nil
}
