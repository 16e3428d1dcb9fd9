package discovery

import (
	"context"
	"sync"
	"time"
)

const (
	// maxProbes is how many probes are under way at a time.
	maxProbes = 32

	// minRest is the least time between two rounds that the clock asks for, so
	// that many deadlines close to each other are one round.
	minRest = 20 * time.Millisecond

	// keepPause is the least time between two writes of what is known.
	keepPause = 5 * time.Second
)

// Run judges the sources, asks those that are silent, and keeps on disk what is
// known, until ctx ends; then it writes that a last time. It sleeps until the
// next lease can be over: with no sources it does nothing at all.
func (t *Table) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	save := make(chan struct{}, 1)
	work.Go(func() { t.keeper(ctx, save) })

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, changed := t.judge(ctx, &work)
		if changed {
			select {
			case save <- struct{}{}:
			default:
			}
		}
		var clock <-chan time.Time
		if !next.IsZero() {
			timer.Reset(max(time.Until(next), minRest))
			clock = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.kick:
		case <-clock:
		}
	}
}

// judge is one round: it obeys what decide says, and returns when the next is
// due, and whether what is known is to be written.
func (t *Table) judge(ctx context.Context, work *sync.WaitGroup) (next time.Time, changed bool) {
	type farewell struct {
		name, kind, why string
		lost            func()
	}
	var gone []farewell
	now := time.Now()
	t.mu.Lock()
	sources := make([]*Source, 0, len(t.sources))
	holders := make([]holder, 0, len(t.sources))
	probing := 0
	for _, s := range t.sources {
		sources = append(sources, s)
		holders = append(holders, s.holder())
		if s.probing {
			probing++
		}
	}
	verdicts, next := decide(holders, now)
	for i, v := range verdicts {
		s := sources[i]
		if v.Remove != "" {
			gone = append(gone, farewell{s.name, s.kind, v.Remove, s.lost})
			s.remove(v.Remove)
			continue
		}
		if v.Suspect != s.suspected {
			s.suspect(v.Suspect, now)
			t.cfg.Logger.Info("a source of replicas is judged", "source", s.name, "kind", s.kind, "suspect", v.Suspect)
		}
		if v.Probe && probing < maxProbes { // who has to wait is looked at when a probe ends
			probing++
			s.probing, s.asked = true, now
			target, ask := s.lease.Probe, s.lease.Ask
			work.Go(func() { t.probe(ctx, s, target, ask) })
		}
	}
	changed = t.changed
	t.mu.Unlock()

	for _, g := range gone {
		t.cfg.Logger.Warn("replicas are gone", "source", g.name, "kind", g.kind, "why", g.why)
		if g.lost != nil {
			g.lost()
		}
	}
	return next, changed
}

// holder returns what decide needs to know. mu is held.
func (s *Source) holder() holder {
	return holder{
		Kind: s.kind, Addr: s.lease.Probe.Addr, Suspect: s.lease.Suspect, Gone: s.lease.Gone,
		Opened: s.opened, Heard: s.heard, Suspected: s.suspected, Turns: s.turns,
		Probing: s.probing, Asked: s.asked, Answered: s.answered, Failed: s.failed, FailedAt: s.failedAt,
	}
}

// probe asks a source's address and notes the answer.
func (t *Table) probe(ctx context.Context, s *Source, target Target, ask func(context.Context) Answer) {
	asked := time.Now()
	var answer Answer
	if ask != nil {
		answer = ask(ctx)
	} else {
		answer = t.cfg.Probe(ctx, target)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.probing = false
	t.wake()
	if s.heard.After(asked) || s.lease.Probe != target {
		return // it has spoken itself, or lives elsewhere by now
	}
	switch answer {
	case Answered:
		s.answered, s.failed = true, 0
	case Refused:
		if s.failed == 0 {
			s.failedAt = time.Now()
		}
		s.answered = false
		s.failed++
	}
}
