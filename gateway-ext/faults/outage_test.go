//go:build faults && linux

package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stockLoad is a load of the function that has no policy, behind the stock chain.
func (w *world) stockLoad(chain *stockChain, rate int) *load {
	return &load{rate: rate, url: func(_ int, r *rand.Rand) string {
		return fmt.Sprintf("%s/?key=warm-%d", chain.url, r.IntN(warm))
	}}
}

// behind is what a chain in front of a function calls: its consumers.
func (w *world) behind(name string) string {
	return fmt.Sprintf("%s/function/%s?to=%s", w.url, consumer, name)
}

// TestKillAll (scenario 4): no replica is left, and none that is started lives.
func TestKillAll(t *testing.T) {
	for name, stop := range map[string]func(*world, ...replica){
		"4 all killed": func(w *world, rs ...replica) {
			w.control.stayDead(true, function, naked)
			w.signal(syscall.SIGKILL, rs...)
		},
		"4 all stopped": func(w *world, rs ...replica) { w.signal(syscall.SIGSTOP, rs...) },
	} {
		t.Run(strings.Fields(name)[2], func(t *testing.T) {
			run(t, name, func(t *testing.T, s *scenario) {
				w := newWorld(t, s)
				p := newPair(w, policy(), fault{Latency: 5 * time.Millisecond}, 40)
				chain := newStock(t, w.behind(naked), 300*time.Millisecond)
				third := w.stockLoad(chain, 40).begin(3)
				all := append(w.three(function), w.three(naked)...)
				from := p.with.at()
				stop(w, all...)
				time.Sleep(4 * time.Second)
				w.control.stayDead(false, function, naked)
				healed := p.with.at()
				for _, r := range all {
					// What was killed is no more, and its number may be another's.
					if strings.HasSuffix(name, "stopped") {
						w.signal(syscall.SIGCONT, r)
					}
				}
				eventually(t, "fresh answers again", func() bool {
					p.with.mu.Lock()
					defer p.with.mu.Unlock()
					ss := p.with.samples
					return len(ss) > 0 && ss[len(ss)-1].class == good && ss[len(ss)-1].due > healed
				})
				back := p.with.at() - healed
				stocked := third.end()
				with, without := p.end()
				t.Logf("with the stock chain: %v", stocked)

				dead := with.between(from+100*time.Millisecond, healed)
				s.count(guarded, "GETs of warm keys without an answer", with.bad(), 0)
				s.count(guarded, "answers that say they are fresh while nobody lives", dead.after(from+time.Second).by(healed).number(good), 0)
				open := with.between(from+2*time.Second, healed)
				s.ms(guarded, "p99 once open, from 2 s on", open.quantile(0.99), 30)
				s.ms(guarded, "longest of all", with.quantile(1), 1050)
				s.ms(guarded, "until fresh answers are back", float64(back.Milliseconds()), 10_000)
				for variant, ss := range map[string]samples{bare: without, stock: stocked} {
					s.breaks(variant, "GETs of warm keys without an answer", ss.between(from, healed).bad(), 0)
				}
				w.settle()
			})
		})
	}
}

