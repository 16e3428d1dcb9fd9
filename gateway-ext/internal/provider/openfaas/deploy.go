package openfaas

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// place sees to it that what is wished is there: its namespace, its secrets, its
// revision, and the number of its replicas.
func (c *Client) place(ctx context.Context, f *function, w provider.Workload, caps Capabilities) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-f.changes(c):
		return errChanged
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := c.ensureNamespace(ctx, f.name.Namespace); err != nil {
		return err
	}
	if err := c.ensureSecrets(ctx, f, w); err != nil {
		return err
	}
	c.mu.Lock()
	hash := hashOf(slices.Sorted(maps.Keys(w.Secrets)))
	deploy := !f.there || f.revision != w.Function.Revision || len(w.Secrets) > 0 && f.secrets != hash
	there := f.there
	var interrupted []faas.Replica
	if deploy && there && caps.Interrupts {
		interrupted = c.hide(f, 0)
	}
	if deploy {
		f.live, f.tried = false, true
	}
	before := f.reported
	c.mu.Unlock()
	if deploy {
		c.drain(ctx, interrupted, "an update there stops it first")
		err := c.line.deploy(ctx, c.spec(w, hash), there)
		if err != nil && !there && c.isThere(ctx, f) {
			err = c.line.deploy(ctx, c.spec(w, hash), true)
		}
		if err != nil {
			if back := c.again(ctx, f, there); back {
				return &kept{err}
			}
			return err
		}
		c.mu.Lock()
		f.there, f.revision, f.secrets, f.objection = true, w.Function.Revision, hash, ""
		f.reported, before = 0, 0
		c.mu.Unlock()
	}
	if caps.MaxReplicas == 1 || before == w.Function.Replicas {
		return nil
	}
	if !deploy {
		c.fewer(ctx, f, w.Function.Replicas)
	} else if s, err := c.line.get(ctx, f.name); err == nil && int(s.Replicas) == w.Function.Replicas {
		c.mu.Lock()
		f.reported = w.Function.Replicas
		c.mu.Unlock()
		return nil
	}
	if c.learn(f, w.Function.Replicas) {
		return nil
	}
	if err := c.line.scale(ctx, f.name, w.Function.Replicas); err != nil {
		return err
	}
	c.mu.Lock()
	f.reported = w.Function.Replicas
	c.mu.Unlock()
	return nil
}

// kept is why an update failed after which what was there goes on. Each attempt
// interrupts it, so they are rare.
type kept struct{ err error }

// Error implements error.
func (k *kept) Error() string { return k.err.Error() + "; what ran before goes on serving" }

// Unwrap returns the cause.
func (k *kept) Unwrap() error { return k.err }

// isThere says whether a function of this fleet is there after all: what one
// answers then is not the same everywhere, 409, 400 or 500.
func (c *Client) isThere(ctx context.Context, f *function) bool {
	s, err := c.line.get(ctx, f.name)
	if err != nil || s.Name == "" || annotation(s, markFleet) != c.cfg.Fleet {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.there = true
	return true
}

// again sees after an update that failed whether what was there before is there
// still, and shows it.
func (c *Client) again(ctx context.Context, f *function, there bool) bool {
	if !there {
		return false
	}
	s, err := c.line.get(ctx, f.name)
	if err != nil || s.AvailableReplicas == 0 {
		return false
	}
	c.mu.Lock()
	f.live = true
	come := c.show(f, int(min(s.AvailableReplicas, uint64(max(f.reported, 1)))), faas.Ready)
	c.mu.Unlock()
	c.announce(come)
	return true
}

// fewer drains the replicas that will be too many.
func (c *Client) fewer(ctx context.Context, f *function, n int) {
	c.mu.Lock()
	gone := c.hide(f, n)
	c.mu.Unlock()
	c.drain(ctx, gone, "one less is wanted")
}

// patience is how many polls in a row a provider may show another number of
// replicas than it was told and has accepted, before that is taken for its bound.
const patience = 6

// learn takes the number of replicas that a provider goes on with, whatever it is
// told, for its bound.
func (c *Client) learn(f *function, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.ignored < patience || f.reported == 0 || f.reported >= n {
		return false
	}
	f.ignored = 0
	c.caps.MaxReplicas = least(c.caps.MaxReplicas, f.reported)
	c.cfg.Logger.Info("a provider runs fewer replicas than it was told: that is taken for its bound", "node", c.cfg.Node, "function", f.name.String(), "replicas", f.reported, "told", n)
	return true
}

// spec is what the provider is told: the declaration with the image's digest, and
// without what is the fleet's business and not its own.
func (c *Client) spec(w provider.Workload, secrets string) types.FunctionDeployment {
	d := w.Function.FunctionDeployment
	d.Image = c.image(d.Image, w.Function.Digest)
	d.Constraints = nil // they say on which node
	d.EnvVars = environment(d.EnvVars, c.gateway())
	d.Secrets = slices.Sorted(maps.Keys(w.Secrets))
	labels, annotations := make(map[string]string), make(map[string]string)
	if d.Labels != nil {
		for k, v := range *d.Labels {
			if !strings.HasPrefix(k, "com.openfaas.scale.") {
				labels[k] = v
			}
		}
	}
	c.mu.Lock()
	if c.caps.Orchestration == "kubernetes" {
		labels[faas.LabelScaleFactor] = "0" // how many is decided here
	}
	c.mu.Unlock()
	if d.Annotations != nil {
		for k, v := range *d.Annotations {
			if !strings.HasPrefix(k, "thicket.") {
				annotations[k] = v
			}
		}
	}
	annotations[markFleet] = c.cfg.Fleet
	annotations[markRevision] = strconv.FormatUint(w.Function.Revision, 10)
	annotations[markSecrets] = secrets
	d.Labels, d.Annotations = &labels, &annotations
	return d
}

// gateway is the URL of this gateway for functions there; "" if none is known.
func (c *Client) gateway() string {
	_, own := c.line.where()
	if c.cfg.Gateway == nil || !own.IsValid() || own.IsLoopback() {
		return "" // in a container the loopback is its own
	}
	return c.cfg.Gateway(own.String())
}

// environment is a function's own, and where it finds its siblings. What leads to
// replicas leads nowhere there.
func environment(own map[string]string, gateway string) map[string]string {
	env := make(map[string]string, len(own)+2)
	if gateway != "" {
		env["gateway_url"], env["OPENFAAS_URL"] = gateway, gateway
	}
	maps.Copy(env, own)
	maps.DeleteFunc(env, func(k, _ string) bool { return strings.HasPrefix(k, "THICKET_DISCOVERY_") })
	return env
}

// image is how the provider finds an image: by its digest, and in the gateway's
// own registry by an address that means something there.
func (c *Client) image(ref, digest string) string {
	host, rest, ok := strings.Cut(ref, "/")
	if name, port, err := net.SplitHostPort(host); ok && err == nil && port == strconv.Itoa(c.cfg.Registry) {
		addr, err := netip.ParseAddr(name)
		_, own := c.line.where()
		if (name == "localhost" || err == nil && addr.IsLoopback()) && own.IsValid() && !own.IsLoopback() {
			ref = net.JoinHostPort(own.String(), port) + "/" + rest
		}
	}
	if digest == "" || strings.Contains(ref, "@") {
		return ref
	}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i] // the tag
	}
	return ref + "@" + digest
}

