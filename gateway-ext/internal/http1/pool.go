package http1

import (
	"context"
	"math/bits"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// A pool's connections have places, in words of as many as a machine word has
// bits. What is taken first is what has the lowest place, so with less to do the
// others stay idle until their time is over.
const (
	places = 64
	words  = 4
)

// Pool is the connections to one server that are kept, see [Transport.Pool]. To
// take one, and to put it back, is one atomic operation each: nobody waits for a
// lock, and no goroutine for an idle connection.
type Pool struct {
	t    *Transport
	addr netip.AddrPort
	over func(context.Context) (net.Conn, error) // nil to dial addr

	silent func() bool // see [Transport.PoolOver]; may be nil

	owned [words]atomic.Uint64 // a bit for each place that belongs to a connection
	idle  [words]atomic.Uint64 // a bit for each of them that nobody uses
	links [words]atomic.Pointer[[places]*link]

	watched atomic.Bool // the transport sees to what is idle
	closed  atomic.Bool
}

// get returns a connection: an idle one, unless fresh, or a new one.
func (p *Pool) get(ctx context.Context, now, deadline time.Time, fresh bool) (*link, error) {
	if !fresh {
		for w := range words {
			for l := p.take(w, ^uint64(0)); l != nil; l = p.take(w, ^uint64(0)) {
				if now.Sub(l.since) < p.t.cfg.IdleTimeout {
					return l, nil
				}
				l.close()
			}
		}
	}
	return p.t.dial(ctx, p, deadline)
}

// take takes the first idle connection of those in a word that mask has bits for,
// or returns nil.
func (p *Pool) take(w int, mask uint64) *link {
	for {
		idle := p.idle[w].Load()
		if idle&mask == 0 {
			return nil
		}
		i := bits.TrailingZeros64(idle & mask)
		if p.idle[w].CompareAndSwap(idle, idle&^(1<<i)) {
			return p.links[w].Load()[i]
		}
	}
}

// put makes a connection idle, or closes it if there is no place for it.
func (p *Pool) put(l *link) {
	if l.place < 0 && !p.own(l) {
		l.close()
		return
	}
	l.since, l.reused = time.Now(), true
	p.idle[l.place/places].Or(1 << (l.place % places))
	if p.closed.Load() || !p.watched.Load() && p.watched.CompareAndSwap(false, true) && !p.t.watch(p) {
		p.Close() // it may have been closed between the two looks
	}
}

// own gives a connection a place.
func (p *Pool) own(l *link) bool {
	if p.t.kept.Add(1) > int64(p.t.cfg.MaxConns) {
		p.t.kept.Add(-1)
		return false
	}
	for w := range words {
		for {
			owned := p.owned[w].Load()
			i := bits.TrailingZeros64(^owned)
			if i == places {
				break
			}
			if !p.owned[w].CompareAndSwap(owned, owned|1<<i) {
				continue
			}
			if p.links[w].Load() == nil {
				p.links[w].CompareAndSwap(nil, new([places]*link))
			}
			p.links[w].Load()[i] = l
			l.place = w*places + i
			return true
		}
	}
	p.t.kept.Add(-1)
	return false
}

// disown takes the place from a connection that is in use, if it has one.
func (p *Pool) disown(l *link) {
	if l.place < 0 {
		return
	}
	w, i := l.place/places, l.place%places
	l.place = -1
	p.links[w].Load()[i] = nil
	p.owned[w].And(^(1 << i))
	p.t.kept.Add(-1)
}

// expire closes what has been idle for too long.
func (p *Pool) expire(now time.Time) {
	for w := range words {
		for i := range places {
			bit := uint64(1) << i
			if p.idle[w].Load()>>i == 0 {
				break
			}
			l := p.take(w, bit)
			switch {
			case l == nil:
			case now.Sub(l.since) < p.t.cfg.IdleTimeout:
				p.idle[w].Or(bit)
			default:
				l.close()
			}
		}
	}
	if p.closed.Load() {
		p.Close()
	}
}

// empty says whether no connection has a place.
func (p *Pool) empty() bool {
	for w := range words {
		if p.owned[w].Load() != 0 {
			return false
		}
	}
	return true
}

// Close closes the pool's idle connections, and those in use when they no longer
// are. Requests may still be sent, each on a connection of its own.
func (p *Pool) Close() {
	p.closed.Store(true)
	for w := range words {
		for l := p.take(w, ^uint64(0)); l != nil; l = p.take(w, ^uint64(0)) {
			l.close()
		}
	}
}
