package main

import (
	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery/eureka"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/ui"
)

// replicas lists what the page shows.
func (g *gateway) replicas(calls *proxy.Proxy) []ui.Replica {
	learnt := make(map[string]balance.State)
	calls.Learnt(func(id string, s balance.State) { learnt[id] = s })
	var list []ui.Replica
	for _, r := range g.table.Replicas() {
		s := learnt[r.ID]
		out := ui.Replica{
			Replica: r.Replica, InFlight: r.InFlight, Suspect: r.Suspect, LastSeen: r.LastSeen,
			Latency: s.Latency, Ejected: s.Ejected,
		}
		if r.Source == eureka.Kind {
			out.Service = r.Source
		}
		list = append(list, out)
	}
	return list
}

// machines lists the nodes that the page shows.
func (g *gateway) machines() []ui.Node {
	var list []ui.Node
	for _, n := range g.nodes.List() {
		out := ui.Node{
			Name: n.Name, State: n.State, Notes: n.Notes, Replicas: n.Replicas, Version: n.Machine.Version, Labels: n.Labels,
			Memory: n.Machine.Memory, MemoryFree: n.Machine.MemoryFree, DiskFree: n.Machine.DiskFree,
		}
		if n.State != "ready" {
			out.Reason = n.Reason
		}
		switch {
		case n.Draining:
			out.Marks = []string{"draining"}
		case n.Cordoned:
			out.Marks = []string{"cordoned"}
		}
		if len(n.Machine.Platforms) > 0 {
			out.Platform = n.Machine.Platforms[0]
		}
		switch {
		case n.Foreign != nil:
			out.Addr = n.Foreign.URL
		case !n.Local:
			out.Addr = n.Addr.String()
		}
		list = append(list, out)
	}
	return list
}

// decisions lists why functions have as many replicas as they have.
func (g *gateway) decisions() []ui.Decision {
	var list []ui.Decision
	for _, d := range g.fleet.Decisions(nil, 0) {
		list = append(list, ui.Decision{Function: d.Function, At: d.At, Times: d.Times, Sentence: d.Sentence})
	}
	return list
}
