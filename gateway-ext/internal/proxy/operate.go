package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Operate returns what operators see and do, by the patterns of a
// [http.ServeMux]. It asks for no password: that is for who serves it, and so is
// to answer with the errors, which are of package faas.
//
//	GET    /system/resilience                 what is in force, and how it goes, of all functions that were called
//	GET    /system/resilience/NAME            of one
//	GET    /system/resilience/NAME/events     what happened lately
//	PUT    /system/resilience/NAME/breaker    {"mode":"forced-open"}, of ?replica=ID or all there are
//	DELETE /system/cache/NAME                 forget its kept answers, or the one of ?key=
//	GET, PUT, DELETE /system/chaos/NAME       a fault: {"latency":"300ms","errors":0.5,"status":503,"for":"30s"}
func (p *Proxy) Operate() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /system/resilience":                p.showAll,
		"GET /system/resilience/{name}":         p.show,
		"GET /system/resilience/{name}/events":  p.showEvents,
		"PUT /system/resilience/{name}/breaker": p.force,
		"DELETE /system/cache/{name}":           p.purge,
		"GET /system/chaos/{name}":              p.showChaos,
		"PUT /system/chaos/{name}":              p.startChaos,
		"DELETE /system/chaos/{name}":           p.stopChaos,
	}
}

// state is what is in force for a function, and how it goes.
type state struct {
	Name      string            `json:"name"`
	Policy    map[string]string `json:"policy"` // as annotations
	Asked     bool              `json:"asked"`  // by the function's annotations
	Timeout   string            `json:"timeout"`
	TimeoutBy string            `json:"timeoutBy"` // the setting that it follows from
	Warnings  []string          `json:"warnings,omitempty"`
	Replicas  []replicaState    `json:"replicas"`
	Budget    *budgetState      `json:"retryBudget,omitempty"`
	Counts    map[string]uint64 `json:"counts"`
	Revision  string            `json:"cacheRevision,omitempty"`
	Chaos     *chaosState       `json:"chaos,omitempty"`
}

type replicaState struct {
	ID       string         `json:"id"`
	InFlight int64          `json:"inFlight"`
	Balance  balanceState   `json:"balance"`
	Breaker  breakerState   `json:"breaker"`
	Bulkhead *bulkheadState `json:"bulkhead,omitempty"`
}

// Learnt yields what calls have taught about each replica that was ever called,
// by its id.
func (p *Proxy) Learnt(yield func(id string, s balance.State)) {
	now := time.Now()
	for f := range p.functions.all {
		for _, r := range f.now.Load().replicas {
			yield(r.ID, r.member.State(now))
		}
	}
}

// balanceState is what the choice of a replica goes by.
type balanceState struct {
	Latency  string  `json:"latency,omitempty"` // of calls lately, until their answer began
	Failures float64 `json:"failures"`          // the share of them that failed or were refused
	Weight   float64 `json:"weight"`            // the share of the choices that it takes part in
	Suspect  bool    `json:"suspect,omitempty"`
	Ejected  string  `json:"ejected,omitempty"` // how long it is still left out for failing more than its siblings
	Times    int     `json:"timesEjected,omitempty"`
}

type breakerState struct {
	State       string    `json:"state"`
	Mode        string    `json:"mode"`
	Since       time.Time `json:"since,omitzero"`
	Calls       int       `json:"calls"`
	Failures    int       `json:"failures"`
	Slow        int       `json:"slow"`
	Consecutive int       `json:"consecutiveFailures"`
	Opened      int       `json:"opened"`
	Wait        string    `json:"wait,omitempty"` // until it is asked again
}

type bulkheadState struct {
	InUse int `json:"inUse"`
	Limit int `json:"limit"`
}

type budgetState struct {
	Calls   int `json:"calls"` // of the last ten seconds
	Retries int `json:"retries"`
}

type chaosState struct {
	Latency string    `json:"latency,omitempty"`
	Errors  float64   `json:"errors"`
	Status  int       `json:"status,omitempty"`
	Until   time.Time `json:"until"`
}

