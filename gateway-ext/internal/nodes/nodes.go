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
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
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

	// Replicas returns those of a node that others know of, at first from before
	// the start: for a provider that doesn't know its replicas by name, and to tell
	// of those that ended while nobody looked. Nil knows none.
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
