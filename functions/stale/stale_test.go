package stale_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func open(t testing.TB, cfg stale.Config) *stale.Cache {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = logger(t)
	}
	c, err := stale.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// origin is what is behind a cache: it answers with the number of the call.
type origin struct {
	calls atomic.Int64
	err   atomic.Pointer[error]
	takes time.Duration
	entry stale.Entry // but for its body
}

func (o *origin) fail(err error) { o.err.Store(&err) }
func (o *origin) heal()          { o.err.Store(nil) }

func (o *origin) load(ctx context.Context) (stale.Entry, error) {
	n := o.calls.Add(1)
	if o.takes > 0 {
		select {
		case <-ctx.Done():
			return stale.Entry{}, context.Cause(ctx)
		case <-time.After(o.takes):
		}
	}
	if err := o.err.Load(); err != nil {
		return stale.Entry{}, *err
	}
	e := o.entry
	e.Body = fmt.Append(nil, n)
	return e, nil
}

// call is one call and what must come of it.
func call(t *testing.T, c *stale.Cache, key stale.Key, times stale.Times, o *origin, source stale.Source, body string) stale.Result {
	t.Helper()
	r, err := c.Do(t.Context(), key, times, o.load)
	if err != nil {
		t.Fatalf("Do() = %v, want %v %q", err, source, body)
	}
	if r.Source != source || string(r.Body) != body {
		t.Fatalf("Do() = %v %q (age %v), want %v %q", r.Source, r.Body, r.Age, source, body)
	}
	return r
}

var (
	minute  = stale.Times{Fresh: time.Minute, While: time.Minute, IfError: time.Hour, Negative: 10 * time.Second}
	errGone = errors.New("the origin is gone")
)

func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), new(origin)

		r := call(t, c, key, minute, o, stale.Miss, "1")
		if !r.Stored || r.Age != 0 || r.TTL < 54*time.Second || r.TTL > 66*time.Second {
			t.Errorf("the first answer is %+v, want one stored and fresh for a minute, give or take a tenth", r)
		}
		time.Sleep(40 * time.Second)
		if r = call(t, c, key, minute, o, stale.Hit, "1"); r.Age != 40*time.Second {
			t.Errorf("age %v, want 40s", r.Age)
		}
		time.Sleep(30 * time.Second)
		if r = call(t, c, key, minute, o, stale.While, "1"); r.Age != 70*time.Second || r.TTL > -time.Second {
			t.Errorf("age %v, ttl %v, want 70s and about -10s", r.Age, r.TTL)
		}
		synctest.Wait() // the refresh
		call(t, c, key, minute, o, stale.Hit, "2")

		// Later than stale-while-revalidate, the origin is asked first.
		time.Sleep(3 * time.Minute)
		call(t, c, key, minute, o, stale.Miss, "3")
		o.fail(errGone)
		time.Sleep(3 * time.Minute)
		if r = call(t, c, key, minute, o, stale.Failed, "3"); !errors.Is(r.Err, errGone) || r.Age != 3*time.Minute {
			t.Errorf("the stale answer says %v and %v, want %v and 3m", r.Err, r.Age, errGone)
		}
		// A failed origin is left alone for a second.
		before := o.calls.Load()
		call(t, c, key, minute, o, stale.Failed, "3")
		if n := o.calls.Load(); n != before {
			t.Errorf("%d calls right after one that failed", n-before)
		}
		time.Sleep(time.Second)
		call(t, c, key, minute, o, stale.Failed, "3")
		if n := o.calls.Load(); n != before+1 {
			t.Errorf("%d calls a second after one that failed, want 1", n-before)
		}
		// When it is too old for anything, the error is the caller's.
		time.Sleep(2 * time.Hour)
		for range 2 {
			if r, err := c.Do(t.Context(), key, minute, o.load); !errors.Is(err, errGone) {
				t.Errorf("Do() = %v, %v, want %v", r, err, errGone)
			}
		}
		if n := o.calls.Load(); n != before+2 {
			t.Errorf("%d calls, want one more for two callers", n-before)
		}
		time.Sleep(time.Second)
		o.heal()
		call(t, c, key, minute, o, stale.Miss, fmt.Sprint(before+3))
	})
}

func TestNegative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{entry: stale.Entry{Status: http.StatusNotFound}}
		call(t, c, key, minute, o, stale.Miss, "1")
		time.Sleep(9 * time.Second)
		call(t, c, key, minute, o, stale.Hit, "1")
		time.Sleep(2 * time.Second)
		call(t, c, key, minute, o, stale.Miss, "2")
		o.fail(errGone)
		time.Sleep(11 * time.Second)
		if _, err := c.Do(t.Context(), key, minute, o.load); !errors.Is(err, errGone) {
			t.Errorf("Do() = %v, want %v: that nothing is there is not served for long", err, errGone)
		}
		none := minute
		none.Negative = 0
		if r := call(t, c, stale.NewKey("f", "1", "b"), none, &origin{entry: o.entry}, stale.Miss, "1"); r.Stored {
			t.Error("a negative answer was stored without a time for it")
		}
	})
}

func TestUpstreamAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{entry: stale.Entry{Age: 50 * time.Second}}
		if r := call(t, c, key, minute, o, stale.Miss, "1"); r.Age != 50*time.Second {
			t.Errorf("age %v, want what it was", r.Age)
		}
		time.Sleep(17 * time.Second)
		if r := call(t, c, key, minute, o, stale.While, "1"); r.Age != 67*time.Second {
			t.Errorf("age %v, want 67s", r.Age)
		}
		// What the answer says itself may only shorten.
		short := &origin{entry: stale.Entry{Fresh: 10 * time.Second}}
		key = stale.NewKey("f", "1", "b")
		if r := call(t, c, key, minute, short, stale.Miss, "1"); r.TTL > 11*time.Second {
			t.Errorf("fresh for %v, want 10s", r.TTL)
		}
		long := &origin{entry: stale.Entry{Fresh: time.Hour}}
		if r := call(t, c, stale.NewKey("f", "1", "c"), minute, long, stale.Miss, "1"); r.TTL > 66*time.Second {
			t.Errorf("fresh for %v, want 1m", r.TTL)
		}
	})
}

// TestSpread is that keys stored together are refreshed apart, and that nobody
// waits for a key that is in use.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		const keys = 200
		o := &origin{takes: 2 * time.Second}
		var wg sync.WaitGroup
		key := func(i int) stale.Key { return stale.NewKey("f", "1", fmt.Sprint(i)) }
		for i := range keys {
			wg.Go(func() { _, _ = c.Do(t.Context(), key(i), minute, o.load) })
		}
		wg.Wait()
		perSecond := make(map[int]int64)
		for s := range 62 {
			before := o.calls.Load()
			for i := range keys {
				r, err := c.Do(t.Context(), key(i), minute, o.load)
				if err != nil || r.Source != stale.Hit && r.Source != stale.While {
					t.Fatalf("after %d s: %v %v", s, r.Source, err)
				}
			}
			synctest.Wait()
			perSecond[s] = o.calls.Load() - before
			time.Sleep(time.Second)
		}
		var most, busy int64
		for _, n := range perSecond {
			if most = max(most, n); n > 0 {
				busy++
			}
		}
		if most > keys/3 || busy < 5 {
			t.Errorf("refreshes came in %d seconds, at most %d in one, want them spread", busy, most)
		}
	})
}

func TestCollapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: time.Second}
		ctx, leave := context.WithCancel(t.Context())
		go func() { _, _ = c.Do(ctx, key, minute, o.load) }()
		synctest.Wait()
		var collapsed atomic.Int64
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				r, err := c.Do(t.Context(), key, minute, o.load)
				if err != nil {
					t.Error(err)
				}
				if r.Collapsed {
					collapsed.Add(1)
				}
			})
		}
		synctest.Wait()
		leave() // who began it leaves; the others don't notice
		wg.Wait()
		if n, k := o.calls.Load(), collapsed.Load(); n != 1 || k != 1000 {
			t.Errorf("%d calls, %d collapsed, want 1 and 1000", n, k)
		}
	})
}

func TestAllLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: time.Hour}
		ctx, leave := context.WithCancelCause(t.Context())
		errLeft := errors.New("left")
		ended := make(chan error, 1)
		load := func(ctx context.Context) (stale.Entry, error) {
			e, err := o.load(ctx)
			ended <- err
			return e, err
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := c.Do(ctx, key, minute, load); !errors.Is(err, errLeft) {
					t.Errorf("Do() = %v, want %v", err, errLeft)
				}
			})
		}
		synctest.Wait()
		leave(errLeft)
		wg.Wait()
		synctest.Wait()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the load ended well")
			}
		default:
			t.Error("the load goes on although nobody waits for it")
		}
		// Nobody's leaving is a failure of the origin.
		o.takes = 0
		call(t, c, key, minute, o, stale.Miss, "2")
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), new(origin)
		call(t, c, key, minute, o, stale.Miss, "1")
		time.Sleep(10 * time.Minute)
		o.takes = time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := c.Do(ctx, key, minute, o.load)
		if err != nil || r.Source != stale.Failed || !errors.Is(r.Err, context.DeadlineExceeded) {
			t.Errorf("Do() = %v, %v, want the stale answer when the caller's time is up", r, err)
		}
	})
}

func TestPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: time.Second, entry: stale.Entry{Private: true}}
		var mu sync.Mutex
		seen := make(map[string]bool)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				r, err := c.Do(t.Context(), key, minute, o.load)
				if err != nil || r.Stored {
					t.Errorf("Do() = %+v, %v, want an answer that is not stored", r, err)
				}
				mu.Lock()
				seen[string(r.Body)] = true
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(seen) != 10 {
			t.Errorf("10 callers got %d answers: what is private was shared", len(seen))
		}
		// For a while nobody queues up for what can't be shared.
		start := time.Now()
		for range 2 {
			wg.Go(func() { _, _ = c.Do(t.Context(), key, minute, o.load) })
		}
		wg.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("two callers took %v, want both 1s", took)
		}
	})
}

