package fleet

import (
	"cmp"
	"context"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// scaleEvery is how often functions are looked at that have calls, or more
// replicas than they have at least.
const scaleEvery = time.Second

// scaler looks once a second at what functions are asked for and has
// [decideScale] decide. Functions at rest (asleep, or with as few replicas as
// they may have and nobody who calls them) are not looked at. It belongs to the
// goroutine of its run.
type scaler struct {
	f      *Fleet
	tracks map[faas.Name]*track
	loads  []loaded // of this round; kept to be used again
	seen   time.Time
	rooms  *rooms // as it was when it was first needed in this round
}

type loaded struct {
	name faas.Name
	load faas.Load
}

// track is what is known of a function that was called, or is awake.
type track struct {
	last   faas.Load
	called time.Time // when it had calls last, or was waked or declared
	window *window   // nil while it has no calls
	memory memory

	kind string                   // what the window's values are of
	cpu  map[string]time.Duration // by replica, what it had used at the last look
	used time.Duration            // by all together, since the window began
}

// window remembers the integral of a load over time, for averages. It covers
// stableWindow, and a few seconds for looks that come late. There may be one for
// each of ten thousand functions, each looked at once a second: times are durations
// since the first sample, half as large and a tenth of the work.
type window struct {
	began   time.Time
	samples [64]sample // a ring
	n       int        // that were ever added
}

type sample struct {
	at  time.Duration // since the window began
	sum float64       // of the load, times seconds
}

func (w *window) add(at time.Time, sum float64) {
	if w.n == 0 {
		w.began = at
	}
	w.samples[w.n%len(w.samples)] = sample{at.Sub(w.began), sum}
	w.n++
}

func (w *window) sample(i int) *sample { return &w.samples[i%len(w.samples)] }

// oldest is the index of the oldest sample that is remembered.
func (w *window) oldest() int { return max(0, w.n-len(w.samples)) }

// over returns the average over a time until the newest sample, or over less if
// that is all there is. Within less than a second nothing can be said.
func (w *window) over(d time.Duration) average {
	newest := w.n - 1
	return w.between(w.before(newest, newest, d), newest, d)
}

// before returns the newest sample that is at least d older than another, or the
// oldest; it is looked for from the index at on.
func (w *window) before(at, than int, d time.Duration) int {
	end := w.sample(than).at - d
	for oldest := w.oldest(); at > oldest; {
		at--
		if w.sample(at).at <= end {
			break
		}
	}
	return at
}

// between returns the average from a sample until another, of d if it is as much.
// Between two samples the load counts as even.
func (w *window) between(first, last int, d time.Duration) average {
	from, to := *w.sample(first), w.sample(last)
	if more := to.at - from.at - d; more > 0 && first < last {
		next := w.sample(first + 1)
		gap := next.at - from.at
		from.sum += (next.sum - from.sum) * more.Seconds() / gap.Seconds()
		from.at += more
	}
	over := to.at - from.at
	return average{Load: max(0, to.sum-from.sum) / max(over, time.Second).Seconds(), Over: over}
}

// peak returns the highest average over d of those that ended within the last
// time.
func (w *window) peak(d, within time.Duration) (highest float64) {
	newest := w.sample(w.n - 1).at
	for first, i := w.n-1, w.n-1; i > w.oldest(); i-- {
		if newest-w.sample(i).at > within {
			break
		}
		// What was before a newer sample may be before this one, too, or not yet.
		if first = min(first, i); first == i || w.sample(first).at > w.sample(i).at-d {
			first = w.before(first, i, d)
		}
		highest = max(highest, w.between(first, i, d).Load)
	}
	return highest
}

// scale runs until ctx ends.
func (f *Fleet) scale(ctx context.Context) {
	if f.cfg.Loads == nil {
		return
	}
	s := &scaler{f: f, tracks: make(map[faas.Name]*track), seen: time.Now()}
	defer f.keep(context.WithoutCancel(ctx), true)
	tick := time.NewTicker(scaleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.round(ctx, time.Now())
		f.keep(ctx, false)
	}
}

// touch has a function looked at that changed other than by its load. f.mu is
// held.
func (f *Fleet) touch(name faas.Name) {
	if f.cfg.Loads != nil {
		f.touched[name] = struct{}{}
	}
}

// subject is a function to look at, as it is when the round begins.
type subject struct {
	name  faas.Name
	entry *entry
	track *track
	run   *faas.Function
	state scaling
}

// round looks at every function that needs it.
func (s *scaler) round(ctx context.Context, now time.Time) {
	f := s.f
	s.loads, s.rooms = s.loads[:0], nil
	f.cfg.Loads(func(name faas.Name, l faas.Load) { s.loads = append(s.loads, loaded{name, l}) })

	f.mu.Lock()
	for name := range f.touched {
		s.track(name, now).called = s.seen
	}
	clear(f.touched)
	f.mu.Unlock()

	var all []subject
	f.mu.RLock()
	for _, l := range s.loads {
		if e := f.functions[l.name]; e != nil {
			s.called(l, e.scale.Value().Type, now)
		}
	}
	for name, t := range s.tracks {
		e := f.functions[name]
		if e == nil {
			delete(s.tracks, name)
			continue
		}
		scale := e.scale.Value()
		if t.rests(scale, e.replicas, now) {
			t.window, t.cpu, t.memory = nil, nil, memory{}
			if t.last == (faas.Load{}) {
				delete(s.tracks, name)
			}
			continue
		}
		all = append(all, subject{name: name, entry: e, track: t, run: running(e.declared, e.serving), state: scaling{
			Scale: scale, Wanted: e.replicas, InFlight: t.last.InFlight, Held: e.held(now), Room: unlimited, Memory: t.memory,
		}})
	}
	f.mu.RUnlock()
	for i := range all {
		s.decide(ctx, &all[i], now)
	}
	s.seen = now
}

// track returns what is known of a function. Of what is not known nobody has
// asked anything for a while.
func (s *scaler) track(name faas.Name, now time.Time) *track {
	t := s.tracks[name]
	if t == nil {
		t = &track{called: now.Add(-stableWindow)}
		s.tracks[name] = t
	}
	return t
}

// called notes a function's load.
func (s *scaler) called(l loaded, kind string, now time.Time) {
	t := s.track(l.name, now)
	switch {
	case l.load == t.last:
		return
	case l.load.Started < t.last.Started:
		t.last = faas.Load{} // it was deleted meanwhile, and counting began anew
	}
	t.open(kind, s.seen, now)
	t.called, t.last = now, l.load
}

// open makes sure that there is a window of this kind. It begins when there were
// calls last, since it is known that there were none until the last look.
func (t *track) open(kind string, seen, now time.Time) {
	if t.window != nil && t.kind == kind {
		return
	}
	t.window, t.kind, t.cpu, t.used = &window{}, kind, nil, 0
	first := maxTime(t.called, now.Add(-stableWindow))
	for _, at := range [...]time.Time{first, seen} {
		if !at.Before(first) && at.Before(now) && (t.window.n == 0 || at.After(first)) {
			t.window.add(at, t.sum())
		}
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sum is a load as its window remembers it.
func (t *track) sum() float64 {
	switch t.kind {
	case faas.ScaleCapacity:
		return t.last.Busy.Seconds()
	case faas.ScaleCPU:
		return 1000 * t.used.Seconds()
	}
	return float64(t.last.Started)
}

// rests says whether there is nothing to look at.
func (t *track) rests(s faas.Scale, replicas int, now time.Time) bool {
	switch {
	case replicas == 0:
		return true // calls wake it, at once
	case t.last.InFlight > 0, now.Sub(t.called) < stableWindow:
		return false
	}
	return !s.Zero && (!s.ByLoad || replicas <= max(1, s.Min))
}

// decide has the decision made for one function, and brings it about.
func (s *scaler) decide(ctx context.Context, x *subject, now time.Time) {
	f, t, st := s.f, x.track, &x.state
	st.Ready = f.ready(x.name)
	if st.Ready == 0 {
		t.called = now // it couldn't be called: that isn't idleness
	}
	st.Idle = now.Sub(t.called)
	if st.Scale.ByLoad && st.Wanted > 0 {
		t.open(st.Scale.Type, s.seen, now)
		if st.Scale.Type == faas.ScaleCPU {
			st.Unmeasured = s.measure(x)
		}
		t.window.add(now, t.sum())
		st.Stable, st.Panic = t.window.over(stableWindow), t.window.over(panicWindow)
		st.Peak = t.window.peak(panicWindow, stableWindow)
	}
	v := decideScale(*st, now)
	if v.Replicas > st.Wanted && f.cfg.Room != nil && x.run != nil {
		st.Room = s.roomOf(x)
		v = decideScale(*st, now)
	}
	t.memory = v.Memory
	if v.Kind == keepKind {
		return
	}
	if !f.rescale(x.name, x.entry, st.Wanted, v, now) {
		t.memory = st.Memory // somebody was faster: look again the next time
		return
	}
	if v.Replicas != st.Wanted {
		f.log.Info("function scaled", "function", x.name.String(), "from", st.Wanted, "to", v.Replicas, "why", v.Sentence())
		f.tellSoon(ctx, x.name, x.entry)
	}
}

// rescale notes a decision, unless the function is another by now.
func (f *Fleet) rescale(name faas.Name, e *entry, from int, v verdict, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.functions[name] != e || e.replicas != from {
		return false
	}
	e.replicas = v.Replicas
	if v.Release {
		e.hand = time.Time{}
	}
	f.journal.note(name, from, v, now)
	return true
}

// tellSoon is tell, for who must not wait for a function of the same name that is
// still being removed: the task that waits for that tells all.
func (f *Fleet) tellSoon(ctx context.Context, name faas.Name, e *entry) {
	if e.after != nil {
		select {
		case <-e.after:
		default:
			return
		}
	}
	f.tell(ctx, name, e)
}

// held is for how long a number that was set by hand still holds. f.mu is held.
func (e *entry) held(now time.Time) time.Duration { return max(0, e.hand.Sub(now)) }

// ready is how many replicas take calls.
func (f *Fleet) ready(name faas.Name) int {
	if f.cfg.Ready != nil {
		return f.cfg.Ready(name)
	}
	s, _ := f.cfg.Provider.Status(name)
	return int(s.Ready())
}

// measure adds up the CPU time that replicas used since the last look. It returns
// why it can't.
func (s *scaler) measure(x *subject) string {
	t := x.track
	status, _ := s.f.cfg.Provider.Status(x.name)
	if len(status.Used) == 0 {
		if status.Ready() == 0 {
			return ""
		}
		return "its replicas' CPU time can't be measured on this machine"
	}
	next := make(map[string]time.Duration, len(status.Used))
	for _, u := range status.Used {
		next[u.Replica] = u.CPU
		if t.cpu != nil { // else there is nothing to compare with
			t.used += max(0, u.CPU-t.cpu[u.Replica])
		}
	}
	t.cpu = next
	return ""
}

// roomOf is how many more replicas of a function the nodes take.
func (s *scaler) roomOf(x *subject) room {
	memory, cpu := provider.Needs(x.run)
	if memory == 0 {
		// It doesn't say: what its replicas hold now is the best guess, in whole MiB.
		status, _ := s.f.cfg.Provider.Status(x.name)
		for _, u := range status.Used {
			memory = max(memory, u.Memory)
		}
		memory = (memory + 1<<20 - 1) >> 20 << 20
	}
	if s.rooms == nil {
		s.rooms = &rooms{nodes: s.f.cfg.Room()}
	}
	return s.rooms.of(needs{cmp.Or(memory, leastMemory), cpu})
}
