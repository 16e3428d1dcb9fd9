// Package stale keeps the last good answers, so that what is behind it may be
// slow or down: in process first, then in a Redis that all replicas share.
//
// [Cache.Do] decides for every call whether what is kept is served, refreshed
// behind the caller's back, or replaced; [Times] says for how long each. The
// [Result] says which it was and how old the answer is, also as the headers Age
// and Cache-Status (RFC 9211).
//
// What it promises:
//
//   - A dependency that is down costs freshness and nothing else. That goes for
//     the Redis too: whether it is dead, frozen, black-holed, full, read-only,
//     loading or replaced, no call fails for it, and none takes more than
//     [RedisBudget] longer; after the first that failed none takes any longer,
//     until a probe behind the scenes is answered.
//   - Of many callers of one key one calls the origin: in the process always,
//     over all replicas while there is a Redis.
//   - What a caller waits for is never a write. Answers are written to the Redis
//     from a bounded queue that drops its oldest.
//   - Nobody's clock is believed: an answer's age is what it was when it was
//     written, the time it spent in the Redis by the Redis's own count, and the
//     time it spent here by the monotonic clock.
//   - What comes back from the Redis is checked. What is broken, of another
//     version or too large is a miss, and is counted.
//   - Everything that a stranger can make grow has a bound.
//
// The two layers are one [Cache], since they age, collapse and forget together.
// What an answer is, and what may be kept of it, is left to the caller; for
// answers of HTTP, [KeyFor], [Storable] and [ReadResponse] hold the rules.
package stale

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a [Cache] needs to know.
type Config struct {
	// RedisURL is where the shared layer is; Redis and Valkey are the same here.
	// Empty keeps answers in this process only. With one, go-redis's own log, of
	// which a process has only one, is silenced.
	//
	//	redis://[user:password@]host[:6379][/db]          one server
	//	unix://[user:password@]/run/redis.sock[?db=0]     the same, on this machine
	//	redis+sentinel://[user:password@]master@host1[:26379],host2,host3[/db]
	//	redis+cluster://[user:password@]host1[:6379],host2
	//	rediss://, rediss+sentinel://, rediss+cluster://  the same with TLS
	RedisURL string

	// Namespace is what all keys in the Redis begin with, for who shares it with
	// others. Default "thicket".
	Namespace string

	// Memory bounds the layer in process, in bytes. Default 16 MiB, which is
	// right for a Raspberry Pi; more keeps more keys warm when the Redis is down.
	Memory int64

	// MaxEntry is the largest answer that is kept, in bytes of headers and body.
	// Default 256 KiB. Larger ones would push many small ones out.
	MaxEntry int

	// Now is the clock. Default [time.Now]. Without a monotonic reading, ages
	// jump with the clock.
	Now func() time.Time

	// Registerer takes the metrics. Nil registers none.
	Registerer prometheus.Registerer

	// Logger is told when the Redis goes and comes back. Required.
	Logger *slog.Logger
}

const (
	defaultMemory   = 16 << 20
	defaultMaxEntry = 256 << 10

	// maxLife bounds how long anything is kept, whatever its Times say.
	maxLife = 7 * 24 * time.Hour

	// defaultLoad is how long a load may take for which Times don't say.
	defaultLoad = time.Minute

	// passFor is how long it is remembered that a key's answers are for one
	// caller each, so that callers don't queue up for what they can't share.
	passFor = 10 * time.Second

	// maxRefreshes bounds the loads that no caller waits for. Beyond it, stale
	// answers are served without one.
	maxRefreshes = 64
)

// Times says for how long an answer is served in which way, counted from when
// the origin made it. Those that are 0 or less don't occur.
type Times struct {
	// Fresh is how long an answer is served without a call, give or take a tenth,
	// so that keys that were stored together don't expire together.
	Fresh time.Duration

	// While is how long after that it is served at once, while it is refreshed
	// behind the caller's back (stale-while-revalidate).
	While time.Duration

	// IfError is how long after Fresh it is served if a call failed
	// (stale-if-error).
	IfError time.Duration

	// Negative is Fresh for the answers 404 and 410, which are served for no
	// longer than that. It stops storms for what isn't there.
	Negative time.Duration

	// Errors is how long after a failed load there is no other one for the key:
	// callers get the stale answer or else the same error. Only this process
	// remembers it. Default 1 s; negative makes every caller try.
	Errors time.Duration

	// Load is the most that a load may take. Default 1 minute. It is not the
	// caller's own deadline, since who calls next may have more time.
	Load time.Duration
}