func TestLoadPanics(t *testing.T) {
	c := open(t, stale.Config{})
	_, err := c.Do(t.Context(), stale.NewKey("f", "1"), minute, func(context.Context) (stale.Entry, error) { panic("oh") })
	if err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("Do() = %v, want the panic as an error", err)
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: time.Hour}
		done := make(chan error)
		go func() {
			_, err := c.Do(t.Context(), key, minute, o.load)
			done <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, stale.ErrClosed) {
			t.Errorf("Do() = %v, want %v", err, stale.ErrClosed)
		}
		if _, err := c.Do(t.Context(), key, minute, o.load); !errors.Is(err, stale.ErrClosed) {
			t.Errorf("Do() = %v, want %v", err, stale.ErrClosed)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPurge(t *testing.T) {
	c := open(t, stale.Config{})
	o := new(origin)
	a, b, other := stale.NewKey("f", "1", "a"), stale.NewKey("f", "1", "b"), stale.NewKey("g", "1", "a")
	for i, k := range []stale.Key{a, b, other} {
		call(t, c, k, minute, o, stale.Miss, fmt.Sprint(i+1))
	}
	if err := c.PurgeKey(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	call(t, c, a, minute, o, stale.Miss, "4")
	call(t, c, b, minute, o, stale.Hit, "2")
	if err := c.Purge(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	call(t, c, b, minute, o, stale.Miss, "5")
	call(t, c, a, minute, o, stale.Miss, "6")
	call(t, c, other, minute, o, stale.Hit, "3")
	// What was loading when it was purged is not kept, and who calls after the
	// purge doesn't wait for it.
	n := o.calls.Load()
	for name, purge := range map[string]func(stale.Key) error{
		"function": func(stale.Key) error { return c.Purge(t.Context(), "f") },
		"key":      func(k stale.Key) error { return c.PurgeKey(t.Context(), k) },
	} {
		k := stale.NewKey("f", "1", name)
		begun, end, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			_, _ = c.Do(t.Context(), k, minute, func(context.Context) (stale.Entry, error) {
				close(begun)
				<-end
				return stale.Entry{Body: []byte("old")}, nil
			})
		}()
		<-begun
		if err := purge(k); err != nil {
			t.Fatal(err)
		}
		n++
		call(t, c, k, minute, o, stale.Miss, fmt.Sprint(n))
		close(end)
		<-done
		call(t, c, k, minute, o, stale.Hit, fmt.Sprint(n))
	}
}

func TestMemoryIsBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := open(t, stale.Config{Memory: 1 << 20, Registerer: reg})
	for i := range 2000 {
		_, err := c.Do(t.Context(), stale.NewKey("f", "1", fmt.Sprint(i)), minute, func(context.Context) (stale.Entry, error) {
			return stale.Entry{Body: make([]byte, 10<<10)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	weight := func() float64 { return metric(t, reg, "thicket_cache_memory_bytes") }
	// Eviction goes on behind the scenes.
	waitFor(t, "the memory to be within its bound", func() bool { w := weight(); return w > 0 && w <= 1<<20 })

	too := func(context.Context) (stale.Entry, error) { return stale.Entry{Body: make([]byte, 256<<10+1)}, nil }
	if r, err := c.Do(t.Context(), stale.NewKey("f", "1", "large"), minute, too); err != nil || r.Stored {
		t.Errorf("an answer above the limit was stored (%v)", err)
	}
	if n := metric(t, reg, "thicket_cache_requests_total"); n != 2001 {
		t.Errorf("%v calls were counted, want 2001", n)
	}
}

// metric returns the sum of what is gathered under a name.
func metric(t testing.TB, g prometheus.Gatherer, name string) (sum float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// waitFor waits for a condition of the world outside of bubbles.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(time.Duration(1+rand.IntN(5)) * time.Millisecond)
	}
}

func TestKeys(t *testing.T) {
	a := stale.NewKey("f.openfaas-fn", "sha256:1", "GET", "/x")
	for name, b := range map[string]stale.Key{
		"function": stale.NewKey("g.openfaas-fn", "sha256:1", "GET", "/x"),
		"revision": stale.NewKey("f.openfaas-fn", "sha256:2", "GET", "/x"),
		"part":     stale.NewKey("f.openfaas-fn", "sha256:1", "GET", "/y"),
		"border":   stale.NewKey("f.openfaas-fn", "sha256:1", "GET/", "x"),
	} {
		if a == b {
			t.Errorf("keys of another %s are the same", name)
		}
	}
	if b, err := stale.ParseKey(a.String()); err != nil || a != b {
		t.Errorf("ParseKey(%q) = %v, %v", a, b, err)
	}
	for _, s := range []string{"", ":", "f", "f:", "f:12", ":" + strings.Repeat("0", 32), "f:" + strings.Repeat("g", 32), "f:" + strings.Repeat("0", 33)} {
		if k, err := stale.ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", s, k)
		}
	}
}