func (p *Proxy) state(f *function, now time.Time) state {
	s := state{
		Name: f.name.String(), Policy: f.policy.Annotations(), Asked: f.asked, Warnings: f.warnings,
		Timeout: resilience.Short(f.rules.limit.time), TimeoutBy: f.rules.limit.setting,
		Replicas: []replicaState{}, Counts: make(map[string]uint64),
	}
	for _, r := range f.targets(p.cfg.Table).replicas {
		b := r.breaker.Snapshot(now)
		rs := replicaState{ID: r.ID, InFlight: r.InFlight(), Breaker: breakerState{
			State: b.State.String(), Mode: b.Mode.String(), Since: b.Since, Calls: b.Calls, Failures: b.Failures,
			Slow: b.Slow, Consecutive: b.Consecutive, Opened: b.Opened,
		}}
		m := r.member.State(now)
		rs.Balance = balanceState{Failures: math.Round(m.Failures*1e3) / 1e3, Weight: math.Round(m.Weight*1e3) / 1e3, Suspect: r.Suspect(), Times: m.Times}
		if m.Latency > 0 {
			rs.Balance.Latency = m.Latency.Round(time.Microsecond).String()
		}
		if m.Ejected > 0 {
			rs.Balance.Ejected = m.Ejected.Round(time.Millisecond).String()
		}
		if b.Wait > 0 {
			rs.Breaker.Wait = b.Wait.Round(time.Millisecond).String()
		}
		if limit := f.policy.Bulkhead.Limit; limit > 0 {
			rs.Bulkhead = &bulkheadState{r.bulkhead.InUse(), limit}
		}
		s.Replicas = append(s.Replicas, rs)
	}
	if f.budget != nil {
		calls, retries := f.budget.Spent(now)
		s.Budget = &budgetState{calls, retries}
	}
	for k, n := range f.meter.Counts() {
		s.Counts[k.String()] = n
	}
	if f.policy.Keeps() && p.cfg.Cache != nil {
		s.Revision = f.revision
	}
	s.Chaos = f.chaosState(now)
	return s
}

func (f *function) chaosState(now time.Time) *chaosState {
	x := f.fault(now)
	if x == nil {
		return nil
	}
	s := &chaosState{Errors: x.errors, Until: x.until}
	if x.latency > 0 {
		s.Latency = x.latency.String()
	}
	if x.errors > 0 {
		s.Status = x.status
	}
	return s
}

func (p *Proxy) showAll(w http.ResponseWriter, _ *http.Request) error {
	list, now := []state{}, time.Now()
	for f := range p.functions.all {
		list = append(list, p.state(f, now))
	}
	slices.SortFunc(list, func(a, b state) int { return strings.Compare(a.Name, b.Name) })
	return faas.WriteJSON(w, list)
}

func (p *Proxy) show(w http.ResponseWriter, r *http.Request) error {
	f, err := p.named(r)
	if err != nil {
		return err
	}
	return faas.WriteJSON(w, p.state(f, time.Now()))
}

func (p *Proxy) showEvents(w http.ResponseWriter, r *http.Request) error {
	f, err := p.named(r)
	if err != nil {
		return err
	}
	events := []resilience.Event{}
	for _, e := range p.monitor.Events(0) {
		if e.Target == f.name.String() {
			events = append(events, e)
		}
	}
	return faas.WriteJSON(w, events)
}

func (p *Proxy) force(w http.ResponseWriter, r *http.Request) error {
	f, err := p.named(r)
	if err != nil {
		return err
	}
	var asked struct {
		Mode string `json:"mode"`
	}
	if err := faas.ReadJSON(r.Body, maxOrder, &asked); err != nil {
		return err
	}
	mode, err := resilience.ParseMode(asked.Mode)
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	id, found, now := r.URL.Query().Get("replica"), false, time.Now()
	for _, t := range f.targets(p.cfg.Table).replicas {
		if id == "" || t.ID == id {
			t.breaker.SetMode(now, mode)
			t.member.Reset()
			found = true
		}
	}
	switch {
	case !found && id == "":
		return faas.Errorf(faas.ErrNotFound, "function %s has no ready replica, and each has a breaker of its own: call it, or scale it up", f.name)
	case !found:
		return faas.Errorf(faas.ErrNotFound, "function %s has no ready replica %.100q: GET /system/resilience/%[1]s lists them", f.name, id)
	}
	p.cfg.Logger.Warn("breaker mode set", "function", f.name.String(), "replica", cmp.Or(id, "all"), "mode", mode.String())
	return faas.WriteJSON(w, p.state(f, now))
}

