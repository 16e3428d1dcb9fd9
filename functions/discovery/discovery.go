// Package discovery lets a function call other functions directly, without the
// hop through the gateway: it knows where their replicas are, picks one for each
// call, and goes through the gateway whenever that is better. It is what Ribbon
// was to Spring's services, for functions that choose it.
//
//	direct, err := discovery.New(cfg)
//	…
//	defer direct.Close()
//	client := &http.Client{Transport: direct}
//	resp, err := client.Get("http://weather-producer.openfaas-fn/?zip=70569")
//
// A [Client] follows the gateway's event stream of all replicas and keeps what it
// has learnt: a call reads an immutable table and asks nobody. Of the replicas
// that are ready, package balance picks one, as the gateway does: by latency and
// requests in flight, those on the same machine first, less to those that have
// just started or are suspect, none to those that keep failing.
//
// A call goes through the gateway when the function has no replica that can take
// it (it sleeps, and the gateway wakes it; it is not known; all are full, out of
// reach or have refused), and when nothing was heard of the gateway for longer
// than [Config.Stale]. While the gateway itself is being restarted calls that can't
// be made directly wait for it, for [Config.Wait].
//
// A call that was never sent is always sent elsewhere. One that broke off is
// repeated if it is safe to (package resilience says what is), its body can be had
// again, and such repeats stay a tenth of the calls. An answer is an answer,
// whatever its status. What the called function's annotations ask of the gateway
// (deadlines, attempts, kept answers, fallbacks) does not apply to direct calls: a
// caller that wants these has them in packages resilience and stale.
//
// The gateway counts, and scales by, what it is told once a second: see [Usage].
package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
)

// Config is what a [Client] needs. Its tags are for packages that read settings
// from an environment: a function that is annotated with
// `thicket.discovery: "true"` finds all of them in its own.
type Config struct {
	// URL is where the gateway tells of replicas: "http://host:port/system/discovery".
	// Empty sends every call through Gateway, so that a function which calls
	// directly under Thicket also runs elsewhere.
	URL string `env:"THICKET_DISCOVERY_URL"`

	// Token allows to read it.
	Token string `env:"THICKET_DISCOVERY_TOKEN"`

	// Gateway is where calls go that don't go directly: "http://host:port". Empty
	// is where URL is.
	Gateway string `env:"gateway_url"`

	// Node is the machine that this client is on. Replicas on it are preferred,
	// and no others are reached by a loopback address.
	Node string `env:"THICKET_NODE"`

	// Name is who calls, as the gateway is told.
	Name string `env:"THICKET_REPLICA" envDefault:"unnamed"`

	// Balance is how one of several replicas is picked, as the annotation
	// thicket.balance says it, see [balance.Parse]. Empty is the default.
	Balance string `env:"THICKET_DISCOVERY_BALANCE"`

	// Stale is how long after the gateway was last heard calls still go directly.
	// It is heard every two seconds. Longer survives longer outages of the gateway
	// alone; shorter finds out sooner that the machine it runs on is gone with its
	// replicas, though these then refuse, which costs a call a fraction of a
	// millisecond. 0 is 10 s.
	Stale time.Duration `env:"THICKET_DISCOVERY_STALE" envDefault:"10s"`

	// Wait is how long a call waits for a gateway that can't be reached, if it
	// can't be made directly. A call's own deadline may end it sooner. 0 is 5 s.
	Wait time.Duration `env:"THICKET_DISCOVERY_WAIT" envDefault:"5s"`

	// Dial makes connections, as [net.Dialer.DialContext] does, which it is if it
	// is nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) `env:"-"`

	// Log is told when the stream breaks and is back. It must not be nil.
	Log *slog.Logger `env:"-"`
}

