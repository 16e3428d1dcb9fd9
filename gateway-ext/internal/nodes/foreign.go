package nodes

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

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
		Fleet:    n.cfg.Authority.Pin()[:16], Adopted: d.Foreign.Adopted, Registry: registry, Replicas: before,
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

// AddRequest asks for an OpenFaaS provider to become a node.
type AddRequest struct {
	Name     string            `json:"name"`
	URL      string            `json:"url"`
	User     string            `json:"user,omitempty"`
	Password string            `json:"password,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Adopt    bool              `json:"adopt,omitempty"` // what is there becomes the fleet's
}

// Add makes a node of an OpenFaaS provider, which is tried before. Its error says
// what was tried and what came back.
func (n *Nodes) Add(ctx context.Context, q AddRequest) error {
	if err := faas.CheckLabel("the node's name", q.Name); err != nil {
		return err
	}
	if err := CheckLabels(q.Labels); err != nil {
		return err
	}
	if len(q.User) > 256 || len(q.Password) > 4096 || strings.ContainsRune(q.User, ':') || q.User == "" && q.Password != "" {
		return faas.Errorf(faas.ErrInvalid, "a user has at most 256 characters and no colon, a password at most 4096, and none without a user")
	}
	caps, addr, err := openfaas.Try(ctx, openfaas.Endpoint{URL: q.URL, User: q.User, Password: q.Password})
	if err != nil {
		return faas.Errorf(kindOf(err), "node %s: %w", q.Name, err)
	}
	if n.cfg.Own != nil && n.cfg.Own(addr) {
		return faas.Errorf(faas.ErrInvalid, "node %s: %s is this gateway itself", q.Name, q.URL)
	}
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	old, full := n.nodes[q.Name], len(n.nodes) >= n.cfg.MaxNodes
	same := ""
	for name, d := range n.nodes {
		if d.Foreign != nil && strings.TrimSuffix(d.Foreign.URL, "/") == strings.TrimSuffix(q.URL, "/") {
			same = name
		}
	}
	n.mu.Unlock()
	switch {
	case old != nil:
		return faas.Errorf(faas.ErrConflict, "there is a node %s already: choose another name, or gateway-ext nodes remove %[1]s first", q.Name)
	case same != "":
		return faas.Errorf(faas.ErrConflict, "%s is the node %s already", q.URL, same)
	case full:
		return faas.Errorf(faas.ErrOverloaded, "there are %d nodes, as many as are taken", n.cfg.MaxNodes)
	}
	r := Record{Name: q.Name, Labels: q.Labels, Joined: time.Now(), Addr: addr, Foreign: &Foreign{URL: q.URL, User: q.User}}
	if err := errors.Join(n.savePassword(ctx, q.Name, q.Password), n.save(ctx, nodeKey+q.Name, r)); err != nil {
		return err
	}
	n.mu.Lock()
	d := &node{Record: r, state: placement.Suspect, reason: "it has just been added", password: q.Password}
	n.nodes[q.Name] = d
	n.open(d)
	n.mu.Unlock()
	n.log.Info("a provider is a node now", "node", q.Name, "url", q.URL, "provider", caps.Provider)
	return nil
}

// kindOf is the kind of an error that is told to who asked.
func kindOf(err error) error {
	for _, kind := range []error{faas.ErrInvalid, faas.ErrForbidden} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return faas.ErrUnavailable
}

// Adoption is what became of the wish to adopt a function.
type Adoption struct {
	Function string `json:"function"`
	Adopted  bool   `json:"adopted"`
	Why      string `json:"why,omitempty"` // not
}

// Adopt declares functions that were found at a provider in the fleet; no names
// are all. One that has the name of a declared function is not touched.
func (n *Nodes) Adopt(ctx context.Context, node string, names []string) ([]Adoption, error) {
	n.mu.Lock()
	d, err := n.node(node)
	if err != nil {
		n.mu.Unlock()
		return nil, err
	}
	c := d.foreign()
	n.mu.Unlock()
	if c == nil || n.cfg.Declare == nil {
		return nil, faas.Errorf(faas.ErrInvalid, "%s is no OpenFaaS provider: there is nothing to adopt", node)
	}
	found := make(map[faas.Name]types.FunctionStatus)
	for _, s := range c.Found() {
		found[faas.Name{Function: s.Name, Namespace: s.Namespace}] = s
	}
	var list []faas.Name
	for _, s := range names {
		name, err := faas.ParseName(s)
		if err != nil {
			return nil, err
		}
		if _, ok := found[name]; !ok {
			return nil, faas.Errorf(faas.ErrNotFound, "no function %s was found on %s that isn't this fleet's already", name, node)
		}
		list = append(list, name)
	}
	if len(names) == 0 {
		list = slices.SortedFunc(maps.Keys(found), func(a, b faas.Name) int { return cmp.Compare(a.String(), b.String()) })
	}
	var done []Adoption
	for _, name := range list {
		a := Adoption{Function: name.String()}
		if err := n.adoptOne(ctx, d, c, name, found[name]); err != nil {
			a.Why = err.Error()
		} else {
			a.Adopted = true
		}
		done = append(done, a)
	}
	return done, nil
}

func (n *Nodes) adoptOne(ctx context.Context, d *node, c *openfaas.Client, name faas.Name, s types.FunctionStatus) error {
	n.mu.Lock()
	clash := n.functions[name] != nil
	n.mu.Unlock()
	if clash || n.cfg.Known != nil && n.cfg.Known(name) {
		return faas.Errorf(faas.ErrConflict, "there is a function %s in this fleet already: it was not touched", name)
	}
	if s.Namespace == "" {
		s.Namespace = faas.DefaultNamespace
	}
	c.Adopt(name, true)
	err := n.remember(ctx, d, func(f *Foreign) { f.Adopted = append(f.Adopted, name) })
	if err == nil {
		err = n.cfg.Declare(ctx, types.FunctionDeployment{
			Service: s.Name, Namespace: s.Namespace, Image: s.Image, EnvProcess: s.EnvProcess, EnvVars: s.EnvVars,
			Secrets: s.Secrets, Labels: s.Labels, Annotations: s.Annotations, Limits: s.Limits, Requests: s.Requests,
			ReadOnlyRootFilesystem: s.ReadOnlyRootFilesystem,
		})
	}
	if err != nil {
		c.Adopt(name, false)
		return errors.Join(err, n.remember(ctx, d, func(f *Foreign) {
			f.Adopted = slices.DeleteFunc(f.Adopted, func(a faas.Name) bool { return a == name })
		}))
	}
	return nil
}

// remember stores a change of what is remembered of a provider.
func (n *Nodes) remember(ctx context.Context, d *node, change func(*Foreign)) error {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	r := d.Record
	f := *r.Foreign
	n.mu.Unlock()
	f.Adopted = slices.Clone(f.Adopted)
	change(&f)
	r.Foreign = &f
	if err := n.save(ctx, nodeKey+r.Name, r); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d.set(r)
	return nil
}

func (n *Nodes) serveAdd(w http.ResponseWriter, r *http.Request) error {
	var q AddRequest
	if err := faas.ReadJSON(r.Body, maxJoin, &q); err != nil {
		return err
	}
	if err := n.Add(r.Context(), q); err != nil {
		return err
	}
	s, err := n.waitFor(r.Context(), q.Name)
	if err != nil {
		return err
	}
	if q.Adopt && s.State == states[placement.Ready] {
		done, err := n.Adopt(r.Context(), q.Name, nil)
		if err != nil {
			return err
		}
		return faas.WriteJSON(w, struct {
			Status
			Adopted []Adoption `json:"adoptions"`
		}{s, done})
	}
	return faas.WriteJSON(w, s)
}

// waitFor gives a node that was just added a moment to be heard of.
func (n *Nodes) waitFor(ctx context.Context, name string) (Status, error) {
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := n.Node(name)
		if err != nil || s.State == states[placement.Ready] {
			return s, err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return s, nil
		case <-ctx.Done():
			return s, nil
		}
	}
}

// AdoptRequest asks for functions that were found at a provider.
type AdoptRequest struct {
	Functions []string `json:"functions,omitempty"` // none are all
}

func (n *Nodes) serveAdopt(w http.ResponseWriter, r *http.Request) error {
	var q AdoptRequest
	if err := faas.ReadJSON(r.Body, maxJoin, &q); err != nil {
		return err
	}
	done, err := n.Adopt(r.Context(), r.PathValue("name"), q.Functions)
	if err != nil {
		return err
	}
	return faas.WriteJSON(w, done)
}
