package balance_test

import (
	"slices"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// TestClaims holds what docs/balancing.md says of the rules in words. The margins
// are wide enough for another seed, and too narrow for another rule.
func TestClaims(t *testing.T) {
	onlyWithoutRace(t)
	for seed := range uint64(3) {
		for _, n := range []int{3, 7} {
			run := func(rule string, what trouble, e balance.Eject) result {
				return simulate(setup{rule: rule, replicas: n, trouble: what, eject: e, seed: seed})
			}
			fair := 1 / float64(n)
			turns, def := run("round-robin", slow, balance.EjectNone), run("p2c", slow, balance.EjectNone)
			if def.p99*10 > turns.p99 {
				t.Errorf("seed %d, %d replicas, one slow: p99 %v by default and %v with round-robin, want a tenth", seed, n, def.p99, turns.p99)
			}
			if def.shares[0] > fair/10 {
				t.Errorf("seed %d, %d replicas: the slow one got %.1f%% by default, want a tenth of its share", seed, n, 100*def.shares[0])
			}

			if r := run("p2c", failsFast, balance.EjectNone); r.failures > fair/10 {
				t.Errorf("seed %d, %d replicas: %.1f%% failed by default with one that fails fast, want a tenth of its share", seed, n, 100*r.failures)
			}
			if r := run("least-requests", failsFast, balance.EjectNone); r.failures < fair {
				t.Errorf("seed %d, %d replicas: %.1f%% failed with least-requests: to fail fast attracted nobody, and nothing is shown", seed, n, 100*r.failures)
			}
			for _, rule := range rules {
				if n > 3 || seed > 0 {
					break // they have shown it
				}
				if r := run(rule, failsFast, balance.EjectOutliers); r.failures > fair/20 {
					t.Errorf("seed %d, %d replicas, %s: %.1f%% failed with ejection, want a twentieth of its share", seed, n, rule, 100*r.failures)
				}
				// Who fails some calls is no worse for the others than before, and is left out.
				if r := run(rule, someErrors, balance.EjectByRate); r.shares[0] > fair/2 {
					t.Errorf("seed %d, %d replicas, %s: who fails 3 of 10 got %.1f%%, want half its share", seed, n, rule, 100*r.shares[0])
				}
				well := run(rule, noTrouble, balance.EjectOutliers)
				if r := slices.Min(well.shares); r < fair/2 {
					t.Errorf("seed %d, %d replicas, %s: with all well one got %.1f%%, which is less than half its share", seed, n, rule, 100*r)
				}
				if well.failures > 0 || well.refused > 0 {
					t.Errorf("seed %d, %d replicas, %s: %.1f%% failed, %d refused with all well", seed, n, rule, 100*well.failures, well.refused)
				}
				began := run(rule, justBegan, balance.EjectOutliers)
				if r := slices.Min(began.later); r < fair/2 {
					t.Errorf("seed %d, %d replicas, %s: 20 s after one began, one got %.1f%%, which is less than half its share", seed, n, rule, 100*r)
				}
				if r := run(rule, isSuspect, balance.EjectNone); r.shares[0] > fair/2 || r.shares[0] < fair/10 {
					t.Errorf("seed %d, %d replicas, %s: a suspect got %.1f%%, want about a quarter of its share", seed, n, rule, 100*r.shares[0])
				}
			}
			if r := run("p2c", justBegan, balance.EjectNone); r.p99 > 150*time.Millisecond {
				t.Errorf("seed %d, %d replicas, one just started: p99 %v by default", seed, n, r.p99)
			}
		}
	}
}

// TestNeverFull holds that nobody is picked who has as many calls as it takes,
// whatever the load, and that nobody is refused while there is a place.
func TestNeverFull(t *testing.T) {
	const limit = 3
	for _, rule := range rules {
		for _, load := range []float64{0.5, 1.5} {
			r := simulate(setup{rule: rule, replicas: 3, trouble: slow, limit: limit, load: load})
			if r.most > limit {
				t.Errorf("%s: a replica had %d calls at the same time, its limit is %d", rule, r.most, limit)
			}
			if load > 1 && r.refused == 0 {
				t.Errorf("%s: nobody was refused, so nothing was full", rule)
			}
		}
	}
}
