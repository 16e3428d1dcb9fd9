package stale_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func openFake(t *testing.T, f *stale.Fake, skew time.Duration) *stale.Cache {
	t.Helper()
	c, err := stale.OpenFake(stale.Config{
		Logger: logger(t),
		Now:    func() time.Time { return time.Now().Add(skew) },
	}, f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSharedAges is that replicas agree on an answer's age, whatever their
// clocks say.
func TestSharedAges(t *testing.T) {
	for _, skew := range []time.Duration{0, time.Hour, -time.Hour, 5 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				redis := new(stale.Fake)
				a, b := openFake(t, redis, 0), openFake(t, redis, skew)
				defer a.Close()
				defer b.Close()
				key, o := stale.NewKey("f", "1", "a"), &origin{entry: stale.Entry{Age: 3 * time.Second}}
				call(t, a, key, minute, o, stale.Miss, "1")
				synctest.Wait()
				time.Sleep(20 * time.Second)
				r := call(t, b, key, minute, o, stale.Hit, "1")
				if !r.Shared || r.Age != 23*time.Second {
					t.Errorf("the other replica's answer has the age %v (shared %v), want 23s", r.Age, r.Shared)
				}
				time.Sleep(10 * time.Second)
				if r = call(t, b, key, minute, o, stale.Hit, "1"); r.Age != 33*time.Second {
					t.Errorf("ten seconds later it is %v old, want 33s", r.Age)
				}
				// A stale answer of the one is the other's, too.
				o.fail(errGone)
				time.Sleep(10 * time.Minute)
				if r = call(t, b, key, minute, o, stale.Failed, "1"); r.Age != 10*time.Minute+33*time.Second {
					t.Errorf("ten minutes later it is %v old, want 10m33s", r.Age)
				}
				synctest.Wait() // until the lease of the failed load is given back
				fresh := openFake(t, redis, skew)
				defer fresh.Close()
				call(t, fresh, key, minute, o, stale.Failed, "1")
				// What one refreshes is newer for all, whoever's clock is ahead.
				o.heal()
				time.Sleep(10 * time.Second)
				n := o.calls.Load()
				call(t, b, key, minute, o, stale.Miss, fmt.Sprint(n+1))
				synctest.Wait()
				if r = call(t, a, key, minute, o, stale.Hit, fmt.Sprint(n+1)); r.Age != 3*time.Second {
					t.Errorf("the refreshed answer is %v old, want 3s", r.Age)
				}
			})
		})
	}
}

// TestOlderIsNotWritten is that a slow load doesn't replace what a quicker one
// that began later has written.
func TestOlderIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a, b := openFake(t, redis, 0), openFake(t, redis, 0)
		defer a.Close()
		defer b.Close()
		key := stale.NewKey("f", "1", "a")
		young, old := &origin{}, &origin{entry: stale.Entry{Age: 30 * time.Second}}
		call(t, a, key, minute, young, stale.Miss, "1")
		synctest.Wait()
		// b misses what a has, since its Redis was away, and gets an older answer.
		redis.Fail(context.DeadlineExceeded)
		call(t, b, key, minute, old, stale.Miss, "1")
		redis.Fail(nil)
		time.Sleep(time.Minute)
		if n := redis.Writes(); n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
	})
}

func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a, b := openFake(t, redis, 0), openFake(t, redis, 0)
		defer a.Close()
		defer b.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: 500 * time.Millisecond}
		var wg sync.WaitGroup
		start := time.Now()
		var longest atomic.Int64
		for i := range 1000 {
			wg.Go(func() {
				c := a
				if i%2 == 1 {
					c = b
				}
				if _, err := c.Do(t.Context(), key, minute, o.load); err != nil {
					t.Error(err)
				}
				longest.Store(int64(time.Since(start)))
			})
		}
		wg.Wait()
		if n := o.calls.Load(); n != 1 {
			t.Errorf("%d loads for 1000 callers of two replicas, want 1", n)
		}
		if d := time.Duration(longest.Load()); d > 600*time.Millisecond {
			t.Errorf("the last had its answer after %v, want at most 600ms", d)
		}
		// While one refreshes, the other serves what there is, at once.
		time.Sleep(3 * time.Minute)
		go func() { _, _ = a.Do(t.Context(), key, minute, o.load) }()
		synctest.Wait()
		start = time.Now()
		call(t, b, key, minute, o, stale.While, "1")
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("the other replica took %v", took)
		}
		time.Sleep(time.Second)
		call(t, b, key, minute, o, stale.Hit, "2")
		if n := o.calls.Load(); n != 2 {
			t.Errorf("%d loads, want 2", n)
		}
	})
}

// TestLeaseOfTheDead is that who has a lease and dies delays the others by a
// second at most.
func TestLeaseOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a, b := openFake(t, redis, 0), openFake(t, redis, 0)
		defer b.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{takes: time.Hour}
		go func() { _, _ = a.Do(t.Context(), key, minute, o.load) }()
		synctest.Wait()
		_ = a.Close() // its lease is not given back: nothing is written any more
		start := time.Now()
		call(t, b, key, minute, new(origin), stale.Miss, "1")
		if took := time.Since(start); took > 1100*time.Millisecond {
			t.Errorf("the call took %v, want about 1s", took)
		}
	})
}

func TestCorrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a := openFake(t, redis, 0)
		defer a.Close()
		key, o := stale.NewKey("f", "1", "a"), new(origin)
		call(t, a, key, minute, o, stale.Miss, "1")
		synctest.Wait()
		n := int64(1)
		for bit := 0; bit < 8*60; bit += 7 {
			redis.Flip(key, bit)
			b := openFake(t, redis, 0)
			n++
			call(t, b, key, minute, o, stale.Miss, fmt.Sprint(n))
			synctest.Wait()
			_ = b.Close()
			c := openFake(t, redis, 0)
			if r := call(t, c, key, minute, o, stale.Hit, fmt.Sprint(n)); !r.Shared {
				t.Error("the broken value was not replaced")
			}
			_ = c.Close()
		}
	})
}

func TestSharedPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a, b := openFake(t, redis, 0), openFake(t, redis, 0)
		defer a.Close()
		defer b.Close()
		key, o := stale.NewKey("f", "1", "a"), new(origin)
		both := func(source stale.Source, body string) {
			t.Helper()
			call(t, a, key, minute, o, source, body)
			synctest.Wait()
			call(t, b, key, minute, o, stale.Hit, body)
			synctest.Wait()
		}
		both(stale.Miss, "1")
		if err := a.Purge(t.Context(), "f"); err != nil {
			t.Fatal(err)
		}
		// The message is lost, but the next call looks.
		time.Sleep(time.Second)
		call(t, b, key, minute, o, stale.Hit, "1")
		synctest.Wait()
		call(t, b, key, minute, o, stale.Miss, "2")
		synctest.Wait()
		call(t, a, key, minute, o, stale.Hit, "2")

		if err := a.PurgeKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		call(t, a, key, minute, o, stale.Miss, "3")
		synctest.Wait()
		time.Sleep(70 * time.Second) // b's own is no longer fresh
		call(t, b, key, minute, o, stale.While, "2")
		synctest.Wait()
		if r, err := b.Do(t.Context(), key, minute, o.load); err != nil || string(r.Body) == "2" {
			t.Errorf("the purged answer is still served (%v)", err)
		}

		// A purge that the Redis did not hear of is an error that says so.
		redis.Fail(errors.New("down"))
		if err := a.Purge(t.Context(), "f"); err == nil {
			t.Error("Purge() = nil although the Redis failed")
		}
		if err := a.PurgeKey(t.Context(), key); err == nil {
			t.Error("PurgeKey() = nil although the Redis failed")
		}
	})
}

// TestTombstone is that a key that was purged while its answer was loaded stays
// purged.
func TestTombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := new(stale.Fake)
		a, b := openFake(t, redis, 0), openFake(t, redis, 0)
		defer a.Close()
		defer b.Close()
		key, o := stale.NewKey("f", "1", "a"), new(origin)
		call(t, a, key, minute, o, stale.Miss, "1")
		synctest.Wait()
		time.Sleep(90 * time.Second)
		if err := b.PurgeKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		o.fail(errGone)
		call(t, a, key, minute, o, stale.While, "1") // behind which it hears
		synctest.Wait()
		time.Sleep(time.Second)
		if r, err := a.Do(t.Context(), key, minute, o.load); !errors.Is(err, errGone) {
			t.Errorf("Do() = %v, %v: the purged answer lives on", r, err)
		}
	})
}

// TestWritesAreBounded is that no call waits for a write, and that of those that
// queue up the newest are kept.
func TestWritesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis, reg := new(stale.Fake), prometheus.NewRegistry()
		a, err := stale.OpenFake(stale.Config{Logger: logger(t), Registerer: reg}, redis)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		done := redis.Slow()
		key := func(i int) stale.Key { return stale.NewKey("f", "1", fmt.Sprint(i)) }
		start := time.Now()
		const n = 1000
		for i := range n {
			call(t, a, key(i), minute, new(origin), stale.Miss, "1")
			synctest.Wait()
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("calls took %v while the Redis wrote nothing", took)
		}
		close(done)
		synctest.Wait()
		if w := redis.Writes(); w != 257 || !redis.Has(key(n-1)) || redis.Has(key(n-300)) {
			t.Errorf("%d writes, the newest %v, an old one %v; want 257, the newest and not the old one", w, redis.Has(key(n-1)), redis.Has(key(n-300)))
		}
		if d := metric(t, reg, "thicket_cache_dropped_writes_total"); d != n-257 {
			t.Errorf("%v writes are counted as dropped, want %d", d, n-257)
		}
	})
}

// TestBreaker is that a Redis that fails is not asked by callers until it
// answers a probe, that those come ever more slowly, and that it is back soon
// after it heals.
func TestBreaker(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, redis.ErrPoolTimeout, errors.New("LOADING Redis is loading the dataset in memory"), errors.New("connection refused")} {
		t.Run(err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				redis := new(stale.Fake)
				a := openFake(t, redis, 0)
				defer a.Close()
				n := 0
				ask := func() stale.Result {
					t.Helper()
					n++
					r, err := a.Do(t.Context(), stale.NewKey("f", "1", fmt.Sprint(n)), minute, new(origin).load)
					if err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					return r
				}
				ask()
				if w := redis.Writes(); w != 1 {
					t.Fatalf("%d writes, want 1", w)
				}
				redis.Fail(err)
				for range 50 {
					ask()
					time.Sleep(time.Second)
				}
				redis.Fail(nil)
				healed := time.Now()
				for redis.Writes() == 1 && time.Since(healed) < time.Minute {
					ask()
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(healed); took > 6*time.Second {
					t.Errorf("it took %v to have the Redis back, want at most 6s", took)
				}
			})
		})
	}
}
