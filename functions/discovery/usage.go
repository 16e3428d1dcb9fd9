package discovery

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// longestPeriod is what a report may tell of at most. Nobody scales by what was
// longer ago.
const longestPeriod = 5 * time.Minute

// ledger counts direct calls, until they have been told to the gateway.
type ledger struct {
	mu    sync.Mutex // guards below
	since time.Time  // when the period began
	pages map[Name]*page
}

// page is what a ledger knows of one function.
type page struct {
	started  int64 // below 0 if calls were told that have been taken back since
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

// end counts a call that has started as ended, after it took some time. A status
// that HTTP doesn't know is what a gateway makes of it.
func (l *ledger) end(name Name, status int, took time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pages[name]
	p.advance(now)
	p.inFlight--
	if status < 100 || status > 599 {
		status = http.StatusBadGateway
	}
	e := p.ended[status]
	p.ended[status] = Ended{Status: status, Calls: e.Calls + 1, Seconds: e.Seconds + took.Seconds()}
}

// takeBack is for a call that has started, and is to be made elsewhere: one call
// counts once, however often it is sent.
func (l *ledger) takeBack(name Name, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pages[name]
	p.advance(now)
	p.started--
	p.inFlight--
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
			f := FunctionUsage{Function: name, Started: uint64(max(p.started, 0)), InFlight: p.inFlight, Busy: p.busy.Seconds()}
			for _, status := range slices.Sorted(maps.Keys(p.ended)) {
				f.Ended = append(f.Ended, p.ended[status])
			}
			if f.Started > 0 || f.InFlight > 0 || f.Busy > 0 || len(f.Ended) > 0 {
				u.Functions = append(u.Functions, f)
			}
			p.started, p.busy = min(p.started, 0), 0
			clear(p.ended)
			if p.inFlight == 0 && p.started == 0 {
				delete(l.pages, name)
			}
		}
		if len(u.Functions) > 0 {
			all = append(all, u)
		}
	}
	return all
}

// restore puts in again what was reported and nobody heard, for the next report. A
// period doesn't grow over longestPeriod by that: what is older is dropped.
func (l *ledger) restore(all []Usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, u := range all {
		if u.Seconds > longestPeriod.Seconds() {
			return
		}
		if i == 0 {
			l.since = l.since.Add(-time.Duration(u.Seconds * float64(time.Second)))
		}
		for _, f := range u.Functions {
			p := l.pages[f.Function]
			if p == nil {
				p = &page{at: l.since, ended: make(map[int]Ended)}
				l.pages[f.Function] = p
			}
			p.started += int64(f.Started)
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
