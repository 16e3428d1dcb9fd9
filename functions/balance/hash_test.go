package balance_test

import (
	"fmt"
	"testing"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// homes returns where each of many keys goes, by the members' ids.
func homes(p *pool, ids []string, view *balance.View) []string {
	to := make([]string, 3000)
	for k := range to {
		i := view.Pick(p.now, mixed(uint64(k)+1), nil)
		to[k] = ids[i]
	}
	return to
}

// TestConsistentHash holds that a key goes to the same replica each time and by
// every gateway, that hardly any moves when replicas come and go, and that a
// popular one drowns nobody.
func TestConsistentHash(t *testing.T) {
	const rule, n = "consistent-hash header=X", 5
	p, other := newPool(t, rule, n, nil), newPool(t, rule, n, nil)
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("replica-%d", i))
	}
	before := homes(p, ids, p.view)
	if got := homes(other, ids, other.view); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Error("two gateways send keys to different replicas")
	}
	got := map[string]int{}
	for _, id := range before {
		got[id]++
	}
	for id, k := range got {
		if k < len(before)/n*8/10 || k > len(before)/n*12/10 {
			t.Errorf("%s has %d of %d keys", id, k, len(before))
		}
	}
	// The second goes, and another order says nothing.
	fewer := p.b.View([]*balance.Member{p.members[4], p.members[3], p.members[2], p.members[0]})
	for k, id := range homes(p, []string{ids[4], ids[3], ids[2], ids[0]}, fewer) {
		if before[k] != ids[1] && before[k] != id {
			t.Fatalf("key %d moves from %s to %s since %s went", k, before[k], id, ids[1])
		}
	}
	// Who was tried is passed over for the same other one each time.
	key := mixed(1)
	home := p.view.Pick(p.now, key, nil)
	second := p.view.Pick(p.now, key, func(i int) bool { return i == home })
	p.stubs[home].look.InFlight = 1
	if i := p.view.Pick(p.now, key, nil); i != home {
		t.Errorf("with one call in flight Pick() = %d, want %d", i, home)
	}
	p.stubs[home].look.InFlight = 2
	if i := p.view.Pick(p.now, key, nil); i != second {
		t.Errorf("of one key that has all calls the next goes to %d, want %d", i, second)
	}
	for _, s := range p.stubs {
		s.look.InFlight = 2
	}
	if i := p.view.Pick(p.now, key, nil); i != home {
		t.Errorf("with all as busy Pick() = %d, want %d", i, home)
	}
}

// TestMovesOnce holds that a key which goes over to a replica that is warming up
// stays there.
func TestMovesOnce(t *testing.T) {
	places := make([]balance.Place, 3)
	places[0] = balance.Place{ID: "new", Since: start.Add(3600e9)}
	p := newPoolAt(t, "consistent-hash query=q", places, nil)
	moved, last := make([]bool, 3000), 0
	for range 16 {
		n := 0
		for k := range moved {
			there := p.view.Pick(p.now, mixed(uint64(k)+1), nil) == 0
			if moved[k] && !there {
				t.Fatalf("key %d is back", k)
			}
			if moved[k] = there; there {
				n++
			}
		}
		if n < last {
			t.Errorf("%d keys are there, and %d were a second ago", n, last)
		}
		last = n
		p.now = p.now.Add(1e9)
	}
	if last < 900 || last > 1100 {
		t.Errorf("%d of 3000 keys are there in the end, want a third", last)
	}
}
