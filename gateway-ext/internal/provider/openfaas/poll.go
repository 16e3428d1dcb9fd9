package openfaas

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	pollLimit  = 2500 * time.Millisecond // less than the silence that puts a node in doubt
	probeEvery = 10 * time.Minute        // what it can do changes with an upgrade
	lookAround = 30                      // polls between two looks at namespaces that we don't use
	oneByOne   = 8                       // functions that are asked for alone in each poll
	maxFound   = 1000                    // functions of others that are remembered
)

// poll asks once what is there.
func (c *Client) poll(ctx context.Context) error {
	c.mu.Lock()
	old := time.Since(c.probed) > probeEvery
	first := c.probed.IsZero()
	around := c.polls%lookAround == 0
	c.polls++
	c.mu.Unlock()
	if old {
		caps, err := c.line.probe(ctx, pollLimit)
		if err != nil && first {
			return err
		}
		if err == nil {
			c.mu.Lock()
			if !first { // what was learnt is kept
				caps.MaxReplicas, caps.Zero, caps.Logs = least(caps.MaxReplicas, c.caps.MaxReplicas), caps.Zero && c.caps.Zero, caps.Logs && c.caps.Logs
			}
			c.caps, c.probed = caps, time.Now()
			for _, ns := range caps.Namespaces {
				c.spaces[ns] = true
			}
			c.mu.Unlock()
		}
	}
	here := make(map[faas.Name]types.FunctionStatus)
	looked := map[string]bool{}
	for _, ns := range c.lookAt(around) {
		list, err := c.line.list(ctx, pollLimit, ns)
		if err != nil {
			if ns != "" && statusOf(err) != 0 {
				continue // that namespace is gone; the provider is not
			}
			return err
		}
		if ns == "" {
			ns = faas.DefaultNamespace
		}
		looked[ns] = true
		for _, s := range list {
			if name := (faas.Name{Function: s.Name, Namespace: s.Namespace}); faas.CheckLabel("function", s.Name) == nil && faas.CheckLabel("namespace", s.Namespace) == nil {
				here[name] = s
			}
		}
	}
	c.compare(ctx, here, looked)
	return nil
}

func least(a, b int) int {
	if a == 0 || b == 0 {
		return a + b
	}
	return min(a, b)
}

// lookAt is the namespaces to be listed now: the provider's own, those that we
// use, and now and then all.
func (c *Client) lookAt(around bool) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []string{""}
	seen := map[string]bool{faas.DefaultNamespace: true}
	add := func(ns string) {
		if !seen[ns] && len(all) < maxNamespaces {
			seen[ns] = true
			all = append(all, ns)
		}
	}
	for name := range c.functions {
		if c.spaces[name.Namespace] {
			add(name.Namespace)
		}
	}
	if around {
		for _, ns := range c.caps.Namespaces {
			add(ns)
		}
	}
	return all
}

// compare takes note of what is there.
func (c *Client) compare(ctx context.Context, here map[faas.Name]types.FunctionStatus, looked map[string]bool) {
	c.mu.Lock()
	first := !c.listed
	if first {
		c.listed = true
		close(c.synced)
	}
	for name := range c.found {
		if _, ok := here[name]; !ok && looked[name.Namespace] {
			delete(c.found, name)
		}
	}
	for name, s := range here {
		f := c.functions[name]
		mine := annotation(s, markFleet) == c.cfg.Fleet || c.adopted[name]
		switch {
		case f != nil && (f.there || f.working && !first):
			delete(c.found, name) // whoever works on it knows better
		case mine:
			f = c.take(name, s)
			// What calls reached before the gateway's start they still reach.
			f.live = len(f.replicas) > 0 && !slices.ContainsFunc(f.replicas, func(r faas.Replica) bool { return r.Revision != f.revision })
			f.stale = !f.live
		case len(c.found) < maxFound:
			s.Annotations = withoutStatus(s.Annotations)
			c.found[name] = s
			continue
		default:
			continue
		}
		f.note(s)
	}
	var ask []*function
	for name, f := range c.functions {
		s, ok := here[name]
		switch {
		case f.working || !looked[name.Namespace] && f.there:
			c.wake(f)
		case !f.there && len(f.replicas) > 0:
			ask = append(ask, f)
		case !f.there && !f.wished && !f.leaving:
			delete(c.functions, name)
		case !f.there:
			c.wake(f)
		case !ok: // somebody has deleted it
			f.there, f.live, f.stale = false, false, f.wished
			ask = append(ask, f)
		case s.AvailableReplicas > 0:
			f.available = int(min(s.AvailableReplicas, 10_000))
			ask = append(ask, f)
		default:
			ask = append(ask, f) // a faasd's list doesn't say, or there are none
		}
	}
	c.mu.Unlock()
	c.settle(ctx, ask, here)
}

