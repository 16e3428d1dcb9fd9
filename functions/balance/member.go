package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// Outcome is what a call says about the replica that had it.
type Outcome uint8

// The outcomes. Nothing is the zero value: whoever knows nothing says nothing.
const (
	Nothing   Outcome = iota // its caller left, or it never got there
	Good                     // it was answered; also with 404, which is an answer
	Failed                   // it was not, or by an error of the replica's own
	Busy                     // it was refused since there are too many: expensive, but no failure
	Abandoned                // its caller gave up: it takes at least so long
)

// Member is one replica as its [Balancer] knows it.
type Member struct {
	b       *Balancer
	replica Replica
	hash    uint64
	near    int

	// learnt is the latency that calls have lately, and when that was learnt,
	// in one word, so that who reads it has both of the same moment: 32 bits of
	// a float32 of nanoseconds, then 32 bits that count units of 2^20 ns
	// (1.05 ms) and turn over after 52 days. 0 is unknown.
	learnt atomic.Uint64

	// failing is the share of calls that failed lately, in the same way. 0 is
	// that none did, which is the rule: then nobody writes to it.
	failing atomic.Uint64

	tally atomic.Uint64 // calls since the last comparison, and in the upper half how many of them failed
	row   atomic.Int32  // failures in a row

	since   atomic.Int64 // when it began to warm up
	ejected atomic.Int64 // until when it is left out
	times   atomic.Int32 // how often it was, less what was forgiven

	// Written by who compares.
	calls, failures float64 // of the last while
	forgiven        int64   // when it was left out or forgiven last
}

// stampUnit is a power of two, so that to convert to it is a shift.
const stampUnit = 20

// longAgo is when a replica began to warm up that is warm, and until when one was
// left out that wasn't.
const longAgo = math.MinInt64 / 2

// unknownAfter is when a latency says nothing any more.
const unknownAfter = 6 * memory

func stamp(at int64) uint32 { return uint32(at >> stampUnit) }

// age returns how old a stamp is. Clocks of goroutines overtake one another, so
// it may be from a little later.
func age(at int64, s uint32) time.Duration {
	return time.Duration(max(int32(stamp(at)-s), 0)) << stampUnit
}

// Done tells what came of a call that the replica had: how long it took until
// its answer began, and what it says. now is when that was known.
func (m *Member) Done(now time.Time, took time.Duration, o Outcome) {
	at, sample := int64(now.Sub(m.b.epoch)), float64(max(took, 1))
	switch o {
	case Good:
		m.tally.Add(1)
		if m.row.Load() != 0 { // or all calls would write to it
			m.row.Store(0)
		}
		m.fail(at, 0)
		m.learn(at, sample)
	case Failed:
		m.tally.Add(1<<32 | 1)
		if m.row.Add(1) == inARow {
			m.b.next.Store(math.MinInt64) // this can't wait
		}
		m.fail(at, 1)
		m.atLeast(at, sample)
	case Busy:
		m.fail(at, 1)
	case Abandoned:
		m.atLeast(at, sample)
	}
}

// atLeast takes note that calls take at least so long: of who fails after a long
// time, or whose caller gave up then, nothing else is known.
func (m *Member) atLeast(at int64, sample float64) {
	if d, _ := m.latency(at); sample > d {
		m.learn(at, sample)
	}
}

// Reset forgets what was learnt, as if the replica were new and warm.
func (m *Member) Reset() {
	m.learnt.Store(0)
	m.failing.Store(0)
	m.tally.Store(0)
	m.row.Store(0)
	m.times.Store(0)
	m.ejected.Store(longAgo)
	m.since.Store(longAgo)
}

// learn takes a latency into what is known. One that is longer is believed at
// once: who has become slow must not get another hundred calls until the average
// shows it.
func (m *Member) learn(at int64, sample float64) {
	for {
		old := m.learnt.Load()
		known, s := unpack(old)
		if old == 0 || sample > known {
			known = sample
		} else {
			known += (sample - known) * (1 - m.fade(at, s))
		}
		if m.learnt.CompareAndSwap(old, pack(known, at)) {
			if old == 0 {
				m.b.next.Store(math.MinInt64) // the unknown are taken for like this one
			}
			return
		}
	}
}

