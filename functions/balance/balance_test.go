package balance_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// start is when all tests begin. Nothing in the package has another clock.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// stub is a replica as a test wants it to look.
type stub struct{ look balance.Look }

func (s *stub) Look(time.Time) balance.Look { return s.look }

// pool is a balancer with its members.
type pool struct {
	t       testing.TB
	b       *balance.Balancer
	stubs   []*stub
	members []*balance.Member
	view    *balance.View
	now     time.Time
}

// newPool has n warm members, of which nothing is known.
func newPool(t testing.TB, rule string, n int, change func(*balance.Config)) *pool {
	t.Helper()
	return newPoolAt(t, rule, make([]balance.Place, n), change)
}

func newPoolAt(t testing.TB, rule string, places []balance.Place, change func(*balance.Config)) *pool {
	t.Helper()
	r, err := balance.Parse(rule)
	if err != nil {
		t.Fatal(err)
	}
	cfg := balance.Config{Rule: r, Random: rand.New(rand.NewPCG(1, 2)).Uint64}
	if change != nil {
		change(&cfg)
	}
	p := &pool{t: t, b: balance.New(cfg, start), now: start.Add(time.Hour)}
	for i, place := range places {
		if place.ID == "" {
			place.ID = fmt.Sprintf("replica-%d", i)
		}
		s := &stub{}
		p.stubs = append(p.stubs, s)
		p.members = append(p.members, p.b.Member(s, place))
	}
	p.view = p.b.View(p.members)
	return p
}

// learn tells of calls to all members, each with its latency.
func (p *pool) learn(latencies ...time.Duration) {
	for i, d := range latencies {
		p.members[i].Done(p.now, d, balance.Good)
	}
	p.now = p.now.Add(101 * time.Millisecond) // so that they are compared anew
}

// shares picks often, and returns how often each was picked, of 1; nobody holds
// a call meanwhile.
func (p *pool) shares(key uint64, skip func(int) bool) []float64 {
	const picks = 10_000
	got := make([]float64, len(p.members))
	for range picks {
		i := p.view.Pick(p.now, key, skip)
		if i < 0 {
			p.t.Fatal("Pick() = -1 though there are members")
		}
		got[i] += 1.0 / picks
	}
	return got
}

// want fails if shares are not about what they should be.
func (p *pool) want(what string, got []float64, want ...float64) {
	p.t.Helper()
	for i := range want {
		if d := got[i] - want[i]; d > 0.025 || d < -0.025 || want[i] == 0 && got[i] != 0 {
			p.t.Errorf("%s: shares %.3f, want %.3f", what, got, want)
			return
		}
	}
}

func Example() {
	b := balance.New(balance.Config{}, start)
	slow, quick := b.Member(&stub{}, balance.Place{ID: "a"}), b.Member(&stub{}, balance.Place{ID: "b"})
	slow.Done(start, 200*time.Millisecond, balance.Good)
	quick.Done(start, 20*time.Millisecond, balance.Good)

	view := b.View([]*balance.Member{slow, quick})
	fmt.Println(view.Pick(start, 0, nil))
	// Output: 1
}

var rules = []string{
	"p2c", "round-robin", "weighted-response-time", "least-requests", "availability-filtering", "zone-preference", "random", "consistent-hash header=X",
}

// TestPick holds what every rule promises.
func TestPick(t *testing.T) {
	const key = 0
	for _, rule := range rules {
		t.Run(rule, func(t *testing.T) {
			p := newPool(t, rule, 0, nil)
			if i := p.view.Pick(p.now, key, nil); i != -1 {
				t.Errorf("of none Pick() = %d", i)
			}
			p = newPool(t, rule, 1, nil)
			p.want("one", p.shares(key, nil), 1)
			if i := p.view.Pick(p.now, key, func(int) bool { return true }); i != -1 {
				t.Errorf("of one that is skipped Pick() = %d", i)
			}

			third := 1.0 / 3
			p = newPool(t, rule, 3, nil)
			p.want("three alike", p.shares(key, nil), third, third, third)
			p.learn(time.Second, time.Second, time.Second)
			p.want("three alike and known", p.shares(key, nil), third, third, third)
			p.want("one was tried", p.shares(key, func(i int) bool { return i == 1 }), 0.5, 0, 0.5)

			p.stubs[0].look.Full = true
			p.want("one is full", p.shares(key, nil), 0, 0.5, 0.5)
			p.want("one is full, one was tried", p.shares(key, func(i int) bool { return i == 1 }), 0, 0, 1)
			p.stubs[1].look.Out = true
			p.want("one is full, one is out", p.shares(key, nil), 0, 0, 1)
			p.stubs[2].look.Full = true
			if i := p.view.Pick(p.now, key, nil); i != -1 {
				t.Errorf("of three that are full or out Pick() = %d", i)
			}

			p = newPool(t, rule, 3, nil)
			p.stubs[0].look.Suspect = true
			// It takes part in a quarter of the picks; what it would have got else is
			// the others', or where they take turns, shared by all.
			if s := p.shares(key, nil); s[0] < 0.06 || s[0] > 0.13 || s[1] < 0.42 || s[2] < 0.42 {
				t.Errorf("one is suspect: shares %.3f", s)
			}
			p.stubs[1].look.Out, p.stubs[2].look.Out = true, true
			p.want("all others are out", p.shares(key, nil), 1, 0, 0)
		})
	}
}

