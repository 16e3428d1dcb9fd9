package balance_test

import (
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

// TestLearning holds what a member makes of calls.
func TestLearning(t *testing.T) {
	const ms = time.Millisecond
	p := newPool(t, "p2c", 3, nil)
	latency := func(i int) time.Duration { return p.members[i].State(p.now).Latency }
	near := func(what string, got, want time.Duration) {
		t.Helper()
		if got < want*97/100 || got > want*103/100 {
			t.Errorf("%s: latency %v, want about %v", what, got, want)
		}
	}
	if latency(0) != 0 {
		t.Errorf("latency %v of one that is not known", latency(0))
	}
	p.learn(10*ms, 10*ms, 10*ms)
	near("the first call", latency(0), 10*ms)
	p.members[0].Done(p.now, 100*ms, balance.Good)
	near("a longer one counts at once", latency(0), 100*ms)
	p.members[0].Done(p.now, 10*ms, balance.Good)
	near("a shorter one of the same moment", latency(0), 100*ms)
	for range 100 {
		p.now = p.now.Add(100 * ms)
		for _, m := range p.members {
			m.Done(p.now, 10*ms, balance.Good)
		}
	}
	near("after 10 s of shorter ones", latency(0), 10*ms+90*ms*368/1000)
	near("nobody else learns of it", latency(1), 10*ms)

	p.members[1].Done(p.now, 50*ms, balance.Abandoned)
	near("a caller gave up", latency(1), 50*ms)
	p.members[1].Done(p.now, 20*ms, balance.Abandoned)
	near("another sooner", latency(1), 50*ms)
	p.members[2].Done(p.now, 3*time.Second, balance.Nothing)
	near("nothing is known of a call", latency(2), 10*ms)
	p.members[2].Done(p.now, ms, balance.Failed)
	near("it failed fast", latency(2), 10*ms)
	p.members[2].Done(p.now, 2*time.Second, balance.Failed)
	near("it failed slowly", latency(2), 2*time.Second)

	p.now = p.now.Add(20 * time.Second)
	p.compare()
	near("what is old fades into what is usual", latency(2), latency(1)+(2*time.Second-latency(1))*135/1000)
	p.now = p.now.Add(2 * time.Minute)
	if latency(2) != 0 {
		t.Errorf("latency %v is known after two minutes", latency(2))
	}
}

// TestFailures holds that the share of failures is one, whatever happens, and
// fades; and that a long outage of all leaves nothing behind.
func TestFailures(t *testing.T) {
	p := newPool(t, "p2c", 3, func(c *balance.Config) { c.Eject, c.Penalty = balance.EjectNone, time.Second })
	p.learn(time.Millisecond, time.Millisecond, time.Millisecond)
	for range 30_000 { // nearly an hour
		p.now = p.now.Add(100 * time.Millisecond)
		i := p.view.Pick(p.now, 0, nil)
		p.members[i].Done(p.now, time.Millisecond, balance.Failed)
	}
	for i, m := range p.members {
		if s := m.State(p.now); s.Failures < 0.9 || s.Failures > 1 || s.Latency > 2*time.Millisecond {
			t.Errorf("after an outage replica %d is %+v", i, s)
		}
	}
	for range 600 {
		p.now = p.now.Add(100 * time.Millisecond)
		for _, m := range p.members {
			m.Done(p.now, time.Millisecond, balance.Good)
		}
	}
	for i, m := range p.members {
		if s := m.State(p.now); s.Failures > 0.01 {
			t.Errorf("a minute later replica %d is %+v", i, s)
		}
	}
	third := 1.0 / 3
	p.want("after an outage", p.shares(0, nil), third, third, third)
	// One failure in hundreds says nothing.
	p.now = p.now.Add(5 * time.Millisecond)
	p.members[0].Done(p.now, time.Millisecond, balance.Failed)
	p.want("after one failure", p.shares(0, nil), third, third, third)
	// Who fails or refuses all it gets is left aside.
	for range 100 {
		p.now = p.now.Add(20 * time.Millisecond)
		p.members[0].Done(p.now, time.Millisecond, balance.Failed)
		p.members[1].Done(p.now, time.Millisecond, balance.Busy)
		p.members[2].Done(p.now, time.Millisecond, balance.Good)
	}
	if s := p.shares(0, nil); s[2] < 0.65 { // it loses only where it isn't drawn
		t.Errorf("shares %.2f, want the last to have all of which it is drawn", s)
	}
}
