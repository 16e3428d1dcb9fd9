package nodes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// minDisk is how much of its disk must be free for a node to get something new:
// an image is fetched and then unpacked, and what else runs there needs some.
const minDisk = 128 << 20

// closed says why a node gets nothing new though nobody has cordoned it. mu is
// held.
func (d *node) closed(now time.Time) string {
	if until := d.flaps.until(); now.Before(until) {
		return fmt.Sprintf("it came and went %d times lately, and gets nothing new until %s", d.flaps.n, until.Format(time.TimeOnly))
	}
	return ""
}

// full says why a node can fetch no image. mu is held.
func (d *node) full() string {
	if d.machine.Disk > 0 && d.machine.DiskFree < minDisk {
		return fmt.Sprintf("its disk is full: %d of %d MiB free, and fetching an image needs %d", d.machine.DiskFree>>20, d.machine.Disk>>20, minDisk>>20)
	}
	return ""
}

// wrongClock is from when on it is worth telling that a node's clock is wrong: less
// has no consequence that anybody sees.
const wrongClock = 5 * time.Second

// notes are sentences on what isn't as it should be with a machine that may well
// be ready. It is told apart from the gateway's version.
func notes(m *remote.Machine, skew time.Duration, version string) (all []string) {
	if ahead := skew.Abs().Round(time.Second); ahead >= wrongClock {
		is := "ahead of"
		if skew < 0 {
			is = "behind"
		}
		all = append(all, fmt.Sprintf("its clock is %s %s the gateway's: set it (timedatectl set-ntp true), or its logs are in the wrong order", ahead, is))
	}
	if m.Version != "" && m.Version != version {
		all = append(all, fmt.Sprintf("it runs version %s and the gateway %s: install the same on both", m.Version, version))
	}
	return all
}

// view is the nodes as placement sees them, by name. mu is held.
func (n *Nodes) view() (names []string, list []placement.Node) {
	names = slices.Sorted(maps.Keys(n.nodes))
	list = make([]placement.Node, len(names))
	now := time.Now()
	for i, name := range names {
		d := n.nodes[name]
		list[i] = placement.Node{
			Name: name, State: d.state, Labels: d.Labels, Cordoned: d.Cordoned, Draining: d.Draining, Closed: d.closed(now), Full: d.full(),
			Platforms: d.machine.Platforms, Memory: d.machine.Memory, CPU: d.machine.CPU,
			PerFunction: d.most(),
		}
	}
	return names, list
}

// A function that has no ready replica on a node and says why, for so long, can't
// be started there; for so long after that it is tried elsewhere first.
// What fails on more nodes than ownFault is wrong itself, and is left where it is:
// no node is any better.
const (
	failsAfter = 10 * time.Second
	failsFor   = 5 * time.Minute
	ownFault   = 2
)

// trouble is that a function can't be started on a node.
type trouble struct {
	since time.Time // it has no ready replica, and says why; zero if it isn't so now
	until time.Time // others are tried first
}

// look notes how a function is on a node that should run it. mu is held.
func (f *function) look(node string, troubled bool, now time.Time) {
	t, known := f.troubles[node]
	switch {
	case !troubled && !known:
		return
	case !troubled:
		t.since = time.Time{}
	case t.since.IsZero():
		t.since = now
	case now.Sub(t.since) >= failsAfter:
		t.until = now.Add(failsFor)
	}
	if f.troubles == nil {
		f.troubles = make(map[string]trouble)
	}
	f.troubles[node] = t
	if t.since.IsZero() && !now.Before(t.until) {
		delete(f.troubles, node)
	}
}

// all returns the names of all functions, in order. mu is held.
func (n *Nodes) all() []faas.Name {
	if n.names == nil {
		n.names = slices.SortedFunc(maps.Keys(n.functions), func(a, b faas.Name) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Function, b.Function))
		})
	}
	return n.names
}

// except notes in the nodes what all functions but one take there, and how many
// of them could not be started there. mu is held.
func (n *Nodes) except(name faas.Name, nodes []string, list []placement.Node) {
	index := indexOf(nodes)
	now := time.Now()
	for other, f := range n.functions {
		if other == name {
			continue
		}
		for node, s := range f.shares {
			if k, ok := index[node]; ok && s.want > 0 {
				list[k].Others.Add(s.want, &f.place)
			}
		}
		for _, k := range f.failing(index, now) {
			list[k].Failures++
		}
	}
}

// failing returns the nodes, in order, where the function could lately not be
// started; none if that is its own fault. mu is held.
func (f *function) failing(index map[string]int, now time.Time) (nodes []int) {
	for node, t := range f.troubles {
		if k, ok := index[node]; ok && now.Before(t.until) {
			nodes = append(nodes, k)
		}
	}
	if len(nodes) > ownFault {
		return nil
	}
	slices.Sort(nodes)
	return nodes
}

func indexOf(names []string) map[string]int {
	index := make(map[string]int, len(names))
	for i, name := range names {
		index[name] = i
	}
	return index
}

// wanted is functions as placement sees them, and notes in the nodes how many of
// them could not be started there. mu is held.
func (n *Nodes) wanted(names []faas.Name, nodes []string, list []placement.Node) (functions []placement.Function) {
	index := indexOf(nodes)
	now := time.Now()
	functions = make([]placement.Function, len(names))
	for i, name := range names {
		f := n.functions[name]
		p := f.place
		f.extra = n.extra(f)
		p.Replicas, p.Surge = f.load.Function.Replicas+f.extra, f.surge
		p.Barred = n.barred(&f.load.Function)
		// By its shares, and not by all nodes: it has a few.
		p.Shares = make([]placement.Share, 0, len(f.shares))
		for node, s := range f.shares {
			k, ok := index[node]
			if !ok {
				continue
			}
			ready, troubled := 0, false
			d := n.nodes[node]
			if d.p != nil && s.want > 0 {
				if st, ok := d.p.Status(name); ok {
					ready = min(int(st.Ready()), s.want)
					troubled = st.Ready() == 0 && st.Reason != ""
				}
			}
			f.look(node, troubled, now)
			if s.want > 0 {
				p.Shares = append(p.Shares, placement.Share{Node: k, Want: s.want, Ready: ready})
			}
			if !d.tells && !d.local { // which images it has; what runs there is there
				p.Holders = append(p.Holders, k)
			}
		}
		for node := range n.holders[remote.ImageKey(f.load.Function.Digest)] {
			if k, ok := index[node]; ok {
				p.Holders = append(p.Holders, k)
			}
		}
		if k, ok := index[n.local.Name]; ok && f.load.Function.Digest != "" && n.cfg.Local.Has(f.load.Function.Digest) {
			p.Holders = append(p.Holders, k)
		}
		maps.DeleteFunc(f.troubles, func(node string, t trouble) bool {
			_, here := f.shares[node]
			return !here && !now.Before(t.until)
		})
		p.Failing = f.failing(index, now)
		for _, k := range p.Failing {
			list[k].Failures++
		}
		slices.SortFunc(p.Shares, func(a, b placement.Share) int { return a.Node - b.Node })
		slices.Sort(p.Holders)
		functions[i] = p
	}
	return functions
}