// settle compares what is shown of functions with what there is of them, as far
// as the list says, and asks for a few of the others.
func (c *Client) settle(ctx context.Context, ask []*function, here map[faas.Name]types.FunctionStatus) {
	asked := 0
	for i := range ask {
		f := ask[(i+c.turn)%len(ask)]
		s, ok := here[f.name]
		switch {
		case !ok:
			c.adjust(f, 0, "it was deleted there by somebody else")
		case s.AvailableReplicas > 0:
			c.adjust(f, int(min(s.AvailableReplicas, 10_000)), "")
		case asked < oneByOne:
			asked++
			one, err := c.line.get(ctx, f.name)
			switch {
			case err == nil:
				c.adjust(f, int(min(one.AvailableReplicas, 10_000)), "no replica of it answers there")
			case statusOf(err) == http.StatusNotFound:
				c.adjust(f, 0, "it was deleted there by somebody else")
			}
		}
	}
	if len(ask) > 0 {
		c.turn = (c.turn + oneByOne) % len(ask)
	}
}

// adjust has as many replicas shown as answer, of what is not just being changed.
func (c *Client) adjust(f *function, available int, why string) {
	c.mu.Lock()
	if f.working || c.functions[f.name] != f {
		c.mu.Unlock()
		return
	}
	f.available = available
	if available == 0 {
		// Once is not enough: it may be just restarting.
		if f.silent++; f.silent < 2 && f.there {
			c.mu.Unlock()
			return
		}
		f.live, f.stale = false, f.there || f.wished
	} else {
		f.silent = 0
		f.stale = f.stale || !f.live
	}
	want := f.wants()
	if c.caps.MaxReplicas > 0 {
		want = min(want, c.caps.MaxReplicas)
	}
	if f.wished && f.there && f.live && c.caps.MaxReplicas != 1 && f.reported != want {
		f.stale = true // somebody else has changed the number, or it wasn't taken
		f.ignored++
	} else {
		f.ignored = 0
	}
	n := min(available, want)
	gone := c.hide(f, n)
	var come []faas.Replica
	if f.live {
		come = c.show(f, n, faas.Ready)
	}
	if f.live && available > 0 {
		f.reason = f.said
	} else if why != "" && want > 0 {
		f.reason = why
	}
	c.wake(f)
	c.mu.Unlock()
	c.observe(gone, faas.Gone, why)
	c.announce(come)
}

// withoutStatus is annotations without what another Thicket says with them.
func withoutStatus(m *map[string]string) *map[string]string {
	if m == nil {
		return nil
	}
	clean := make(map[string]string, len(*m))
	for k, v := range *m {
		if !shown[k] {
			clean[k] = v
		}
	}
	return &clean
}

// shown are the annotations by which a Thicket says how a function is.
var shown = map[string]bool{statusAnnotation: true, "thicket.digest": true, "thicket.policy": true, "thicket.warning": true}

const statusAnnotation = "thicket.status"
