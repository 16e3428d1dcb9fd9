package fleet_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

var steps = flag.Bool("steps", false, "tell of each change that is simulated")

var update = flag.Bool("update", false, "write what was simulated into docs/scaling.md")

// world of a simulation: a function whose replicas take startTime to be ready and
// serve perReplica calls at a time, each within serviceTime. Calls that find no
// place wait. Calls are a fluid: there are no single ones.
const (
	simStart   = 2 * time.Second
	simService = 100 * time.Millisecond
	simPlaces  = 10.0
	simStep    = 50 * time.Millisecond
	scaleHalf  = 500 * time.Millisecond
)

// simulated is a provider and what calls one function of it.
type simulated struct {
	*nodes
	name    faas.Name
	offered func(t time.Duration) float64 // calls that come within simService

	mu       sync.Mutex // guards below
	began    time.Time
	at       time.Time // up to here it has been simulated
	asked    []time.Time
	inFlight float64
	arrived  float64
	busy     float64 // seconds

	// Calls are served in the order in which they came.
	came    []float64 // all that had come by each step
	served  float64
	oldest  int           // the step in which came what is served now
	longest time.Duration // that a call waited
	late    float64       // calls that waited for more than a second
}

func (s *simulated) Apply(ctx context.Context, w provider.Workload) error {
	s.mu.Lock()
	s.advance()
	for len(s.asked) < w.Function.Replicas {
		s.asked = append(s.asked, time.Now())
	}
	s.asked = s.asked[:w.Function.Replicas] // the youngest go first
	s.mu.Unlock()
	return s.nodes.Apply(ctx, w)
}

func (s *simulated) ready(faas.Name) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	return s.readyAt(s.at)
}

func (s *simulated) readyAt(t time.Time) (n int) {
	for _, a := range s.asked {
		if !t.Before(a.Add(simStart)) {
			n++
		}
	}
	return n
}

// advance simulates up to now. s.mu is held.
func (s *simulated) advance() {
	for now := time.Now(); s.at.Before(now); s.at = s.at.Add(simStep) {
		places := simPlaces * float64(s.readyAt(s.at))
		calls := 0.0
		if !s.began.IsZero() {
			calls = s.offered(s.at.Sub(s.began)) * simStep.Seconds() / simService.Seconds()
		}
		s.arrived += calls
		s.inFlight += calls
		s.busy += s.inFlight * simStep.Seconds()
		s.came = append(s.came, s.arrived)
		done := min(s.inFlight, places) * min(1, simStep.Seconds()/simService.Seconds())
		s.inFlight -= done
		s.served += done
		for s.oldest < len(s.came)-1 && s.came[s.oldest] < s.served {
			s.oldest++
		}
		wait := time.Duration(len(s.came)-1-s.oldest)*simStep - simService
		if done > 1e-3 {
			s.longest = max(s.longest, wait)
		}
		if wait > time.Second {
			s.late += done
		}
		if s.inFlight < 1e-6 {
			s.inFlight = 0
		}
	}
}

func (s *simulated) loads(yield func(faas.Name, faas.Load)) {
	s.mu.Lock()
	s.advance()
	l := faas.Load{InFlight: int64(math.Ceil(s.inFlight)), Started: uint64(s.arrived), Busy: time.Duration(s.busy * float64(time.Second))}
	s.mu.Unlock()
	if l.Started > 0 {
		yield(s.name, l)
	}
}

// outcome is what a simulation found.
type outcome struct {
	fewest, most int // replicas
	changes      int
	turns        int // from more to fewer, or back
	longest      time.Duration
	late         float64 // part of the calls
	left         float64 // in flight at the end, above what fits
	calls        float64
}

