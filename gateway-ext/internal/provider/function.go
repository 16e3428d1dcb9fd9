package provider

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// function is one function on this node. It costs no goroutine while nothing
// happens to it: each event (a new wish, a replica's step, a timer) takes the
// lock, lets [decide] look, and obeys.
type function struct {
	p    *Process
	name faas.Name

	log *ring // guarded by Process.mu; see ring

	mu       sync.Mutex // guards below; Process.mu may be taken under it, not it under that
	want     int
	newest   *revision
	previous *revision // serves until enough of the newest are ready
	replicas map[string]*replica
	timer    *time.Timer
	next     time.Time // when timer fires; zero if it doesn't
	closed   bool      // nothing is started any more

	gone  chan struct{} // closed when it is closed and its last replica is gone
	usage usage
}

// revision is one declaration of a function and what is needed to run it.
type revision struct {
	spec    faas.Function
	limits  limits
	want    int    // how many replicas it was last asked for
	secrets string // its folder; empty until something is started
	values  map[string][]byte
	uid     int // who may read the folder

	image    *faas.Image // nil until fetched
	release  func()      // gives the image back
	fetching context.CancelFunc
	fetch    backoff

	crash   backoff
	proven  bool   // a replica of it has been ready
	trouble string // what went wrong last, for its owner
	users   int    // replicas that are not gone, plus one while it is wanted
}

// apply notes a new wish. It says false if the function has been closed.
func (f *function) apply(w Workload, lim limits) (ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false, nil
	}
	f.want = max(0, w.Function.Replicas)
	if f.newest != nil && f.newest.spec.Revision == w.Function.Revision {
		f.newest.want = f.want
		if err := f.newest.replaceSecrets(w.Secrets); err != nil {
			return true, fmt.Errorf("replace the secrets of %s: %w", f.name, err)
		}
	} else {
		f.replace(&revision{spec: w.Function, limits: lim, want: f.want, values: w.Secrets, users: 1})
	}
	f.step()
	return true, nil
}

// replace makes rev the newest revision. The one that serves today stays.
func (f *function) replace(rev *revision) {
	old := f.newest
	f.newest = rev
	switch {
	case old == nil:
	case old.proven:
		f.drop(f.previous)
		f.previous = old
	default:
		// It never served anybody: whatever served before it goes on.
		f.drop(old)
	}
}

// drop stops what is left of a revision that nothing is wanted of any more.
func (f *function) drop(rev *revision) {
	if rev == nil {
		return
	}
	if rev.fetching != nil {
		rev.fetching()
	}
	for _, r := range f.replicas {
		if r.rev == rev {
			r.drain()
		}
	}
	f.unuse(rev)
}

// unuse ends one use of a revision; the last one gives everything back.
func (f *function) unuse(rev *revision) {
	rev.users--
	if rev.users > 0 {
		return
	}
	if rev.release != nil {
		rev.release()
		rev.release, rev.image = nil, nil
	}
	if err := rev.removeSecrets(); err != nil {
		f.p.log.Warn("secrets of an old revision stay", "function", f.name, "err", err)
	}
}

// wake is called by the timer.
func (f *function) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = time.Time{}
	f.step()
}

// step brings the function closer to what is wanted. The caller holds f.mu.
func (f *function) step() {
	if f.closed {
		if len(f.replicas) == 0 {
			f.forget()
		}
		return
	}
	select {
	case <-f.p.running:
	default:
		return // Run will look
	}
	if f.newest == nil {
		return // Apply has not come that far
	}
	f.fetchIfNeeded(f.newest)
	now := time.Now()
	pl := decide(f.view(), now)
	for _, id := range pl.Drain {
		f.replicas[id].drain()
	}
	if pl.Forget {
		f.drop(f.previous)
		f.previous = nil
	}
	for range pl.StartNewest {
		f.start(f.newest)
	}
	for range pl.StartPrevious {
		f.start(f.previous)
	}
	if ready := len(f.view().Newest.Ready); ready >= f.want && f.want > 0 {
		f.newest.trouble = ""
	}
	if !pl.Wake.IsZero() {
		f.wakeAt(pl.Wake)
	}
}

// wakeAt looks again at the given time, or earlier.
func (f *function) wakeAt(at time.Time) {
	if !f.next.IsZero() && !at.Before(f.next) {
		return
	}
	f.next = at
	d := max(time.Until(at), time.Millisecond)
	if f.timer == nil {
		f.timer = time.AfterFunc(d, f.wake)
		return
	}
	f.timer.Reset(d)
}

// view is what decide looks at.
func (f *function) view() view {
	v := view{Want: f.want, Newest: f.generation(f.newest)}
	if f.previous != nil {
		g := f.generation(f.previous)
		v.Previous = &g
	}
	return v
}

func (f *function) generation(rev *revision) generation {
	g := generation{Want: rev.want, Runnable: rev.image != nil, Failing: rev.trouble != "", Retry: rev.crash.until}
	var live []*replica
	for _, r := range f.replicas {
		if r.rev == rev && !r.leaving {
			live = append(live, r)
		}
	}
	slices.SortFunc(live, func(a, b *replica) int { return a.asked.Compare(b.asked) })
	for _, r := range live {
		if r.state.State == faas.Ready {
			g.Ready = append(g.Ready, r.state.ID)
		} else {
			g.Starting = append(g.Starting, r.state.ID)
		}
	}
	return g
}