// fail takes into the share of failures that a call failed, 1, or didn't, 0. It is
// an average and knows no peaks: of one failure in a thousand nothing follows, and
// ten in a row show in it.
func (m *Member) fail(at int64, failed float64) {
	for {
		old := m.failing.Load()
		if old == 0 && failed == 0 {
			return
		}
		share, s := unpack(old)
		if old == 0 {
			w := m.learnt.Load()
			if w != 0 {
				_, s = unpack(w) // the last call that didn't fail
			} else {
				share = failed
			}
		}
		share += (failed - share) * (1 - m.fade(at, s))
		fresh := pack(share, at)
		if share < leastFailing && failed == 0 {
			fresh = 0
		}
		if m.failing.CompareAndSwap(old, fresh) {
			return
		}
	}
}

// leastFailing is a share of failures that is none: with it a call costs a
// thousandth more at most.
const leastFailing = 1e-4

func pack(v float64, at int64) uint64 {
	return uint64(math.Float32bits(float32(v)))<<32 | uint64(stamp(at))
}

func unpack(w uint64) (v float64, s uint32) {
	return float64(math.Float32frombits(uint32(w >> 32))), uint32(w)
}

// fade returns how much of what was learnt at a time still counts.
func (m *Member) fade(at int64, s uint32) float64 {
	d := age(at, s)
	if m.warming(at) {
		d *= warmingHaste
	}
	return fade(d)
}

// fade returns how much of what was learnt so long ago still counts.
func fade(d time.Duration) float64 {
	x := float64(d) / float64(memory)
	if x < 1.0/64 {
		return 1 - x // an error below 1/8000, for a fifth of the time
	}
	return math.Exp(-x)
}

// latency returns how long a call takes there, in nanoseconds. What is known of a
// replica fades into what is usual of its siblings: an old bad experience is no
// reason never to ask again.
func (m *Member) latency(at int64) (d float64, known bool) {
	w := m.learnt.Load()
	if w == 0 {
		return m.b.usual(), false
	}
	d, s := unpack(w)
	old := age(at, s)
	if old < memory/64 {
		return d, true
	}
	usual := m.b.usual()
	return usual + (d-usual)*fade(old), old < unknownAfter
}

// expected returns what a call costs there: how long it takes, and for the share
// that fails, what a failure costs.
func (m *Member) expected(at int64) float64 {
	d, _ := m.latency(at)
	if w := m.failing.Load(); w != 0 {
		share, s := unpack(w)
		d += share * fade(age(at, s)) * max(float64(m.b.cfg.Penalty), failureCost*m.b.usual())
	}
	return d
}

// look asks the replica. That it makes its time of a number keeps the time's
// pointer out of [pick], which would have to be on the heap for it.
func (m *Member) look(at int64) Look {
	return m.replica.Look(m.b.epoch.Add(time.Duration(at)))
}

// out says whether it is left out because it does worse than its siblings.
func (m *Member) out(at int64) bool { return at < m.ejected.Load() }

// warming says whether it has just become ready.
func (m *Member) warming(at int64) bool { return at-m.since.Load() < int64(slowStart) }

// weight returns the share of the picks that it takes part in.
func (m *Member) weight(at int64, suspect bool) float64 {
	w := 1.0
	if m.warming(at) {
		w = slowStartFirst + (1-slowStartFirst)*max(float64(at-m.since.Load()), 0)/float64(slowStart)
	}
	if suspect {
		w *= suspectWeight
	}
	return w
}

// State is what is known of a member at one moment, for people to see.
type State struct {
	Latency  time.Duration // that calls have lately; 0 if unknown
	Failures float64       // the share of them that failed or were refused
	Weight   float64       // the share of the picks that it takes part in; 1 for all
	Ejected  time.Duration // how long it is still left out; 0 if it isn't
	Times    int           // how often it was, lately
}

// State returns what is known of the member.
func (m *Member) State(now time.Time) State {
	at := int64(now.Sub(m.b.epoch))
	s := State{
		Weight:  m.weight(at, m.look(at).Suspect),
		Ejected: time.Duration(max(m.ejected.Load()-at, 0)),
		Times:   int(m.times.Load()),
	}
	if d, known := m.latency(at); known {
		s.Latency = time.Duration(d)
	}
	if w := m.failing.Load(); w != 0 {
		share, old := unpack(w)
		s.Failures = share * fade(age(at, old))
	}
	return s
}