// Client makes calls of functions. It is an [http.RoundTripper] for requests to
//
//	http://NAME.NAMESPACE/path
//	http://gateway/function/NAME.NAMESPACE/path
//
// of which the second is the gateway's own form, so that a program needs only
// another transport. Other requests to the gateway go to it as they are, and those
// to anybody else are refused. Its methods may be called by any number of
// goroutines.
type Client struct {
	cfg       Config
	events    string // address of the stream; empty if there is none
	gateway   *url.URL
	transport *http.Transport // for calls
	control   *http.Transport // for the stream and the usage
	rule      balance.Rule
	budget    *resilience.Budget
	ledger    *ledger

	routes atomic.Pointer[routes]
	heard  atomic.Int64 // when something last came over the stream, since began
	began  time.Time

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// New returns a client, which [Client.Close] ends. It doesn't wait for the
// gateway: until it has told where replicas are, calls go through it.
func New(cfg Config) (*Client, error) {
	if cfg.URL == "" && cfg.Gateway == "" {
		return nil, errors.New("call functions directly: there is neither the gateway's address nor that of its discovery: annotate this function with thicket.discovery: \"true\", or set gateway_url")
	}
	if cfg.Stale < 0 || cfg.Wait < 0 {
		return nil, fmt.Errorf("call functions directly: stale after %s and wait for %s: neither may be below 0", cfg.Stale, cfg.Wait)
	}
	now := time.Now()
	c := &Client{
		cfg:       cfg,
		transport: newTransport(cfg.Dial),
		control:   newTransport(cfg.Dial),
		budget:    resilience.NewBudget(resilience.DefaultPolicy().Budget),
		ledger:    newLedger(now),
		began:     now,
	}
	c.cfg.Name = cmp.Or(cfg.Name, "unnamed")
	c.cfg.Name = c.cfg.Name[:min(len(c.cfg.Name), 128)]
	c.cfg.Stale = cmp.Or(cfg.Stale, 10*time.Second)
	c.cfg.Wait = cmp.Or(cfg.Wait, 5*time.Second)
	c.heard.Store(-int64(c.cfg.Stale)) // never
	c.routes.Store(&routes{})

	gateway := cfg.Gateway
	if cfg.URL != "" {
		u, err := parseBase(cfg.URL)
		if err != nil {
			return nil, fmt.Errorf("call functions directly: the address of discovery: %w", err)
		}
		if !strings.HasSuffix(u.Path, Path) {
			return nil, fmt.Errorf("call functions directly: the address of discovery, %s, must end in %s", u, Path)
		}
		c.events = u.String() + "/events"
		if gateway == "" {
			u.Path = strings.TrimSuffix(u.Path, Path)
			gateway = u.String()
		}
	}
	var err error
	if cfg.Balance != "" {
		if c.rule, err = balance.Parse(cfg.Balance); err != nil {
			return nil, fmt.Errorf("call functions directly: %w", err)
		}
	}
	if c.gateway, err = parseBase(gateway); err != nil {
		return nil, fmt.Errorf("call functions directly: the gateway's address: %w", err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	if c.events == "" {
		cfg.Log.Warn("functions are called through the gateway: no discovery here, which the annotation thicket.discovery: \"true\" asks Thicket for")
	} else {
		c.done.Go(func() { c.watch(ctx) })
		c.done.Go(func() { c.tell(ctx, strings.TrimSuffix(c.events, "/events")+"/usage") })
	}
	return c, nil
}

// Close ends what the client does beside calling, and waits for it; the calls of
// the last second are told to the gateway if it hears them soon. Calls that are in
// flight go on, and later ones go through the gateway.
func (c *Client) Close() error {
	c.cancel()
	c.done.Wait()
	c.routes.Store(&routes{})
	c.transport.CloseIdleConnections()
	c.control.CloseIdleConnections()
	return nil
}

// fresh says whether the table is recent enough to call by.
func (c *Client) fresh(now time.Time) bool {
	return now.Sub(c.began)-time.Duration(c.heard.Load()) < c.cfg.Stale
}

// parseBase reads an address without a query, and takes slashes off its end.
func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q is no address: write http://host:port", s)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}