// fetchIfNeeded brings the revision's image onto this machine, in the background,
// again and again with growing delays if it has to be.
func (f *function) fetchIfNeeded(rev *revision) {
	if rev.image != nil || rev.fetching != nil {
		return
	}
	if wait := time.Until(rev.fetch.until); wait > 0 {
		f.wakeAt(rev.fetch.until)
		return
	}
	ctx, cancel := context.WithCancel(f.p.ctx)
	rev.fetching = cancel
	rev.users++
	f.p.work.Go(func() {
		defer cancel()
		img, release, err := f.p.fetchImage(ctx, imageRef(&rev.spec))
		f.fetched(rev, img, release, err)
	})
}

func (p *Process) fetchImage(ctx context.Context, ref string) (faas.Image, func(), error) {
	select {
	case p.fetches <- struct{}{}:
		defer func() { <-p.fetches }()
	case <-ctx.Done():
		return faas.Image{}, nil, context.Cause(ctx)
	}
	return p.cfg.Images.Fetch(ctx, ref)
}

func (f *function) fetched(rev *revision, img faas.Image, release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rev.fetching = nil
	now := time.Now()
	switch {
	case err == nil:
		rev.image, rev.release, rev.trouble, rev.fetch = &img, release, "", backoff{}
	case f.closed || rev != f.newest:
	default:
		// An image is asked for less often than a process is started.
		rev.fetch.failures++
		rev.fetch.until = now.Add(delay(rev.fetch.failures + 2))
		text := fmt.Sprintf("image %s: %v", rev.spec.Image, err)
		if text != rev.trouble {
			f.say(f.p.cfg.Node, text)
			f.p.log.Warn("image is not here", "function", f.name, "image", rev.spec.Image, "err", err)
		}
		rev.trouble = text
	}
	f.unuse(rev)
	f.step()
}

// imageRef names the image by the digest it was pinned to.
func imageRef(fn *faas.Function) string {
	ref := fn.Image
	if fn.Digest == "" {
		return ref
	}
	if at := strings.LastIndexByte(ref, '@'); at >= 0 {
		ref = ref[:at]
	}
	if colon := strings.LastIndexByte(ref, ':'); colon > strings.LastIndexByte(ref, '/') {
		ref = ref[:colon]
	}
	return ref + "@" + fn.Digest
}

// start begins the life of one more replica. The caller holds f.mu.
func (f *function) start(rev *revision) {
	r := newReplica(f, rev)
	f.replicas[r.state.ID] = r
	rev.users++
	f.p.work.Go(r.run)
}

// ended is called by a replica as the last thing it does. failure is empty if it
// was asked to end.
func (f *function) ended(r *replica, failure string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.replicas, r.state.ID)
	if failure != "" && !f.closed {
		now := time.Now()
		r.rev.crash.fail(r.asked, r.ready, now)
		r.rev.trouble = failure
		f.say(r.state.ID, reason(failure, r.rev.crash, now, false))
		f.p.log.Warn("replica failed", "function", f.name, "replica", r.state.ID,
			"reason", failure, "failures", r.rev.crash.failures)
	}
	f.unuse(r.rev)
	f.step()
}

// close stops all replicas for good. When the last one is gone, f.gone is closed.
func (f *function) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.timer != nil {
		f.timer.Stop()
	}
	for _, rev := range []*revision{f.newest, f.previous} {
		if rev != nil && rev.fetching != nil {
			rev.fetching()
		}
	}
	for _, r := range f.replicas {
		r.drain()
	}
	f.step()
}

// forget gives back what the function held. All its replicas are gone. The
// caller holds f.mu.
func (f *function) forget() {
	select {
	case <-f.gone:
		return
	default:
	}
	for _, rev := range []*revision{f.newest, f.previous} {
		if rev != nil {
			f.unuse(rev)
		}
	}
	f.previous = nil
	f.p.freeUser(f.name)
	close(f.gone)
}

// status is a snapshot for callers.
func (f *function) status() Status {
	f.mu.Lock()
	if f.newest == nil { // made a moment ago, by an Apply that is under way
		f.mu.Unlock()
		return Status{}
	}
	s := Status{Revision: f.newest.spec.Revision}
	for _, r := range f.replicas {
		s.Replicas = append(s.Replicas, r.state)
	}
	if newest := f.newest; newest.trouble != "" && f.want > 0 || newest.image == nil {
		s.Reason = reason(newest.trouble, newest.crash, time.Now(), f.previous != nil)
	}
	running := make(map[string]*process, len(f.replicas))
	for id, r := range f.replicas {
		if r.process != nil {
			running[id] = r.process
		}
	}
	f.mu.Unlock()

	slices.SortFunc(s.Replicas, func(a, b faas.Replica) int { return strings.Compare(a.ID, b.ID) })
	s.Usage, s.Used = f.usage.measure(running, f.p.machine)
	return s
}
