package balance

import (
	"math/bits"
	"time"
)

// How much is overlooked for want of something better. What is skipped, full or
// to be left alone is never picked.
const (
	strict  = iota
	patient // who is warming up takes all of its share, and who is not known more than one call
	panicky // who was ejected is asked, too
	tiers
)

// Pick returns the index of the member to ask, or -1 if there is none: all are
// full, to be left alone, or skipped. key is what [Rule.Key] returned for the
// request. skip is for those that failed this request before; nil skips none. It
// is not kept.
func (v *View) Pick(now time.Time, key uint64, skip func(i int) bool) int {
	b := v.b
	at := int64(now.Sub(b.epoch))
	if at >= b.next.Load() {
		v.compare(at)
	}
	p := pick{v: v, at: at, chance: b.cfg.Random(), key: key, skip: skip}
	rule := b.cfg.Rule.kind
	if rule == consistentHash && key == 0 {
		rule = p2c
	}
	switch rule {
	case roundRobin, availabilityFiltering:
		return p.inTurn(v.all, tiers)
	case weightedResponseTime:
		return p.byLatency()
	case leastRequests:
		return p.least()
	case random:
		return p.any(v.all)
	case consistentHash:
		return p.byKey()
	}
	if len(v.near) > 0 && !v.nearIll.Load() {
		if i := p.nearby(rule); i >= 0 {
			return i
		}
	}
	if rule == zonePreference {
		return p.inTurn(v.all, tiers)
	}
	return p.two(v.all, tiers)
}

// pick is one pick under way.
type pick struct {
	v      *View
	at     int64
	chance uint64 // all the chance there is in it
	key    uint64
	skip   func(i int) bool
}

// below returns a number in [0,n) of the chance, by turns another one.
func (p *pick) below(n int) int {
	p.chance = mix(p.chance + golden)
	hi, _ := bits.Mul64(p.chance, uint64(n))
	return int(hi)
}

// fraction returns a number in [0,1) of the chance.
func (p *pick) fraction() float64 {
	p.chance = mix(p.chance + golden)
	return unit(p.chance)
}

// candidate is a member that may be picked.
type candidate struct {
	i        int
	inFlight int64
	m        *Member
}

// may says whether a member may be picked.
func (p *pick) may(i int, tier int) (c candidate, ok bool) {
	if p.skip != nil && p.skip(i) {
		return c, false
	}
	m := p.v.members[i]
	look := m.look(p.at)
	if look.Out || look.Full {
		return c, false
	}
	c = candidate{i, look.InFlight, m}
	if tier >= panicky {
		return c, true
	}
	if m.out(p.at) && !look.Trusted {
		return c, false
	}
	return c, tier >= patient || p.partakes(m, look)
}

// partakes says whether a member takes part in this pick, if nothing speaks
// against it but that it is new or not known.
func (p *pick) partakes(m *Member, look Look) bool {
	if look.Suspect || m.warming(p.at) {
		w := m.weight(p.at, look.Suspect)
		// Of the same key it is the same each time: a key moves once.
		chance := p.chance
		if p.key != 0 {
			chance = p.key
		}
		// By another number than the one that keys are spread by.
		if unit(mix((chance^m.hash)+golden)) >= w {
			return false
		}
	}
	if look.InFlight == 0 {
		return true
	}
	rule := &p.v.b.cfg.Rule
	if rule.active > 0 && look.InFlight >= int64(rule.active) {
		return false
	}
	return rule.kind == consistentHash || m.learnt.Load() != 0 || m.failing.Load() != 0
}

// cost is what is to be expected of one more call.
func (p *pick) cost(c candidate) float64 {
	return c.m.expected(p.at) * float64(c.inFlight+1)
}

// better returns the one of two that costs less. The first of two that have as
// many calls and cost about the same wins, which is a matter of chance.
func (p *pick) better(a, b candidate) int {
	ca, cb := p.cost(a), p.cost(b)
	if wa, wb := a.m.warming(p.at), b.m.warming(p.at); wa != wb {
		if wa {
			ca = p.practice(a, ca)
		} else {
			cb = p.practice(b, cb)
		}
	}
	if a.inFlight == b.inFlight {
		cb *= sameCost
	}
	if ca > cb {
		return b.i
	}
	return a.i
}

