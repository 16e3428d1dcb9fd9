package weather_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

// scripted is a source that answers as it is told.
type scripted struct {
	calls atomic.Int64

	mu     sync.Mutex // guards below
	answer func(ctx context.Context, q weather.Query) (weather.Report, error)
}

func (s *scripted) become(answer func(context.Context, weather.Query) (weather.Report, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *scripted) Report(ctx context.Context, q weather.Query) (weather.Report, error) {
	s.calls.Add(1)
	s.mu.Lock()
	answer := s.answer
	s.mu.Unlock()
	return answer(ctx, q)
}

// good answers with the temperature.
func good(temperature float64) func(context.Context, weather.Query) (weather.Report, error) {
	return func(_ context.Context, q weather.Query) (weather.Report, error) {
		return weather.Report{Place: q.Place(), Units: q.Units, Observation: &weather.Observation{
			Temperature: temperature,
			Conditions:  weather.Conditions{Sky: weather.Clear},
			ObservedAt:  observed,
			Source:      weather.SourceOpenMeteo,
		}}, nil
	}
}

// failing fails with err after a while, or when the caller has had enough.
func failing(after time.Duration, err error) func(context.Context, weather.Query) (weather.Report, error) {
	return func(ctx context.Context, _ weather.Query) (weather.Report, error) {
		select {
		case <-time.After(after):
			return weather.Report{}, err
		case <-ctx.Done():
			return weather.Report{}, &weather.ServiceError{Service: "test", Err: ctx.Err()}
		}
	}
}

var errBroken = &weather.ServiceError{Service: "test", Status: 500, Err: errors.New("broken")}

// guarded returns a guard that calls the source for every question, unless it is
// changed.
func guarded(t testing.TB, source weather.Source, change ...func(*weather.GuardConfig)) *weather.Guard {
	t.Helper()
	cfg := weather.GuardConfig{
		Source:       source,
		Name:         "test",
		Function:     "test.openfaas-fn",
		Deadline:     2 * time.Second,
		Rest:         5 * time.Second,
		Remember:     3,
		RememberFor:  time.Hour,
		StaleMessage: weather.MessageStale,
		Log:          slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := weather.NewGuard(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return g
}

func mustReport(t *testing.T, g *weather.Guard, q weather.Query) weather.Report {
	t.Helper()
	r, err := g.Report(t.Context(), q)
	if err != nil {
		t.Fatalf("Report(%v) error = %v, want a report of any kind", q, err)
	}
	return r
}

func TestGuardGivesTheLastGoodAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		if r := mustReport(t, g, stuttgart); r.Stale || r.AgeSeconds != 0 || r.Message != "" || r.Temperature != 7 {
			t.Fatalf("fresh report = %+v", r)
		}
		source.become(failing(0, errBroken))
		time.Sleep(90*time.Second + 500*time.Millisecond)
		r := mustReport(t, g, stuttgart)
		if !r.Stale || r.AgeSeconds != 90 || r.Message != weather.MessageStale || r.Empty() || r.Temperature != 7 {
			t.Errorf("stale report = %+v, want the fresh one, 90 seconds old", r)
		}
		source.become(good(8))
		if r := mustReport(t, g, stuttgart); r.Stale || r.Temperature != 8 || r.Message != "" {
			t.Errorf("report when the source is back = %+v, want a fresh one", r)
		}
	})
}

func TestGuardKeepsPlacesCountriesAndUnitsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		mustReport(t, g, stuttgart)
		source.become(failing(0, errBroken))
		for _, q := range []weather.Query{
			{Zip: "70569", Country: "US", Units: weather.Metric},
			{Zip: "70569", Country: "DE", Units: weather.Imperial},
			{Zip: "70570", Country: "DE", Units: weather.Metric},
		} {
			r := mustReport(t, g, q)
			if !r.Empty() || r.Stale || r.Message != weather.MessageEmpty || r.Place != q.Place() || r.Units != q.Units {
				t.Errorf("Report(%v) = %+v, want an empty one about it", q, r)
			}
		}
	})
}

