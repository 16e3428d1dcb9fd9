package discovery

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"
)

// ledger counts direct calls, until they have been told to the gateway.
type ledger struct {
	mu    sync.Mutex // guards below
	since time.Time  // when the period began
	pages map[Name]*page
}

// page is what a ledger knows of one function.
type page struct {
	started  uint64
	inFlight int
	busy     time.Duration // in this period, up to at
	at       time.Time
	ended    map[int]Ended
}

func newLedger(now time.Time) *ledger {
	return &ledger{since: now, pages: make(map[Name]*page)}
}

// start counts a call that begins.
func (l *ledger) start(name Name, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pages[name]
	if p == nil {
		p = &page{at: now, ended: make(map[int]Ended)}
		l.pages[name] = p
	}
	p.advance(now)
	p.started++
	p.inFlight++
}

// end counts a call that has started as ended, after it took some time.
func (l *ledger) end(name Name, status int, took time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pages[name]
	p.advance(now)
	p.inFlight--
	e := p.ended[status]
	p.ended[status] = Ended{Status: status, Calls: e.Calls + 1, Seconds: e.Seconds + took.Seconds()}
}

// advance adds what those in flight were busy since.
func (p *page) advance(now time.Time) {
	p.busy += time.Duration(p.inFlight) * now.Sub(p.at)
	p.at = now
}

// report ends the period and returns what happened in it, in as many pieces as
// are needed; in none if that is nothing.
func (l *ledger) report(client string, now time.Time) (all []Usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seconds := now.Sub(l.since).Seconds()
	l.since = now
	names := slices.SortedFunc(maps.Keys(l.pages), compareNames)
	for some := range slices.Chunk(names, MaxUsage) {
		u := Usage{Client: client, Seconds: seconds}
		for _, name := range some {
			p := l.pages[name]
			p.advance(now)
			f := FunctionUsage{Function: name, Started: p.started, InFlight: p.inFlight, Busy: p.busy.Seconds()}
			for _, status := range slices.Sorted(maps.Keys(p.ended)) {
				f.Ended = append(f.Ended, p.ended[status])
			}
			u.Functions = append(u.Functions, f)
			p.started, p.busy = 0, 0
			clear(p.ended)
			if p.inFlight == 0 {
				delete(l.pages, name)
			}
		}
		all = append(all, u)
	}
	return all
}

// restore takes back what a report told and nobody heard, for the next one.
func (l *ledger) restore(all []Usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, u := range all {
		if i == 0 {
			l.since = l.since.Add(-time.Duration(u.Seconds * float64(time.Second)))
		}
		for _, f := range u.Functions {
			p := l.pages[f.Function]
			if p == nil {
				p = &page{at: l.since, ended: make(map[int]Ended)}
				l.pages[f.Function] = p
			}
			p.started += f.Started
			p.busy += time.Duration(f.Busy * float64(time.Second))
			for _, e := range f.Ended {
				known := p.ended[e.Status]
				p.ended[e.Status] = Ended{Status: e.Status, Calls: known.Calls + e.Calls, Seconds: known.Seconds + e.Seconds}
			}
		}
	}
}

func compareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Function, b.Function))
}