// simulate runs a fleet with one function for a while.
func simulate(t *testing.T, labels map[string]string, last time.Duration, offered func(time.Duration) float64) (o outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &simulated{nodes: newNodes(), name: named("f"), offered: offered}
		s.at = time.Now()
		f, err := fleet.New(t.Context(), fleet.Config{
			Store: newStore(), Provider: s, Images: newRegistry(), Key: testKey, Logger: slog.New(slog.DiscardHandler),
			Loads: s.loads, Ready: s.ready,
			Room: func() []provider.Room { return []provider.Room{{Node: "pi-3", Memory: 1 << 40, CPU: -1}} },
		})
		must(t, err)
		d := deployment("f")
		d.Labels = &labels
		must(t, f.Deploy(t.Context(), d))
		stop := runFleet(t, f)
		synctest.Wait()
		time.Sleep(simStart + scaleHalf) // so that it looks in between the fleet's looks
		s.mu.Lock()
		s.began, s.at = time.Now(), time.Now()
		s.mu.Unlock()

		before, _, _ := f.Known(s.name)
		o.fewest, o.most = before, before
		direction := 0
		for end := time.Now().Add(last); time.Now().Before(end); {
			look := time.Second
			if labels[faas.LabelScaleZero] == "true" {
				look = simStep
			}
			for range time.Second / look {
				time.Sleep(look)
				s.mu.Lock()
				s.advance()
				asleep := len(s.asked) == 0 && s.inFlight > 0
				s.mu.Unlock()
				if asleep { // as the proxy does for a call that finds nobody
					must(t, f.Wake(t.Context(), s.name))
				}
			}
			synctest.Wait()
			now, _, _ := f.Known(s.name)
			if now != before {
				o.changes++
				if *steps {
					d := f.Decisions(&s.name, 0)[0]
					fmt.Printf("%8s %3d -> %3d  %s\n", time.Since(s.began).Round(time.Second), before, now, d.Sentence)
				}
				if d := cmp.Compare(now, before); d == -direction {
					o.turns++
					direction = d
				} else {
					direction = d
				}
			}
			o.fewest, o.most, before = min(o.fewest, now), max(o.most, now), now
		}
		s.mu.Lock()
		o.longest, o.late, o.calls = s.longest, s.late/s.arrived, s.arrived
		o.left = max(0, s.inFlight-simPlaces*float64(s.readyAt(s.at)))
		s.mu.Unlock()
		stop()
	})
	return o
}

// between returns a load that goes from low to high to low again in a period.
func between(low, high float64, period time.Duration) func(time.Duration) float64 {
	return func(t time.Duration) float64 {
		x := 2 * math.Mod(t.Seconds(), period.Seconds()) / period.Seconds()
		return low + (high-low)*min(x, 2-x)
	}
}

// noisy adds up to 30 % to a load or takes it away, anew each second.
func noisy(f func(time.Duration) float64) func(time.Duration) float64 {
	second, factor := time.Duration(-1), 0.0
	return func(t time.Duration) float64 {
		if now := t / time.Second; now != second {
			second = now
			factor = 0.7 + 0.6*rand.New(rand.NewPCG(uint64(now), 7)).Float64()
		}
		return f(t) * factor
	}
}

