package fleet

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// How many replicas a function gets. The rules are those of Knative's autoscaler:
// the number follows the average of a stable window, unless the average of a much
// shorter one asks for twice of what is ready. Then what the short one asks for
// counts, and nothing is removed for as long as the stable window lasts. One rule is
// added: what any short window within the last stable one needed isn't removed,
// or a load that swings would have replicas stopped and started with it. So a
// function is quick to grow, and slow to shrink.
const (
	stableWindow = time.Minute
	panicWindow  = 6 * time.Second
	panicAt      = 2 // times what is ready

	// Replicas are removed in steps, of the label's factor, with a panic window
	// in between: the default (10 % of 20) takes a minute from 20 to 0.
	downEvery = panicWindow

	// spare is how much of its target a replica must have left over when those
	// that are too many are gone. Without it a load just at the border between
	// two numbers would have a replica started and stopped all the time.
	spare = 1.1

	// handWindow is for how long a number that was set by hand, or by an alert, is
	// kept.
	handWindow = 5 * time.Minute
)

// average is a load, on average over a time.
type average struct {
	Load float64
	Over time.Duration // may be shorter than its window: nothing is known of before
}

// scaling is what [decideScale] looks at: one function at one moment.
type scaling struct {
	Scale         faas.Scale
	Wanted, Ready int
	InFlight      int64
	Idle          time.Duration // since the last call, while it was ready
	Stable, Panic average       // of the load that Scale.Type names
	Peak          float64       // the highest that the panic window's has been within the stable window
	Unmeasured    string        // why the load isn't known, or ""
	Held          time.Duration // for how long the number that was set by hand still holds
	Room          room
	Memory        memory
}

// memory is what [decideScale] wants to be told the next time.
type memory struct {
	PanicUntil time.Time
	ChangedAt  time.Time
	Low        []low // of the down window: oldest first, each less than the one before
}

// low is to how many replicas a function could have been reduced.
type low struct {
	At       time.Time
	Replicas int
}

// room is how many replicas more the nodes can take.
type room struct {
	More int
	Full string // what keeps it from being more: "memory on pi-3"
}

// unlimited is the room of who doesn't ask.
var unlimited = room{More: faas.MaxReplicas}

// kind is what a decision is due to. Two of one kind that lead to the same number
// are the same decision.
type kind int

const (
	keepKind kind = iota // nothing to decide
	loadKind             // the load, and nothing else
	panicKind
	sleepKind
	heldKind
	minKind
	maxKind
	roomKind
	peakKind   // the load was more a moment ago
	windowKind // the load is not low for long enough
	stepKind   // one step of several
	blindKind  // the load can't be measured
	wakeKind
	handKind
	declaredKind
)

// verdict is what [decideScale] decides.
type verdict struct {
	Replicas int
	Asked    int // what the load alone asks for
	Kind     kind
	Release  bool // what was set by hand holds no longer
	Memory   memory

	why []clause
}

// clause is a part of a sentence. It is put into words only when somebody reads
// it: most decisions are the same as the one before.
type clause struct {
	format string
	args   []any
}

// Sentence says why; it is "" if there was nothing to decide.
func (v *verdict) Sentence() string {
	var b strings.Builder
	for i, c := range v.why {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, c.format, c.args...)
	}
	return b.String()
}

// also adds to the sentence.
func (v *verdict) also(format string, args ...any) {
	v.why = append(v.why, clause{format, args})
}

