package eureka

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// deltaFor is how long a change is told in deltas: clients fetch one each 30 s.
	deltaFor = 3 * time.Minute

	// maxRecent is how many changes are remembered, at most. Who misses one finds
	// that the hashcode differs, and fetches all.
	maxRecent = 4096
)

// change is one entry of a delta.
type change struct {
	at       time.Time
	action   action
	instance *Instance
}

// note remembers a change. mu is held.
func (r *Registry) note(a action, i *Instance) {
	r.version++
	now := time.Now()
	old := 0
	for old < len(r.recent) && (now.Sub(r.recent[old].at) > deltaFor || len(r.recent)-old >= maxRecent) {
		old++
	}
	if old > 0 {
		r.recent = append([]change(nil), r.recent[old:]...) // not to keep what is old
	}
	r.recent = append(r.recent, change{now, a, i})
}

// follow keeps the functions' replicas as the table tells of them, until ctx ends
// or it is too far behind.
func (r *Registry) follow(ctx context.Context) {
	first := true
	for change, err := range r.cfg.Table.Watch(ctx, 0) {
		if err != nil {
			r.cfg.Logger.Debug("the registry was behind, and looks at all replicas anew", "err", err)
			return
		}
		r.mu.Lock()
		if first {
			first = false
			r.forget(change.Replicas)
		}
		for n := range change.Replicas {
			r.see(&change.Replicas[n])
		}
		r.mu.Unlock()
	}
}

// forget removes the replicas that are none of those in all. mu is held.
func (r *Registry) forget(all []discovery.Status) {
	there := make(map[string]bool, len(all))
	for n := range all {
		there[all[n].ID] = true
	}
	for app, instances := range r.functions {
		for id, i := range instances {
			if !there[id] {
				r.gone(app, id, i)
			}
		}
	}
}

// gone removes a function's replica. mu is held.
func (r *Registry) gone(app, id string, i *Instance) {
	delete(r.functions[app], id)
	if len(r.functions[app]) == 0 {
		delete(r.functions, app)
	}
	r.note(actionDeleted, i)
}

// see takes note of one step in a replica's life. mu is held.
func (r *Registry) see(s *discovery.Status) {
	if s.Source == Kind || !s.Addr.IsValid() {
		return // it is registered here, or has no address yet
	}
	image := ""
	if f := r.cfg.Declared(s.Function); f != nil {
		image = f.Image
	}
	i := ofFunction(s, image)
	old := r.functions[i.App][i.ID]
	switch {
	case s.State == faas.Gone:
		if old != nil {
			r.gone(i.App, i.ID, old)
		}
	case old == nil:
		if r.functions[i.App] == nil {
			r.functions[i.App] = make(map[string]*Instance)
		}
		r.functions[i.App][i.ID] = i
		r.note(actionAdded, i)
	case old.Status != i.Status:
		r.functions[i.App][i.ID] = i
		r.note(actionModified, i)
	}
}

// view is how a caller sees instances.
type view struct {
	local   bool // the caller is on this machine
	compact bool // leaves out what only people read
}

// of returns an instance as the caller sees it. Addresses of the loopback mean
// another machine to a caller elsewhere: it sees such an instance as one that is
// not to be called.
func (v view) of(i *Instance, renewed int64, a action) *Instance {
	c := i.clone()
	c.ActionType = a
	if c.Metadata == nil {
		c.Metadata = Metadata{}
	}
	c.Lease.Renewed = cmp.Or(renewed, int64(c.Updated))
	if !v.local && c.addr().Addr().IsLoopback() && c.Status == StatusUp {
		c.Status = StatusOutOfService
	}
	if v.compact {
		c.CountryID, c.AppGroup = 0, ""
		c.HomePage, c.StatusPage, c.Health, c.SecureHealth = "", "", "", ""
	}
	return c
}

// each calls f with all instances that pass, functions' and registered ones, in
// order of application and id. mu is held, at least for reading.
func (r *Registry) each(v view, pass func(*Instance) bool, f func(*Instance)) {
	names := slices.Collect(maps.Keys(r.apps))
	for app := range r.functions {
		if r.apps[app] == nil {
			names = append(names, app)
		}
	}
	slices.Sort(names)
	for _, app := range names {
		for _, id := range slices.Sorted(maps.Keys(r.functions[app])) {
			if i := r.functions[app][id]; pass == nil || pass(i) {
				f(v.of(i, time.Now().UnixMilli(), "")) // its provider is alive
			}
		}
		for _, id := range slices.Sorted(maps.Keys(r.apps[app])) {
			if reg := r.apps[app][id]; pass == nil || pass(reg.instance) {
				f(v.of(reg.instance, reg.renewed.Load(), ""))
			}
		}
	}
}

// all returns the applications with the instances that pass, as a caller sees
// them, and their hashcode.
func (r *Registry) all(v view, pass func(*Instance) bool) *applications {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a := r.empty()
	counts := map[Status]int{}
	r.each(v, pass, func(i *Instance) {
		counts[i.Status]++
		a.add(i)
	})
	a.Hashcode = hashcode(counts)
	return a
}

// empty is an answer without applications. mu is held, at least for reading.
func (r *Registry) empty() *applications {
	return &applications{Version: formatVersion(r.version), Apps: []*application{}}
}

// add adds an instance to its application.
func (a *applications) add(i *Instance) {
	if n := len(a.Apps); n == 0 || a.Apps[n-1].Name != i.App {
		a.Apps = append(a.Apps, &application{Name: i.App})
	}
	last := a.Apps[len(a.Apps)-1]
	last.Instances = append(last.Instances, i)
}

// delta returns what changed in the last minutes: of each instance its newest
// change alone. The hashcode is that of all instances.
func (r *Registry) delta(v view) *applications {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a := r.empty()
	counts := map[Status]int{}
	r.each(v, nil, func(i *Instance) { counts[i.Status]++ })
	a.Hashcode = hashcode(counts)

	now := time.Now()
	type key struct{ app, id string }
	newest := map[key]change{}
	for _, c := range r.recent {
		if now.Sub(c.at) > deltaFor {
			continue
		}
		k := key{c.instance.App, c.instance.ID}
		if old, ok := newest[k]; ok && old.action == actionAdded && c.action == actionModified {
			c.action = actionAdded // it may not be known yet to who reads this
		}
		newest[k] = c
	}
	keys := slices.SortedFunc(maps.Keys(newest), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.app, b.app), cmp.Compare(a.id, b.id))
	})
	for _, k := range keys {
		c := newest[k]
		a.add(v.of(c.instance, 0, c.action))
	}
	return a
}

// one returns an application, or nil.
func (r *Registry) one(v view, app string) *application {
	app = strings.ToUpper(app)
	a := r.all(v, func(i *Instance) bool { return i.App == app })
	if len(a.Apps) == 0 {
		return nil
	}
	return a.Apps[0]
}

// instance returns the instance with an id, of one application or, if app is
// empty, of any; nil if there is none.
func (r *Registry) instance(v view, app, id string) (found *Instance) {
	app = strings.ToUpper(app)
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.each(v, func(i *Instance) bool { return i.ID == id && (app == "" || i.App == app) }, func(i *Instance) { found = i })
	return found
}

// named says whether a list of virtual addresses has one.
func named(list, vip string) bool {
	for v := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(v), vip) {
			return true
		}
	}
	return false
}
