// Package nodes is the fleet's machines as one. It knows who belongs to the
// fleet, whether they are there, and what each runs; and it is one
// [provider.Provider] over all of them, so that who declares functions need not
// know how many machines there are.
//
// A machine becomes a node by [Identity.Join], with a token that the gateway
// made; from then on each has an identity of its own, and everything goes over
// TLS between the two. The gateway calls its nodes (package remote) and holds a
// stream open to each: its beats are the node's lease. Where a replica goes is
// decided by package placement, whether a silent node is gone by who keeps the
// leases ([Config.Source]); this package obeys both.
//
// What is kept on disk is what was declared: who belongs, labels, whether a node
// is cordoned. What runs where is learnt from the nodes at each start.
package nodes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/types"
	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// Store keeps values under keys. When Put or Delete returns nil, its change is
// durable.
type Store interface {
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// Each calls f for each key, until f returns an error, which it returns.
	Each(ctx context.Context, f func(key string, value []byte) error) error
}

// Source takes the word of one node for the replicas that it runs.
type Source interface {
	provider.Observer
	// Heard notes a sign of life. It returns false if the node was counted out.
	Heard() bool
	// Close counts it out.
	Close()
}

// Config is what a fleet's machines need.
type Config struct {
	Authority *Authority   // required
	Store     Store        // required; no other user may write to it
	Logger    *slog.Logger // required

	// Secret lets machines join that have it too, beside those with a token.
	// Empty: tokens alone do.
	Secret Secret

	// Local is this machine, which is a node like others but for that it can't
	// be away. Required.
	Local Local

	// Source begins to take a node's word. lost is called when it was silent for
	// too long and answers nothing. Required.
	Source func(node string, addr netip.AddrPort, lost func()) (Source, error)

	// Platforms returns those that an image is made for. Nil, or an error, is
	// any. It is asked once for each digest.
	Platforms func(ctx context.Context, image, digest string) ([]string, error)

	// Known says whether a function is declared: what a node runs and nobody
	// has declared any more is removed. It is asked while nothing of this
	// package is locked. Nil removes nothing.
	Known func(faas.Name) bool

	// Functions is where functions reach the gateway: its scheme and its port,
	// since the host is that by which a node has reached it. Required.
	Functions url.URL

	// Replicas returns those of a node that are known from before the start, for a
	// provider that doesn't know its replicas by name. Nil knows none.
	Replicas func(node string) []faas.Replica

	// Providers are OpenFaaS providers that are nodes for as long as they are
	// here, beside those that were added.
	Providers []Provider

	// Declare declares a function in the fleet that was found at a provider. Nil
	// adopts none.
	Declare func(context.Context, types.FunctionDeployment) error

	// Own says whether an address is this gateway's. Nil says of none.
	Own func(netip.AddrPort) bool

	// JoinURL is where machines join, for who has called the gateway's API at the
	// given host ("192.168.1.2:8080"). Required.
	JoinURL func(host string) string

	// Env is given to functions on other machines, beside their own variables.
	Env map[string]string

	// Cache is the URL of a cache on this machine's loopback that functions on the
	// nodes use, too: "redis://default:password@127.0.0.1:6379". Empty is none.
	Cache string

	// Settle is how long after its start the gateway waits for nodes that it
	// knows before it places what they may be running: 3 s.
	Settle time.Duration

	MaxNodes  int // default 1000
	MaxTokens int // default 100
}

// Local is the gateway's own machine. Its provider is attached to the nodes
// afterwards ([Nodes.Attach]).
type Local struct {
	Name    string
	Labels  map[string]string
	Machine func() remote.Machine
	Has     func(digest string) bool // whether it has an image; required
	Empty   bool                     // it runs nothing: other nodes do
}

// Record is what is remembered of a node.
type Record struct {
	Name     string            `json:"name"`
	Key      []byte            `json:"key"` // its public key, DER
	Addr     netip.AddrPort    `json:"addr"`
	Labels   map[string]string `json:"labels,omitempty"`
	Said     map[string]string `json:"said,omitempty"` // the labels that it gave itself
	Cordoned bool              `json:"cordoned,omitempty"`
	Draining bool              `json:"draining,omitempty"`
	Joined   time.Time         `json:"joined"`
	By       string            `json:"by,omitempty"`      // what it joined with: a token's ID, or "file"
	Machine  remote.Machine    `json:"machine"`           // as it was when it joined last
	Foreign  *Foreign          `json:"foreign,omitempty"` // of one that is an OpenFaaS provider
}