// decideScale says how many replicas a function should have now, and why.
func decideScale(s scaling, now time.Time) verdict {
	v := verdict{Replicas: s.Wanted, Asked: s.Wanted, Memory: s.Memory}
	scale := s.Scale
	switch {
	case s.Wanted == 0:
		// It is calls that wake, at once, and not this.
		v.Memory = memory{}
		return v
	case scale.Zero && s.Held <= 0 && s.InFlight == 0 && s.Idle >= scale.ZeroDuration:
		v.Replicas, v.Asked, v.Kind, v.Memory = 0, 0, sleepKind, memory{}
		v.also("no call for %s: asleep, 0 replicas", span(scale.ZeroDuration))
		return v
	case !scale.ByLoad:
		return v
	case s.Unmeasured != "":
		v.Kind = blindKind
		v.also("%s: %s", s.Unmeasured, count(s.Wanted))
		return v
	}
	target := scale.Target * scale.Proportion
	stable, panic := need(s.Stable.Load, target), need(s.Panic.Load, target)
	over := panic >= panicAt*max(1, s.Ready)
	if over {
		v.Memory.PanicUntil = now.Add(stableWindow)
	}
	if s.Held > 0 && !(over && panic > s.Wanted) {
		v.Kind, v.Asked = heldKind, stable
		v.also("%s: %s", phrase{s.Stable, scale}, count(stable))
		v.also("%d kept, as set by hand or by an alert", s.Wanted)
		return v
	}
	v.Release = s.Held > 0
	switch {
	case now.Before(v.Memory.PanicUntil):
		v.Memory.Low = nil
		v.Kind, v.Asked = panicKind, max(panic, stable)
		by := s.Panic
		if stable > panic {
			by = s.Stable
		}
		v.grow(s, by)
	case stable > s.Wanted:
		v.Memory.Low = nil
		v.Kind, v.Asked = loadKind, stable
		v.grow(s, s.Stable)
	default:
		v.Kind = loadKind
		v.shrink(s, target, now)
	}
	if v.Replicas != s.Wanted {
		v.Memory.ChangedAt = now
	}
	return v
}

// grow has at least as many replicas as there are.
func (v *verdict) grow(s scaling, by average) {
	v.also("%s: %s", phrase{by, s.Scale}, count(v.Asked))
	v.Replicas = v.Asked
	if v.Replicas > s.Scale.Max {
		v.Replicas, v.Kind = s.Scale.Max, maxKind
		v.also("capped at %d: %s", v.Replicas, faas.LabelScaleMax)
	}
	if v.Replicas <= s.Wanted {
		if v.Replicas < s.Wanted {
			v.also("%d kept: none is removed within %s of a load that needs twice what is ready", s.Wanted, span(stableWindow))
		}
		v.Replicas = s.Wanted
		return
	}
	if most := s.Wanted + max(0, s.Room.More); v.Replicas > most {
		v.Replicas, v.Kind = most, roomKind
		v.also("capped at %d: %s", most, s.Room.Full)
	}
}

// shrink has at most as many replicas as there are.
func (v *verdict) shrink(s scaling, target float64, now time.Time) {
	scale := s.Scale
	v.Asked = need(s.Stable.Load, target)
	v.also("%s: %s", phrase{s.Stable, scale}, count(v.Asked))
	floor := min(max(1, scale.Min), s.Wanted)
	peak, mean := need(s.Peak, target), need(s.Stable.Load*spare, target)
	fits := min(max(peak, mean, floor), s.Wanted)

	// Of the down window the largest counts.
	v.Memory.Low = slices.DeleteFunc(slices.Clone(v.Memory.Low), func(l low) bool {
		return now.Sub(l.At) > scale.DownWindow || l.Replicas <= fits
	})
	v.Memory.Low = append(v.Memory.Low, low{now, fits})
	v.Replicas = v.Memory.Low[0].Replicas
	step := max(1, (scale.Max*scale.Factor+99)/100)
	switch {
	case v.Replicas > fits:
		v.Kind = windowKind
		v.also("%d kept: low for less than %s (%s)", v.Replicas, span(scale.DownWindow), faas.LabelScaleDownWindow)
	case v.Asked < floor:
		v.Kind = minKind
		v.also("at least %d: %s", floor, faas.LabelScaleMin)
	case v.Asked < fits && peak >= fits:
		v.Kind = peakKind
		v.also("%d kept: it was up to %s over %s", fits, number(s.Peak), span(panicWindow))
	case v.Asked < fits:
		v.also("%d kept: with fewer there is less than a tenth to spare", fits)
	}
	switch {
	case v.Replicas == s.Wanted:
	case now.Sub(v.Memory.ChangedAt) < downEvery:
		v.Kind, v.Replicas = stepKind, s.Wanted
		v.also("%d for now: none is removed within %s of a change", v.Replicas, span(downEvery))
	case v.Replicas < s.Wanted-step:
		v.Kind, v.Replicas = stepKind, s.Wanted-step
		v.also("%d for now: %d fewer at a time, every %s (%s)", v.Replicas, step, span(downEvery), faas.LabelScaleFactor)
	}
}

