package nodes

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// The gateway's own cache listens on its loopback. So that functions on other
// machines share their last good answers, too, each node has a relay: a port on its
// own loopback, from which every connection is carried to the gateway, over TLS
// with the node's identity, and there to the cache, which asks for its password as
// it asks everybody.

// protocolCache is the ALPN name (RFC 7301) of a connection to the cache.
const protocolCache = "thicket-cache/1"

// cacheVar is the variable in which functions find the cache. The gateway writes
// its URL with relayScheme in front for a node to put its relay's address into.
const (
	cacheVar    = "THICKET_REDIS_URL"
	relayScheme = "relay+"
)

const (
	maxRelayed   = 256 // connections of a node's functions, as many as the cache takes
	relayTimeout = 5 * time.Second
)

// environment is what functions on a node get beside their own variables.
func (n *Nodes) environment(d *node) map[string]string {
	if d.local {
		return nil
	}
	env := maps.Clone(n.cfg.Env)
	if _, own := d.client.(*remote.Client); own && n.cfg.Cache != "" {
		if env == nil {
			env = make(map[string]string)
		}
		env[cacheVar] = relayScheme + n.cfg.Cache
	}
	return env
}

// serveCache carries a node's connection to the gateway's cache.
func (n *Nodes) serveCache(conn *tls.Conn) {
	defer conn.Close()
	state := conn.ConnectionState()
	name, key, ok := Peer(&state)
	n.mu.Lock()
	d := n.nodes[name]
	ok = ok && d != nil && d.ctx != nil && bytes.Equal(d.Key, key)
	var ctx context.Context
	if ok {
		ctx = d.ctx
	}
	n.mu.Unlock()
	u, err := url.Parse(n.cfg.Cache)
	if !ok || n.cfg.Cache == "" || err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })() // it was removed
	cache, err := net.DialTimeout("tcp", u.Host, relayTimeout)
	if err != nil {
		n.log.Debug("the cache takes no connection", "node", name, "err", err)
		return
	}
	defer cache.Close()
	if err := remote.Splice(conn, conn, cache); err != nil && !errors.Is(err, net.ErrClosed) {
		n.log.Debug("a connection to the cache ended", "node", name, "err", err)
	}
}

// relay is a node's end.
type relay struct {
	listener net.Listener
	gateway  string // host and port of the gateway's door
	tls      *tls.Config
	log      *slog.Logger
}

// openRelay begins to listen. [relay.run] serves.
func openRelay(id *Identity, log *slog.Logger) (*relay, error) {
	gateway, err := url.Parse(id.Gateway)
	if err != nil {
		return nil, err
	}
	conf, err := id.Client()
	if err != nil {
		return nil, err
	}
	conf.NextProtos = []string{protocolCache}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for functions that use the gateway's cache: %w", err)
	}
	return &relay{listener: l, gateway: gateway.Host, tls: conf, log: log}, nil
}

// run serves until ctx ends.
func (r *relay) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { r.listener.Close() })
	defer stop()
	var carrying sync.WaitGroup
	defer carrying.Wait()
	places := make(chan struct{}, maxRelayed)
	for {
		conn, err := r.listener.Accept()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.log.Debug("a function's connection to the cache was not accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // too many open files, mostly
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		carrying.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := r.carry(ctx, conn); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				r.log.Debug("a function's connection to the cache ended", "err", err)
			}
		})
	}
}

func (r *relay) carry(ctx context.Context, conn net.Conn) error {
	dialing, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	d := tls.Dialer{Config: r.tls}
	up, err := d.DialContext(dialing, "tcp", r.gateway)
	if err != nil {
		return err
	}
	if p := up.(*tls.Conn).ConnectionState().NegotiatedProtocol; p != protocolCache {
		return errors.Join(fmt.Errorf("the gateway speaks %q", p), up.Close())
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { up.Close() })()
	return remote.Splice(up, up, conn)
}

// here returns the URL of the cache as functions on this node reach it.
func (r *relay) here(cache string) string {
	u, err := url.Parse(strings.TrimPrefix(cache, relayScheme))
	if err != nil {
		return ""
	}
	u.Host = r.listener.Addr().String()
	return u.String()
}

// Server serves machines that join or have come back, and the nodes' relays. The
// caller has it listen.
func (n *Nodes) Server() *http.Server {
	conf := n.cfg.Authority.Server()
	conf.NextProtos = append(conf.NextProtos, protocolCache)
	return &http.Server{
		Handler: n.Handler(), TLSConfig: conf,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			protocolCache: func(_ *http.Server, c *tls.Conn, _ http.Handler) { n.serveCache(c) },
		},
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
}