// Status is a node as people want to see it.
type Status struct {
	Record
	Local    bool      `json:"local,omitempty"`
	State    string    `json:"state"`            // "ready", "suspect", "gone"
	Reason   string    `json:"reason,omitempty"` // why it isn't ready
	Seen     time.Time `json:"seen,omitzero"`    // when it was last heard of
	Replicas int       `json:"replicas"`         // that it was told to run
	// Skew is how many seconds its clock was ahead of the gateway's at its last
	// beat, less the milliseconds that the beat was under way.
	Skew float64 `json:"skew,omitempty"`
	// Notes are sentences on what isn't as it should be, though it may be ready.
	Notes []string `json:"notes,omitempty"`

	Provider *ForeignStatus `json:"provider,omitempty"` // of one that is an OpenFaaS provider
}

// Nodes are the fleet's machines. Make them with [New].
type Nodes struct {
	cfg  Config
	log  *slog.Logger
	kick chan struct{} // has a token when something is to be decided
	work sync.WaitGroup

	storing sync.Mutex // held while something is stored, so that the newest is stored last

	mu        sync.Mutex // guards below; never held over I/O
	ctx       context.Context
	began     time.Time
	local     *node
	nodes     map[string]*node // the local one, too
	tokens    map[string]Token
	functions map[faas.Name]*function
	names     []faas.Name                    // of the functions, in order; nil until it is needed
	platforms map[string][]string            // by digest
	holders   map[string]map[string]struct{} // by [remote.ImageKey]: the nodes that have it
}

// node is one machine. Nodes.mu guards it.
type node struct {
	Record
	local    bool
	p        provider.Provider
	client   member          // nil of the local one
	ctx      context.Context // of the line to it, with its end
	cancel   context.CancelFunc
	source   Source
	state    placement.State
	reason   string
	seen     time.Time
	machine  remote.Machine
	skew     time.Duration          // how far its clock is ahead of ours
	synced   bool                   // it has told what it runs
	tells    bool                   // it tells which images it has
	images   []string               // see [remote.Machine.Images]
	garbled  bool                   // what it said last can't be read
	opened   time.Time              // when the line to it was begun
	tunnels  map[*tls.Conn]struct{} // to its replicas
	flaps    flaps
	password string // of an OpenFaaS provider
	trouble  string // what was wrong when it last was not heard of as it should be
}

// member is a node that is not this machine, as it is spoken to: a
// [remote.Client] is one. What it is told of replicas goes to the observer that
// it was made with, its beats to [Nodes.beat], a broken line to
// [Nodes.lostStream].
type member interface {
	Runner // Run listens until its context ends

	// Wanted returns what the node was told to run.
	Wanted() map[faas.Name]remote.Share

	// Forget has all of its replicas observed as gone, when it is counted out.
	Forget(why string)
}

var _ member = (*remote.Client)(nil)

// set takes a record of the node. Its name stays, and is read without the lock.
// mu is held.
func (d *node) set(r Record) {
	d.Said = r.Said
	d.Key, d.Addr, d.Labels, d.Cordoned, d.Draining, d.Joined, d.By, d.Record.Machine = r.Key, r.Addr, r.Labels, r.Cordoned, r.Draining, r.Joined, r.By, r.Machine
	d.Foreign = r.Foreign
}

// Keys of the store begin with what they hold.
const (
	nodeKey  = "node."
	tokenKey = "token."
)

