package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
)

// noNodes is the value of THICKET_NODES_ADDR of a gateway that takes no nodes.
const noNodes = "off"

// nodeSource is what the table of replicas calls the word of a node.
const nodeSource = "node"

// The lease of a node, whose beats come each second: silent for so long it is
// suspect, and then gone, unless it still answers when it is asked. That takes
// two questions of 1.5 s at most, which begin when it is suspect.
const (
	nodeSuspect = 3 * time.Second
	nodeGone    = 7 * time.Second
)

// openNodes makes the fleet's machines, of which this one is the first.
func (g *gateway) openNodes(ctx context.Context, s settings, known func(faas.Name) bool) error {
	seed, err := g.state.Key("nodes")
	if err != nil {
		return err
	}
	if g.authority, err = nodes.NewAuthority(seed); err != nil {
		return err
	}
	remembered, err := g.state.Bucket(ctx, "nodes")
	if err != nil {
		return err
	}
	if s.NodesAddr != noNodes {
		if g.door, err = listenAt("THICKET_NODES_ADDR", s.NodesAddr); err != nil {
			return err
		}
	}
	functions, err := url.Parse(g.url)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	if s.Zone != "" {
		labels["zone"] = s.Zone
	}
	var secret nodes.Secret
	if s.TokenFile != "" {
		text, err := readSecretFile("THICKET_TOKEN_FILE", s.TokenFile)
		if err != nil {
			return err
		}
		if secret, err = nodes.ParseSecret(text); err != nil {
			return fmt.Errorf("THICKET_TOKEN_FILE: %s: %w", s.TokenFile, err)
		}
	}
	env := map[string]string{}
	if s.RedisURL != "" {
		env["THICKET_REDIS_URL"] = s.RedisURL
	}
	sharedCache := ""
	if g.redis != nil {
		sharedCache = g.redis.URL()
	}
	g.nodes, err = nodes.New(ctx, nodes.Config{
		Authority: g.authority,
		Store:     remembered,
		Secret:    secret,
		Local:     nodes.Local{Name: s.Node, Labels: labels, Machine: machineOf(s.Data), Has: g.store.Has, Empty: s.NodesOnly},
		Source: func(node string, addr netip.AddrPort, lost func()) (nodes.Source, error) {
			return g.table.Source(nodeSource, node, discovery.Lease{
				Suspect: nodeSuspect, Gone: nodeGone, Probe: discovery.Target{Addr: addr},
				Ask: func(ctx context.Context) discovery.Answer { return discovery.Judge(ctx, g.nodes.Ask(ctx, node)) },
			}, lost)
		},
		Platforms: g.store.Platforms,
		Known:     known,
		Functions: *functions,
		Env:       env,
		Cache:     sharedCache,
		Replicas: func(node string) []faas.Replica {
			for _, saved := range g.table.Saved(nodeSource) {
				if saved.Name == node {
					return saved.Replicas
				}
			}
			return nil
		},
		Providers: s.providers(),
		Declare: func(ctx context.Context, d types.FunctionDeployment) error {
			checked, err := faas.Check(d)
			if err != nil {
				return err
			}
			return g.fleet.Deploy(ctx, checked)
		},
		Own:     g.own,
		JoinURL: g.joinURL,
		Logger:  g.log,
	})
	return err
}

// joinURL is where machines join, as who has called the API at a host may reach
// it.
func (g *gateway) joinURL(host string) string {
	if g.door == nil {
		return "(this gateway takes no nodes: set THICKET_NODES_ADDR)"
	}
	at := g.door.Addr().(*net.TCPAddr)
	port := fmt.Sprint(at.Port)
	if !at.IP.IsUnspecified() {
		return "https://" + net.JoinHostPort(at.IP.String(), port)
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(host); host == "localhost" || err == nil && addr.IsLoopback() {
		// Other machines don't find it there.
		if own := outward(); own != "" {
			host = own
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// outward is this machine's address on the way to other machines, or "".
func outward() string {
	// UDP sends nothing here, it only asks the routing table; the address is one
	// for documentation (RFC 5737).
	conn, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return ""
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// dialReplica is how replicas on other machines are reached, nil for one on this
// machine or of a service that registered itself.
func (g *gateway) dialReplica(e *discovery.Endpoint) func(context.Context) (net.Conn, error) {
	if e.Kind() != nodeSource {
		return nil
	}
	return g.nodes.Dialer(e.Node, e.ID)
}

// serveDoor serves machines until the server is closed.
func (g *gateway) serveDoor(s *http.Server) error {
	if err := s.ServeTLS(g.door, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", g.door.Addr(), err)
	}
	return nil
}
