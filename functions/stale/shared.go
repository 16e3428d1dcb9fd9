package stale

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisBudget is the most that the Redis may add to a call that then goes to the
// origin. A Redis on the same network answers in less than 2 ms; what is slower
// than this is not worth waiting for.
const RedisBudget = 30 * time.Millisecond

const (
	writeQueue   = 256                    // answers waiting to be written
	writeTimeout = 500 * time.Millisecond // 256 KiB over a bad Wi-Fi

	// genLife is how long a generation's token is kept: longer than any answer.
	genLife = maxLife + 24*time.Hour

	// lookEvery is how often the generation of a function whose answers are
	// served from memory is read, for purges whose message was lost.
	lookEvery = time.Second

	// The lease for a load is twice what the last one took, within these; the
	// first has none to go by.
	leaseMin   = 250 * time.Millisecond
	leaseMax   = 5 * time.Second
	leaseFirst = 2 * time.Second

	// followFor is how long a call that has nothing to serve waits for another
	// replica's load, before it makes one of its own. That replica may be dead.
	followFor = time.Second
	pollFirst = 10 * time.Millisecond
	pollMax   = 50 * time.Millisecond

	// yield is how long a call that another replica refreshes for is left alone.
	yield = 200 * time.Millisecond

	// sameAnswer is within what time two copies of one answer seem to have been
	// made, for the ways that they took.
	sameAnswer = 250 * time.Millisecond

	// How long nothing is written to a Redis that takes no writes.
	fullFor = 10 * time.Second
	offFor  = 2 * time.Second

	// tellEvery is how often that is logged while it lasts.
	tellEvery = time.Minute
)

// backend is what a Redis is to this package; tests have one without a network.
type backend interface {
	// read returns the value and how much of its life is left, below 0 if that
	// is not known, and the generation. What isn't there is empty. A lease that
	// isn't empty is first tried to be taken.
	read(ctx context.Context, key Key, lease string, life time.Duration) (reading, error)
	generation(ctx context.Context, function string) (string, error)
	write(ctx context.Context, key Key, value []byte, life, age time.Duration, gen string) error
	remove(ctx context.Context, key Key) error
	release(ctx context.Context, key Key, lease string) error
	purge(ctx context.Context, function, gen string) error
	publish(ctx context.Context, message string) error
	// listen gives messages to f until the context ends or something breaks.
	listen(ctx context.Context, f func(message string)) error
	ping(ctx context.Context) error
	close() error
}

// reading is what a backend knows of a key.
type reading struct {
	value []byte
	left  time.Duration
	gen   string
	won   bool // the lease
}

// shared is the layer in the Redis.
type shared struct {
	c       *Cache
	redis   backend
	breaker *breaker
	queue   chan job
	off     atomic.Int64 // until when nothing is written, in unix nanoseconds
	told    atomic.Int64 // when that was last logged
}

// job is a write that waits: of an item, or only of its lease's end.
type job struct {
	key    Key
	item   *item // nil only to release, or to remove
	life   time.Duration
	lease  string // empty for none
	remove bool
}

// lease is the right to load a key for all replicas. It is no lock: if it is
// lost, there is one load more.
type lease struct {
	s     *shared
	key   Key
	token string
}

// release gives the lease back, later. It does nothing on nil.
func (l *lease) release() {
	if l != nil {
		l.s.enqueue(job{key: l.key, lease: l.token})
	}
}

func newShared(c *Cache, b backend) *shared {
	return &shared{
		c: c, redis: b, queue: make(chan job, writeQueue),
		breaker: &breaker{
			probe: b.ping, spawn: c.spawn, ctx: c.ctx, now: c.cfg.Now, logger: c.cfg.Logger, wait: probeWait,
		},
	}
}

// start begins to write and to listen.
func (s *shared) start() {
	s.c.spawn(s.writeLoop)
	s.c.spawn(s.listenLoop)
}

func (s *shared) close() error { return s.redis.close() }

// failed notes what came of a command, and says whether it failed. An end of the
// context that is not the command's own deadline is nobody's fault.
func (s *shared) failed(ctx context.Context, err error) bool {
	f := classify(err)
	if f == noFault {
		return false
	}
	if s.c.ctx.Err() != nil || errors.Is(ctx.Err(), context.Canceled) {
		return true
	}
	s.c.metrics.faults[f].Add(1)
	switch f {
	case full, other:
		s.readOnlyFor(fullFor, f, err)
	case readOnly:
		s.readOnlyFor(offFor, f, err)
	case denied:
		if redis.IsPermissionError(err) { // to write, say
			s.readOnlyFor(fullFor, f, err)
			break
		}
		s.breaker.trip(err)
	default:
		s.breaker.trip(err)
	}
	return true
}

