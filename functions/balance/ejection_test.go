package balance_test

import (
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// out returns how many members are left out.
func (p *pool) out() (n int) {
	for _, m := range p.members {
		if m.State(p.now).Ejected > 0 {
			n++
		}
	}
	return n
}

// fail tells of n calls to one member, of which some fail.
func (p *pool) fail(i, n, failed int) {
	for k := range n {
		o := balance.Good
		if k < failed {
			o = balance.Failed
		}
		p.members[i].Done(p.now, time.Millisecond, o)
	}
}

// compare has the members compared.
func (p *pool) compare() {
	p.now = p.now.Add(101 * time.Millisecond)
	p.view.Pick(p.now, 0, nil)
}

func TestEjection(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		eject balance.Eject
		tell  func(p *pool)
		want  int // left out
	}{
		{"nothing happened", 3, balance.EjectOutliers, func(*pool) {}, 0},
		{"four failures in a row", 3, balance.EjectOutliers, func(p *pool) { p.fail(0, 4, 4); p.fail(1, 5, 0) }, 0},
		{"five failures in a row", 3, balance.EjectOutliers, func(p *pool) { p.fail(0, 5, 5); p.fail(1, 5, 0) }, 1},
		{"five in a row, which somebody else watches", 3, balance.EjectByRate, func(p *pool) { p.fail(0, 5, 5); p.fail(1, 5, 0) }, 0},
		{"five failures, not in a row", 3, balance.EjectOutliers, func(p *pool) { p.fail(0, 4, 4); p.fail(0, 1, 0); p.fail(0, 1, 1) }, 0},
		{"nobody is to be left out", 3, balance.EjectNone, func(p *pool) { p.fail(0, 100, 100); p.fail(1, 100, 0) }, 0},
		{"the only one", 1, balance.EjectOutliers, func(p *pool) { p.fail(0, 100, 100) }, 0},
		{"all fail alike", 3, balance.EjectOutliers, func(p *pool) {
			for i := range 3 {
				p.fail(i, 100, 100)
			}
		}, 0},
		{"one of two", 2, balance.EjectOutliers, func(p *pool) { p.fail(0, 100, 100); p.fail(1, 100, 0) }, 1},
		{"more than half", 3, balance.EjectOutliers, func(p *pool) { p.fail(0, 9, 9); p.fail(1, 9, 9); p.fail(2, 9, 0) }, 1},
		{"half of six", 6, balance.EjectOutliers, func(p *pool) {
			for i := range 6 {
				p.fail(i, 50, 50*(i%2)*min(i, 1))
			}
		}, 3},
		{"clearly worse than its siblings", 3, balance.EjectByRate, func(p *pool) { p.fail(0, 40, 14); p.fail(0, 1, 0); p.fail(1, 40, 1); p.fail(2, 40, 0) }, 1},
		{"worse, of few calls", 3, balance.EjectByRate, func(p *pool) { p.fail(0, 15, 8); p.fail(1, 40, 1); p.fail(2, 40, 0) }, 0},
		{"a little worse", 3, balance.EjectByRate, func(p *pool) { p.fail(0, 100, 15); p.fail(1, 100, 1); p.fail(2, 100, 0) }, 0},
		{"worse by chance", 3, balance.EjectByRate, func(p *pool) { p.fail(0, 30, 19); p.fail(1, 30, 13); p.fail(2, 30, 12) }, 0},
		{"refused and given up", 3, balance.EjectOutliers, func(p *pool) {
			for range 50 {
				p.members[0].Done(p.now, time.Millisecond, balance.Busy)
				p.members[0].Done(p.now, time.Second, balance.Abandoned)
				p.members[0].Done(p.now, time.Second, balance.Nothing)
			}
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool(t, "p2c", tt.n, func(c *balance.Config) { c.Eject = tt.eject })
			tt.tell(p)
			p.compare()
			if got := p.out(); got != tt.want {
				t.Errorf("%d are left out, want %d", got, tt.want)
			}
		})
	}
}

// TestEjectedForLonger holds for how long one is left out, that it is longer each
// time, and that who behaves is forgiven.
func TestEjectedForLonger(t *testing.T) {
	p := newPool(t, "round-robin", 3, nil)
	last := time.Duration(0)
	for n := range 15 {
		p.fail(1, 9, 0)
		p.fail(0, 9, 9)
		p.compare()
		d := p.members[0].State(p.now).Ejected
		base := min(time.Duration(n+1)*10*time.Second, 120*time.Second)
		if d < base*79/100 || d > base*121/100 {
			t.Fatalf("time %d: left out for %v, want %v and a fifth more or less", n+1, d, base)
		}
		p.want("left out", p.shares(0, nil), 0, 0.5, 0.5)
		last = d
		p.now = p.now.Add(d)
	}
	if times := p.members[0].State(p.now).Times; times != 15 {
		t.Errorf("it was left out %d times, want 15", times)
	}
	// It begins anew, with a tenth of its share.
	if w := p.members[0].State(p.now).Weight; w < 0.09 || w > 0.12 {
		t.Errorf("weight %.2f when it is back, want a tenth", w)
	}
	p.now = p.now.Add(15 * time.Second)
	p.compare()
	if w := p.members[0].State(p.now).Weight; w != 1 {
		t.Errorf("weight %.2f after 15 s, want all", w)
	}
	for range 60 { // two hours
		p.now = p.now.Add(2 * time.Minute)
		p.compare()
	}
	if times := p.members[0].State(p.now).Times; times != 0 {
		t.Errorf("%d times aren't forgiven after two hours, the last for %v", times, last)
	}
	p.fail(0, 9, 9)
	p.compare()
	p.members[0].Reset()
	p.compare()
	if p.out() != 0 {
		t.Error("it is left out though all was forgotten")
	}
}

// TestPanic holds that who is left out is asked when too few others are left.
func TestPanic(t *testing.T) {
	for _, rule := range rules {
		t.Run(rule, func(t *testing.T) {
			p := newPool(t, rule, 4, nil)
			p.fail(0, 9, 9)
			for i := 1; i < 4; i++ {
				p.fail(i, 9, 0)
			}
			p.compare()
			if s := p.shares(0, nil); s[0] != 0 {
				t.Fatalf("shares %.2f, of which the first is left out", s)
			}
			p.stubs[0].look.Trusted = true
			if s := p.shares(0, nil); s[0] == 0 {
				t.Errorf("shares %.2f, though somebody trusts the first", s)
			}
			p.stubs[0].look.Trusted = false
			p.stubs[1].look.Out = true
			p.compare()
			if s := p.shares(0, nil); s[0] != 0 || s[1] != 0 {
				t.Errorf("shares %.2f with half of them well", s)
			}
			p.stubs[2].look.Out = true
			p.compare()
			if s := p.shares(0, nil); s[0] == 0 || s[1] != 0 || s[2] != 0 || s[3] == 0 {
				t.Errorf("shares %.2f with one of four well, want the first and the last to be asked", s)
			}
			p.stubs[3].look.Full = true
			if i := p.view.Pick(p.now, 0, nil); i != 0 {
				t.Errorf("Pick() = %d with all others full or out", i)
			}
		})
	}
}
