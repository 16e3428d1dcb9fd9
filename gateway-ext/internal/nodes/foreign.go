package nodes

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// ProvidersSetting is what the setting with [Config.Providers] is called.
const ProvidersSetting = "THICKET_PROVIDERS"

// passwordKey is how the keys of the store begin under which the providers'
// passwords are, encrypted.
const passwordKey = "password."

// Provider is an OpenFaaS provider that is to be a node.
type Provider struct {
	Name     string
	Endpoint openfaas.Endpoint
}

// Foreign is what is remembered of a node that is an OpenFaaS provider, but for
// its password.
type Foreign struct {
	URL     string      `json:"url"`
	User    string      `json:"user,omitempty"`
	Setting bool        `json:"setting,omitempty"` // it is a node by the gateway's settings
	Adopted []faas.Name `json:"adopted,omitempty"` // functions that were there before
}

// ForeignStatus is such a node as people want to see it.
type ForeignStatus struct {
	*openfaas.Capabilities        // nil before it has answered
	Cannot                 string `json:"cannot,omitempty"` // the same in a sentence
	// Found are the functions that are there and not this fleet's.
	Found []FoundFunction `json:"found,omitempty"`
}

// FoundFunction is a function that was found at a provider.
type FoundFunction struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Image     string `json:"image"`
	Replicas  uint64 `json:"replicas"`
	Note      string `json:"note"`
}

// foreign returns the client of a node that is a provider, else nil. mu is held.
func (d *node) foreign() *openfaas.Client {
	c, _ := d.client.(*openfaas.Client)
	return c
}