// ensureNamespace makes a namespace that isn't there.
func (c *Client) ensureNamespace(ctx context.Context, namespace string) error {
	c.mu.Lock()
	ok, can := c.spaces[namespace] || namespace == faas.DefaultNamespace, c.caps.MakeNamespaces
	c.mu.Unlock()
	if ok {
		return nil
	}
	if !can {
		return faas.Errorf(faas.ErrInvalid, "there is no namespace %s, and none can be made", namespace)
	}
	err := c.line.ask(ctx, quick, func(ctx context.Context) error {
		_, err := c.line.sdk.CreateNamespace(ctx, types.FunctionNamespace{Name: namespace})
		return err
	})
	if err != nil && statusOf(err) != http.StatusConflict {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spaces) < maxNamespaces {
		c.spaces[namespace] = true
	}
	return nil
}

// ensureSecrets gives the provider the values that it hasn't got yet. Of a
// function that isn't this fleet's none is overwritten.
func (c *Client) ensureSecrets(ctx context.Context, f *function, w provider.Workload) error {
	for _, name := range slices.Sorted(maps.Keys(w.Secrets)) {
		sum := sha256.Sum256(w.Secrets[name])
		c.mu.Lock()
		told := f.told[name] == sum
		user := ""
		for n, s := range c.found {
			if n.Namespace == f.name.Namespace && slices.Contains(s.Secrets, name) {
				user = n.Function
			}
		}
		c.mu.Unlock()
		if told {
			continue
		}
		if user != "" {
			return faas.Errorf(faas.ErrInvalid, "the secret %s is used there by %s, which is not this fleet's: call it differently, or adopt %[2]s first", name, user)
		}
		if err := c.line.putSecret(ctx, f.name.Namespace, name, w.Secrets[name]); err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		c.mu.Lock()
		f.told[name] = sum
		c.mu.Unlock()
	}
	return nil
}

// forgetSecrets takes away the secrets that no other function of this fleet uses
// there.
func (c *Client) forgetSecrets(ctx context.Context, f *function) {
	c.mu.Lock()
	drop := make(map[string]bool)
	for name := range f.told {
		drop[name] = true
	}
	for name, o := range c.functions {
		if o != f && name.Namespace == f.name.Namespace {
			for s := range o.told {
				delete(drop, s)
			}
			for s := range o.wish.Secrets {
				delete(drop, s)
			}
		}
	}
	if f.wished {
		clear(drop)
	}
	clear(f.told)
	c.mu.Unlock()
	for name := range drop {
		if err := c.line.dropSecret(ctx, f.name.Namespace, name); err != nil {
			c.cfg.Logger.Debug("a secret was not removed from a provider", "node", c.cfg.Node, "secret", name, "err", err)
		}
	}
}

func hashOf(names []string) string {
	if len(names) == 0 {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(names, "\n")))
	return hex.EncodeToString(sum[:8])
}
