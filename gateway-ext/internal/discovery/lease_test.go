package discovery_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
)

// TestDecide holds the rules. Times are seconds: 1000 is now.
func TestDecide(t *testing.T) {
	type holder = discovery.Holder
	type verdict = discovery.Verdict
	at := func(second float64) time.Time { return time.Unix(0, int64(second*1e9)) }
	now := at(1000)
	// A node: suspect after 2.5 s of silence, gone after 7.
	node := func(name byte, heard float64, change ...func(*holder)) holder {
		h := holder{
			Kind: "node", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, name}), 80),
			Suspect: 2500 * time.Millisecond, Gone: 7 * time.Second, Opened: at(900), Heard: at(heard),
		}
		if heard < 997.5 {
			h.Suspected = true
		}
		for _, c := range change {
			c(&h)
		}
		return h
	}
	dead := func(h *holder) { h.Asked, h.Failed, h.FailedAt = at(999), 2, at(997) }
	alive := func(h *holder) { h.Asked, h.Answered = at(999.5), true }
	probing := func(h *holder) { h.Probing, h.Asked = true, at(999) }
	turns := func(seconds ...float64) func(*holder) {
		return func(h *holder) {
			for i, s := range seconds {
				h.Turns[i] = at(s)
			}
		}
	}
	restored := func(opened float64) func(*holder) {
		return func(h *holder) { h.Heard, h.Opened, h.Suspected = time.Time{}, at(opened), true }
	}
	repeat := func(n int, h func(i byte) holder) (all []holder) {
		for i := range n {
			all = append(all, h(byte(i)))
		}
		return all
	}
	ok, suspect := verdict{}, verdict{Suspect: true}
	ask := verdict{Suspect: true, Probe: true}
	frozen := verdict{Suspect: true, Frozen: true}
	const (
		deadWhy   = "its source is silent, and its address doesn't answer"
		takenWhy  = "its source is silent, and another is heard at its address"
		noAskWhy  = "its source is silent, and can't be asked"
		never     = 0
		noMatter  = -1
		afterHalf = 1000.5
	)
	gone := func(why string) verdict { return verdict{Suspect: true, Remove: why} }

	for _, tt := range []struct {
		name string
		all  []holder
		want []verdict // of the first ones
		next float64
	}{
		{"nobody", nil, nil, never},
		{"heard just now", []holder{node(1, 1000)}, []verdict{ok}, 1002.5},
		{"a heartbeat late", []holder{node(1, 998)}, []verdict{ok}, afterHalf},
		{"silent", []holder{node(1, 997.5)}, []verdict{ask}, 1004.5},
		{"silent, being asked", []holder{node(1, 997, probing)}, []verdict{suspect}, 1004},
		{"silent, asked in vain a moment ago", []holder{node(1, 996, dead)}, []verdict{suspect}, 1003},
		{"silent, and answers: asked again after a second", []holder{node(1, 996, alive)}, []verdict{suspect}, afterHalf},
		{"over, and no answer", []holder{node(1, 993, dead)}, []verdict{gone(deadWhy)}, noMatter},
		{"over, and one answer is missing", []holder{node(1, 993, dead, func(h *holder) { h.Failed = 1 })}, []verdict{suspect}, 1001},
		{"over, never asked", []holder{node(1, 993)}, []verdict{ask}, noMatter},
		{"over, being asked", []holder{node(1, 993, probing)}, []verdict{suspect}, never},
		{"over for an hour, and answers", []holder{node(1, 100, alive)}, []verdict{suspect}, afterHalf},
		{"over, and can't be asked", []holder{node(1, 993, func(h *holder) { h.Addr = netip.AddrPort{} })}, []verdict{gone(noAskWhy)}, never},
		{"silent, and can't be asked", []holder{node(1, 995, func(h *holder) { h.Addr = netip.AddrPort{} })}, []verdict{suspect}, 1002},
		{"over, and another lives there now", []holder{
			node(1, 993, alive), node(1, 1000), node(2, 1000), node(3, 1000),
		}, []verdict{gone(takenWhy), ok}, noMatter},

		{"back", []holder{node(1, 1000, func(h *holder) { h.Suspected = true })}, []verdict{ok}, 1002.5},
		{"back twice in a minute", []holder{
			node(1, 1000, func(h *holder) { h.Suspected = true }, turns(990, 980)),
		}, []verdict{ok}, 1002.5},
		{"back three times in a minute: it has to be calm", []holder{
			node(1, 1000, func(h *holder) { h.Suspected = true }, turns(990, 980, 970)),
		}, []verdict{suspect}, 1002.5},
		{"the first of these is a minute ago", []holder{
			node(1, 1000, func(h *holder) { h.Suspected = true }, turns(990, 980, 940)),
		}, []verdict{ok}, 1002.5},
		{"it was suspect often, and isn't", []holder{node(1, 1000, turns(990, 980, 970))}, []verdict{ok}, 1002.5},

		{"known from before, a moment after the start", []holder{node(1, 0, restored(999.9))}, []verdict{ask}, noMatter},
		{"known from before, dead, 6 s after the start", []holder{node(1, 0, restored(994), dead)}, []verdict{suspect}, 1001},
		{"known from before, dead, 7 s after the start", []holder{node(1, 0, restored(993), dead)}, []verdict{gone(deadWhy)}, noMatter},
		{"known from before, with a long lease: ten seconds", []holder{
			node(1, 0, restored(990), dead, func(h *holder) { h.Gone = time.Hour }),
		}, []verdict{gone(deadWhy)}, noMatter},
		{"known from before, and answers", []holder{node(1, 0, restored(900), alive)}, []verdict{suspect}, afterHalf},

		{"two of seven, one answers: not many", append([]holder{node(1, 990, dead), node(2, 990, alive)},
			repeat(5, func(i byte) holder { return node(10+i, 1000) })...), []verdict{gone(deadWhy), suspect}, noMatter},
		{"three of seven, two answer: frozen", append([]holder{node(1, 990, dead), node(2, 990, alive), node(3, 990, alive)},
			repeat(4, func(i byte) holder { return node(10+i, 1000) })...), []verdict{frozen, suspect, suspect}, noMatter},
		{"three of seven, nobody answers: they are dead", append([]holder{node(1, 990, dead), node(2, 990, dead), node(3, 990, dead)},
			repeat(4, func(i byte) holder { return node(10+i, 1000) })...), []verdict{gone(deadWhy), gone(deadWhy), gone(deadWhy)}, noMatter},
		{"three of seven, one of them answers: two are dead", append([]holder{node(1, 990, dead), node(2, 990, dead), node(3, 990, alive)},
			repeat(4, func(i byte) holder { return node(10+i, 1000) })...), []verdict{gone(deadWhy), gone(deadWhy), suspect}, noMatter},
		{"two of three, one answers: frozen", []holder{node(1, 990, dead), node(2, 990, alive), node(3, 1000)},
			[]verdict{frozen, suspect, ok}, noMatter},
		{"frozen, but asked in vain for a minute", []holder{
			node(1, 900, dead, func(h *holder) { h.FailedAt = at(940) }), node(2, 990, alive), node(3, 1000),
		}, []verdict{gone(deadWhy)}, noMatter},
		{"the freeze is of one kind", []holder{
			node(1, 990, dead, func(h *holder) { h.Kind = "eureka" }), node(2, 990, alive), node(3, 990, alive), node(4, 1000),
		}, []verdict{gone(deadWhy)}, noMatter},
		{"all of a hundred silent, all answer: nobody goes", repeat(100, func(i byte) holder { return node(i, 900, alive) }),
			repeatVerdict(100, suspect), afterHalf},
		{"one of one", []holder{node(1, 990, dead)}, []verdict{gone(deadWhy)}, noMatter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, next := discovery.Decide(tt.all, now)
			if len(got) != len(tt.all) {
				t.Fatalf("%d verdicts for %d", len(got), len(tt.all))
			}
			for i, want := range tt.want {
				if got[i] != want {
					t.Errorf("verdict %d = %+v, want %+v", i, got[i], want)
				}
			}
			switch {
			case tt.next == noMatter:
			case tt.next == never:
				if !next.IsZero() {
					t.Errorf("decides again at %v, want never", next.Sub(now))
				}
			case !next.Equal(at(tt.next)):
				t.Errorf("decides again in %v, want %v", next.Sub(now), at(tt.next).Sub(now))
			}
			if !next.IsZero() && !next.After(now) {
				t.Errorf("decides again at once: that is a loop")
			}
		})
	}
}

func repeatVerdict(n int, v discovery.Verdict) (all []discovery.Verdict) {
	for range n {
		all = append(all, v)
	}
	return all
}
