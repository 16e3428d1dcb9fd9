package main

import (
	"context"
	"iter"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/openfaas/faas-provider/types"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery/eureka"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// discoveryAnnotation asks for what a function needs to call others directly.
const discoveryAnnotation = "thicket.discovery"

// directAccess gives functions that ask for it what they need to call others
// directly.
type directAccess struct {
	node string
	key  []byte
}

// check refuses an annotation that is neither "true" nor "false".
func (directAccess) check(d types.FunctionDeployment) error {
	f := faas.Function{FunctionDeployment: d}
	if v := f.Annotation(discoveryAnnotation); v != "" && v != "true" && v != "false" {
		return faas.Errorf(faas.ErrInvalid, `annotation %s is %.40q: write "true" for a function that calls others directly, or leave it out`, discoveryAnnotation, v)
	}
	return nil
}

func asksForDiscovery(f *faas.Function) bool {
	return f != nil && f.Annotation(discoveryAnnotation) == "true"
}

// environment is what such a function gets.
func (a directAccess) environment(d types.FunctionDeployment) map[string]string {
	f := faas.Function{FunctionDeployment: d}
	if !asksForDiscovery(&f) {
		return nil
	}
	return map[string]string{
		provider.DiscoveryVar:     wire.Path, // on each node it becomes a URL
		"THICKET_DISCOVERY_TOKEN": api.DiscoveryToken(a.key, f.Name()),
		"THICKET_NODE":            a.node,
	}
}

// merged returns the variables of both; those of b win.
func merged(a, b map[string]string) map[string]string {
	if len(a) == 0 {
		return b
	}
	a = maps.Clone(a)
	maps.Copy(a, b)
	return a
}

// tellReplicas is what the API tells of the table to clients.
func tellReplicas(table *discovery.Table) (snapshot func() wire.Snapshot, watch func(context.Context) iter.Seq2[wire.Snapshot, error]) {
	convert := func(version uint64, list []discovery.Status) wire.Snapshot {
		now := time.Now()
		s := wire.Snapshot{Version: version, Replicas: make([]wire.Replica, 0, len(list))}
		for i := range list {
			s.Replicas = append(s.Replicas, wireReplica(&list[i], now))
		}
		return s
	}
	snapshot = func() wire.Snapshot { return convert(table.Snapshot()) }
	watch = func(ctx context.Context) iter.Seq2[wire.Snapshot, error] {
		return func(yield func(wire.Snapshot, error) bool) {
			// Clients send requests that the table doesn't count, so they are
			// given time to learn that a replica drains.
			for change, err := range table.Watch(ctx, wire.Notice) {
				if !yield(convert(change.Version, change.Replicas), err) {
					return
				}
			}
		}
	}
	return snapshot, watch
}

// suspectWeight is the share of traffic of a replica whose source is silent.
const suspectWeight = 0.25

func wireReplica(s *discovery.Status, now time.Time) wire.Replica {
	r := wire.Replica{
		ID:       s.ID,
		Function: wire.Name(s.Function),
		Node:     s.Node,
		Zone:     s.Zone,
		Addr:     s.Addr,
		State:    s.State.String(),
		Age:      max(now.Sub(s.Since), 0).Round(time.Millisecond).Seconds(),
		Suspect:  s.Suspect,
		Weight:   1,
		Revision: s.Revision,
		InFlight: s.InFlight,
		Source:   s.Source,
		Since:    s.Since,
		LastSeen: s.LastSeen,
	}
	if s.Path != "" {
		// It is called through its provider, which takes the gateway's way of
		// calling: others go through the gateway.
		r.Addr = netip.AddrPort{}
	}
	if s.Source == eureka.Kind {
		// Of a function it may have its last words, which are not for others.
		r.Reason = s.Reason
	}
	if s.Suspect {
		r.Weight = suspectWeight
	}
	return r
}

// tellDirect hands on what a client says of its direct calls.
func tellDirect(p *proxy.Proxy) func(string, faas.Name, wire.FunctionUsage) error {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return func(client string, name faas.Name, u wire.FunctionUsage) error {
		usage := proxy.Usage{Started: u.Started, InFlight: int64(u.InFlight), Busy: seconds(u.Busy)}
		for _, e := range u.Ended {
			usage.Ended = append(usage.Ended, proxy.Ended{Code: e.Status, Calls: e.Calls, Took: seconds(e.Seconds)})
		}
		return p.Direct(client, name, usage)
	}
}

// known tells the proxy of a function, or of a service that registered itself. A
// function comes first.
func (g *gateway) known(name faas.Name) (wanted int, reason string, ok bool) {
	if wanted, reason, ok = g.fleet.Known(name); ok {
		return wanted, reason, true
	}
	return g.services.Known(name)
}

// own says whether an address is one of the gateway's listeners, as far as that
// can be told: a listener on all addresses has those of this machine.
func (g *gateway) own(addr netip.AddrPort) bool {
	for _, l := range []net.Listener{g.public, g.inner} {
		t, ok := l.Addr().(*net.TCPAddr)
		if !ok || t.Port != int(addr.Port()) {
			continue
		}
		listens := t.AddrPort().Addr().Unmap()
		if listens == addr.Addr() {
			return true
		}
		if listens.IsUnspecified() && (addr.Addr().IsLoopback() || isOwnAddr(addr.Addr())) {
			return true
		}
	}
	return false
}

// isOwnAddr says whether this machine has the address.
func isOwnAddr(addr netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		own, ok := netip.AddrFromSlice(n.IP)
		return ok && own.Unmap() == addr
	})
}