// seal encrypts the providers' passwords, by a key that follows from the
// authority's: who has it is the gateway.
func (n *Nodes) seal() (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, n.cfg.Authority.key.Seed(), nil, "thicket passwords of providers", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// savePassword keeps a provider's password. That it is this one's is part of what
// is authenticated.
func (n *Nodes) savePassword(ctx context.Context, name, password string) error {
	seal, err := n.seal()
	if err != nil {
		return err
	}
	return n.cfg.Store.Put(context.WithoutCancel(ctx), passwordKey+name, seal.Seal(nil, nil, []byte(password), []byte(passwordKey+name)))
}

// takeProviders reads the passwords of those that were added, and takes those of
// the settings.
func (n *Nodes) takeProviders(ctx context.Context) error {
	seal, err := n.seal()
	if err != nil {
		return err
	}
	err = n.cfg.Store.Each(ctx, func(key string, value []byte) error {
		name, ok := strings.CutPrefix(key, passwordKey)
		d := n.nodes[name]
		if !ok || d == nil {
			return nil
		}
		password, err := seal.Open(nil, nil, value, []byte(key))
		if err != nil {
			n.log.Error("the password of a provider can't be read: remove the node and add it again", "node", name)
			return nil
		}
		d.password = string(password)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read which nodes there are: %w", err)
	}
	set := make(map[string]bool)
	for _, p := range n.cfg.Providers {
		set[p.Name] = true
		d := n.nodes[p.Name]
		switch {
		case p.Name == n.cfg.Local.Name:
			return faas.Errorf(faas.ErrInvalid, "%s: %s is this machine's own name: call the provider differently", ProvidersSetting, p.Name)
		case d != nil && d.Foreign == nil:
			return faas.Errorf(faas.ErrInvalid, "%s: %s is a machine that has joined as a node: call the provider differently", ProvidersSetting, p.Name)
		case d == nil:
			d = &node{Record: Record{Name: p.Name, Joined: time.Now(), Foreign: &Foreign{}}, state: placement.Suspect, reason: "it was not heard of since the gateway started"}
			n.nodes[p.Name] = d
		}
		d.Foreign = &Foreign{URL: p.Endpoint.URL, User: p.Endpoint.User, Setting: true, Adopted: d.Foreign.Adopted}
		d.password = p.Endpoint.Password
	}
	for name, d := range n.nodes {
		if d.Foreign != nil && d.Foreign.Setting && !set[name] {
			delete(n.nodes, name)
			if err := n.cfg.Store.Delete(ctx, nodeKey+name); err != nil && !errors.Is(err, faas.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// provider makes the gateway's end of the line to a provider. mu is held.
func (n *Nodes) provider(d *node) (member, error) {
	registry, _ := strconv.Atoi(n.cfg.Functions.Port())
	var before []faas.Replica
	if n.cfg.Replicas != nil {
		before = n.cfg.Replicas(d.Name)
	}
	return openfaas.New(openfaas.Config{
		Node: d.Name, Zone: d.Labels["zone"],
		Endpoint: openfaas.Endpoint{URL: d.Foreign.URL, User: d.Foreign.User, Password: d.password},
		Fleet:    n.cfg.Authority.Pin()[:16], Adopted: d.Foreign.Adopted, Registry: registry, Gateway: n.functionsAt, Replicas: before,
		Observer: &line{n: n, d: d},
		Beat:     func(m remote.Machine) { n.beat(d, m) },
		Lost:     func(err error) { n.lostStream(d, err) },
		Logger:   n.log,
	})
}

// most is how many replicas of a function a node runs; 0 is any number. mu is held.
func (d *node) most() int {
	if c := d.foreign(); c != nil {
		caps, _ := c.Capabilities()
		return caps.MaxReplicas
	}
	return 0
}

// barred says for each node why a function can't be there for what the node is. mu
// is held.
func (n *Nodes) barred(f *faas.Function) map[string]string {
	var all map[string]string
	for name, d := range n.nodes {
		c := d.foreign()
		if c == nil {
			continue
		}
		if why := c.Excludes(f); why != "" {
			if all == nil {
				all = make(map[string]string)
			}
			all[name] = why
		}
	}
	return all
}

// interrupts says whether an update on the node stops what runs before the new is
// there. mu is held.
func (d *node) interrupts() bool {
	c := d.foreign()
	if c == nil {
		return false
	}
	caps, _ := c.Capabilities()
	return caps.Interrupts
}

// readyOf counts a function's ready replicas of a revision on a node, and of those
// before. mu is held.
func (d *node) readyOf(name faas.Name, revision uint64) (now, before int) {
	if d.p == nil || d.state != placement.Ready {
		return 0, 0
	}
	st, _ := d.p.Status(name)
	for _, r := range st.Replicas {
		switch {
		case r.State != faas.Ready:
		case r.Revision == revision:
			now++
		default:
			before++
		}
	}
	return now, before
}

// extra is how many replicas a function has beyond those wanted, so that one is
// there while an update interrupts others: 0 or 1. mu is held.
func (n *Nodes) extra(f *function) int {
	if f.load.Function.Replicas == 0 {
		return 0
	}
	name := f.load.Function.Name()
	for node, s := range f.shares {
		d := n.nodes[node]
		if d == nil || s.want == 0 || d.state != placement.Ready || !d.interrupts() {
			continue
		}
		now, before := d.readyOf(name, f.load.Function.Revision)
		if before > 0 && now == 0 || f.extra > 0 && now == 0 {
			return 1
		}
	}
	return 0
}

// mustWait says whether a node is not to be told of a new revision yet: it would
// stop the old one, and no replica of the new one is ready elsewhere, although
// there is an elsewhere. They are told one after the other. mu is held.
func (n *Nodes) mustWait(name faas.Name, f *function, d *node, s share) bool {
	revision := f.load.Function.Revision
	if s.want == 0 || s.rev == revision || !d.interrupts() {
		return false
	}
	if now, before := d.readyOf(name, revision); now > 0 || before == 0 {
		return false // there is nothing to interrupt
	}
	elsewhere, ready := false, 0
	for node, o := range f.shares {
		other := n.nodes[node]
		if other == nil || other == d || o.want == 0 || other.state != placement.Ready {
			continue
		}
		now, before := other.readyOf(name, revision)
		if other.interrupts() && o.rev == revision && now == 0 {
			return true // it is being updated just now
		}
		ready += now
		elsewhere = elsewhere || !other.interrupts() || now > 0
		if other.interrupts() && before > 0 && ready == 0 && node < d.Name && f.lonely {
			return true // it is that one's turn
		}
	}
	if ready > 0 {
		return false
	}
	return elsewhere || f.extra > 0 && !f.lonely
}

// foreignStatus is what is shown of a provider. mu is held.
func (n *Nodes) foreignStatus(d *node) *ForeignStatus {
	c := d.foreign()
	if c == nil {
		return nil
	}
	s := new(ForeignStatus)
	if caps, ok := c.Capabilities(); ok {
		s.Capabilities, s.Cannot = &caps, strings.Join(caps.Lacks(), "; ")
	}
	for _, f := range c.Found() {
		name := faas.Name{Function: f.Name, Namespace: f.Namespace}
		note := "found there, not managed"
		if n.functions[name] != nil {
			note = "found there, not managed: it has the name of a function of this fleet, which runs elsewhere"
		}
		s.Found = append(s.Found, FoundFunction{Name: f.Name, Namespace: f.Namespace, Image: f.Image, Replicas: f.Replicas, Note: note})
	}
	return s
}