// TestErrors (scenario 6): one replica of three answers 500 to 60 % of its calls.
// The rule by which replicas are picked may notice before the breaker does, and
// leave it too little to open for.
//
// The policy looks back at one second: with the default of ten, the good answers
// of the ten seconds before the burst would keep the share of failures below half
// for the first 10 s * 50 % / 60 % = 8.3 s, unless five in a row fail before.
func TestErrors(t *testing.T) {
	const chained = "chained" // as naked, but called by the stock chain alone
	run(t, "6 error burst", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		w.control.start(fault{Latency: 2 * time.Millisecond}, chained)
		w.deploy(3, []string{chained}, none())
		p := newPair(w, policy("thicket.breaker", "50%/1s"), fault{Latency: 2 * time.Millisecond}, 60)
		chain := newStock(t, w.behind(chained), 300*time.Millisecond)
		third := w.stockLoad(chain, 60).begin(3)
		time.Sleep(settled)
		replicas := map[string][]replica{guarded: w.three(function), bare: w.three(naked), stock: w.three(chained)}
		ill := replicas[guarded][2]
		before, beforeAll := w.seen(ill).Calls, w.seen(replicas[guarded]...).Calls
		for _, rs := range replicas {
			w.tell(fault{Mode: "status", Status: 500, Share: 0.6}, rs[2])
		}
		time.Sleep(2 * time.Second)
		calls := w.seen(ill).Calls - before
		early := 100 * float64(calls) / float64(max(1, w.seen(replicas[guarded]...).Calls-beforeAll))
		all, bad := map[string]int64{}, map[string]int64{}
		for variant, rs := range replicas {
			all[variant], bad[variant] = -w.seen(rs...).Calls, -w.seen(rs[2]).Calls
		}
		time.Sleep(3 * time.Second)
		for variant, rs := range replicas {
			all[variant] += w.seen(rs...).Calls
			bad[variant] += w.seen(rs[2]).Calls
		}
		stocked := third.end()
		with, without := p.end()
		t.Logf("with the stock chain: %v", stocked)
		t.Logf("the broken one got %d calls in the first 2 s; %v breakers opened", calls, w.events(t, function, "breaker_opened"))

		s.count(guarded, "failed GETs", with.bad(), 0)
		// As many as if it got its third for one second and nothing in the next.
		s.count(guarded, "calls that the broken replica gets in the first 2 s, % of all", early, 100.0/6)
		s.count(guarded, "replicas left alone", w.open(), 1)
		s.breaks(bare, "failed GETs", without.bad(), 0)
		for _, variant := range []string{guarded, bare, stock} {
			const what = "calls that the broken replica still gets after 2 s, % of all"
			share := 100 * float64(bad[variant]) / float64(max(1, all[variant]))
			if variant == guarded {
				s.count(variant, what, share, 10)
			} else {
				s.breaks(variant, what, share, 10)
			}
		}
		w.settle()
	})
}

// TestNotFound is the control of scenario 6: answers 404 are answers.
func TestNotFound(t *testing.T) {
	run(t, "6 burst of 404", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		p := newPair(w, policy(), fault{}, 60)
		w.tell(fault{Mode: "status", Status: 404, Share: 1}, w.three(function)...)
		time.Sleep(2 * time.Second)
		p.end()
		s.count(guarded, "transitions of breakers", w.transitions(function), 0)
		w.settle()
	})
}

// by returns those that were answered by a time.
func (ss samples) by(end time.Duration) (part samples) {
	for _, s := range ss {
		if s.due+s.latency < end {
			part = append(part, s)
		}
	}
	return part
}

// open is how many breakers of the function are not closed.
func (w *world) open() float64 {
	w.t.Helper()
	target := `target="` + function + `.openfaas-fn"`
	return w.metric(w.t, "thicket_resilience_breakers", target) - w.metric(w.t, "thicket_resilience_breakers", target, `state="closed"`)
}

// transitions is how often breakers of a function changed their state.
func (w *world) transitions(name string) float64 {
	w.t.Helper()
	return w.events(w.t, name, "breaker_opened") + w.events(w.t, name, "breaker_half_open") + w.events(w.t, name, "breaker_closed")
}

