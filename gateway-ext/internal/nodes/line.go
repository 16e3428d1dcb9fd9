package nodes

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// httpClient calls one node. mu is held.
func (n *Nodes) httpClient(d *node) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:     n.cfg.Authority.Client(d.Name, d.Key, protocolHTTP),
		TLSHandshakeTimeout: 3 * time.Second,
		DialContext:         (&net.Dialer{Timeout: trial}).DialContext,
		MaxIdleConns:        4, IdleConnTimeout: time.Minute,
		ResponseHeaderTimeout: 0, // removing takes as long as draining does
	}}
}

// Dialer returns what opens connections to a replica on another node, or nil if
// it is on this machine or on no node.
func (n *Nodes) Dialer(node, replica string) func(context.Context) (net.Conn, error) {
	n.mu.Lock()
	d := n.nodes[node]
	away := d != nil && !d.local
	var direct interface {
		Dialer() func(context.Context) (net.Conn, error)
	}
	if away && d.Foreign != nil {
		direct, _ = d.client.(interface {
			Dialer() func(context.Context) (net.Conn, error)
		})
	}
	n.mu.Unlock()
	if direct != nil {
		return direct.Dialer()
	}
	if !away {
		return nil
	}
	return func(ctx context.Context) (net.Conn, error) {
		n.mu.Lock()
		at, conf := d.Addr.String(), n.cfg.Authority.Client(d.Name, d.Key, remote.TunnelProtocol)
		limit := trial
		if d.state != placement.Ready {
			limit = trial / 4 // it is probably in vain, and there may be another replica
		}
		n.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		dialer := tls.Dialer{Config: conf}
		conn, err := dialer.DialContext(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		if _, err := remote.Dial(ctx, conn, replica); err != nil {
			return nil, err
		}
		return n.keep(d, conn.(*tls.Conn))
	}
}

// tunnel is a connection to a replica on a node, which ends when the node is
// counted out: who waits for an answer of one that will never give any asks
// another, and doesn't wait for as long as a function may take.
type tunnel struct {
	*tls.Conn
	forget func()
}

// Close implements [net.Conn].
func (t *tunnel) Close() error {
	t.forget()
	return t.Conn.Close()
}

// keep notes a tunnel, unless the node is gone already.
func (n *Nodes) keep(d *node, conn *tls.Conn) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.state == placement.Gone || n.nodes[d.Name] != d {
		conn.NetConn().Close()
		return nil, faas.Errorf(faas.ErrUnavailable, "node %s is gone", d.Name)
	}
	if d.tunnels == nil {
		d.tunnels = make(map[*tls.Conn]struct{})
	}
	d.tunnels[conn] = struct{}{}
	return &tunnel{conn, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(d.tunnels, conn)
	}}, nil
}

// cut returns what ends the node's tunnels. mu is held, and isn't when that is
// called.
func (d *node) cut() func() {
	all := d.tunnels
	d.tunnels = nil
	return func() {
		for conn := range all {
			conn.NetConn().Close() // without a farewell, which nobody would read
		}
	}
}

// Ask asks a node that is silent whether it answers still: it must hold its key,
// and what it said last must have been readable. A process that was stopped
// accepts connections, so one alone says nothing. It takes two seconds at most;
// the error says what came of it.
func (n *Nodes) Ask(ctx context.Context, name string) error {
	n.mu.Lock()
	d := n.nodes[name]
	if d == nil || d.local || d.garbled || len(d.Key) == 0 {
		n.mu.Unlock()
		return faas.Errorf(faas.ErrUnavailable, "node %s can't be asked, or says what can't be read", name)
	}
	at, key := d.Addr, d.Key
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, trial*3/4)
	defer cancel()
	return try(ctx, at, key)
}