// practice is the cost of one that is warming up, beside one that is warm. Who is
// slow because it has just begun gets quicker by being called and no other way,
// so it gets one call at a time as if it were as quick as its siblings.
func (p *pick) practice(c candidate, cost float64) float64 {
	if c.inFlight > 0 || c.m.row.Load() > 0 {
		return cost
	}
	return min(cost, p.v.b.usual())
}

// first returns the tier to look at first: in a panic nobody is left out for being
// worse than its siblings.
func (p *pick) first() int {
	if p.v.panic.Load() {
		return panicky
	}
	return strict
}

// two takes two at random and of these the better one: nearly as even as always
// taking the best, without all who look at the same moment running to the same
// place.
func (p *pick) two(list []int32, end int) int {
	n := len(list)
	if n == 0 {
		return -1
	}
	tier := p.first()
	if tier >= end {
		return -1
	}
	a := p.below(n)
	if first, ok := p.may(int(list[a]), tier); ok {
		if n == 1 {
			return first.i
		}
		// One of the others, each as likely.
		b := (a + 1 + p.below(n-1)) % n
		if second, ok := p.may(int(list[b]), tier); ok {
			return p.better(first, second)
		}
	}
	// Not all may be picked, which is rare: choose among those that may.
	for ; tier < end; tier++ {
		chance := p.chance
		count := p.count(list, tier)
		if count == 0 {
			continue
		}
		a := p.below(count)
		b := a
		if count > 1 {
			b = (a + 1 + p.below(count-1)) % count
		}
		first, second := p.nth(list, tier, a, b, chance)
		if count == 1 && tier < patient && first.i >= 0 {
			return p.relieve(list, first)
		}
		switch {
		case first.i < 0:
			return second.i // it was another moment when they were counted
		case second.i < 0:
			return first.i
		}
		return p.better(first, second)
	}
	return -1
}

// relieve returns the only one that takes part, unless it has so much to do that
// one which mostly doesn't is better off even so. Else a replica that is new would
// be spared, and its only sibling, which may just have died, be given all. It is
// for calls that pile up: one that fails is still given some, or nobody would know
// when it is well again.
func (p *pick) relieve(list []int32, only candidate) int {
	if only.inFlight < 2 {
		return only.i
	}
	best, least := only.i, p.cost(only)
	for _, i := range list {
		c, ok := p.may(int(i), patient)
		if !ok || c.i == only.i {
			continue
		}
		look := c.m.look(p.at)
		if cost := p.cost(c) / c.m.weight(p.at, look.Suspect); cost < least {
			best, least = c.i, cost
		}
	}
	return best
}

// count returns how many may be picked.
func (p *pick) count(list []int32, tier int) (n int) {
	for _, i := range list {
		if _, ok := p.may(int(i), tier); ok {
			n++
		}
	}
	return n
}

// nth returns the ath and the bth of those that may be picked, by the chance with
// which they were counted. It is -1 for one that is no longer there.
func (p *pick) nth(list []int32, tier, a, b int, chance uint64) (first, second candidate) {
	p.chance = chance
	first.i, second.i = -1, -1
	n := 0
	for _, i := range list {
		if c, ok := p.may(int(i), tier); ok {
			if n == a {
				first = c
			}
			if n == b {
				second = c
			}
			n++
		}
	}
	return first, second
}

// any takes each with the same probability.
func (p *pick) any(list []int32) int {
	if len(list) == 0 {
		return -1
	}
	tier := p.first()
	if c, ok := p.may(int(list[p.below(len(list))]), tier); ok {
		return c.i
	}
	for ; tier < tiers; tier++ {
		chance := p.chance
		if count := p.count(list, tier); count > 0 {
			a := p.below(count)
			if c, _ := p.nth(list, tier, a, a, chance); c.i >= 0 {
				return c.i
			}
		}
	}
	return -1
}