// TestCancel (scenario 7): callers leave after 20 ms, and what they asked for
// takes half a second.
func TestCancel(t *testing.T) {
	const leaving = 2000
	run(t, fmt.Sprintf("7 %d callers leave", leaving), func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		w.control.start(fault{Latency: 500 * time.Millisecond}, function, naked)
		w.deploy(3, []string{function}, policy("thicket.timeout", "5s"))
		w.deploy(3, []string{naked}, none())
		w.deploy(2, []string{consumer}, nil)
		w.warm(function)
		chain := newStock(t, w.behind(naked), 2*time.Second)
		rs := w.three(function)

		leave := func(url func(int) string) {
			client := newCaller()
			defer client.CloseIdleConnections()
			var callers sync.WaitGroup
			places := make(chan struct{}, 40)
			for n := range leaving {
				places <- struct{}{}
				callers.Go(func() {
					defer func() { <-places }()
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
					defer cancel()
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, url(n), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if resp, err := client.Do(req); err == nil {
						resp.Body.Close()
					}
				})
			}
			callers.Wait()
		}
		before := w.seen(rs...).Calls
		leave(func(n int) string { return fmt.Sprintf("%s/function/%s?key=left-%d", w.url, function, n) })
		left := time.Now()
		eventually(t, "nothing is in flight", func() bool { return w.seen(rs...).InFlight == 0 })
		drained := time.Since(left)
		reached := w.seen(rs...).Calls - before
		t.Logf("%d of %d calls reached the function, the last ended %v after its caller had left", reached, leaving, drained)
		s.ms(guarded, "until the last call upstream has ended", float64(drained.Milliseconds()), 350)
		s.count(guarded, "transitions of breakers", w.transitions(function), 0)
		if reached < leaving/10 {
			t.Errorf("only %d of %d calls reached the function", reached, leaving)
		}

		// Who stays afterwards must get an answer.
		w.tell(fault{}, rs...)
		stay := func(url func(int) string) (refused float64) {
			client := newCaller()
			defer client.CloseIdleConnections()
			for n := range 10 {
				if s := call(client, url(n), 5*time.Second); s.class != good {
					t.Logf("after they left: %s %s", s.class, s.note)
					refused++
				}
			}
			return refused
		}
		s.count(guarded, "callers who stay and get no answer, of 10", stay(func(n int) string { return w.key(function, n) }), 0)
		leave(func(n int) string { return fmt.Sprintf("%s/?key=left-%d", chain.url, n) })
		s.breaks(stock, "callers who stay and get no answer, of 10", stay(func(n int) string { return fmt.Sprintf("%s/?key=warm-%d", chain.url, n) }), 0)
		w.settle()
	})
}

// TestRetryStorm (scenario 10): all replicas answer 503 to every call.
func TestRetryStorm(t *testing.T) {
	const rate, seconds = 60, 3
	run(t, "10 retry storm", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		w.deploy(3, []string{function}, policy())
		w.deploy(3, []string{naked}, none())
		// The budget alone, without a breaker that makes it easy.
		w.deploy(3, []string{"budget"}, policy("thicket.breaker", "off"))
		w.deploy(2, []string{consumer}, nil)
		w.warm(function)
		chain := newStock(t, w.behind(naked), 300*time.Millisecond)
		for _, name := range []string{function, naked, "budget"} {
			w.tell(fault{Mode: "status", Status: 503, Share: 1}, w.three(name)...)
		}
		for _, storm := range []struct{ variant, name, front string }{
			{guarded, function, ""},
			{guarded + ", breaker off", "budget", ""},
			{stock, naked, chain.url},
		} {
			rs := w.three(storm.name)
			url := w.newKeys(storm.name, "storm")
			if storm.front != "" {
				url = func(n int, _ *rand.Rand) string { return fmt.Sprintf("%s/?key=storm-%d", storm.front, n) }
			}
			before := w.seen(rs...).Calls
			l := (&load{url: url, rate: rate}).begin(1)
			var worst float64
			for range seconds {
				time.Sleep(time.Second)
				now := w.seen(rs...).Calls
				// Three more are allowed to functions that are hardly called.
				worst = max(worst, float64(now-before-3)/rate)
				before = now
			}
			ss := l.end()
			t.Logf("%s: %v", storm.variant, ss)
			const what = "upstream calls for one of a client, less 3, in any second"
			if storm.variant == stock {
				s.breaks(storm.variant, what, worst, 1.2)
			} else {
				s.count(storm.variant, what, worst, 1.2)
			}
		}
		w.settle()
	})
}