// need is how many replicas a load needs.
func need(load, target float64) int {
	return int(min(math.Ceil(load/target-1e-9), faas.MaxReplicas*panicAt))
}

// units are what a load is counted in.
var units = map[string]string{
	faas.ScaleCapacity: "in flight", faas.ScaleRPS: "calls a second", faas.ScaleCPU: "milli-CPU",
}

// phrase says what the load was: "41 in flight over 6 s, target 7 each".
type phrase struct {
	average
	scale faas.Scale
}

func (p phrase) String() string {
	text := fmt.Sprintf("%s %s over %s, target %s each", number(p.Load), units[p.scale.Type], span(p.Over), number(p.scale.Target*p.scale.Proportion))
	if p.scale.Proportion != 1 {
		text += fmt.Sprintf(" (%s %% of %s)", number(100*p.scale.Proportion), number(p.scale.Target))
	}
	return text
}

// count is a number of replicas.
type count int

func (c count) String() string {
	if c == 1 {
		return "1 replica"
	}
	return strconv.Itoa(int(c)) + " replicas"
}

// number is a load, written as a person would.
type number float64

func (n number) String() string {
	if n < 10 {
		return strings.TrimSuffix(strconv.FormatFloat(float64(n), 'f', 1, 64), ".0")
	}
	return strconv.FormatFloat(float64(n), 'f', 0, 64)
}

// span is a duration, written as a person would.
type span time.Duration

func (s span) String() string {
	d := time.Duration(s)
	switch {
	case d < 950*time.Millisecond: // of a second a look may be early
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < 2*time.Minute:
		return number(d.Round(100*time.Millisecond).Seconds()).String() + " s"
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	}
	return d.Round(time.Second).String()
}

// rooms is what [roomOn] says of the same nodes, once for all functions that need as
// much.
type rooms struct {
	nodes []provider.Room
	known map[needs]room
}

// needs is what a replica needs: bytes, thousandths of a core.
type needs struct{ memory, cpu int64 }

func (r *rooms) of(n needs) room {
	found, ok := r.known[n]
	if !ok {
		found = roomOn(r.nodes, n.memory, n.cpu)
		if r.known == nil {
			r.known = make(map[needs]room)
		}
		r.known[n] = found
	}
	return found
}

// roomOn returns how many more replicas the nodes take that need so much memory
// and CPU each; 0 is unknown. Nodes are in the order of their names.
func roomOn(nodes []provider.Room, memory, cpu int64) room {
	if len(nodes) == 0 {
		return unlimited
	}
	const most = 3 // to be named
	r, names, full := room{}, make([]string, 0, most+1), 0
	for i := range nodes {
		n := &nodes[i]
		fits, by := int64(faas.MaxReplicas), ""
		if n.Memory >= 0 {
			if f := n.Memory / cmp.Or(memory, leastMemory); f < fits {
				fits, by = f, "memory"
			}
		}
		if n.CPU >= 0 && cpu > 0 {
			if f := n.CPU / cpu; f < fits {
				fits, by = f, "CPU"
			}
		}
		r.More = min(r.More+int(fits), faas.MaxReplicas)
		if by == "" {
			continue
		}
		if full++; full <= most {
			names = append(names, by+" on "+n.Node)
		}
	}
	if full > most {
		names = append(names, fmt.Sprintf("and %d more", full-most))
	}
	r.Full = strings.Join(names, ", ")
	return r
}

// leastMemory is what a replica is given a place by of which nothing is known.
const leastMemory = 8 << 20