// inTurn takes one after the other. The turn of one that may not be picked is
// the next one's, with a turn of its own: so what is left is shared evenly.
func (p *pick) inTurn(list []int32, end int) int {
	n := uint64(len(list))
	tier := p.first()
	if tier >= end {
		return -1
	}
	for range n {
		if c, ok := p.may(int(list[p.v.b.turn.Add(1)%n]), tier); ok {
			return c.i
		}
	}
	for ; tier < end; tier++ {
		from := p.v.b.turn.Add(1)
		for k := range n {
			if c, ok := p.may(int(list[(from+k)%n]), tier); ok {
				return c.i
			}
		}
	}
	return -1
}

// least takes the one with the fewest calls in flight, of equals any.
func (p *pick) least() int {
	list := p.v.all
	draw := *p // its chance goes on; by ours it is decided who takes part
	for tier := p.first(); tier < tiers; tier++ {
		best, equals := candidate{i: -1}, 0
		for k := range list {
			c, ok := p.may(int(list[k]), tier)
			switch {
			case !ok:
			case best.i < 0 || c.inFlight < best.inFlight:
				best, equals = c, 1
			case c.inFlight == best.inFlight:
				// The nth of equals takes its place once in n times, so that
				// each is as likely in the end.
				if equals++; draw.below(equals) == 0 {
					best = c
				}
			}
		}
		if best.i >= 0 {
			return best.i
		}
	}
	return -1
}

// byLatency takes each the more often, the less its calls take: its weight is
// what all take together, less what it takes itself.
func (p *pick) byLatency() int {
	list := p.v.all
	for tier := p.first(); tier < tiers; tier++ {
		var sum float64
		count, last, chance := 0, -1, p.chance
		for _, i := range list {
			if c, ok := p.may(int(i), tier); ok {
				sum += c.m.expected(p.at)
				count++
				last = c.i
			}
		}
		if count < 2 {
			if count == 1 {
				return last
			}
			continue
		}
		x := p.fraction() * sum * float64(count-1)
		p.chance = chance
		for _, i := range list {
			if c, ok := p.may(int(i), tier); ok {
				last = c.i
				if x -= sum - c.m.expected(p.at); x < 0 {
					break
				}
			}
		}
		return last
	}
	return -1
}

// hashBound is how much more than its even share of the calls in flight a member
// may have before a key goes to the next one, and hashLeast how many it may have
// in any case.
const (
	hashBound = 1.25
	hashLeast = 2
)

// byKey takes the same one for the same key: the one whose hash together with the
// key's is highest, which of the others comes or goes makes no difference. One
// that has too much already is passed over, so that one popular key can't drown
// a replica.
func (p *pick) byKey() int {
	list := p.v.all
	for tier := p.first(); tier < tiers; tier++ {
		count, total := 0, int64(1)
		for _, i := range list {
			if c, ok := p.may(int(i), tier); ok {
				total += c.inFlight
				count++
			}
		}
		if count == 0 {
			continue
		}
		bound := max(hashBound*float64(total)/float64(count), hashLeast)
		best, most, any := -1, uint64(0), -1
		for _, i := range list {
			c, ok := p.may(int(i), tier)
			if !ok {
				continue
			}
			any = c.i
			score := mix(p.key ^ c.m.hash)
			if float64(c.inFlight) < bound && (best < 0 || score > most) {
				best, most = c.i, score
			}
		}
		if best >= 0 {
			return best
		}
		if any >= 0 {
			return any // it was another moment when they were counted
		}
	}
	return -1
}

// nearby picks one that is near, as long as it costs no more than is worth it.
func (p *pick) nearby(rule kind) int {
	v := p.v
	var i int
	if rule == zonePreference {
		i = p.inTurn(v.near, patient)
	} else {
		i = p.two(v.near, patient)
	}
	if i < 0 {
		return -1
	}
	near, ok := p.may(i, panicky)
	far, other := p.may(int(v.far[p.below(len(v.far))]), strict)
	if !ok || !other {
		return i
	}
	cost := p.cost(near)
	if near.m.warming(p.at) {
		cost = p.practice(near, cost)
	}
	if cost > nearAdvantage*p.cost(far) {
		return far.i
	}
	return i
}
