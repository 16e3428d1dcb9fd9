package balance

import (
	"math"
	"slices"
	"time"
)

const (
	// Members are compared as often as this, by whoever picks then; a function
	// that is called less often, at each call.
	compareEvery = 100 * time.Millisecond

	// Who fails so often in a row is out.
	inARow = 5

	// Who fails more often than its siblings is out if that is so for so many
	// calls, and by so much: a fifth of the calls, and three times the standard
	// deviation that chance alone would have.
	minCalls   = 20
	worseBy    = 0.2
	deviations = 3

	ejectFor    = 10 * time.Second // the first time; n times as long the nth time
	ejectAtMost = 120 * time.Second
	ejectJitter = 0.2
	ejectAtOnce = 8 // in one comparison, so that it stays quick with many members
)

// compare looks at all members: what is usual among them, who is out of the
// ordinary, and whether those near are well. Whoever finds that somebody else
// does it goes on with what was known.
func (v *View) compare(at int64) {
	b := v.b
	if !b.comparing.CompareAndSwap(false, true) {
		return
	}
	defer b.comparing.Store(false)
	b.next.Store(at + int64(compareEvery))

	b.scratch = b.scratch[:0]
	old := fade(time.Duration(max(at-b.compared, 0)))
	b.compared = at
	for _, m := range v.members {
		n := m.tally.Swap(0)
		m.calls = m.calls*old + float64(uint32(n))
		m.failures = m.failures*old + float64(n>>32)
		if d, known := m.latency(at); known {
			b.scratch = append(b.scratch, d)
		}
	}
	if n := len(b.scratch); n > 0 {
		slices.Sort(b.scratch)
		// Of an even number the lower: to be too kind to a newcomer costs a
		// call, to be too harsh costs it its chance.
		b.median.Store(math.Float64bits(b.scratch[(n-1)/2]))
	}
	if b.cfg.Eject != EjectNone {
		v.eject(at)
	}
	v.panic.Store(!v.well(v.all, at))
	v.nearIll.Store(!v.well(v.near, at))
}

// well says whether half of those in a list are well, or more.
func (v *View) well(list []int32, at int64) bool {
	n := 0
	for _, i := range list {
		if m := v.members[i]; !m.out(at) && !m.look(at).Out {
			n++
		}
	}
	return 2*n >= len(list)
}

// eject leaves out those that do worse than their siblings, the worst first, but
// never more than half of all. It is called by who compares.
func (v *View) eject(at int64) {
	var calls, failures float64
	out := 0
	for _, m := range v.members {
		calls, failures = calls+m.calls, failures+m.failures
		if m.out(at) {
			out++
		} else {
			m.forgive(at)
		}
	}
	for range ejectAtOnce {
		if 2*(out+1) > len(v.members) {
			return
		}
		var worst *Member
		for _, m := range v.members {
			if !m.out(at) && m.isOutlier(v.b.cfg.Eject, calls, failures) && (worst == nil || m.rate() > worst.rate()) {
				worst = m
			}
		}
		if worst == nil {
			return
		}
		calls, failures = calls-worst.calls, failures-worst.failures
		worst.eject(at)
		out++
	}
}

func (m *Member) rate() float64 {
	if m.calls == 0 {
		return 0
	}
	return m.failures / m.calls
}

// isOutlier compares the member with all, of which it is one.
func (m *Member) isOutlier(by Eject, calls, failures float64) bool {
	var others float64
	if n := calls - m.calls; n > 0.5 {
		others = max(failures-m.failures, 0) / n
	}
	if m.rate() <= others {
		return false // what they all call is broken
	}
	if by == EjectOutliers && m.row.Load() >= inARow {
		return true
	}
	if m.calls < minCalls {
		return false
	}
	usual := min(failures/calls, 1)
	chance := math.Sqrt(usual * (1 - usual) / m.calls)
	return m.rate()-others > max(worseBy, deviations*chance)
}

// eject leaves the member out, and has it begin anew after that.
func (m *Member) eject(at int64) {
	d := min(ejectFor*time.Duration(m.times.Add(1)), ejectAtMost)
	d += time.Duration((unit(m.b.cfg.Random())*2 - 1) * ejectJitter * float64(d))
	until := at + int64(d)
	m.calls, m.failures, m.forgiven = 0, 0, until
	m.row.Store(0)
	m.learnt.Store(0)
	m.failing.Store(0)
	m.since.Store(until)
	m.ejected.Store(until)
}

// forgive takes back one time that the member was left out, when it has been well
// for as long as it was out.
func (m *Member) forgive(at int64) {
	n := m.times.Load()
	if n > 0 && at-m.forgiven > int64(min(ejectFor*time.Duration(n), ejectAtMost)) {
		m.times.Add(-1)
		m.forgiven = at
	}
}
