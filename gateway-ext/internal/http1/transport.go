package http1

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// TransportConfig is what a [Transport] needs to know. The zero value is good.
type TransportConfig struct {
	// Dial opens a connection. Default is TCP, and it is only that which has all
	// that makes this fast.
	Dial func(context.Context, netip.AddrPort) (net.Conn, error)

	// DialTimeout is how long a server may take to accept a connection. Default
	// 2 s: who is on this machine or in the same network and takes longer is ill.
	DialTimeout time.Duration

	// IdleTimeout is how long a connection is kept that nobody uses. Default 4 s:
	// Node's HTTP server closes its idle connections after 5 s, and to be first
	// makes it rare that a request meets a connection that is being closed.
	IdleTimeout time.Duration

	// MaxConns is how many connections are kept for use after use, to all
	// servers together; more are opened if needed, and closed after one use.
	// Default 2,048. One costs about 700 bytes here, and what the system needs.
	// To one server at most 256 are kept.
	MaxConns int

	// ExpectTimeout is how long a server may take for its word to a request that
	// asks whether the body is welcome. Default 1 s; then it gets the body.
	ExpectTimeout time.Duration
}

// Transport is the client's side: it carries requests to servers, and keeps the
// connections. It is made by [NewTransport] and may be used by any number of
// goroutines. It starts none but for request bodies that are still coming.
type Transport struct {
	cfg     TransportConfig
	buffers buffers
	large   sync.Pool // of *[largeBuffer]byte
	answers sync.Pool // of *Answer

	kept atomic.Int64 // connections that have a place in a pool

	mu     sync.Mutex // guards below
	pools  map[*Pool]struct{}
	sweep  *time.Timer // runs while there are pools with connections
	closed bool
}

// NewTransport returns a transport.
func NewTransport(cfg TransportConfig) *Transport {
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 2 * time.Second
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = 4 * time.Second
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 2048
	}
	if cfg.ExpectTimeout <= 0 {
		cfg.ExpectTimeout = time.Second
	}
	return &Transport{cfg: cfg, pools: make(map[*Pool]struct{})}
}

// Pool returns a new pool for the server at an address. It needs no end: what is
// idle in it is closed after a while, and with [Pool.Close] at once.
func (t *Transport) Pool(addr netip.AddrPort) *Pool {
	return &Pool{t: t, addr: addr}
}

// Close closes the connections that nobody uses. Those in use are closed when
// they no longer are.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	if t.sweep != nil {
		t.sweep.Stop()
	}
	pools := t.pools
	t.pools = nil
	t.mu.Unlock()
	for p := range pools {
		p.Close()
	}
}

// PoolOver is [Transport.Pool] for a server that is reached in another way than
// by an address. dial must be quick to give up, and heed its context; what it
// returns may encrypt.
//
// silent says that the server's machine is not heard of, and that there is
// another to ask: a request with [Outgoing.Replay] then waits no longer for an
// answer of which nothing has come ([ErrSilent]). Nothing else would end it before
// its deadline: of a machine that is cut off no packet comes, and the system of one
// that is frozen goes on to acknowledge ours. It must be quick; nil is never.
func (t *Transport) PoolOver(dial func(context.Context) (net.Conn, error), silent func() bool) *Pool {
	return &Pool{t: t, over: dial, silent: silent}
}

// ErrSilent is why a request was given up, see [Transport.PoolOver].
var ErrSilent = errors.New("its machine is not heard of")

// dial opens a connection to the pool's server.
func (t *Transport) dial(ctx context.Context, p *Pool, deadline time.Time) (*link, error) {
	var conn net.Conn
	var err error
	switch {
	case p.over != nil:
		if !deadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline)
			defer cancel()
		}
		conn, err = p.over(ctx)
	case t.cfg.Dial != nil:
		conn, err = t.cfg.Dial(ctx, p.addr)
	default:
		d := net.Dialer{Timeout: t.cfg.DialTimeout, Deadline: deadline}
		conn, err = d.DialContext(ctx, "tcp", p.addr.String())
	}
	if err != nil {
		return nil, err
	}
	return newLink(p, conn), nil
}

// watch has the pool's idle connections closed in time. It returns false if the
// transport is closed.
func (t *Transport) watch(p *Pool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.pools[p] = struct{}{}
	switch {
	case t.sweep == nil:
		t.sweep = time.AfterFunc(t.cfg.IdleTimeout/2, t.sweepPools)
	case len(t.pools) == 1:
		t.sweep.Reset(t.cfg.IdleTimeout / 2)
	}
	return true
}

// sweepPools closes what has been idle for too long.
func (t *Transport) sweepPools() {
	t.mu.Lock()
	pools := make([]*Pool, 0, len(t.pools))
	for p := range t.pools {
		pools = append(pools, p)
	}
	t.mu.Unlock()

	now := time.Now()
	for _, p := range pools {
		p.expire(now)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range pools {
		if p.empty() {
			// Who puts a connection into it from now on finds that nobody
			// watches it, and who did a moment ago is seen here.
			p.watched.Store(false)
			if p.empty() || !p.watched.CompareAndSwap(false, true) {
				delete(t.pools, p)
			}
		}
	}
	if len(t.pools) > 0 && !t.closed {
		t.sweep.Reset(t.cfg.IdleTimeout / 2)
	}
}
