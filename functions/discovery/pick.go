package discovery

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
)

// learnt is what calling a replica has taught.
type learnt struct {
	inFlight atomic.Int64
}

func newLearnt() *learnt { return &learnt{} }

// pick returns the replica that a call is to go to, or nil if none can take it.
// Those that were tried are not tried again.
func (v *view) pick(to *destination, tried []*learnt) *target {
	all := v.routes[to.name]
	i := balance.Pick(len(all),
		func(i int) int64 { return all[i].inFlight.Load() },
		func(i int) bool {
			return slices.Contains(tried, all[i].learnt) || all[i].Limit > 0 && all[i].inFlight.Load() >= int64(all[i].Limit)
		})
	if i < 0 {
		return nil
	}
	return all[i]
}

// begin counts a call in.
func (to *target) begin(time.Time) { to.inFlight.Add(1) }

// learn takes note of what an attempt has said about the replica, as soon as that
// is known.
func (to *target) learn(now time.Time, took time.Duration, v resilience.Verdict) {}

// finish counts a call out.
func (to *target) finish() { to.inFlight.Add(-1) }
