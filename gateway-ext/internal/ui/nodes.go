package ui

import (
	"fmt"
	"slices"
	"strings"
)

// Node is a machine of the fleet, or a whole cluster that is one node of it.
type Node struct {
	Name     string
	State    string   // "ready", "suspect", "gone"
	Marks    []string // "cordoned", "draining": what it was told
	Reason   string   // why it isn't ready
	Notes    []string // what else there is to look at, in sentences
	Replicas int      // that it was told to run
	Platform string   // "linux/arm64"; empty if unknown
	Version  string
	Addr     string // empty for the gateway's own machine
	Labels   map[string]string

	Memory, MemoryFree int64 // bytes; 0 if unknown
	DiskFree           int64 // bytes; 0 if unknown
}

// node is a row of the page.
type node struct {
	Node
	Labels           []string
	MemoryOf, DiskOf string // empty if unknown
}

// machines takes the fleet's machines into the view. One alone is shown by its
// replicas.
func (v *view) machines(all []Node, limit int) {
	if len(all) < 2 {
		return
	}
	v.Machines = len(all)
	for _, n := range all {
		if n.State == "ready" {
			v.Up++
		}
		if len(v.Nodes) == limit {
			continue
		}
		row := node{Node: n}
		for k, val := range n.Labels {
			row.Labels = append(row.Labels, k+"="+val)
		}
		slices.Sort(row.Labels)
		row.Platform = strings.TrimPrefix(n.Platform, "linux/")
		if n.Memory > 0 {
			row.MemoryOf = size(n.MemoryFree) + " of " + size(n.Memory)
		}
		if n.DiskFree > 0 {
			row.DiskOf = size(n.DiskFree)
		}
		v.Nodes = append(v.Nodes, row)
	}
}

// size writes bytes as people compare them.
func size(bytes int64) string {
	const mib, gib = 1 << 20, 1 << 30
	if bytes < 10*gib {
		return fmt.Sprintf("%d MiB", bytes/mib)
	}
	return fmt.Sprintf("%d GiB", bytes/gib)
}