// zip is one of many places.
func zip(n int) weather.Query {
	return weather.Query{Zip: fmt.Sprint(n), Country: "DE", Units: weather.Metric}
}

// A stranger can name any number of places.
func TestGuardRemembersNoMoreThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source) // remembers 3, which it takes to be larger than these
		const places = 200
		for n := range places {
			mustReport(t, g, zip(n))
		}
		synctest.Wait()
		source.become(failing(0, errBroken))
		remembered := 0
		for n := range places {
			if mustReport(t, g, zip(n)).Stale {
				remembered++
			}
		}
		if remembered < 3 || remembered > 12 {
			t.Errorf("%d places of %d are remembered, want 3 or some more", remembered, places)
		}
	})
}

func TestGuardForgetsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		mustReport(t, g, stuttgart)
		source.become(failing(0, errBroken))
		time.Sleep(time.Hour - time.Second)
		if r := mustReport(t, g, stuttgart); !r.Stale {
			t.Errorf("report after less than an hour = %+v, want it still remembered", r)
		}
		time.Sleep(time.Second)
		if r := mustReport(t, g, stuttgart); !r.Empty() {
			t.Errorf("report after an hour = %+v, want it forgotten", r)
		}
	})
}

// A producer's replicas can know answers of different ages, and some know none.
func TestGuardPrefersTheYoungerAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aged := func(temperature float64, age int64) func(context.Context, weather.Query) (weather.Report, error) {
			return func(ctx context.Context, q weather.Query) (weather.Report, error) {
				r, err := good(temperature)(ctx, q)
				r.Stale, r.AgeSeconds, r.Message = true, age, "from somebody's memory"
				return r, err
			}
		}
		source := &scripted{answer: aged(1, 100)}
		g := guarded(t, source)
		if r := mustReport(t, g, stuttgart); r.AgeSeconds != 100 || r.Message != "from somebody's memory" {
			t.Errorf("a stale report is passed on as %+v", r)
		}
		source.become(aged(2, 10))
		mustReport(t, g, stuttgart)
		source.become(aged(3, 500))
		mustReport(t, g, stuttgart)
		time.Sleep(5 * time.Second)
		source.become(func(_ context.Context, q weather.Query) (weather.Report, error) {
			return weather.Report{Place: q.Place(), Units: q.Units, Message: weather.MessageEmpty}, nil
		})
		r := mustReport(t, g, stuttgart)
		if r.Empty() || r.Temperature != 2 || r.AgeSeconds != 15 || r.Message != weather.MessageStale {
			t.Errorf("report = %+v, want the one that was 10 seconds old, 5 seconds later", r)
		}
	})
}

func TestGuardPassesAnswersThatAreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		mustReport(t, g, stuttgart)
		for _, want := range []error{weather.ErrUnknownPlace, &weather.InvalidError{Field: "zip", Detail: "No."}} {
			source.become(failing(time.Second, want)) // slow, but an answer
			if _, err := g.Report(t.Context(), stuttgart); !reflect.DeepEqual(err, want) {
				t.Errorf("Report() error = %#v, want %#v", err, want)
			}
		}
		source.become(good(8))
		if r := mustReport(t, g, stuttgart); r.Temperature != 8 {
			t.Errorf("report = %+v, want a fresh one: answers are no failures", r)
		}
	})
}

func TestGuardInventsOnlyWhenNothingIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: failing(0, errBroken)}
		g := guarded(t, source, func(cfg *weather.GuardConfig) { cfg.Simulation = weather.Simulation{} })
		if r := mustReport(t, g, stuttgart); r.Empty() || r.Source != weather.SourceSimulated || r.Stale {
			t.Fatalf("report = %+v, want a simulated one", r)
		}
		source.become(good(7))
		mustReport(t, g, stuttgart)
		source.become(failing(0, errBroken))
		if r := mustReport(t, g, stuttgart); !r.Stale || r.Source != weather.SourceOpenMeteo {
			t.Errorf("report = %+v, want the remembered one", r)
		}
	})
}

func TestGuardKeepsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guarded(t, &scripted{answer: failing(time.Hour, errBroken)})
		start := time.Now()
		if r := mustReport(t, g, stuttgart); !r.Empty() {
			t.Errorf("report = %+v, want an empty one", r)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("it took %s, want the deadline of 2s", took)
		}
	})
}

// longest is how long the nth rest may take: chance adds a fifth.
func longest(n int) time.Duration { return 6 * time.Second << (n - 1) }

func TestGuardLeavesASlowSourceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: failing(time.Hour, errBroken)}
		g := guarded(t, source)
		at := func(q weather.Query) (time.Duration, weather.Report) {
			start := time.Now()
			r := mustReport(t, g, q)
			return time.Since(start), r
		}
		ask := func() (time.Duration, weather.Report) { return at(stuttgart) }
		for range 3 {
			if took, _ := ask(); took != 2*time.Second {
				t.Errorf("a caller waited %s, want 2s", took)
			}
		}
		for range 100 {
			if took, _ := ask(); took != 0 {
				t.Fatalf("a caller waited %s for a source that rests", took)
			}
		}
		if n := source.calls.Load(); n != 3 {
			t.Errorf("the source was called %d times, want 3", n)
		}

		// When the rest is over, one caller tries; those with other questions don't
		// wait for it.
		time.Sleep(longest(1))
		var wg sync.WaitGroup
		var waited atomic.Int64
		for n := range 100 {
			wg.Go(func() {
				if took, _ := at(zip(n)); took > 0 {
					waited.Add(1)
				}
			})
		}
		wg.Wait()
		if n := source.calls.Load(); n != 4 || waited.Load() != 1 {
			t.Errorf("%d calls, %d callers waited, want 4 and 1", n, waited.Load())
		}

		time.Sleep(longest(2)) // the rest has doubled
		source.become(good(7))
		for range 3 {
			if _, r := ask(); r.Empty() || r.Stale {
				t.Errorf("report = %+v, want a fresh one: the source is back", r)
			}
		}
	})
}

// One failure or two are accidents, and the next caller may try again.
func TestGuardForgivesFewFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{}
		g := guarded(t, source)
		for range 50 {
			source.become(failing(100*time.Millisecond, errBroken))
			mustReport(t, g, stuttgart)
			mustReport(t, g, stuttgart)
			source.become(good(7))
			for range 4 { // or else half of the calls fail
				if r := mustReport(t, g, stuttgart); r.Empty() || r.Stale {
					t.Fatalf("report = %+v, want a fresh one: the source is well again", r)
				}
			}
		}
	})
}

func TestGuardHeedsTheServicesWish(t *testing.T) {
	for _, test := range []struct {
		name string
		err  weather.ServiceError
		rest time.Duration
	}{
		{"429", weather.ServiceError{Status: http.StatusTooManyRequests}, 5 * time.Second},
		{"429 with a time", weather.ServiceError{Status: http.StatusTooManyRequests, RetryAfter: 20 * time.Second}, 20 * time.Second},
		{"503 with a time", weather.ServiceError{Status: http.StatusServiceUnavailable, RetryAfter: 20 * time.Second}, 20 * time.Second},
		{"a wish too small", weather.ServiceError{Status: http.StatusTooManyRequests, RetryAfter: time.Second}, 5 * time.Second},
		{"a wish too great", weather.ServiceError{Status: http.StatusTooManyRequests, RetryAfter: 24 * time.Hour}, 30 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.err.Err = errors.New("busy")
				source := &scripted{answer: failing(0, &test.err)}
				g := guarded(t, source)
				mustReport(t, g, stuttgart)
				time.Sleep(test.rest - time.Nanosecond)
				mustReport(t, g, stuttgart)
				if n := source.calls.Load(); n != 1 {
					t.Errorf("the source was called %d times within %s, want once", n, test.rest)
				}
				time.Sleep(time.Nanosecond)
				mustReport(t, g, stuttgart)
				if n := source.calls.Load(); n != 2 {
					t.Errorf("the source was called %d times after %s, want twice", n, test.rest)
				}
			})
		})
	}
}

