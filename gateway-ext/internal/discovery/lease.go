package discovery

import (
	"net/netip"
	"time"
)

const (
	// A silent source that answers is asked again after this fraction of what it
	// may be silent, bounded on both sides.
	probeFraction = 3
	minProbePause = time.Second
	maxProbePause = 15 * time.Second

	// enough probes in a row without an answer are proof that nobody is there.
	// One may be a lost packet.
	enough = 2

	// restoredGone is how long who was known before the start may be silent after
	// it. What a gateway remembers of others may be hours old, so proof that they
	// are gone is believed sooner; ten seconds are for a network that isn't up yet.
	restoredGone = 10 * time.Second

	// A kind is frozen while more than frozenShare of it (in percent), or in a
	// small fleet frozenFew, are silent, and half of these still answer: then it
	// is the way to us that is broken. What doesn't answer is still removed, but
	// only after thawAfter of asking in vain.
	frozenShare = 40
	smallFleet  = 6
	frozenFew   = 2
	thawAfter   = time.Minute

	// A source that became suspect maxTurns times within turnWindow stays so until
	// the first of them is that long ago: at most six changes a minute.
	maxTurns   = 3
	turnWindow = time.Minute
)

// holder is a source as decide sees it.
type holder struct {
	Kind          string
	Addr          netip.AddrPort // what a probe asks; not valid if nothing can be asked
	Suspect, Gone time.Duration  // of its lease

	Opened, Heard time.Time // Heard is zero if not since the start
	Suspected     bool
	Turns         [maxTurns]time.Time

	Probing  bool
	Asked    time.Time
	Answered bool
	Failed   int
	FailedAt time.Time
}

// verdict is what to do about a source.
type verdict struct {
	Suspect bool   // its replicas are suspect from now on
	Probe   bool   // ask it
	Remove  string // why it is to be removed with its replicas; empty if it stays
	Frozen  bool   // it would be removed if others weren't silent as well
}

// silent says whether the source has been silent for longer than agreed.
func (h *holder) silent(now time.Time) bool {
	return h.Heard.IsZero() || now.Sub(h.Heard) >= h.Suspect
}

// over is when its lease is over.
func (h *holder) over() time.Time {
	if h.Heard.IsZero() {
		return h.Opened.Add(min(h.Gone, restoredGone))
	}
	return h.Heard.Add(h.Gone)
}

// pause is the time between the beginnings of two probes: short for who doesn't
// answer, until that is proof, and then longer and longer.
func (h *holder) pause() time.Duration {
	if !h.Answered {
		return min(minProbePause<<min(h.Failed, 4), maxProbePause)
	}
	return min(max(h.Suspect/probeFraction, minProbePause), maxProbePause)
}

// decide says what to do about each source, and when to decide again if nothing
// happens before; the zero time is never.
func decide(all []holder, now time.Time) (verdicts []verdict, next time.Time) {
	soon := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	frozen := frozenKinds(all, now)
	var heardAt map[netip.AddrPort]bool // addresses of those that are heard
	verdicts = make([]verdict, len(all))
	for i := range all {
		h, v := &all[i], &verdicts[i]
		if !h.silent(now) {
			// Who was suspect too often in a short time stays so for a while.
			calm := h.Turns[maxTurns-1].Add(turnWindow)
			v.Suspect = h.Suspected && now.Before(calm)
			if v.Suspect {
				soon(calm)
			}
			soon(h.Heard.Add(h.Suspect))
			continue
		}
		v.Suspect = true
		over := h.over()
		soon(over)
		if !h.Addr.IsValid() {
			if !now.Before(over) {
				v.Remove = "its source is silent, and can't be asked"
			}
			continue
		}
		if !h.Probing {
			again := h.Asked.Add(h.pause())
			v.Probe = h.Asked.IsZero() || !now.Before(again)
			soon(again)
		}
		if now.Before(over) {
			continue
		}
		if heardAt == nil {
			heardAt = make(map[netip.AddrPort]bool)
			for j := range all {
				if !all[j].silent(now) {
					heardAt[all[j].Addr] = true
				}
			}
		}
		switch {
		case heardAt[h.Addr]:
			v.Remove = "its source is silent, and another is heard at its address"
		case h.Failed < enough:
		case frozen[h.Kind] && now.Before(h.FailedAt.Add(thawAfter)):
			v.Frozen = true
			soon(h.FailedAt.Add(thawAfter))
		default:
			v.Remove = "its source is silent, and its address doesn't answer"
		}
	}
	return verdicts, next
}

// frozenKinds says of which kinds a large part is silent and still answers.
func frozenKinds(all []holder, now time.Time) map[string]bool {
	type count struct{ all, silent, answering int }
	var counts map[string]*count
	for i := range all {
		h := &all[i]
		if counts == nil {
			counts = make(map[string]*count)
		}
		c := counts[h.Kind]
		if c == nil {
			c = &count{}
			counts[h.Kind] = c
		}
		c.all++
		if h.silent(now) {
			c.silent++
			if h.Answered {
				c.answering++
			}
		}
	}
	frozen := make(map[string]bool, len(counts))
	for kind, c := range counts {
		large := c.silent*100 > frozenShare*c.all || c.all <= smallFleet && c.silent >= frozenFew
		frozen[kind] = large && c.answering > 0 && 2*c.answering >= c.silent
	}
	return frozen
}