// TestRelief holds that a replica is spared while it is new, but not so much that
// its only sibling is given all when its calls pile up: it may have just died.
func TestRelief(t *testing.T) {
	for _, tt := range []struct {
		name        string
		old         int64 // calls in flight at the one that isn't new
		least, most float64
	}{
		{"nothing to do", 0, 0.05, 0.15},
		{"something to do", 5, 0.05, 0.15},
		{"piled up", 30, 0.99, 1.01},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPoolAt(t, "p2c", []balance.Place{{}, {Since: start.Add(time.Hour)}}, nil)
			p.learn(10*time.Millisecond, 10*time.Millisecond)
			p.stubs[0].look.InFlight = tt.old
			if s := p.shares(0, nil); s[1] < tt.least || s[1] > tt.most {
				t.Errorf("with %d calls in flight at the other, the new one's share is %.3f, want %.2f to %.2f", tt.old, s[1], tt.least, tt.most)
			}
		})
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, rule := range rules {
		p := newPool(t, rule, 7, nil)
		p.view.Pick(p.now, 0, nil) // the first comparison makes room
		ill := 3
		n := testing.AllocsPerRun(1000, func() {
			p.now = p.now.Add(30 * time.Millisecond)
			i := p.view.Pick(p.now, 42, func(i int) bool { return i == ill })
			p.members[i].Done(p.now, time.Millisecond, balance.Good)
			p.members[i].Done(p.now, time.Millisecond, balance.Failed)
			p.members[i].Done(p.now, time.Millisecond, balance.Abandoned)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for a pick and what came of it", rule, n)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"p2c", "p2c"},
		{" consistent-hash   header=x-user-ID ", "consistent-hash header=X-User-Id"},
		{"consistent-hash query=City", "consistent-hash query=City"},
		{"availability-filtering", "availability-filtering"},
		{"availability-filtering active=20", "availability-filtering active=20"},
	} {
		r, err := balance.Parse(tt.text)
		if err != nil || r.String() != tt.want {
			t.Errorf("Parse(%q) = %v, %v, want %s", tt.text, r, err, tt.want)
		}
		if again, err := balance.Parse(r.String()); again != r || err != nil {
			t.Errorf("Parse(%q) = %v, %v, want the same again", r, again, err)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"", "names no rule: write one of p2c, round-robin,"},
		{"roundrobin", "is no rule: did you mean round-robin?"},
		{"Round_Robin", "did you mean round-robin?"},
		{"BestAvailableRule", "did you mean least-requests?"},
		{"least_conn", "did you mean least-requests?"},
		{"zone-avoidance", "did you mean zone-preference?"},
		{"randon", "did you mean random?"},
		{"weighted-responce-time", "did you mean weighted-response-time?"},
		{"by-the-moon", "is no rule: write one of p2c, round-robin, weighted-response-time, least-requests, availability-filtering, zone-preference, random and consistent-hash"},
		{strings.Repeat("x", 1<<20), "is no rule: write one of"},
		{"p2c header=X", `has "header=X" behind its name: p2c takes nothing`},
		{"consistent-hash", `says not what to go by: write for example "consistent-hash header=X-User"`},
		{"consistent-hash header=", "is no name"},
		{"consistent-hash header=a:b", "is no name"},
		{"consistent-hash header=" + strings.Repeat("x", 65), "is no name"},
		{"consistent-hash user", `has "user" behind its name: write header=NAME or query=NAME`},
		{"consistent-hash header=A query=b", "goes by one header or one query parameter"},
		{"availability-filtering active=0", "write a number of calls from 1 to 100000"},
		{"availability-filtering active=1e9", "write a number of calls"},
		{"availability-filtering active=1 active=2", "only active=N may stand there, once"},
	} {
		_, err := balance.Parse(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%.40q): error %v, want one with %q", tt.text, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range append(rules, "consistent-hash query=a", "availability-filtering active=7", "x") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := balance.Parse(s)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a word")
			}
			return
		}
		if again, err := balance.Parse(r.String()); err != nil || again != r {
			t.Errorf("%q is read again as %v, %v", r, again, err)
		}
	})
}

func TestKey(t *testing.T) {
	parse := func(s string) balance.Rule {
		r, err := balance.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	header, query := parse("consistent-hash header=x-user"), parse("consistent-hash query=id")
	h := http.Header{"X-User": {"anna"}}
	if k := header.Key(h, "id=7"); k == 0 || k == header.Key(http.Header{"X-User": {"berta"}}, "id=7") || k != header.Key(h, "") {
		t.Errorf("header's key is %d, which depends on something else than the header", k)
	}
	want := query.Key(h, "id=a+b%2Fc")
	for _, raw := range []string{"id=a+b%2Fc", "x=1&id=a%20b%2fc", "id=a%20b/c&id=other", "%69d=a+b/c"} {
		if got := query.Key(nil, raw); got != want || got == 0 {
			t.Errorf("key of %q = %d, want %d", raw, got, want)
		}
	}
	for _, raw := range []string{"", "id", "id=", "idd=a", "i=a", "x=id", "&&="} {
		if got := query.Key(h, raw); got != 0 {
			t.Errorf("key of %q = %d, want none", raw, got)
		}
	}
	for _, raw := range []string{"id=%", "id=%4", "id=%zz", "id=a%"} {
		if got := query.Key(h, raw); got == 0 {
			t.Errorf("key of %q = none", raw)
		}
	}
	if k := parse("p2c").Key(h, "id=7"); k != 0 {
		t.Errorf("key of a rule that goes by none = %d", k)
	}
	if n := testing.AllocsPerRun(100, func() { query.Key(h, "a=b&id=a%20b"); header.Key(h, "") }); n != 0 {
		t.Errorf("%v allocations for two keys", n)
	}
}