// Entry is an answer. Whoever has one must not change it: it is shared.
type Entry struct {
	// Status is that of an answer of HTTP; 0 if it is none.
	Status int

	// Header are the answer's, as they are to be sent again.
	Header http.Header

	// Body is the answer itself.
	Body []byte

	// Age is how old the answer was when load returned it: the header Age of a
	// cache further on.
	Age time.Duration

	// Fresh shortens [Times.Fresh], as Cache-Control's max-age does, if it is
	// above 0.
	Fresh time.Duration

	// Private says that the answer is for one caller only: it is not stored, and
	// who waited for the same key makes a call of its own.
	Private bool
}

// negative says whether the answer is that there is none.
func (e *Entry) negative() bool {
	return e.Status == http.StatusNotFound || e.Status == http.StatusGone
}

// size is what an entry counts against bounds.
func (e *Entry) size() int {
	n := len(e.Body)
	for k, vs := range e.Header {
		for _, v := range vs {
			n += len(k) + len(v) + 4
		}
	}
	return n
}

// Source says where a [Result] is from.
type Source int

const (
	Miss   Source = iota // a load made for this call, or one of the same time
	Hit                  // kept, and fresh
	While                // kept, a little too old, and being refreshed
	Failed               // kept, too old, and the load failed: Result.Err says how
	Passed               // a load made for this caller alone, and not kept
)

// String returns a word for logs and metrics.
func (s Source) String() string {
	return [...]string{"miss", "hit", "stale_while_revalidate", "stale_if_error", "pass"}[s]
}

// Stale says whether the answer is older than it should be.
func (s Source) Stale() bool { return s == While || s == Failed }

// Result is an answer and how it was got.
type Result struct {
	Entry
	Key    Key
	Source Source

	// Age is how old the answer is, from when the origin made it.
	Age time.Duration

	// TTL is how much longer it is fresh; below 0 it has not been for that long.
	TTL time.Duration

	// Shared says that it is from the Redis, Collapsed that another call's load
	// was waited for, Stored that it was kept.
	Shared, Collapsed, Stored bool

	// Err is why the answer is stale, if its Source is Failed.
	Err error
}

// ErrClosed is what calls of a closed cache get that need a load.
var ErrClosed = errors.New("the cache is closed")

// errAbandoned ends a load that nobody waits for any more.
var errAbandoned = errors.New("all callers left")

// Load gets an answer from the origin. It runs apart from the caller that asked
// for it, with that caller's context's values and a deadline of its own, and is
// cancelled when all callers have left; what must live on after it returned
// needs a context of its own. An error means that the origin failed: the answer
// is then a stale one, if there is one.
type Load = func(context.Context) (Entry, error)

// Cache is made by [Open] and safe for concurrent use.
type Cache struct {
	cfg     Config
	memory  *memory
	shared  *shared // nil without a Redis
	metrics *metrics

	mu        sync.Mutex // guards below
	flights   map[Key]*flight
	refreshes int // flights that nobody waits for, those that begin so
	closed    bool
	work      sync.WaitGroup // Add only while not closed
	ctx       context.Context
	cancel    context.CancelCauseFunc
}