// readOnlyFor writes nothing for a while. The server answers, so that reading
// costs no more than ever.
func (s *shared) readOnlyFor(d time.Duration, f fault, err error) {
	now := s.c.cfg.Now()
	s.off.Store(now.Add(d).UnixNano())
	if last := s.told.Load(); now.UnixNano()-last > int64(tellEvery) && s.told.CompareAndSwap(last, now.UnixNano()) {
		s.c.cfg.Logger.Warn("the shared cache's Redis takes no answers", "kind", f, "err", err)
	}
}

// writable says whether the Redis takes writes, as far as is known.
func (s *shared) writable() bool {
	return s.breaker.closed() && s.c.cfg.Now().UnixNano() >= s.off.Load()
}

// fromShared returns the answer if the Redis has it or another replica gets it;
// else the load is this call's to make, with the lease if it could be had.
func (c *Cache) fromShared(f *flight) (*Result, *lease) {
	s := c.shared
	if !s.breaker.closed() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(f.ctx, RedisBudget)
	defer cancel()
	r, err := s.redis.read(ctx, f.key, "", 0)
	if s.failed(ctx, err) {
		return nil, nil
	}
	if result := c.adopt(f, r); result != nil {
		return result, nil
	}
	if !s.writable() {
		return nil, nil
	}
	life := leaseFirst
	if have := f.have.Load(); have != nil {
		life = min(max(2*have.delta, leaseMin), leaseMax)
	}
	token := hex.EncodeToString(binary64(rand.Uint64()))
	until := c.cfg.Now().Add(min(life, followFor))
	for pause := pollFirst; ; pause = min(2*pause, pollMax) {
		// The lease and what there is now, in one go: who had the lease may just
		// have written.
		r, err := s.redis.read(ctx, f.key, token, life)
		if s.failed(ctx, err) {
			return nil, nil
		}
		held := &lease{s, f.key, token}
		if result := c.adopt(f, r); result != nil {
			if r.won {
				held.release()
			}
			return result, nil
		}
		if r.won {
			return nil, held
		}
		now := c.cfg.Now()
		if have := f.have.Load(); have != nil {
			if p, age, ttl := have.phase(f.times, now); p != expired {
				// Another replica refreshes it: what there is will do until then.
				c.memory.annotate(f.key, mark{until: now.Add(yield)}, f.gen)
				return &Result{Entry: have.entry, Key: f.key, Source: While, Age: age, TTL: ttl}, nil
			}
		}
		if !now.Before(until) {
			return nil, nil
		}
		select {
		case <-f.ctx.Done():
			return nil, nil
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(f.ctx, RedisBudget)
		defer cancel() // some twenty of them at most
	}
}

func binary64(n uint64) []byte {
	return []byte{byte(n >> 56), byte(n >> 48), byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// adopt takes over what was read, and returns the answer if that can be served
// now.
func (c *Cache) adopt(f *flight, r reading) *Result {
	now := c.cfg.Now()
	fn := c.memory.function(f.key.function)
	fn.looked.Store(now.UnixNano())
	f.gen = fn.set(r.gen)
	if have := f.have.Load(); have != nil && have.gen != f.gen {
		f.have.Store(nil) // purged
	}
	if len(r.value) == 0 {
		return nil
	}
	e, err := decode(f.key, r.value, c.cfg.MaxEntry)
	if err != nil {
		c.metrics.corrupt.Add(1)
		c.shared.enqueue(job{key: f.key, remove: true})
		c.cfg.Logger.Debug("a cached answer is broken", "key", f.key, "err", err)
		return nil
	}
	if e.gen != r.gen {
		return nil
	}
	it := &item{entry: e.entry, since: now.Add(-e.ageNow(r.left, now)), delta: e.delta, jitter: e.jitter, fn: fn, gen: f.gen}
	have := f.have.Load()
	if e.gone {
		if have != nil && have.since.Before(it.since) {
			f.have.Store(nil)
			c.memory.forget(f.key)
		}
		return nil
	}
	if have != nil && it.since.Sub(have.since) < sameAnswer {
		return nil
	}
	it = c.memory.put(f.key, it)
	f.have.Store(it)
	p, age, ttl := it.phase(f.times, now)
	result := &Result{Entry: it.entry, Key: f.key, Age: age, TTL: ttl, Shared: true}
	switch {
	case p == fresh:
		result.Source = Hit
	case p == while && !f.behind:
		result.Source = While
	default:
		return nil
	}
	return result
}

// ageNow is how old the answer is: its age when it was written, and how long it
// has been in the Redis. The clocks of the writer and of this machine are asked
// only if the Redis doesn't say, and then not for less than nothing.
func (e *envelope) ageNow(left time.Duration, now time.Time) time.Duration {
	if left < 0 {
		return min(e.age+max(now.Sub(e.written), 0), maxLife)
	}
	return e.age + max(e.life-left, 0)
}

// write queues an item to be written, and the end of its lease.
func (s *shared) write(key Key, it *item, t Times, held *lease) {
	j := job{key: key, item: it, life: it.lifeFor(t)}
	if held != nil {
		j.lease = held.token
	}
	s.enqueue(j)
}

// lifeFor is how long from its making the item is of any use.
func (it *item) lifeFor(t Times) time.Duration {
	if it.entry.negative() {
		return t.Negative
	}
	return min(it.freshFor(t)+max(t.While, t.IfError, 0), maxLife)
}

// enqueue queues a job. If the queue is full, its oldest is dropped: what is
// newest is what will be asked for.
func (s *shared) enqueue(j job) {
	if !s.writable() {
		if j.item != nil {
			s.c.metrics.dropped.Add(1)
		}
		return
	}
	for {
		select {
		case s.queue <- j:
			return
		default:
		}
		select {
		case old := <-s.queue:
			if old.item != nil {
				s.c.metrics.dropped.Add(1)
			}
		default:
		}
	}
}

// writeLoop does the jobs.
func (s *shared) writeLoop() {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // fails for unknown levels only
	for {
		select {
		case <-s.c.ctx.Done():
			return
		case j := <-s.queue:
			s.do(j, z)
		}
	}
}

func (s *shared) do(j job, z *gzip.Writer) {
	if !s.writable() {
		if j.item != nil {
			s.c.metrics.dropped.Add(1)
		}
		return
	}
	ctx, cancel := context.WithTimeout(s.c.ctx, writeTimeout)
	defer cancel()
	if j.remove {
		s.failed(ctx, s.redis.remove(ctx, j.key))
	}
	if it := j.item; it != nil {
		now := s.c.cfg.Now()
		e := envelope{
			entry: it.entry, age: max(now.Sub(it.since), 0), written: now,
			delta: it.delta, jitter: it.jitter, gen: *it.gen,
		}
		if e.life = j.life - e.age; e.life >= time.Millisecond {
			if s.failed(ctx, s.redis.write(ctx, j.key, e.encode(j.key, z), e.life, e.age, e.gen)) {
				s.c.metrics.dropped.Add(1)
				return
			}
		}
	}
	if j.lease != "" {
		s.failed(ctx, s.redis.release(ctx, j.key, j.lease))
	}
}

// look reads a function's generation behind the scenes, if that was not done of
// late.
func (s *shared) look(fn *function, now time.Time) {
	last := fn.looked.Load()
	if now.UnixNano()-last < int64(lookEvery) || !s.breaker.closed() || !fn.looked.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	s.c.spawn(func() {
		ctx, cancel := context.WithTimeout(s.c.ctx, RedisBudget)
		defer cancel()
		if gen, err := s.redis.generation(ctx, fn.name); !s.failed(ctx, err) {
			fn.set(gen)
		}
	})
}

// errDown is what purges get while the Redis is given time to recover.
var errDown = errors.New("it can't be reached")

// purge makes token the function's generation, and tells the others.
func (s *shared) purge(ctx context.Context, function, token string) error {
	if !s.breaker.closed() {
		return errDown
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := s.redis.purge(ctx, function, token)
	if s.failed(ctx, err) {
		return err
	}
	s.failed(ctx, s.redis.publish(ctx, "function "+token+" "+function))
	return nil
}

// purgeKey puts a tombstone where the answer was, which is younger than what
// others have or are about to write.
func (s *shared) purgeKey(ctx context.Context, key Key) error {
	if !s.breaker.closed() {
		return errDown
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	gen, err := s.redis.generation(ctx, key.function)
	if s.failed(ctx, err) {
		return err
	}
	e := envelope{gone: true, life: maxLife, written: s.c.cfg.Now(), gen: gen}
	err = s.redis.write(ctx, key, e.encode(key, nil), e.life, 0, gen)
	if s.failed(ctx, err) {
		return err
	}
	s.failed(ctx, s.redis.publish(ctx, "key "+key.String()))
	return nil
}

// heard obeys another replica's message.
func (s *shared) heard(message string) {
	switch kind, rest, _ := strings.Cut(message, " "); kind {
	case "function":
		if token, name, ok := strings.Cut(rest, " "); ok && len(token) <= 64 {
			s.c.memory.heard(name, token)
		}
	case "key":
		if key, err := ParseKey(rest); err == nil {
			s.c.forget(key)
		}
	}
}

// listenLoop hears of purges while the Redis is there.
func (s *shared) listenLoop() {
	for s.c.ctx.Err() == nil {
		if s.breaker.closed() {
			if err := s.redis.listen(s.c.ctx, s.heard); err != nil && s.c.ctx.Err() == nil {
				s.c.cfg.Logger.Debug("the shared cache's messages broke off", "err", err)
			}
		}
		select {
		case <-s.c.ctx.Done():
		case <-time.After(time.Second + rand.N(time.Second)):
		}
	}
}
