package nodes

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
)

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
