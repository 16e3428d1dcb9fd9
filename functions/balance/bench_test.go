package balance_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// counted is a replica as a caller has it: it only counts.
type counted struct{ inFlight atomic.Int64 }

func (c *counted) Look(time.Time) balance.Look { return balance.Look{InFlight: c.inFlight.Load()} }

func warmPool(t testing.TB, rule string, n int) (*balance.Balancer, []*counted, []*balance.Member) {
	r, err := balance.Parse(rule)
	if err != nil {
		t.Fatal(err)
	}
	b := balance.New(balance.Config{Rule: r}, start)
	var replicas []*counted
	var members []*balance.Member
	for i := range n {
		c := &counted{}
		replicas = append(replicas, c)
		members = append(members, b.Member(c, balance.Place{ID: fmt.Sprint(i)}))
	}
	return b, replicas, members
}

// BenchmarkPick is what a call pays for: a pick, and to tell what came of it.
func BenchmarkPick(b *testing.B) {
	for _, rule := range rules {
		for _, n := range []int{1, 3, 7, 50} {
			b.Run(fmt.Sprintf("%s/%d", rule, n), func(b *testing.B) {
				pool, _, members := warmPool(b, rule, n)
				view := pool.View(members)
				now := start
				b.ReportAllocs()
				for b.Loop() {
					now = now.Add(50 * time.Microsecond)
					members[view.Pick(now, 42, nil)].Done(now, 10*time.Millisecond, balance.Good)
				}
			})
		}
	}
}

// BenchmarkPickTogether is the same by all processors at once.
func BenchmarkPickTogether(b *testing.B) {
	pool, _, members := warmPool(b, "p2c", 7)
	view := pool.View(members)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		now := start
		for pb.Next() {
			now = now.Add(50 * time.Microsecond)
			members[view.Pick(now, 0, nil)].Done(now, 10*time.Millisecond, balance.Good)
		}
	})
}

// TestTogether has many goroutines pick and tell at once, while replicas come and
// go and somebody looks: for the race detector, and for what must hold even so.
func TestTogether(t *testing.T) {
	for _, rule := range rules {
		pool, replicas, members := warmPool(t, rule, 7)
		var view atomic.Pointer[balance.View]
		view.Store(pool.View(members))
		var callers sync.WaitGroup
		var picked atomic.Int64
		for g := range 8 {
			callers.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(g)))
				now := start
				for range 2000 {
					now = now.Add(time.Duration(random.IntN(int(5 * time.Millisecond))))
					v := view.Load()
					i := v.Pick(now, random.Uint64(), func(i int) bool { return i == 2 })
					if i < 0 || i == 2 || i >= v.Len() {
						t.Errorf("%s: Pick() = %d of %d, and 2 is skipped", rule, i, v.Len())
						return
					}
					picked.Add(1)
					replicas[i].inFlight.Add(1)
					o := balance.Good
					if i == 1 {
						o = balance.Failed
					}
					members[i].Done(now, time.Duration(random.IntN(1e7)), o)
					replicas[i].inFlight.Add(-1)
				}
			})
		}
		for n := range 100 {
			view.Store(pool.View(members[:4+n%4]))
			for _, m := range members {
				if s := m.State(start.Add(time.Duration(n) * time.Second)); s.Weight < 0 || s.Weight > 1 || s.Latency < 0 {
					t.Errorf("%s: %+v", rule, s)
				}
			}
		}
		callers.Wait()
		if picked.Load() != 8*2000 {
			t.Errorf("%s: %d picks", rule, picked.Load())
		}
	}
}
