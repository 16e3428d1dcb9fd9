package state

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// NATS is a cluster elsewhere that keeps the store.
type NATS struct {
	// URL is where it is: "nats://user:password@nats-1:4222,nats://nats-2:4222",
	// "tls://..." for TLS. The others are found from one that answers.
	URL string

	// Creds is a file with a user's JWT and its key, and CA one with who has
	// signed the servers' certificates, where the system doesn't know them.
	Creds, CA string

	// Prefix begins the names of all that is kept there: those of one gateway.
	// Default "thicket".
	Prefix string

	// Node is what others are told of who has the prefix.
	Node string

	// Patience is for how long [Open] asks a cluster that doesn't answer. The
	// default, 0, is until its context ends: after a power cut not all machines
	// come back at the same time.
	Patience time.Duration
}

// Hosts returns the URL without what is secret in it.
func (n *NATS) Hosts() string {
	var hosts []string
	for u := range strings.SplitSeq(n.URL, ",") {
		if parsed, err := url.Parse(strings.TrimSpace(u)); err == nil && parsed.Host != "" {
			hosts = append(hosts, parsed.Host)
		}
	}
	return strings.Join(hosts, ", ")
}

var validPrefix = regexp.MustCompile(`^[a-zA-Z0-9-]{1,32}$`)

// Check returns what is wrong with the URL or the prefix, which are said
// apart: they come from two settings.
func (n *NATS) Check() (badURL, badPrefix error) {
	for u := range strings.SplitSeq(n.URL, ",") {
		parsed, err := url.Parse(strings.TrimSpace(u))
		if err != nil || parsed.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, parsed.Scheme) {
			// The URL may hold a password, and so may the error's text.
			badURL = errors.New("is not the address of a NATS cluster: write nats://host:4222, or tls://host:4222 for TLS, more of them with commas in between")
		}
	}
	if n.Prefix != "" && !validPrefix.MatchString(n.Prefix) {
		badPrefix = fmt.Errorf("%.40q is not a prefix: write up to 32 letters, digits and -", n.Prefix)
	}
	return badURL, badPrefix
}

const (
	// maxReplicas is on how many servers each value is, if there are as many: one
	// may be lost then without anything being noticed.
	maxReplicas = 3

	// attempt bounds one call to the cluster, of several within callTimeout: an
	// answer may be lost with the server that had it, and servers need up to nine
	// seconds to agree on another leader.
	attempt = 3 * time.Second

	// away is for how long a call waits for a connection that was lost: another
	// server is found within milliseconds, if there is one.
	away = 2 * time.Second
)

// cluster is the engine elsewhere.
type cluster struct {
	cfg   Config
	hosts string
	lease *lease // nil until it is taken
	life  life

	nc   *nats.Conn
	js   jetstream.JetStream
	meta jetstream.KeyValue // what concerns all of the prefix

	mu   sync.Mutex // guards below
	lost time.Time  // when the connection was; zero while there is one
}

func newCluster(cfg Config, identity string) *cluster {
	cfg.NATS.Prefix = cmp.Or(cfg.NATS.Prefix, "thicket")
	c := &cluster{cfg: cfg, hosts: cfg.NATS.Hosts()}
	c.lease = newLease(c, identity)
	return c
}

// open implements [engine].
func (c *cluster) open(ctx context.Context) (jetstream.JetStream, error) {
	urlErr, prefixErr := c.cfg.NATS.Check()
	if err := errors.Join(urlErr, prefixErr); err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "NATS: %w", err)
	}
	// The life outlives the context of whoever began it.
	living, end := context.WithCancelCause(context.WithoutCancel(ctx))
	c.life = life{Context: living, end: end, attempt: attempt}
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	asking := ctx
	if c.cfg.NATS.Patience > 0 {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, c.cfg.NATS.Patience)
		defer cancel()
	}
	var said time.Time
	for {
		err := c.reach(asking, opts)
		if err == nil {
			break
		}
		if asking.Err() == nil && passes(err) {
			if time.Since(said) > 30*time.Second {
				said = time.Now()
				c.cfg.Logger.Warn("the NATS cluster is not ready: waiting for it", "nats", c.hosts, "err", err)
			}
			select {
			case <-time.After(500 * time.Millisecond):
				continue
			case <-asking.Done():
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	if !said.IsZero() {
		c.cfg.Logger.Info("the NATS cluster is there", "nats", c.hosts)
	}
	c.lease.begin()
	return c.js, nil
}

// options are those of the connection.
func (c *cluster) options() ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name("thicket " + c.cfg.NATS.Prefix),
		nats.Timeout(2 * time.Second),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.IgnoreAuthErrorAbort(), // a cluster that restarts may refuse before it knows its users
		nats.ReconnectBufSize(-1),   // a write is made, or refused; never kept for later
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if nc.IsClosed() {
				return
			}
			c.mu.Lock()
			c.lost = time.Now()
			c.mu.Unlock()
			c.cfg.Logger.Warn("the NATS cluster is away: what runs goes on, and nothing can be stored until it is back", "nats", c.hosts, "err", err)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.mu.Lock()
			since := time.Since(c.lost)
			c.lost = time.Time{}
			c.mu.Unlock()
			c.cfg.Logger.Info("the NATS cluster is back", "server", nc.ConnectedAddr(), "after", since.Round(time.Millisecond).String())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.cfg.Logger.Warn("state store", "nats", c.hosts, "err", err)
		}),
	}
	if file := c.cfg.NATS.Creds; file != "" {
		if _, err := os.Stat(file); err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "the credentials for NATS can't be read: %w", err)
		}
		opts = append(opts, nats.UserCredentials(file))
	}
	if file := c.cfg.NATS.CA; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "who signs the certificates of NATS can't be read: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, faas.Errorf(faas.ErrInvalid, "%s has no certificate in it", file)
		}
		opts = append(opts, nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}))
	}
	return opts, nil
}

