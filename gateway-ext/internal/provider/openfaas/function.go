package openfaas

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// function is what is wished of one function and what is known of it. Client.mu
// guards it; of those that work on it there is one.
type function struct {
	name    faas.Name
	wish    provider.Workload
	wished  bool          // somebody has applied it; else it is known from the list alone
	leaving bool          // it is to be removed, before it may come again
	left    chan struct{} // closed when it is
	version uint64        // of the wish
	done    uint64        // the version that was brought about
	change  chan struct{} // closed when the version changes
	stale   bool          // what is there isn't what was brought about any more
	working bool          // somebody is at it

	there     bool
	tried     bool   // it was deployed, and perhaps it is there
	revision  uint64 // of what is there
	secrets   string // the hash of the names of its secrets
	reported  int    // replicas that the provider says are wanted
	available int    // that answer
	silent    int    // polls in a row in which none did
	ignored   int    // polls in a row that showed another number than was told
	said      string // what another Thicket says is wrong with it
	live      bool   // it was seen to answer calls
	told      map[string][sha256.Size]byte
	usage     *types.FunctionUsage

	replicas []faas.Replica // as they are shown, oldest first
	reason   string

	objection string // why the provider refused it
	objected  uint64 // the revision that was refused
}

// due says whether something is to be done.
func (f *function) due() bool { return f.done != f.version || f.stale && (f.wished || f.there) }

// wants is how many replicas should be shown.
func (f *function) wants() int {
	if f.wished {
		return f.wish.Function.Replicas
	}
	return f.reported
}

// note takes note of what a list says.
func (f *function) note(s types.FunctionStatus) {
	f.usage, f.said = s.Usage, saidOf(s)
	if s.Replicas > 0 || !f.working {
		f.reported = int(min(s.Replicas, 10_000))
	}
}

// show makes the replicas that are missing to n. c.mu is held.
func (c *Client) show(f *function, n int, state faas.State) (come []faas.Replica) {
	addr, path, host := c.at(f.name)
	shown := 0
	for _, r := range f.replicas {
		if r.Revision == f.revision && r.State <= faas.Ready {
			shown++
		}
	}
	for ; shown < n; shown++ {
		r := faas.Replica{
			ID: f.name.Function + "-" + strings.ToLower(rand.Text()[:8]), Function: f.name, Revision: f.revision,
			Node: c.cfg.Node, Zone: c.cfg.Zone, Addr: addr, Path: path, Host: host, State: state, Since: time.Now(),
		}
		f.replicas = append(f.replicas, r)
		come = append(come, r)
	}
	return come
}

// hide takes away the newest replicas beyond n. c.mu is held.
func (c *Client) hide(f *function, n int) (gone []faas.Replica) {
	if len(f.replicas) <= n {
		return nil
	}
	gone = slices.Clone(f.replicas[n:])
	f.replicas = f.replicas[:n:n]
	return gone
}

// announce tells of replicas that have come.
func (c *Client) announce(come []faas.Replica) {
	c.observe(come, faas.Starting, "")
	c.observe(come, faas.Ready, "")
}

// drain has replicas given nothing more, waits until they have nothing in flight,
// and says that they are gone. They are not f's any more.
func (c *Client) drain(ctx context.Context, list []faas.Replica, why string) {
	if len(list) == 0 {
		return
	}
	c.observe(list, faas.Draining, why)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Grace)
	defer cancel()
	for _, r := range list {
		if c.cfg.Observer.Idle(ctx, r.ID) != nil {
			break // its time is over
		}
	}
	c.observe(list, faas.Gone, why)
}

// tend brings a function about, and tries again until it is as it is wished.
func (c *Client) tend(ctx context.Context, f *function) {
	const longest = 30 * time.Second
	attempts := 0
	for {
		c.mu.Lock()
		if !f.due() || ctx.Err() != nil {
			f.working = false
			c.mu.Unlock()
			return
		}
		version, change := f.version, f.change
		f.stale = false
		c.mu.Unlock()
		err := c.bring(ctx, f, version)
		c.mu.Lock()
		if f.version != version {
			attempts = 0
			c.mu.Unlock()
			continue
		}
		if err == nil {
			f.done, attempts = version, 0
			c.mu.Unlock()
			continue
		}
		f.stale = true
		if ctx.Err() == nil {
			f.reason = err.Error()
			if s := statusOf(err); s/100 == 4 && s != http.StatusUnauthorized && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout && f.wished {
				f.objection, f.objected = err.Error(), f.wish.Function.Revision
			}
		}
		c.mu.Unlock()
		attempts++
		pause := time.NewTimer(min(time.Second<<min(attempts-1, 10), longest))
		select {
		case <-ctx.Done():
		case <-change:
		case <-pause.C:
		}
		pause.Stop()
	}
}

