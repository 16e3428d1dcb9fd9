package weather_test

import (
	"context"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

// minute makes reports fresh for a minute.
func minute(cfg *weather.GuardConfig) { cfg.Fresh = time.Minute }

func TestGuardGivesAFreshReportAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source, minute)
		for _, step := range []struct {
			after       time.Duration
			answer      func(context.Context, weather.Query) (weather.Report, error)
			temperature float64
			age, calls  int64
			stale       bool
		}{
			{after: 0, answer: good(7), temperature: 7, calls: 1},
			{after: 50 * time.Second, answer: good(8), temperature: 7, age: 50, calls: 1},
			{after: 50 * time.Second, answer: good(8), temperature: 7, age: 100, calls: 2}, // and a younger one is fetched
			{after: time.Second, answer: good(9), temperature: 8, age: 1, calls: 2},
			{after: 50 * time.Second, answer: failing(0, errBroken), temperature: 8, age: 51, calls: 2},
			{after: 49 * time.Second, answer: failing(0, errBroken), temperature: 8, age: 100, calls: 3},
			{after: 50 * time.Second, answer: failing(0, errBroken), temperature: 8, age: 150, calls: 4, stale: true},
			{after: 0, answer: failing(0, errBroken), temperature: 8, age: 150, calls: 4, stale: true}, // it was just asked
			{after: time.Second, answer: good(9), temperature: 9, age: 0, calls: 5},
		} {
			time.Sleep(step.after)
			source.become(step.answer)
			r := mustReport(t, g, stuttgart)
			synctest.Wait()
			if r.Empty() || r.Temperature != step.temperature || r.AgeSeconds != step.age || r.Stale != step.stale || (r.Message == weather.MessageStale) != step.stale {
				t.Errorf("after %s more the report = %+v, want %v°, %d s old, stale: %t", step.after, r, step.temperature, step.age, step.stale)
			}
			if n := source.calls.Load(); n != step.calls {
				t.Errorf("after %s more the source was called %d times, want %d", step.after, n, step.calls)
			}
		}
	})
}

func TestGuardAsksOnceForManyCallers(t *testing.T) {
	for name, change := range map[string]func(*weather.GuardConfig){"fresh": minute, "asked every time": func(*weather.GuardConfig) {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &scripted{answer: func(ctx context.Context, q weather.Query) (weather.Report, error) {
					time.Sleep(time.Second)
					return good(7)(ctx, q)
				}}
				g := guarded(t, source, change)
				var wg sync.WaitGroup
				for range 1000 {
					wg.Go(func() {
						if r, err := g.Report(t.Context(), stuttgart); err != nil || r.Empty() || r.Temperature != 7 {
							t.Errorf("Report() = %+v, %v", r, err)
						}
					})
				}
				wg.Wait()
				if n := source.calls.Load(); n != 1 {
					t.Errorf("the source was called %d times, want once", n)
				}
			})
		})
	}
}

// That there is no such place is remembered too, but not for long.
func TestGuardAsksAgainForUnknownPlaces(t *testing.T) {
	for _, want := range []error{weather.ErrUnknownPlace, &weather.InvalidError{Field: "zip", Detail: "No."}} {
		synctest.Test(t, func(t *testing.T) {
			source := &scripted{answer: failing(0, want)}
			g := guarded(t, source, minute)
			for range 100 {
				if _, err := g.Report(t.Context(), stuttgart); !reflect.DeepEqual(err, want) {
					t.Fatalf("Report() error = %#v, want %#v", err, want)
				}
			}
			if n := source.calls.Load(); n != 1 {
				t.Errorf("the source was called %d times, want once", n)
			}
			time.Sleep(10 * time.Second)
			source.become(good(7))
			if r := mustReport(t, g, stuttgart); r.Temperature != 7 {
				t.Errorf("report = %+v, want the place, which was made meanwhile", r)
			}
		})
	}
}

// What the source itself had only for want of a better is passed on, but the
// source is asked every time whether it is well again.
func TestGuardKeepsNothingDoubtfulAsFresh(t *testing.T) {
	for name, doubt := range map[string]func(*weather.Report){
		"stale":     func(r *weather.Report) { r.Stale, r.AgeSeconds, r.Message = true, 5, "from somebody's memory" },
		"just old":  func(r *weather.Report) { r.Stale, r.Message = true, "from somebody's memory" },
		"very old":  func(r *weather.Report) { r.Stale, r.AgeSeconds, r.Message = true, 500, "from somebody's memory" },
		"simulated": func(r *weather.Report) { r.Source = weather.SourceSimulated },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &scripted{answer: func(ctx context.Context, q weather.Query) (weather.Report, error) {
					time.Sleep(time.Millisecond) // as answers do
					r, err := good(7)(ctx, q)
					doubt(&r)
					return r, err
				}}
				g := guarded(t, source, minute)
				want, err := source.Report(t.Context(), stuttgart)
				if err != nil {
					t.Fatal(err)
				}
				for n := range 3 {
					r := mustReport(t, g, stuttgart)
					if r.Stale != want.Stale || r.AgeSeconds != want.AgeSeconds || r.Message != want.Message || r.Source != want.Source {
						t.Errorf("report = %+v, want it as the source has it, %+v", r, want)
					}
					if calls := source.calls.Load(); calls != int64(n)+2 {
						t.Errorf("the source was called %d times, want %d", calls, n+2)
					}
					time.Sleep(2 * time.Second)
				}
				source.become(good(8))
				if r := mustReport(t, g, stuttgart); r.Temperature != 8 || r.Stale || r.AgeSeconds != 0 || r.Message != "" {
					t.Errorf("report = %+v, want the one of a source that is well again", r)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				source := &scripted{answer: func(ctx context.Context, q weather.Query) (weather.Report, error) {
					r, err := good(7)(ctx, q)
					doubt(&r)
					return r, err
				}}
				g := guarded(t, source, minute)
				given := mustReport(t, g, stuttgart).AgeSeconds
				time.Sleep(20 * time.Second)
				source.become(failing(0, errBroken))
				if r := mustReport(t, g, stuttgart); !r.Stale || r.Message != weather.MessageStale || r.AgeSeconds != given+20 {
					t.Errorf("report = %+v, want it remembered, marked, and 20 seconds older than %d", r, given)
				}
			})
		})
	}
}

