package nodes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// open begins the line to a node. mu is held.
func (n *Nodes) open(d *node) {
	if d.local || n.ctx == nil {
		return
	}
	ctx, cancel := context.WithCancel(n.ctx)
	if d.cancel != nil {
		d.cancel()
	}
	d.ctx, d.cancel = ctx, cancel
	client, err := n.member(d)
	if err != nil { // a URL that was good when it was declared
		d.reason = err.Error()
		return
	}
	d.client, d.p, d.synced, d.opened = client, client, false, time.Now()
	n.work.Go(func() { _ = client.Run(ctx) }) // its end is ctx's
}

// member makes the gateway's end of the line to a node. mu is held.
func (n *Nodes) member(d *node) (member, error) {
	if d.Foreign != nil {
		return n.provider(d)
	}
	return remote.NewClient(remote.ClientConfig{
		Node: d.Name, Zone: d.Labels["zone"], URL: "https://" + d.Addr.String(),
		HTTP: n.httpClient(d), Observer: &line{n: n, d: d},
		Beat:   func(m remote.Machine) { n.beat(d, m) },
		Lost:   func(err error) { n.lostStream(d, err) },
		Logger: n.log,
	}), nil
}

// line is what a node's client tells of its replicas. A node that was counted
// out and is heard of again gets a new source.
type line struct {
	n *Nodes
	d *node
}

// Observe implements [provider.Observer].
func (l *line) Observe(r faas.Replica) {
	if r.State == faas.Gone && l.counted() {
		l.n.decide()
		return // it is us who say so, and no sign of life
	}
	if s := l.n.heard(l.d); s != nil {
		s.Observe(r)
	}
	l.n.decide()
}

// Idle implements [provider.Observer].
func (l *line) Idle(ctx context.Context, id string) error {
	l.n.mu.Lock()
	s := l.d.source
	l.n.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Idle(ctx, id)
}

// heard notes a sign of life, and returns who takes the node's word.
func (n *Nodes) heard(d *node) Source {
	n.mu.Lock()
	defer n.mu.Unlock()
	d.seen = time.Now()
	if d.source != nil && d.source.Heard() {
		return d.source
	}
	if n.nodes[d.Name] != d {
		return nil // it was removed
	}
	s, err := n.cfg.Source(d.Name, d.Addr, func() { n.lost(d) })
	if err != nil {
		n.log.Error("a node's word can't be taken", "node", d.Name, "err", err)
		return nil
	}
	s.Heard() // it may go on with what was known before the start
	d.source = s
	return s
}

// beat takes note of a node's beat.
func (n *Nodes) beat(d *node, m remote.Machine) {
	n.heard(d)
	n.mu.Lock()
	first := !d.synced
	was := d.state
	if m.Images != nil {
		n.holds(d, m.Images)
		m.Images = nil
	}
	d.machine, d.synced, d.garbled = m, true, false
	if !m.Time.IsZero() {
		d.skew = time.Until(m.Time) // and the time that the beat was under way
	}
	d.state, d.reason = placement.Ready, ""
	if was == placement.Gone {
		d.flaps.turn(time.Now())
	}
	addr := d.Addr
	n.mu.Unlock()
	if first || was != placement.Ready {
		n.adopt(d)
		n.log.Info("a node is there", "node", d.Name, "addr", addr.String())
		n.decide()
	}
}

// lostStream notes that a node's stream broke. What it runs is still used, less,
// until its lease is over.
func (n *Nodes) lostStream(d *node, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.state == placement.Ready {
		d.state = placement.Suspect
	}
	d.trouble = err.Error()
	switch {
	case d.state == placement.Suspect:
		d.reason = d.trouble
	case d.Foreign != nil:
		d.reason = d.silence()
	}
	d.garbled = errors.Is(err, remote.ErrGarbled)
}

// holds notes which images a node has. mu is held.
func (n *Nodes) holds(d *node, images []string) {
	for _, key := range d.images {
		if delete(n.holders[key], d.Name); len(n.holders[key]) == 0 {
			delete(n.holders, key)
		}
	}
	d.tells, d.images = true, images[:min(len(images), remote.MaxImages)]
	for _, key := range d.images {
		if n.holders[key] == nil {
			n.holders[key] = make(map[string]struct{})
		}
		n.holders[key][d.Name] = struct{}{}
	}
}

// silence is why a node is gone. mu is held.
func (d *node) silence() string {
	s := fmt.Sprintf("it was last heard of at %s", d.seen.Format(time.TimeOnly))
	if d.Foreign != nil && d.trouble != "" {
		return s + ": " + d.trouble // it may answer, and wrongly
	}
	return s + ", and doesn't answer"
}

// lost notes that a node is counted out.
func (n *Nodes) lost(d *node) {
	n.mu.Lock()
	if n.nodes[d.Name] != d {
		n.mu.Unlock()
		return
	}
	d.state, d.source = placement.Gone, nil
	d.reason = d.silence()
	d.synced = false
	client, cut := d.client, d.cut()
	n.mu.Unlock()
	n.log.Warn("a node is gone: what it ran is started elsewhere", "node", d.Name)
	client.Forget("its node is gone")
	cut()
	n.decide()
}

// flaps is how often a node lately came back, for as long as it must then wait
// until it gets something new.
type flaps struct {
	n    int
	last time.Time
}

// calmAfter is after which time a node that stays is trusted as if it had never
// been away.
const calmAfter = 10 * time.Minute

func (f *flaps) turn(now time.Time) {
	if now.Sub(f.last) > calmAfter {
		f.n = 0
	}
	f.n, f.last = f.n+1, now
}

// until is when the node may get something new: at once after the first time,
// then after 5 s, and twice as long each time, up to 5 minutes.
func (f *flaps) until() time.Time {
	if f.n < 2 {
		return time.Time{}
	}
	return f.last.Add(min(5*time.Second<<min(f.n-2, 10), 5*time.Minute))
}

// counted says whether the node is counted out.
func (l *line) counted() bool {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	return l.d.state == placement.Gone
}