// changedSince says whether something else is wished by now.
func (c *Client) changedSince(f *function, version uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.version != version
}

// errChanged ends what is done for a wish that is no more.
var errChanged = errors.New("something else is wished by now")

// bring does what is missing for the wish of the given version.
func (c *Client) bring(ctx context.Context, f *function, version uint64) error {
	select {
	case <-c.synced:
	case <-f.changes(c):
		return errChanged
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.mu.Lock()
	leaving, wished, w := f.leaving, f.wished, f.wish
	caps := c.caps
	_, strange := c.found[f.name]
	clash := strange && !f.there && !c.adopted[f.name]
	c.mu.Unlock()
	if leaving {
		return c.leave(ctx, f)
	}
	if clash {
		return errClash
	}
	if wished {
		if w.Function.Replicas == 0 {
			return c.sleep(ctx, f, w, caps)
		}
		if err := c.place(ctx, f, w, caps); err != nil {
			return err
		}
	}
	return c.await(ctx, f, version)
}

// changes is closed when the wish changes.
func (f *function) changes(c *Client) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.change
}

// leave removes a function.
func (c *Client) leave(ctx context.Context, f *function) error {
	c.mu.Lock()
	gone := c.hide(f, 0)
	f.live = false
	there, tried := f.there, f.tried
	_, strange := c.found[f.name]
	c.mu.Unlock()
	c.drain(ctx, gone, "it is removed")
	if there || tried && !strange {
		if err := c.line.remove(ctx, f.name); err != nil {
			return err
		}
	}
	c.forgetSecrets(ctx, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	f.there, f.tried, f.leaving, f.revision, f.reported = false, false, false, 0, 0
	delete(c.adopted, f.name)
	close(f.left)
	if !f.wished {
		delete(c.functions, f.name)
	} else {
		f.version++ // it is to come again
	}
	return nil
}

// sleep leaves a function with no replicas: asleep if the provider can do that,
// else not there.
func (c *Client) sleep(ctx context.Context, f *function, w provider.Workload, caps Capabilities) error {
	c.mu.Lock()
	gone := c.hide(f, 0)
	f.live = false
	there, reported, same := f.there, f.reported, f.revision == w.Function.Revision
	c.mu.Unlock()
	c.drain(ctx, gone, "no replica is wanted")
	asleep := false
	switch {
	case !there:
	case caps.Zero && same:
		if reported == 0 {
			asleep = true
			break
		}
		err := c.line.scale(ctx, f.name, 0)
		if err != nil && statusOf(err) == 0 {
			return err
		}
		asleep = err == nil
		if !asleep { // it has shown that it can't
			c.mu.Lock()
			c.caps.Zero = false
			c.mu.Unlock()
		}
	}
	if there && !asleep {
		if err := c.line.remove(ctx, f.name); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.there, f.reported, f.available, f.reason = asleep, 0, 0, ""
	return nil
}

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
				return fmt.Errorf("%w; what ran before goes on serving", err)
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

// await waits until a replica answers calls, and has as many shown as do.
func (c *Client) await(ctx context.Context, f *function, version uint64) error {
	tries := 0
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if c.changedSince(f, version) {
			return errChanged
		}
		s, err := c.line.get(ctx, f.name)
		switch {
		case statusOf(err) == http.StatusNotFound:
			c.mu.Lock()
			f.there = false
			gone := c.hide(f, 0)
			again := f.wished
			c.mu.Unlock()
			c.observe(gone, faas.Gone, "it was deleted there by somebody else")
			if again {
				return faas.Errorf(faas.ErrUnavailable, "it is not there although it was deployed")
			}
			return nil
		case err != nil:
			return err
		case c.another(f, s):
			if tries++; tries > 10 {
				c.mu.Lock()
				f.revision = revisionOf(s)
				c.mu.Unlock()
				return faas.Errorf(faas.ErrUnavailable, "it was told to run another revision, accepted that, and goes on with the one before")
			}
		case s.AvailableReplicas > 0:
			if err = c.answers(ctx, f); err == nil {
				c.arrived(ctx, f, s)
				return nil
			}
		}
		c.mu.Lock()
		switch reason := saidOf(s); {
		case reason != "":
			f.reason = reason
		case err != nil:
			f.reason = err.Error()
		default:
			f.reason = "no replica of it answers there yet"
		}
		wants := f.wants()
		c.mu.Unlock()
		if wants == 0 {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-f.changes(c):
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// another says whether what is there is of another revision than was deployed: a
// faas-netes answers 200 to an update that it has not taken.
func (c *Client) another(f *function, s types.FunctionStatus) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	there := annotation(s, markRevision)
	if !f.wished || there == "" || revisionOf(s) == f.revision {
		return false
	}
	return true
}

// saidOf is what another Thicket says is wrong with a function, on one line.
func saidOf(s types.FunctionStatus) string {
	said := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, annotation(s, statusAnnotation))
	return said[:min(len(said), 2*maxTold)]
}

// arrived shows the replicas that answer, and drains those of the revision before.
func (c *Client) arrived(ctx context.Context, f *function, s types.FunctionStatus) {
	c.mu.Lock()
	f.live, f.silent = true, 0
	f.available = int(min(s.AvailableReplicas, 10_000))
	n := min(f.available, max(f.wants(), 0))
	var old []faas.Replica
	f.replicas = slices.DeleteFunc(f.replicas, func(r faas.Replica) bool {
		if r.Revision != f.revision {
			old = append(old, r)
			return true
		}
		return false
	})
	gone := c.hide(f, n)
	come := c.show(f, n, faas.Ready)
	f.reason = saidOf(s)
	c.mu.Unlock()
	c.announce(come)
	c.observe(gone, faas.Gone, "no replica of it answers there")
	c.drain(ctx, old, "another revision has taken its place")
}

// answers asks the function itself, through the provider: a faasd counts a task
// that runs, whether it listens or not.
func (c *Client) answers(ctx context.Context, f *function) error {
	path := "/_/ready"
	c.mu.Lock()
	if p := f.wish.Function.Annotation("com.openfaas.ready.http.path"); p != "" {
		path = "/" + strings.TrimPrefix(p, "/")
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.line.base.Scheme+"://"+c.line.base.Host+"/function/"+f.name.String()+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "thicket-probe")
	res, err := c.line.http.Do(req)
	if err != nil {
		return faas.Errorf(faas.ErrUnavailable, "it runs there, and doesn't answer: %w", cause(err))
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 1<<10) // what it says doesn't matter
	if res.Header.Get("X-OpenFaaS-Internal") != "" || slices.Contains([]int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests}, res.StatusCode) {
		return faas.Errorf(faas.ErrUnavailable, "it runs there, and is not ready: GET %s answers %d", path, res.StatusCode)
	}
	return nil
}

// spec is what the provider is told: the declaration with the image's digest, and
// without what is the fleet's business and not its own.
func (c *Client) spec(w provider.Workload, secrets string) types.FunctionDeployment {
	d := w.Function.FunctionDeployment
	d.Image = c.image(d.Image, w.Function.Digest)
	d.Constraints = nil // they say on which node
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

// dialer opens connections to the provider.
func (l *line) dialer(d *net.Dialer) func(context.Context) (net.Conn, error) {
	port := cmp.Or(l.base.Port(), map[string]string{"http": "80", "https": "443"}[l.base.Scheme])
	at := net.JoinHostPort(l.base.Hostname(), port)
	if l.base.Scheme == "http" {
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", at) }
	}
	secure := &tls.Dialer{NetDialer: d, Config: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: l.base.Hostname(), NextProtos: []string{"http/1.1"}}}
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return secure.DialContext(ctx, "tcp", at)
	}
}