// reach connects, and takes the prefix.
func (c *cluster) reach(ctx context.Context, opts []nats.Option) (err error) {
	nc, err := nats.Connect(c.cfg.NATS.URL, opts...)
	if err != nil {
		return c.unreached(err)
	}
	defer func() {
		if err != nil {
			nc.Close()
		}
	}()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(attempt))
	if err != nil {
		return err
	}
	if _, err := js.AccountInfo(ctx); err != nil {
		return c.unreached(err)
	}
	c.nc, c.js = nc, js
	if c.meta, err = openBucket(ctx, js, c.streams("meta"), c.settle); err != nil {
		return c.unreached(err)
	}
	if err := c.checkFormat(ctx); err != nil {
		return err
	}
	if err := c.lease.take(ctx); err != nil {
		return c.unreached(err)
	}
	return nil
}

// unreached makes a sentence of why the cluster can't be used. It wraps errAway
// if that passes.
func (c *cluster) unreached(err error) error {
	if _, ok := errors.AsType[*faas.Error](err); ok {
		return err
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, badName := errors.AsType[x509.HostnameError](err)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return faas.Errorf(faas.ErrInvalid, "NATS at %s doesn't know this user (%w): put user and password into THICKET_NATS_URL, or the file with the credentials into THICKET_NATS_CREDS", c.hosts, err)
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted), unknown, badName:
		return faas.Errorf(faas.ErrInvalid, "NATS at %s and this gateway don't agree on TLS (%w): write tls:// or nats:// in THICKET_NATS_URL as the servers have it, and name who signs their certificates in THICKET_NATS_CA", c.hosts, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return faas.Errorf(faas.ErrInvalid, "NATS at %s has no JetStream for this account: enable it there", c.hosts)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		err = fmt.Errorf("its JetStream isn't enabled, or isn't ready: %w", err)
	case !storeFailed(err) && !errors.Is(err, nats.ErrNoServers) && !dialFailed(err):
		return fmt.Errorf("NATS at %s: %w", c.hosts, err)
	}
	return fmt.Errorf("NATS at %s can't be used: %w: %w", c.hosts, errAway, err)
}

// errAway says that what isn't there may come.
var errAway = errors.New("it doesn't answer")

func passes(err error) bool { return errors.Is(err, errAway) }

// checkFormat refuses what a newer program has written, as [State.checkFormat]
// does for the folder.
func (c *cluster) checkFormat(ctx context.Context) error {
	e, err := c.meta.Get(ctx, formatFile)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		_, err = c.meta.Put(ctx, formatFile, fmt.Append(nil, format))
		if err != nil {
			return c.unreached(err)
		}
		return nil
	case err != nil:
		return c.unreached(err)
	}
	_, err = knownFormat(fmt.Sprintf("NATS at %s under the prefix %s", c.hosts, c.cfg.NATS.Prefix), e.Value())
	return err
}

// living implements [engine].
func (c *cluster) living() life { return c.life }