func (p *Proxy) purge(w http.ResponseWriter, r *http.Request) error {
	name, err := nameOf(r)
	if err != nil {
		return err
	}
	if p.cfg.Cache == nil {
		return faas.Errorf(faas.ErrNotFound, "this gateway keeps no answers")
	}
	if text := r.URL.Query().Get("key"); text != "" {
		key, err := stale.ParseKey(text)
		if err != nil {
			return faas.Errorf(faas.ErrInvalid, "%w", err)
		}
		if key.Function() != name.String() {
			return faas.Errorf(faas.ErrInvalid, "key %.100q is of function %.70s, and not of %s", text, key.Function(), name)
		}
		err = p.cfg.Cache.PurgeKey(r.Context(), key)
		return purged(w, err)
	}
	return purged(w, p.cfg.Cache.Purge(r.Context(), name.String()))
}

func purged(w http.ResponseWriter, err error) error {
	if err != nil {
		return faas.Errorf(faas.ErrUnavailable, "%w", err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (p *Proxy) showChaos(w http.ResponseWriter, r *http.Request) error {
	f, err := p.chaotic(r)
	if err != nil {
		return err
	}
	return faas.WriteJSON(w, f.chaosState(time.Now()))
}

func (p *Proxy) startChaos(w http.ResponseWriter, r *http.Request) error {
	f, err := p.chaotic(r)
	if err != nil {
		return err
	}
	asked := struct {
		Latency string  `json:"latency"`
		Errors  float64 `json:"errors"`
		Status  int     `json:"status"`
		For     string  `json:"for"`
	}{Status: http.StatusServiceUnavailable, For: "30s", Latency: "0s"}
	if err := faas.ReadJSON(r.Body, maxOrder, &asked); err != nil {
		return err
	}
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	latency, err := time.ParseDuration(asked.Latency)
	if err != nil || latency < 0 || latency > maxChaosWait {
		bad("latency %.40q is no time up to %s: write for example \"300ms\"", asked.Latency, resilience.Short(maxChaosWait))
	}
	last, err := time.ParseDuration(asked.For)
	if err != nil || last <= 0 || last > maxChaos {
		bad("for %.40q is no time up to %s: write for example \"30s\"", asked.For, resilience.Short(maxChaos))
	}
	if !(asked.Errors >= 0 && asked.Errors <= 1) {
		bad("errors %g is no share of calls: write a number from 0 to 1, as 0.5 for half of them", asked.Errors)
	}
	if asked.Status < 400 || asked.Status > 599 {
		bad("status %d is no error: write one from 400 to 599, as 503", asked.Status)
	}
	if latency == 0 && asked.Errors == 0 {
		bad(`nothing would happen: write latency, errors or both, as {"latency":"300ms","errors":0.5,"status":503,"for":"30s"}`)
	}
	if err := errors.Join(wrong...); err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	now := time.Now()
	f.chaos.Store(&chaos{latency: latency, errors: asked.Errors, status: asked.Status, until: now.Add(last)})
	p.cfg.Logger.Warn("a fault is put into a function", "function", f.name.String(), "latency", latency, "errors", asked.Errors, "status", asked.Status, "for", last)
	return faas.WriteJSON(w, f.chaosState(now))
}

func (p *Proxy) stopChaos(w http.ResponseWriter, r *http.Request) error {
	f, err := p.chaotic(r)
	if err != nil {
		return err
	}
	if f.chaos.Swap(nil) != nil {
		p.cfg.Logger.Warn("the fault in a function is taken out", "function", f.name.String())
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// chaotic returns the function that a fault is asked for.
func (p *Proxy) chaotic(r *http.Request) (*function, error) {
	if !p.cfg.Chaos {
		return nil, faas.Errorf(faas.ErrForbidden, "faults are switched off: start the gateway with %s to put them into functions", p.cfg.ChaosSetting)
	}
	return p.named(r)
}

// named returns the function that a request's path names.
func (p *Proxy) named(r *http.Request) (*function, error) {
	name, err := nameOf(r)
	if err != nil {
		return nil, err
	}
	f := p.function(name)
	if f == nil {
		return nil, faas.Errorf(faas.ErrNotFound, "%w", p.unknown(name))
	}
	return f, nil
}

func nameOf(r *http.Request) (faas.Name, error) {
	text := r.PathValue("name")
	if ns := r.URL.Query().Get("namespace"); ns != "" && !strings.Contains(text, ".") {
		text += "." + ns
	}
	return faas.ParseName(text)
}

// maxOrder is the most that is read of what an operator asks for.
const maxOrder = 4 << 10