// TestSimulation has a function called in ways that are known to make scalers
// swing, and holds what comes of it to bounds. The numbers are those of the table
// in docs/scaling.md.
func TestSimulation(t *testing.T) {
	capacity := map[string]string{faas.LabelScaleType: "capacity", faas.LabelScaleTarget: "10", faas.LabelScaleProportion: "0.7"}
	with := func(more ...string) map[string]string {
		l := map[string]string{}
		maps.Copy(l, capacity)
		for i := 0; i < len(more); i += 2 {
			l[more[i]] = more[i+1]
		}
		return l
	}
	steady := func(n float64) func(time.Duration) float64 { return func(time.Duration) float64 { return n } }
	tests := []struct {
		name    string
		last    time.Duration
		labels  map[string]string
		offered func(time.Duration) float64
		changes int // at most
		turns   int
		longest time.Duration
		late    float64
	}{
		{"steady: 20, give or take 30 %", time.Hour, capacity, noisy(steady(20)), 12, 1, 1500 * time.Millisecond, 0.01},
		{"on the border of 2 and 3 replicas", time.Hour, capacity, noisy(steady(14)), 8, 1, time.Second, 0},
		{"step from 3 to 41 for 5 min", 15 * time.Minute, capacity, func(t time.Duration) float64 {
			if t > 2*time.Minute && t < 7*time.Minute {
				return 41
			}
			return 3
		}, 16, 1, 3 * time.Second, 0.02},
		{"ramp from 1 to 100 and back within 20 min", 25 * time.Minute, capacity, func(t time.Duration) float64 {
			if t > 20*time.Minute {
				return 1
			}
			return between(1, 100, 20*time.Minute)(t)
		}, 28, 1, time.Second, 0},
		{"spike of 3 s from 3 to 60", 10 * time.Minute, capacity, func(t time.Duration) float64 {
			if t > 2*time.Minute && t < 2*time.Minute+3*time.Second {
				return 60
			}
			return 3
		}, 14, 1, 3 * time.Second, 0.1},
		{"sawtooth of 30 s, 0 to 60", 20 * time.Minute, capacity, between(0, 60, 30*time.Second), 12, 1, 2 * time.Second, 0.01},
		{"sawtooth of 4 min, 0 to 60", 40 * time.Minute, capacity, between(0, 60, 4*time.Minute), 110, 20, time.Second, 0},
		{"the same with down.window 5m", 40 * time.Minute, with(faas.LabelScaleDownWindow, "5m"), between(0, 60, 4*time.Minute), 8, 1, time.Second, 0},
		{"a day in 4 h, 2 to 80, give or take 30 %", 4 * time.Hour, capacity, noisy(func(t time.Duration) float64 {
			return 41 - 39*math.Cos(2*math.Pi*t.Hours()/4)
		}), 50, 20, time.Second, 0},
		{"10 calls every 20 min, scale.zero", 4 * time.Hour, with(faas.LabelScaleZero, "true", faas.LabelScaleTarget, "50"), func(t time.Duration) float64 {
			if t%(20*time.Minute) < simService {
				return 10
			}
			return 0
		}, 24, 24, 2600 * time.Millisecond, 1},
	}
	var table strings.Builder
	table.WriteString("| load: calls in flight | lasts | replicas | changes | turns | longest wait | waited over 1 s |\n|---|---|---|---|---|---|---|\n")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := simulate(t, tt.labels, tt.last, tt.offered)
			t.Logf("%+v", o)
			if o.changes > tt.changes || o.turns > tt.turns {
				t.Errorf("%d changes and %d turns, want at most %d and %d", o.changes, o.turns, tt.changes, tt.turns)
			}
			if o.left > 0 || o.longest > tt.longest || o.late > tt.late {
				t.Errorf("calls waited for up to %v, %.2f %% for more than a second, %.0f are left; want at most %v, %.2f %%, 0", o.longest, 100*o.late, o.left, tt.longest, 100*tt.late)
			}
			fmt.Fprintf(&table, "| %s | %s | %d to %d | %d | %d | %s | %s %% |\n", tt.name, strings.TrimSuffix(strings.Replace(tt.last.String(), "h0m0s", " h", 1), "0s"), o.fewest, o.most, o.changes, o.turns,
				o.longest.Round(10*time.Millisecond), strings.TrimSuffix(fmt.Sprintf("%.1f", 100*o.late), ".0"))
		})
	}
	checkTable(t, table.String())
}

// checkTable compares a table with the one in docs/scaling.md.
func checkTable(t *testing.T, table string) {
	const doc, begin, end = "../../../docs/scaling.md", "<!-- simulated -->\n", "<!-- end -->"
	b, err := os.ReadFile(doc)
	must(t, err)
	head, rest, found := strings.Cut(string(b), begin)
	old, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no place for the table", doc)
	}
	switch {
	case old == table, runtime.GOARCH != "amd64": // others round in other places
	case *update:
		must(t, os.WriteFile(doc, []byte(head+begin+table+end+tail), 0o644))
	default:
		t.Errorf("the table in %s is not what was simulated: run the test with -update\n%s", doc, table)
	}
}