// again implements [engine]: as long as there is time, and anybody to ask.
func (c *cluster) again(ctx context.Context, l life, _ error, _ int) bool {
	if since := c.away(); since > away || l.Err() != nil {
		return false
	}
	select {
	case <-time.After(100 * time.Millisecond):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// away says for how long there has been no connection; 0 if there is one.
func (c *cluster) away() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost.IsZero() {
		return 0
	}
	return max(time.Since(c.lost), 1)
}

// heal implements [engine]: what was lost to another gateway stays lost, and a
// connection comes back on its own.
func (c *cluster) heal(context.Context) error { return c.usable() }

// usable returns nil if it makes sense to ask the cluster.
func (c *cluster) usable() error {
	if c.life.Err() != nil {
		return context.Cause(c.life)
	}
	if c.away() > away {
		return nats.ErrDisconnected
	}
	return nil
}

// streams implements [engine]: on three servers, or as many as there are.
func (c *cluster) streams(bucket string) (ways []jetstream.StreamConfig) {
	for n := maxReplicas; n > 0; n-- {
		s := streamOf(c.cfg.NATS.Prefix + "_" + bucket)
		s.Description = "Thicket's, of the gateway " + c.cfg.NATS.Node
		s.Replicas = n
		s.AllowDirect = false // any server would answer then, also with what was before
		ways = append(ways, s)
	}
	return ways
}

// bucket implements [engine].
func (c *cluster) bucket(stream string) (string, bool) {
	name, ok := strings.CutPrefix(stream, c.cfg.NATS.Prefix+"_")
	return name, ok && name != "meta" && name != "lease"
}

// tooMany says whether a stream was refused because there are not as many servers
// for it.
func tooMany(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	switch server.ErrorIdentifier(api.ErrorCode) {
	case server.JSStreamReplicasNotSupportedErr, server.JSClusterNoPeersErrF, server.JSInsufficientResourcesErr:
		return true
	}
	return false
}

// room implements [engine].
func (c *cluster) room(size int) error {
	if err := c.usable(); err != nil {
		return c.explain(err)
	}
	const head = 1 << 10 // the subject and what goes along
	if most := c.nc.MaxPayload(); most > 0 && int64(size+head) > most {
		return faas.Errorf(faas.ErrTooLarge, "%d bytes are to be stored, and NATS at %s takes messages of at most %d: set max_payload: %d in its servers' configuration",
			size, c.hosts, most, MaxValue+64<<10)
	}
	return nil
}

// settle implements [engine].
func (c *cluster) settle() error { return nil }

// alone implements [engine].
func (c *cluster) alone() bool { return false }

// fingerprintKey begins the keys in the prefix's own bucket that tell which keys
// it was used with.
const fingerprintKey = "key."

// key implements [engine]: keys are in the folder of a machine, and what they
// encrypted is in the cluster. A gateway that was moved without them would only
// find out when it needs a secret.
func (c *cluster) key(name, fingerprint string) error {
	ctx, cancel := context.WithTimeout(c.life, callTimeout)
	defer cancel()
	at := fingerprintKey + name
	e, err := c.meta.Get(ctx, at)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		_, err = c.meta.Put(ctx, at, []byte(fingerprint))
	}
	switch {
	case err != nil:
		return c.explain(err)
	case e != nil && string(e.Value()) != fingerprint:
		return faas.Errorf(faas.ErrInvalid, "the key %s.key in %s is not the one that the state under the prefix %s of NATS at %s was written with: bring the *.key files from the gateway's folder before (gateway-ext backup has them), or set another THICKET_NATS_PREFIX",
			name, c.cfg.Dir, c.cfg.NATS.Prefix, c.hosts)
	}
	return nil
}

// forget implements [engine].
func (c *cluster) forget(ctx context.Context) error {
	var all []string
	list := c.js.KeyValueStoreNames(ctx)
	for stream := range list.Name() {
		if _, ok := c.bucket(stream); ok {
			all = append(all, stream)
		}
	}
	errs := []error{list.Error()}
	for _, stream := range all {
		errs = append(errs, c.js.DeleteKeyValue(ctx, stream))
	}
	keys, err := c.meta.ListKeysFiltered(ctx, fingerprintKey+">")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for key := range keys.Keys() {
		errs = append(errs, c.meta.Delete(ctx, key))
	}
	return errors.Join(errs...)
}

// explain implements [engine].
func (c *cluster) explain(err error) error {
	since := c.away()
	switch {
	case c.life.Err() != nil:
		return context.Cause(c.life)
	case since > 0:
		return faas.Errorf(faas.ErrUnavailable, "NATS at %s has been away for %s, and nothing can be stored or changed until it is back: what runs goes on and is called as ever", c.hosts, since.Round(time.Second))
	case diskFull(err):
		return faas.Errorf(faas.ErrNoSpace, "NATS at %s has no room left, nothing was changed: free some space there, then try again (%w)", c.hosts, err)
	case errors.Is(err, errAway):
		return faas.Errorf(faas.ErrUnavailable, "%w", err)
	}
	return faas.Errorf(faas.ErrUnavailable, "NATS at %s doesn't answer (it may have no majority of its servers), so it isn't known whether that was stored: look, and try again; what runs goes on and is called as ever (%w)", c.hosts, err)
}

// close implements [engine].
func (c *cluster) close() {
	c.lease.close()
	if c.nc != nil {
		c.nc.Close()
	}
	if c.life.end != nil {
		c.life.end(errNotRunning)
	}
}
