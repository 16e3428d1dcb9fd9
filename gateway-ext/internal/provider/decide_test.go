package provider

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	later := now.Add(time.Second)
	ids := func(s ...string) []string { return s }
	for _, c := range []struct {
		name string
		view view
		want plan
	}{
		{"nothing wanted", view{Newest: generation{Runnable: true}}, plan{}},
		{"no image yet", view{Want: 3}, plan{}},
		{"first start", view{Want: 3, Newest: generation{Runnable: true}}, plan{StartNewest: 3}},
		{"enough", view{Want: 1, Newest: generation{Runnable: true, Ready: ids("a")}}, plan{}},
		{"one more", view{Want: 2, Newest: generation{Runnable: true, Starting: ids("a")}}, plan{StartNewest: 1}},
		{
			"too many: those that serve nobody first, then the youngest",
			view{Want: 1, Newest: generation{Runnable: true, Starting: ids("s"), Ready: ids("a", "b", "c")}},
			plan{Drain: ids("s", "c", "b")},
		},
		{"to sleep", view{Newest: generation{Runnable: true, Ready: ids("a", "b")}}, plan{Drain: ids("b", "a")}},
		{"not before its time", view{Want: 1, Newest: generation{Runnable: true, Retry: later}}, plan{Wake: later}},
		{"at its time", view{Want: 1, Newest: generation{Runnable: true, Retry: now}}, plan{StartNewest: 1}},
		{
			"an update of one starts one more",
			view{Want: 1, Newest: generation{Runnable: true}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{StartNewest: 1},
		},
		{
			"an update of eight starts two more",
			view{Want: 8, Newest: generation{Runnable: true}, Previous: &generation{Want: 8, Runnable: true, Ready: ids("a", "b", "c", "d", "e", "f", "g", "h")}},
			plan{StartNewest: 2},
		},
		{
			"the old goes on while the new starts",
			view{Want: 1, Newest: generation{Runnable: true, Starting: ids("n")}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{},
		},
		{
			"the old goes when the new is ready",
			view{Want: 1, Newest: generation{Runnable: true, Ready: ids("n")}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{Drain: ids("a"), Forget: true},
		},
		{
			"one for one",
			view{Want: 4, Newest: generation{Runnable: true, Ready: ids("n")}, Previous: &generation{Want: 4, Runnable: true, Ready: ids("a", "b", "c", "d")}},
			plan{StartNewest: 1, Drain: ids("a")},
		},
		{
			"the old is kept alive while the new can't start",
			view{Want: 2, Newest: generation{Runnable: true, Retry: later}, Previous: &generation{Want: 2, Runnable: true, Ready: ids("a")}},
			plan{StartPrevious: 1, Wake: later},
		},
		{
			"the old is kept alive while the new has no image",
			view{Want: 1, Previous: &generation{Want: 1, Runnable: true}},
			plan{StartPrevious: 1},
		},
		{
			"an update that also scales starts no more of the old",
			view{Want: 5, Newest: generation{Runnable: true}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{StartNewest: 5},
		},
		{
			"an update to sleep",
			view{Newest: generation{Runnable: true}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{Drain: ids("a"), Forget: true},
		},
		{
			"asleep with a bad update, the old is kept",
			view{Newest: generation{Runnable: true, Failing: true}, Previous: &generation{Want: 1, Runnable: true, Ready: ids("a")}},
			plan{Drain: ids("a")},
		},
		{
			"woken with a bad update, the old serves",
			view{Want: 1, Newest: generation{Runnable: true, Failing: true, Retry: later}, Previous: &generation{Want: 1, Runnable: true}},
			plan{StartPrevious: 1, Wake: later},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decide(c.view, now)
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("decide() = %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestDecideReachesGoal plays updates with replicas that take their time and
// sometimes crash, and holds decide to its rules at each step.
func TestDecideReachesGoal(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := 1 + r.IntN(9)
		v := view{Want: want, Newest: generation{Want: want, Runnable: true}, Previous: &generation{Want: want, Runnable: true}}
		next := 0
		id := func() string { next++; return fmt.Sprint("r", next) }
		for range want {
			v.Previous.Ready = append(v.Previous.Ready, id())
		}
		steps := 0
		for ; v.Previous != nil || len(v.Newest.Ready) != want; steps++ {
			if steps > 1000 {
				t.Fatalf("seed %d: no end: %+v", seed, v)
			}
			served := v.serving()
			p := decide(v, now)
			v.Newest.Starting = remove(v.Newest.Starting, p.Drain)
			v.Newest.Ready = remove(v.Newest.Ready, p.Drain)
			if v.Previous != nil {
				v.Previous.Starting = remove(v.Previous.Starting, p.Drain)
				v.Previous.Ready = remove(v.Previous.Ready, p.Drain)
			}
			if p.Forget {
				if v.Previous.live() > 0 {
					t.Fatalf("seed %d: forgets %+v", seed, v.Previous)
				}
				v.Previous = nil
			}
			for range p.StartNewest {
				v.Newest.Starting = append(v.Newest.Starting, id())
			}
			for range p.StartPrevious {
				v.Previous.Starting = append(v.Previous.Starting, id())
			}
			if serving := v.serving(); serving < served && serving < want {
				t.Fatalf("seed %d: drains %q, and %d of %d are left to serve", seed, p.Drain, serving, want)
			}
			live := v.Newest.live()
			if v.Previous != nil {
				live += v.Previous.live()
			}
			if live > want+surge(want) {
				t.Fatalf("seed %d: %d run for %d wanted: %+v", seed, live, want, v)
			}
			// One of those that start gets ready, and once in a while one that
			// serves crashes, old or new.
			if n := len(v.Newest.Starting); n > 0 && r.IntN(3) > 0 {
				v.Newest.Ready = append(v.Newest.Ready, v.Newest.Starting[0])
				v.Newest.Starting = v.Newest.Starting[1:]
			}
			if v.Previous != nil && len(v.Previous.Starting) > 0 && r.IntN(3) > 0 {
				v.Previous.Ready = append(v.Previous.Ready, v.Previous.Starting[0])
				v.Previous.Starting = v.Previous.Starting[1:]
			}
			if steps < 500 && len(v.Newest.Ready) > 0 && r.IntN(10) == 0 {
				v.Newest.Ready = v.Newest.Ready[1:]
			}
			if steps < 500 && v.Previous != nil && len(v.Previous.Ready) > 0 && r.IntN(10) == 0 {
				v.Previous.Ready = v.Previous.Ready[1:]
			}
		}
	}
}

// serving is how many replicas take requests.
func (v *view) serving() int {
	n := len(v.Newest.Ready)
	if v.Previous != nil {
		n += len(v.Previous.Ready)
	}
	return n
}

func remove(ids, drained []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(drained, id) })
}

func TestBackoff(t *testing.T) {
	// A crash loop of an hour, in no time: how often is it started?
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		starts := 0
		for began := time.Now(); time.Since(began) < time.Hour; {
			asked := time.Now()
			starts++
			time.Sleep(5 * time.Millisecond) // it lives as long
			b.fail(asked, time.Time{}, time.Now())
			time.Sleep(time.Until(b.until))
		}
		if starts < 120 || starts > 130 {
			t.Errorf("a crash loop of an hour starts %d times, want about one in 30s", starts)
		}
	})

	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var b backoff
	for range 10 {
		// Ten replicas, started together, die of one cause.
		b.fail(now.Add(-time.Second), now, now)
	}
	if b.failures != 1 {
		t.Errorf("ten that die together are %d failures, want 1", b.failures)
	}
	b.fail(now.Add(time.Second), time.Time{}, now.Add(2*time.Second))
	if b.failures != 2 || b.until.Sub(b.last) != 200*time.Millisecond {
		t.Errorf("the next is failure %d, waits %s; want 2, 200ms", b.failures, b.until.Sub(b.last))
	}
	b.fail(now.Add(3*time.Second), now.Add(4*time.Second), now.Add(time.Hour))
	if b.failures != 1 {
		t.Errorf("after an hour of service it is failure %d, want 1", b.failures)
	}
	for n, want := range map[int]time.Duration{0: 0, 1: 100 * time.Millisecond, 4: 800 * time.Millisecond, 9: 25600 * time.Millisecond, 10: 30 * time.Second, 1000: 30 * time.Second} {
		if got := delay(n); got != want {
			t.Errorf("delay(%d) = %s, want %s", n, got, want)
		}
	}
}
