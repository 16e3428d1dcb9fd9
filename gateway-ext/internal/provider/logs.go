package provider

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// defaultSince is how far back logs start if the reader doesn't say: what
	// clients of OpenFaaS are used to.
	defaultSince = 5 * time.Minute

	// logBatch is how many lines a reader takes under the lock at a time.
	logBatch = 64
)

// ring returns the function's log. It is made when the first line comes, so that
// a function that sleeps costs none.
func (f *function) ring() *ring {
	p := f.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.log == nil {
		f.log = p.rings[f.name]
	}
	if f.log == nil {
		f.log = newRing(p.cfg.LogLines, p.cfg.LogBytes)
		if p.functions[f.name] == f { // else it has been removed: nobody can ask
			p.rings[f.name] = f.log
		}
	}
	return f.log
}

// say adds a line of the platform's own to the function's log.
func (f *function) say(instance, text string) {
	f.ring().add(instance, text)
}

// openLog returns the log of a function that is known here, held open: a
// follower outlives the function it follows, and goes on with the next one of
// the same name.
func (p *Process) openLog(name faas.Name) (*ring, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.rings[name]
	if r == nil {
		if p.functions[name] == nil {
			return nil, faas.Errorf(faas.ErrNotFound, "function %s is not on node %s", name, p.cfg.Node)
		}
		r = newRing(p.cfg.LogLines, p.cfg.LogBytes)
		p.rings[name] = r
	}
	r.readers++
	return r, nil
}

func (p *Process) closeLog(name faas.Name, r *ring) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.readers--
	if r.readers == 0 && p.functions[name] == nil && p.rings[name] == r {
		delete(p.rings, name)
	}
}

// Logs implements [Provider].
func (p *Process) Logs(ctx context.Context, q logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		name := faas.Name{Function: q.Name, Namespace: q.Namespace}
		if name.Namespace == "" {
			name.Namespace = faas.DefaultNamespace
		}
		r, err := p.openLog(name)
		if err != nil {
			yield(logs.Message{}, err)
			return
		}
		defer p.closeLog(name, r)

		match := matcher(q, time.Now())
		at, end := r.find(match, q.Tail)
		for q.Follow || at < end {
			lines, lost, next, wait := r.next(at, logBatch)
			if lost > 0 {
				text := fmt.Sprintf("%d lines lost: they were written faster than this reader took them", lost)
				if !yield(message(name, line{at: time.Now(), replica: p.cfg.Node, text: text}), nil) {
					return
				}
			}
			for i, l := range lines {
				if !q.Follow && next-uint64(len(lines)-i) >= end {
					return
				}
				if match(l) && !yield(message(name, l), nil) {
					return
				}
			}
			at = next
			if wait == nil {
				if ctx.Err() != nil {
					return
				}
				continue
			}
			select {
			case <-wait:
			case <-ctx.Done():
				return
			case <-p.ended:
				return
			}
		}
	}
}

// matcher says which lines a request asks for.
func matcher(q logs.Request, now time.Time) func(line) bool {
	var since time.Time
	switch {
	case q.Since != nil:
		since = *q.Since
	case q.Tail == 0:
		since = now.Add(-defaultSince)
	}
	return func(l line) bool {
		return !l.at.Before(since) && (q.Instance == "" || q.Instance == l.replica)
	}
}

func message(name faas.Name, l line) logs.Message {
	return logs.Message{
		Name: name.Function, Namespace: name.Namespace,
		Instance: l.replica, Timestamp: l.at, Text: l.text,
	}
}