// Open returns a cache. It fails on a wrong setting, not on a Redis that can't
// be reached.
func Open(cfg Config) (*Cache, error) {
	if cfg.Logger == nil {
		return nil, errors.New("stale: Config.Logger is nil")
	}
	cfg.Namespace = cmp.Or(cfg.Namespace, "thicket")
	if strings.ContainsAny(cfg.Namespace, "{} \r\n") {
		return nil, fmt.Errorf("the cache's namespace %.40q has a brace or a space in it: use letters, digits and ':'", cfg.Namespace)
	}
	cfg.Memory = cmp.Or(max(cfg.Memory, 0), defaultMemory)
	cfg.MaxEntry = cmp.Or(max(cfg.MaxEntry, 0), defaultMaxEntry)
	if cfg.MaxEntry > 64<<20 {
		return nil, fmt.Errorf("the largest cached answer is set to %d bytes: at most %d can be kept", cfg.MaxEntry, 64<<20)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	var b backend
	if cfg.RedisURL != "" {
		store, err := newRedis(cfg.RedisURL, cfg.Namespace, envelopeLimit(cfg.MaxEntry))
		if err != nil {
			return nil, err
		}
		b = store
	}
	return open(cfg, b)
}

// open is [Open] with complete settings, over a backend or nil.
func open(cfg Config, b backend) (*Cache, error) {
	c := &Cache{cfg: cfg, flights: make(map[Key]*flight)}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.memory = newMemory(cfg.Memory, c.spawn)
	if b != nil {
		c.shared = newShared(c, b)
	}
	c.metrics = newMetrics(c)
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(c.metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("register the cache's metrics: %w", err), c.Close())
		}
	}
	if c.shared != nil {
		c.shared.start()
	}
	return c, nil
}

// Close ends the loads that run, and waits for them and for what the cache does
// behind the scenes. Writes that wait for the Redis are dropped.
func (c *Cache) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	var err error
	if c.shared != nil && !closed {
		err = c.shared.close()
	}
	c.work.Wait()
	if c.cfg.Registerer != nil && c.metrics != nil && !closed {
		c.cfg.Registerer.Unregister(c.metrics)
	}
	return err
}

// spawn runs f apart, and Close waits for it. It does nothing once the cache is
// closed, and says so.
func (c *Cache) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

// Do returns the answer for the key: what is kept, as t allows, or else what load
// gets. The error is load's, or the context's.
func (c *Cache) Do(ctx context.Context, key Key, t Times, load Load) (Result, error) {
	r, err := c.do(ctx, key, t, load)
	c.metrics.count(r, err)
	return r, err
}

func (c *Cache) do(ctx context.Context, key Key, t Times, load Load) (Result, error) {
	now := c.cfg.Now()
	it := c.memory.get(key)
	var have *item // what may be served if all else fails
	if it != nil {
		m := it.mark.Load()
		if m != nil && !now.Before(m.until) {
			m = nil
		}
		switch phase, age, ttl := it.phase(t, now); {
		case it.state == kept && phase == fresh:
			if c.shared != nil {
				c.shared.look(it.fn, now)
			}
			if m == nil && it.early(t, age) {
				c.refresh(ctx, key, t, load, it)
			}
			return Result{Entry: it.entry, Key: key, Source: Hit, Age: age, TTL: ttl}, nil
		case it.state == kept && phase == while:
			if m == nil {
				c.refresh(ctx, key, t, load, it)
			}
			return Result{Entry: it.entry, Key: key, Source: While, Age: age, TTL: ttl}, nil
		case it.state == kept && phase == ifError:
			have = it
		}
		if m != nil {
			switch {
			case m.pass:
				return c.pass(ctx, key, t, load)
			case have != nil && m.err == nil:
				_, age, ttl := have.phase(t, now)
				return Result{Entry: have.entry, Key: key, Source: While, Age: age, TTL: ttl}, nil
			case have != nil:
				return have.failed(key, t, now, m.err), nil
			case m.err != nil:
				return Result{Key: key, Err: m.err}, m.err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return Result{Key: key, Err: err}, context.Cause(ctx)
	}
	f, first := c.join(ctx, key, t, load, have)
	if f == nil {
		return c.fallback(key, t, have, ErrClosed)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		c.leave(f)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return c.fallback(key, t, cmp.Or(f.have.Load(), have), context.Cause(ctx))
		}
		return Result{Key: key, Err: ctx.Err()}, context.Cause(ctx)
	}
	r, err := f.result, f.err
	if !first {
		if r.Private {
			return c.pass(ctx, key, t, load)
		}
		r.Collapsed = r.Source == Miss
	}
	return r, err
}

// fallback returns what is kept, or else the error.
func (c *Cache) fallback(key Key, t Times, have *item, err error) (Result, error) {
	if have != nil && have.state == kept {
		now := c.cfg.Now()
		if phase, _, _ := have.phase(t, now); phase != expired {
			return have.failed(key, t, now, err), nil
		}
	}
	return Result{Key: key, Err: err}, err
}

// pass calls the origin for one caller alone.
func (c *Cache) pass(ctx context.Context, key Key, t Times, load Load) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(max(t.Load, 0), defaultLoad))
	defer cancel()
	e, err := call(ctx, load)
	if err != nil {
		return c.fallback(key, t, c.memory.get(key), err)
	}
	return Result{Entry: e, Key: key, Source: Passed, Age: e.Age}, nil
}