// New reads who belongs to the fleet. It starts nothing: [Nodes.Run] does.
func New(ctx context.Context, cfg Config) (*Nodes, error) {
	cfg.Settle = cmp.Or(cfg.Settle, 3*time.Second)
	cfg.MaxNodes = cmp.Or(cfg.MaxNodes, 1000)
	cfg.MaxTokens = cmp.Or(cfg.MaxTokens, 100)
	n := &Nodes{
		cfg: cfg, log: cfg.Logger, kick: make(chan struct{}, 1),
		nodes: make(map[string]*node), tokens: make(map[string]Token),
		functions: make(map[faas.Name]*function), platforms: make(map[string][]string),
		holders: make(map[string]map[string]struct{}),
	}
	err := cfg.Store.Each(ctx, func(key string, value []byte) error {
		var err error
		if name, ok := strings.CutPrefix(key, nodeKey); ok {
			var r Record
			if err = json.Unmarshal(value, &r); err == nil && r.Name == name {
				n.nodes[name] = &node{Record: r, state: placement.Suspect, reason: "it was not heard of since the gateway started", machine: r.Machine}
			}
		} else if id, ok := strings.CutPrefix(key, tokenKey); ok {
			var t Token
			if err = json.Unmarshal(value, &t); err == nil && t.ID == id {
				n.tokens[id] = t
			}
		}
		if err != nil {
			n.log.Error("something stored of the nodes can't be read and is left out", "key", key, "err", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read which nodes there are: %w", err)
	}
	if err := n.takeProviders(ctx); err != nil {
		return nil, err
	}
	// What was remembered of this machine is how it is used: all else it knows.
	me := &node{Record: Record{Name: cfg.Local.Name, Joined: time.Now()}}
	if old := n.nodes[cfg.Local.Name]; old != nil {
		if len(old.Key) > 0 || old.Foreign != nil {
			return nil, faas.Errorf(faas.ErrConflict, "%s is the name of another machine of the fleet: give this one another (THICKET_NODE)", cfg.Local.Name)
		}
		me.Record = old.Record
	}
	for name, d := range n.nodes {
		if len(d.Key) == 0 && d.Foreign == nil { // the gateway's machine, when it was another or had another name
			delete(n.nodes, name)
		}
	}
	me.Labels = maps.Clone(me.Labels)
	if me.Labels == nil {
		me.Labels = make(map[string]string)
	}
	maps.Copy(me.Labels, cfg.Local.Labels)
	me.local, me.state, me.synced = true, placement.Ready, true
	me.machine = cfg.Local.Machine()
	if cfg.Local.Empty {
		me.Cordoned, me.Draining = true, true
	}
	n.local = me
	n.nodes[me.Name] = me
	return n, nil
}

// Attach gives the nodes the provider of this machine. It is called once, before
// Run; the provider's observer is [Nodes.Watch].
func (n *Nodes) Attach(p provider.Provider) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local.p = p
}

// Run keeps the lines to the nodes and places functions, until ctx ends. What
// runs on the nodes then goes on.
func (n *Nodes) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer n.work.Wait()
	defer cancel()
	n.mu.Lock()
	n.ctx, n.began = ctx, time.Now()
	for _, d := range n.nodes {
		n.open(d)
	}
	n.mu.Unlock()
	n.loop(ctx)
	return nil
}

// open begins the line to a node. mu is held.
func (n *Nodes) open(d *node) {
	if d.local || n.ctx == nil {
		return
	}
	ctx, cancel := context.WithCancel(n.ctx)
	if d.cancel != nil {
		d.cancel()
	}
	d.ctx, d.cancel = ctx, cancel
	client, err := n.member(d)
	if err != nil { // a URL that was good when it was declared
		d.reason = err.Error()
		return
	}
	d.client, d.p, d.synced, d.opened = client, client, false, time.Now()
	n.work.Go(func() { _ = client.Run(ctx) }) // its end is ctx's
}

// member makes the gateway's end of the line to a node. mu is held.
func (n *Nodes) member(d *node) (member, error) {
	if d.Foreign != nil {
		return n.provider(d)
	}
	return remote.NewClient(remote.ClientConfig{
		Node: d.Name, Zone: d.Labels["zone"], URL: "https://" + d.Addr.String(),
		HTTP: n.httpClient(d), Observer: &line{n: n, d: d},
		Beat:   func(m remote.Machine) { n.beat(d, m) },
		Lost:   func(err error) { n.lostStream(d, err) },
		Logger: n.log,
	}), nil
}

// line is what a node's client tells of its replicas. A node that was counted
// out and is heard of again gets a new source.
type line struct {
	n *Nodes
	d *node
}

// Observe implements [provider.Observer].
func (l *line) Observe(r faas.Replica) {
	if r.State == faas.Gone && l.counted() {
		l.n.decide()
		return // it is us who say so, and no sign of life
	}
	if s := l.n.heard(l.d); s != nil {
		s.Observe(r)
	}
	l.n.decide()
}

// counted says whether the node is counted out.
func (l *line) counted() bool {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	return l.d.state == placement.Gone
}

// Idle implements [provider.Observer].
func (l *line) Idle(ctx context.Context, id string) error {
	l.n.mu.Lock()
	s := l.d.source
	l.n.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Idle(ctx, id)
}

// heard notes a sign of life, and returns who takes the node's word.
func (n *Nodes) heard(d *node) Source {
	n.mu.Lock()
	defer n.mu.Unlock()
	d.seen = time.Now()
	if d.source != nil && d.source.Heard() {
		return d.source
	}
	if n.nodes[d.Name] != d {
		return nil // it was removed
	}
	s, err := n.cfg.Source(d.Name, d.Addr, func() { n.lost(d) })
	if err != nil {
		n.log.Error("a node's word can't be taken", "node", d.Name, "err", err)
		return nil
	}
	s.Heard() // it may go on with what was known before the start
	d.source = s
	return s
}

// beat takes note of a node's beat.
func (n *Nodes) beat(d *node, m remote.Machine) {
	n.heard(d)
	n.mu.Lock()
	first := !d.synced
	was := d.state
	if m.Images != nil {
		n.holds(d, m.Images)
		m.Images = nil
	}
	d.machine, d.synced, d.garbled = m, true, false
	if !m.Time.IsZero() {
		d.skew = time.Until(m.Time) // and the time that the beat was under way
	}
	d.state, d.reason = placement.Ready, ""
	if was == placement.Gone {
		d.flaps.turn(time.Now())
	}
	addr := d.Addr
	n.mu.Unlock()
	if first || was != placement.Ready {
		n.adopt(d)
		n.log.Info("a node is there", "node", d.Name, "addr", addr.String())
		n.decide()
	}
}

// lostStream notes that a node's stream broke. What it runs is still used, less,
// until its lease is over.
func (n *Nodes) lostStream(d *node, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.state == placement.Ready {
		d.state = placement.Suspect
	}
	d.trouble = err.Error()
	switch {
	case d.state == placement.Suspect:
		d.reason = d.trouble
	case d.Foreign != nil:
		d.reason = d.silence()
	}
	d.garbled = errors.Is(err, remote.ErrGarbled)
}

// holds notes which images a node has. mu is held.
func (n *Nodes) holds(d *node, images []string) {
	for _, key := range d.images {
		if delete(n.holders[key], d.Name); len(n.holders[key]) == 0 {
			delete(n.holders, key)
		}
	}
	d.tells, d.images = true, images[:min(len(images), remote.MaxImages)]
	for _, key := range d.images {
		if n.holders[key] == nil {
			n.holders[key] = make(map[string]struct{})
		}
		n.holders[key][d.Name] = struct{}{}
	}
}

// silence is why a node is gone. mu is held.
func (d *node) silence() string {
	s := fmt.Sprintf("it was last heard of at %s", d.seen.Format(time.TimeOnly))
	if d.Foreign != nil && d.trouble != "" {
		return s + ": " + d.trouble // it may answer, and wrongly
	}
	return s + ", and doesn't answer"
}

// lost notes that a node is counted out.
func (n *Nodes) lost(d *node) {
	n.mu.Lock()
	if n.nodes[d.Name] != d {
		n.mu.Unlock()
		return
	}
	d.state, d.source = placement.Gone, nil
	d.reason = d.silence()
	d.synced = false
	client, cut := d.client, d.cut()
	n.mu.Unlock()
	n.log.Warn("a node is gone: what it ran is started elsewhere", "node", d.Name)
	client.Forget("its node is gone")
	cut()
	n.decide()
}

// List returns the nodes by name.
func (n *Nodes) List() []Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Status, 0, len(n.nodes))
	for _, d := range n.nodes {
		all = append(all, n.status(d))
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Node returns one node, or an [faas.ErrNotFound].
func (n *Nodes) Node(name string) (Status, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d, err := n.node(name)
	if err != nil {
		return Status{}, err
	}
	return n.status(d), nil
}

func (n *Nodes) node(name string) (*node, error) {
	if d := n.nodes[name]; d != nil {
		return d, nil
	}
	return nil, faas.Errorf(faas.ErrNotFound, "there is no node %.63q: the nodes are %s", name, strings.Join(slices.Sorted(maps.Keys(n.nodes)), ", "))
}

func (n *Nodes) status(d *node) Status {
	s := Status{Record: d.Record, Local: d.local, State: states[d.state], Reason: d.reason, Seen: d.seen, Skew: d.skew.Seconds()}
	s.Machine = d.machine
	if d.local {
		s.Machine, s.Seen = n.cfg.Local.Machine(), time.Now()
	} else if d.Foreign == nil && d.state != placement.Gone {
		s.Notes = notes(&d.machine, d.skew, n.local.machine.Version)
	}
	for _, why := range [...]string{d.closed(time.Now()), d.full()} {
		if why != "" && d.state != placement.Gone {
			s.Notes = append(s.Notes, why)
		}
	}
	for _, f := range n.functions {
		s.Replicas += f.shares[d.Name].want
	}
	s.Provider = n.foreignStatus(d)
	return s
}

// Change is what can be changed of a node. Nil fields stay.
type Change struct {
	Labels   map[string]*string `json:"labels,omitempty"` // nil removes one
	Cordoned *bool              `json:"cordoned,omitempty"`
	Draining *bool              `json:"draining,omitempty"` // moves what it runs elsewhere, and cordons it
}

// Update changes a node.
func (n *Nodes) Update(ctx context.Context, name string, c Change) error {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	d, err := n.node(name)
	if err != nil {
		n.mu.Unlock()
		return err
	}
	r := d.Record
	n.mu.Unlock()
	r.Labels = maps.Clone(r.Labels)
	for k, v := range c.Labels {
		if v == nil {
			delete(r.Labels, k)
			continue
		}
		if r.Labels == nil {
			r.Labels = make(map[string]string)
		}
		r.Labels[k] = *v
	}
	if err := CheckLabels(r.Labels); err != nil {
		return err
	}
	if c.Draining != nil {
		r.Draining, r.Cordoned = *c.Draining, *c.Draining
	}
	if c.Cordoned != nil {
		r.Cordoned = *c.Cordoned
		r.Draining = r.Draining && r.Cordoned
	}
	if err := n.save(ctx, nodeKey+name, r); err != nil {
		return err
	}
	n.mu.Lock()
	d.set(r)
	n.mu.Unlock()
	n.decide()
	return nil
}

func (n *Nodes) save(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return n.cfg.Store.Put(context.WithoutCancel(ctx), key, b)
}

// Dismiss takes a node out of the fleet, whose identity is worth nothing from
// then on. What it runs is started elsewhere, and stopped there if it can be
// told.
func (n *Nodes) Dismiss(ctx context.Context, name string) error {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	d, err := n.node(name)
	if err == nil && d.local {
		err = faas.Errorf(faas.ErrInvalid, "%s is the gateway's own machine: drain it if it should run nothing", name)
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if d.Foreign != nil {
		if d.Foreign.Setting {
			return faas.Errorf(faas.ErrInvalid, "%s is a node by the setting %s: take it out there, and start the gateway again", name, ProvidersSetting)
		}
		if err := n.cfg.Store.Delete(context.WithoutCancel(ctx), passwordKey+name); err != nil {
			return err
		}
	}
	if err := n.cfg.Store.Delete(context.WithoutCancel(ctx), nodeKey+name); err != nil {
		return err
	}
	client, end := n.forget(d)
	if client != nil {
		ctx, cancel := context.WithTimeout(ctx, farewell)
		defer cancel()
		var g errgroup.Group
		g.SetLimit(8)
		for f := range client.Wanted() {
			g.Go(func() error {
				_ = client.Remove(ctx, f) // it may be gone for good
				return nil
			})
		}
		_ = g.Wait() // of nil
	}
	end()
	n.decide()
	return nil
}

// farewell is how long a node that is removed has to stop what it runs.
const farewell = 20 * time.Second

// forget counts a node out. It returns what it was called by, until end is called.
func (n *Nodes) forget(d *node) (client member, end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, d.Name)
	client, cancel, source, cut := d.client, d.cancel, d.source, d.cut()
	d.source = nil
	n.holds(d, nil)
	for _, f := range n.functions {
		delete(f.shares, d.Name)
	}
	return client, func() {
		if cancel != nil {
			cancel()
		}
		if source == nil && !d.local { // nobody speaks for what was known before the start
			source, _ = n.cfg.Source(d.Name, d.Addr, func() {}) // without, its lease ends by itself
		}
		if source != nil {
			source.Close()
		}
		cut()
	}
}

// admit takes a machine into the fleet, or notes where a node is now.
func (n *Nodes) admit(ctx context.Context, a *application, key []byte, addr netip.AddrPort) error {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	old := n.nodes[a.Name]
	count := len(n.nodes)
	n.mu.Unlock()
	r := Record{Name: a.Name, Key: key, Addr: addr, Labels: a.Labels, Said: a.Labels, Joined: time.Now(), By: a.by, Machine: a.Machine}
	switch {
	case old == nil && count >= n.cfg.MaxNodes:
		return faas.Errorf(faas.ErrOverloaded, "there are %d nodes, as many as are taken", count)
	case old != nil && old.Foreign != nil:
		return faas.Errorf(faas.ErrConflict, "%s is the OpenFaaS provider at %s: choose another --node-name", a.Name, old.Foreign.URL)
	case old != nil && old.local:
		return faas.Errorf(faas.ErrConflict, "%s is the gateway's own machine: choose another --node-name", a.Name)
	case old != nil && !bytes.Equal(old.Key, key) && (a.replaces == nil || !bytes.Equal(old.Key, a.replaces)):
		return faas.Errorf(faas.ErrConflict, "there is a node %s already, which joined from %s on %s: choose another --node-name, or gateway-ext nodes remove %[1]s if it is this machine", a.Name, old.Addr.Addr(), old.Joined.Format(time.DateOnly))
	case old != nil:
		r.Cordoned, r.Draining = old.Cordoned, old.Draining
		if bytes.Equal(old.Key, key) {
			r.Joined, r.By = old.Joined, old.By
		}
		if r.Labels = merged(old.Labels, old.Said, a.Labels); len(r.Labels) > maxLabels {
			r.Labels = old.Labels
		}
	}
	if old == nil || !equal(old.Record, r) {
		if err := n.save(ctx, nodeKey+r.Name, r); err != nil {
			return err
		}
	}
	if old != nil && !bytes.Equal(old.Key, key) {
		n.log.Info("a machine takes the place of a node that is gone", "node", a.Name)
		_, end := n.forget(old)
		end()
		old = nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old == nil {
		old = &node{Record: Record{Name: r.Name}, state: placement.Suspect, reason: "it has just joined"}
		n.nodes[r.Name] = old
	}
	moved := old.Addr != r.Addr || old.client == nil
	old.set(r)
	if moved {
		n.open(old)
	}
	return nil
}

// merged is a node's labels when the machine says others of itself than before:
// what has changed in its own words counts, and else what was said here.
func merged(labels, before, now map[string]string) map[string]string {
	all := maps.Clone(labels)
	if all == nil {
		all = make(map[string]string)
	}
	for k, v := range before {
		if _, still := now[k]; !still && all[k] == v {
			delete(all, k)
		}
	}
	for k, v := range now {
		if was, known := before[k]; !known || was != v {
			all[k] = v
		}
	}
	return all
}

// equal says whether two records need not both be stored.
func equal(a, b Record) bool {
	a.Machine, b.Machine = remote.Machine{}, remote.Machine{}
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return errors.Join(err1, err2) == nil && bytes.Equal(x, y)
}

// flaps is how often a node lately came back, for as long as it must then wait
// until it gets something new.
type flaps struct {
	n    int
	last time.Time
}

// calmAfter is after which time a node that stays is trusted as if it had never
// been away.
const calmAfter = 10 * time.Minute

func (f *flaps) turn(now time.Time) {
	if now.Sub(f.last) > calmAfter {
		f.n = 0
	}
	f.n, f.last = f.n+1, now
}

// until is when the node may get something new: at once after the first time,
// then after 5 s, and twice as long each time, up to 5 minutes.
func (f *flaps) until() time.Time {
	if f.n < 2 {
		return time.Time{}
	}
	return f.last.Add(min(5*time.Second<<min(f.n-2, 10), 5*time.Minute))
}