// While a source is down, nobody for whom something is remembered waits for it,
// not even to find out whether it is back.
func TestGuardDoesNotWaitForTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source, minute)
		mustReport(t, g, stuttgart)
		time.Sleep(10 * time.Minute)
		source.become(failing(time.Hour, errBroken))
		for n := range 3 {
			mustReport(t, g, zip(n))
		}
		asked := time.Now()
		for time.Since(asked) < 5*time.Minute {
			start := time.Now()
			r := mustReport(t, g, stuttgart)
			if took := time.Since(start); took != 0 {
				t.Fatalf("a caller waited %s", took)
			}
			if !r.Stale || r.Message != weather.MessageStale || r.Temperature != 7 || r.AgeSeconds < 600 {
				t.Fatalf("report = %+v, want the remembered one", r)
			}
			time.Sleep(time.Second)
		}
		if n := source.calls.Load(); n < 10 || n > 60 {
			t.Errorf("the source was called %d times in five minutes, want it looked at now and then", n)
		}
		source.become(good(8))
		time.Sleep(longest(3))
		if r := mustReport(t, g, stuttgart); !r.Stale || r.Temperature != 7 {
			t.Errorf("report = %+v, want the remembered one, while it is seen whether the source is back", r)
		}
		synctest.Wait()
		for n := range 20 { // the breaker is careful for longer than that, which is nothing that people should be told
			if r := mustReport(t, g, stuttgart); r.Stale || r.Temperature != 8 || r.Message != "" {
				t.Fatalf("report %d = %+v, want a fresh one", n, r)
			}
			time.Sleep(5 * time.Minute)
		}
	})
}

// An answer may pass two guards, a producer's and a consumer's. Wherever it is
// asked for and whatever fails on its way: its age is the true one, only one that
// is marked is older than what passes for fresh, and who says so says why.
func TestAgesAreTrueThroughTwoGuards(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			start := time.Now()
			var serviceDown, producerDown atomic.Bool
			service := &scripted{answer: func(ctx context.Context, q weather.Query) (weather.Report, error) {
				if serviceDown.Load() {
					return weather.Report{}, errBroken
				}
				return good(time.Since(start).Seconds())(ctx, q) // it tells when it was made
			}}
			inner := guarded(t, service, minute)
			network := &scripted{answer: func(ctx context.Context, q weather.Query) (weather.Report, error) {
				if producerDown.Load() {
					return weather.Report{}, errBroken
				}
				return inner.Report(ctx, q)
			}}
			unreachable := func(cfg *weather.GuardConfig) { cfg.StaleMessage = weather.MessageUnreachable }
			guards := []*weather.Guard{inner, guarded(t, network, minute, unreachable), guarded(t, network, minute, unreachable)}
			stales := 0
			for range 500 {
				switch random.IntN(12) {
				case 0:
					serviceDown.Store(!serviceDown.Load())
				case 1:
					producerDown.Store(!producerDown.Load())
				case 2:
					time.Sleep(rand.N(5 * time.Minute))
				}
				time.Sleep(time.Duration(random.Int64N(int64(20 * time.Second))))
				r := mustReport(t, guards[random.IntN(len(guards))], stuttgart)
				if r.Empty() {
					continue
				}
				// Each guard on the way says less than a second too little.
				age := time.Since(start).Seconds() - r.Temperature
				if said := float64(r.AgeSeconds); said > age+0.001 || said < age-2 {
					t.Fatalf("seed %d: %+v says %v s, and is %.1f s old", seed, r, said, age)
				}
				if r.Stale != (r.Message == weather.MessageStale || r.Message == weather.MessageUnreachable) {
					t.Fatalf("seed %d: %+v is marked in one way and not in the other", seed, r)
				}
				if !r.Stale && age > 2*66+2 {
					t.Fatalf("seed %d: %+v is %.1f s old, and not marked", seed, r, age)
				}
				if r.Stale {
					stales++
				}
			}
			if stales == 0 || stales == 500 {
				t.Errorf("seed %d: %d of 500 reports are stale, which shows little", seed, stales)
			}
		})
	}
}
