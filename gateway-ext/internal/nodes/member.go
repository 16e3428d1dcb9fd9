package nodes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

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