// A caller who hangs up says nothing about the source.
func TestGuardIgnoresCallersThatHangUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: failing(time.Hour, errBroken)}
		g := guarded(t, source)
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if r, err := g.Report(ctx, stuttgart); !errors.Is(err, context.Canceled) {
				t.Fatalf("Report() = %+v, %v, want canceled", r, err)
			}
		}
		if n := source.calls.Load(); n != 3 {
			t.Errorf("the source was called %d times, want 3: it must not rest", n)
		}
	})
}

// A caller in a hurry gets the fallback in time, and doesn't decide for others
// how slow a source may be.
func TestGuardLeavesTimeForTheFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		mustReport(t, g, stuttgart)
		source.become(failing(time.Hour, errBroken))
		for _, left := range []time.Duration{time.Second, 50 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), left)
			r, err := g.Report(ctx, stuttgart)
			if err != nil || !r.Stale || ctx.Err() != nil {
				t.Errorf("Report() with %s left = %+v, %v, context %v; want the remembered one in time", left, r, err, ctx.Err())
			}
			cancel()
		}
		source.become(good(8))
		if r := mustReport(t, g, stuttgart); r.Temperature != 8 {
			t.Errorf("report = %+v, want a fresh one: the source must not rest", r)
		}
	})
}

// A source that panics has failed, no more: its callers get the fallback, and it
// is asked again.
func TestGuardSurvivesAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &scripted{answer: good(7)}
		g := guarded(t, source)
		mustReport(t, g, stuttgart)
		source.become(func(context.Context, weather.Query) (weather.Report, error) { panic("probe") })
		for n := range 5 {
			if r := mustReport(t, g, stuttgart); !r.Stale {
				t.Errorf("report = %+v, want the remembered one", r)
			}
			if n >= 2 {
				time.Sleep(longest(3)) // as long as a rest gets
			}
		}
		if n := source.calls.Load(); n != 6 {
			t.Errorf("the source was called %d times, want 6: it must be tried again", n)
		}
		source.become(good(8))
		if r := mustReport(t, g, stuttgart); r.Temperature != 8 {
			t.Errorf("report = %+v, want a fresh one", r)
		}
	})
}

func TestGuardRefusesWrongTimes(t *testing.T) {
	if _, err := weather.NewGuard(weather.GuardConfig{Name: "test", Deadline: -1}); err == nil {
		t.Error("a guard with a deadline in the past")
	}
}

func BenchmarkGuard(b *testing.B) {
	b.Run("kept", func(b *testing.B) {
		g := guarded(b, &scripted{answer: good(7)}, minute)
		b.ReportAllocs()
		for b.Loop() {
			g.Report(b.Context(), stuttgart)
		}
	})
	b.Run("asked", func(b *testing.B) {
		g := guarded(b, &scripted{answer: good(7)})
		b.ReportAllocs()
		for b.Loop() {
			g.Report(b.Context(), stuttgart)
		}
	})
	b.Run("stale", func(b *testing.B) {
		source := &scripted{answer: good(7)}
		g := guarded(b, source)
		g.Report(b.Context(), stuttgart)
		source.become(func(context.Context, weather.Query) (weather.Report, error) {
			return weather.Report{}, errBroken
		})
		b.ReportAllocs()
		for b.Loop() {
			g.Report(b.Context(), stuttgart)
		}
	})
}
