//go:build faults && linux

package faults_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// iptables runs it in this process's own network namespace.
func iptables(t *testing.T, args ...string) {
	t.Helper()
	if !inside {
		t.Skip("needs root, for a network namespace of its own")
	}
	if out, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
		t.Fatalf("iptables %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// drop makes a port of this namespace a black hole, for connections that are
// open too, until the test ends or heal is called.
func drop(t *testing.T, ports ...string) (heal func()) {
	t.Helper()
	rule := []string{"INPUT", "-p", "tcp", "-m", "multiport", "--dports", strings.Join(ports, ","), "-j", "DROP"}
	iptables(t, append([]string{"-A"}, rule...)...)
	healed := false
	heal = func() {
		if !healed {
			healed = true
			iptables(t, append([]string{"-D"}, rule...)...)
		}
	}
	t.Cleanup(heal)
	return heal
}

// TestDrop (scenario 3): packets to a replica vanish, those of open connections
// too.
func TestDrop(t *testing.T) {
	run(t, "3 iptables DROP", func(t *testing.T, s *scenario) {
		if !inside {
			t.Skip("needs root, for a network namespace of its own")
		}
		w := newWorld(t, s)
		p := newPair(w, policy(), fault{Latency: 5 * time.Millisecond}, 50)
		ill, other := w.three(function)[0], w.three(naked)[0]
		heal := drop(t, ill.port, other.port)
		from := p.with.at()
		time.Sleep(4 * time.Second)
		healed := p.with.at()
		heal()
		time.Sleep(500 * time.Millisecond)
		with, without := p.end()
		s.count(guarded, "failed GETs", with.bad(), 0)
		late := with.between(from+2*time.Second, healed)
		s.count(guarded, "answers after 2 s that are not fresh", late.number(old, told, failed, wrong), 0)
		s.ms(guarded, "p99 of the first 2 s", with.between(from-flight, from+2*time.Second).quantile(0.99), 700)
		s.ms(guarded, "p99 after that, more than before", late.quantile(0.99)-with.between(0, from-flight).quantile(0.99), 20)
		s.breaks(bare, "failed GETs", without.bad(), 0)
		w.settle()
	})
}

// TestDelay (scenario 5): one replica of three takes 400 ms, give or take 100,
// and gives no answer to a tenth of its calls. The function itself does so: not
// every kernel has netem, and to the gateway it is the same.
func TestDelay(t *testing.T) {
	run(t, "5 slow replica", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		p := newPair(w, policy("thicket.slow", "200ms/50%"), fault{Latency: 5 * time.Millisecond}, 50)
		ill, other := w.three(function)[1], w.three(naked)[1]
		w.tell(fault{Latency: 400 * time.Millisecond, Mode: "cut", Share: 0.1}, ill, other)
		from := p.with.at()
		time.Sleep(5 * time.Second)
		with, without := p.end()
		late, lateWithout := with.after(from+3*time.Second), without.after(from+3*time.Second)
		s.count(guarded, "failed GETs, % of all", 100*with.bad()/float64(len(with)), 0.1)
		s.count(guarded, "its share after 3 s", late.share(ill), 0.1)
		s.count(guarded, "answers after 3 s that are not fresh, % of all", 100*late.number(old, told, failed, wrong)/float64(len(late)), 1)
		s.ms(guarded, "p50 after 3 s", late.quantile(0.5), 50)
		s.breaks(bare, "p99 after 3 s, ms", lateWithout.quantile(0.99), 300)
		w.settle()
	})
}
