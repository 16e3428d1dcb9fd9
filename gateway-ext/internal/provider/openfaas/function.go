package openfaas

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
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
	until     time.Time
}

// objects is how long a refusal keeps a function away: it may have been a mistake.
const objects = 5 * time.Minute

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
				f.objection, f.objected, f.until = err.Error(), f.wish.Function.Revision, time.Now().Add(objects)
			}
		}
		c.mu.Unlock()
		attempts++
		if _, ok := errors.AsType[*kept](err); ok {
			attempts = max(attempts, 6) // 30 s
		}
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
