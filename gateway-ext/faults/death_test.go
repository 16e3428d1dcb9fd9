//go:build faults && linux

package faults_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// The names of the functions.
const (
	function = "producer"
	naked    = "naked"
)

// policy is what a function asks for that wants its callers to notice nothing.
func policy(more ...string) map[string]string {
	a := map[string]string{
		"thicket.timeout":   "1s/300ms",
		"thicket.attempts":  "3",
		"thicket.breaker":   "50%/10s",
		"thicket.fallback":  "stale",
		"thicket.stale.for": "6h",
	}
	for i := 0; i < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	return a
}

// none is all protection switched off, and the default rule with it, which avoids
// who is slow or fails.
func none() map[string]string {
	return map[string]string{"thicket.breaker": "off", "thicket.attempts": "1", "thicket.bulkhead": "off", "thicket.balance": "least-requests"}
}

// pair is a world with the function that has a policy and the one that has none,
// each with a load.
type pair struct {
	*world
	with, without *load
}

// settled is how long a load goes on before something is broken.
const settled = time.Second

// newPair starts the functions, calls each key once, and begins the loads.
func newPair(w *world, annotations map[string]string, each fault, rate int) *pair {
	w.t.Helper()
	w.control.start(each, function, naked)
	w.deploy(2, []string{consumer}, nil)
	w.deploy(3, []string{function}, annotations)
	w.deploy(3, []string{naked}, none())
	w.warm(function)
	p := &pair{
		world:   w,
		with:    (&load{url: w.keys(function), rate: rate}).begin(1),
		without: (&load{url: w.keys(naked), rate: rate}).begin(2),
	}
	time.Sleep(settled)
	return p
}

// warm calls every key once, and notes what the gateway holds then.
func (w *world) warm(name string) {
	w.t.Helper()
	client := newCaller()
	defer client.CloseIdleConnections()
	for n := range warm {
		if s := call(client, w.key(name, n), 10*time.Second); s.class != good {
			w.t.Fatalf("call of a function that is well: %s %d %s", s.class, s.status, s.note)
		}
	}
	w.before = w.metric(w.t, "go_goroutines")
}

// end stops the loads, and logs what became of them.
func (p *pair) end() (with, without samples) {
	p.t.Helper()
	with, without = p.with.end(), p.without.end()
	p.t.Logf("with a policy: %v", with)
	p.t.Logf("without: %v", without)
	return with, without
}

// TestKill (scenario 1): a replica of three is killed, three times in a row.
func TestKill(t *testing.T) {
	run(t, "1 kill -9", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		p := newPair(w, policy(), fault{Latency: 80 * time.Millisecond}, 50)
		// A function without a policy mostly gets by, too: what breaks on a connection
		// that was used before is sent again for it. Who knows addresses alone doesn't.
		known := w.three(naked)
		addresses := (&load{rate: 50, url: func(n int, r *rand.Rand) string {
			return fmt.Sprintf("http://127.0.0.1:%s/?key=warm-%d", known[n%len(known)].port, r.IntN(warm))
		}}).begin(3)
		for range 3 {
			w.signal(syscall.SIGKILL, w.three(function)[0], w.three(naked)[0])
			time.Sleep(time.Second)
		}
		lost := addresses.end()
		with, _ := p.end()
		t.Logf("by the addresses of the replicas: %v", lost)
		s.count(guarded, "failed GETs", with.bad(), 0)
		s.ms(guarded, "p99 from the first kill on", with.after(settled).quantile(0.99), 700)
		s.breaks(byAddr, "failed GETs", lost.bad(), 0)
		w.settle()
	})
}

// TestStop (scenario 2): a replica accepts connections and never answers.
func TestStop(t *testing.T) {
	run(t, "2 kill -STOP", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		p := newPair(w, policy(), fault{Latency: 5 * time.Millisecond}, 50)
		ill, other := w.three(function)[0], w.three(naked)[0]
		w.signal(syscall.SIGSTOP, ill, other)
		from := p.with.at()
		time.Sleep(4 * time.Second)
		w.signal(syscall.SIGCONT, ill, other)
		healed := p.with.at()
		time.Sleep(2 * time.Second)
		with, without := p.end()
		s.count(guarded, "failed GETs", with.bad(), 0)
		baseline := with.between(0, from-flight).quantile(0.99)
		s.ms(guarded, "p99 of the first 2 s", with.between(from-flight, from+2*time.Second).quantile(0.99), 700)
		s.ms(guarded, "p99 after that, more than before", with.between(from+2*time.Second, healed).quantile(0.99)-baseline, 20)
		s.count(guarded, "share of the first 2 s that the replica gets when it is back", with.after(healed).share(ill), 2./3)
		s.breaks(bare, "failed GETs", without.bad(), 0)
		w.settle()
	})
}

// share is the part of the calls that a replica answered.
func (ss samples) share(of replica) float64 {
	n := 0
	for _, s := range ss {
		if s.class == good && s.replica == of.id {
			n++
		}
	}
	return float64(n) / float64(max(1, len(ss)))
}