// call makes a load's panic an error: it happens on a goroutine where nobody
// would recover it.
func call(ctx context.Context, load Load) (e Entry, err error) {
	defer func() {
		if p := recover(); p != nil {
			e, err = Entry{}, fmt.Errorf("load panicked: %v", p)
		}
	}()
	return load(ctx)
}

// Purge forgets all answers of a function, here and in the Redis; other replicas
// hear of it at once or, if that message is lost, within a second of their next
// call. An error says that the Redis could not be told, so that only this
// process has forgotten.
func (c *Cache) Purge(ctx context.Context, function string) error {
	token := fmt.Sprintf("%016x", rand.Uint64())
	c.memory.function(function).set(token)
	if c.shared == nil {
		return nil
	}
	if err := c.shared.purge(ctx, function, token); err != nil {
		return fmt.Errorf("purge %s in the Redis: %w: this process has forgotten, the others have not", function, err)
	}
	return nil
}

// PurgeKey forgets one answer. Other replicas hear of it at once or, if that
// message is lost, when what they have is no longer fresh.
func (c *Cache) PurgeKey(ctx context.Context, key Key) error {
	c.forget(key)
	if c.shared == nil {
		return nil
	}
	if err := c.shared.purgeKey(ctx, key); err != nil {
		return fmt.Errorf("purge %s in the Redis: %w: this process has forgotten, the others have not", key, err)
	}
	return nil
}

// forget forgets a key here, and what is being loaded for it.
func (c *Cache) forget(key Key) {
	c.mu.Lock()
	if f := c.flights[key]; f != nil {
		f.purged.Store(true)
		delete(c.flights, key)
	}
	c.mu.Unlock()
	c.memory.forget(key)
}

// phase is what an answer's age allows.
type phase int

const (
	fresh phase = iota
	while
	ifError
	expired
)

// phase says what may be done with the item now, how old it is, and how much
// longer it is fresh.
func (it *item) phase(t Times, now time.Time) (phase, time.Duration, time.Duration) {
	age := max(now.Sub(it.since), 0)
	if it.entry.negative() {
		ttl := t.Negative - age
		if ttl > 0 {
			return fresh, age, ttl
		}
		return expired, age, ttl
	}
	f := it.freshFor(t)
	ttl := f - age
	switch {
	case ttl > 0:
		return fresh, age, ttl
	case age >= maxLife:
		return expired, age, ttl
	case -ttl < t.While:
		return while, age, ttl
	case -ttl < t.IfError:
		return ifError, age, ttl
	}
	return expired, age, ttl
}

// freshFor is how long the item is fresh: what t says, with the item's own
// jitter, and not longer than the answer itself says.
func (it *item) freshFor(t Times) time.Duration {
	f := t.Fresh
	if it.entry.Fresh > 0 {
		f = min(f, it.entry.Fresh)
	}
	return f + f/1000*time.Duration(it.jitter)
}

// early decides whether a fresh item is refreshed before its time, the likelier
// the nearer the end and the slower the origin: with an exponentially
// distributed head start of the load's own duration on average (XFetch, Vattani
// et al. 2015, beta 1), of many callers over all replicas about one does it,
// and nobody ever waits. Only the last fifth is considered, so that a hit costs
// no logarithm.
func (it *item) early(t Times, age time.Duration) bool {
	f := it.freshFor(t)
	if age < f/5*4 || it.entry.negative() {
		return false
	}
	head := float64(it.delta) * -math.Log(1-rand.Float64())
	return float64(age)+head >= float64(f)
}

// failed is the result of serving the item because of err.
func (it *item) failed(key Key, t Times, now time.Time, err error) Result {
	_, age, ttl := it.phase(t, now)
	return Result{Entry: it.entry, Key: key, Source: Failed, Age: age, TTL: ttl, Err: err}
}
