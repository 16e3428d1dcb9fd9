package resilience_test

import (
	"context"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go"
	fsbulkhead "github.com/failsafe-go/failsafe-go/bulkhead"
	fsbreaker "github.com/failsafe-go/failsafe-go/circuitbreaker"
	fstimeout "github.com/failsafe-go/failsafe-go/timeout"
	"github.com/slok/goresilience"
	stockbulkhead "github.com/slok/goresilience/bulkhead"
	stockbreaker "github.com/slok/goresilience/circuitbreaker"
	stocktimeout "github.com/slok/goresilience/timeout"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// The same work for all: a call that is answered at once, within a timeout, a
// breaker and a bulkhead. Ours has the retries, their budget, the counters and
// the typed result on top.

const (
	benchTimeout = time.Second
	benchLimit   = 64
)

func ours(tb testing.TB, change func(*resilience.Policy)) *resilience.Chain {
	p := resilience.DefaultPolicy()
	p.Timeout = benchTimeout
	p.Bulkhead.Limit = benchLimit
	if change != nil {
		change(&p)
	}
	chain, err := resilience.New(resilience.Config{Name: "bench", Policy: p, Idempotent: true, Monitor: resilience.NewMonitor(1024, nil)})
	if err != nil {
		tb.Fatal(err)
	}
	return chain
}

// TestGoodCallAllocates holds the chain to six allocations, the typed result and
// the context with its timer among them.
func TestGoodCallAllocates(t *testing.T) {
	chain := ours(t, func(p *resilience.Policy) { p.Attempt = benchTimeout / 2 })
	n := testing.AllocsPerRun(1000, func() {
		if _, err := resilience.Do(t.Context(), chain, func(context.Context) (int, error) { return 42, nil }); err != nil {
			t.Error(err)
		}
	})
	if n > 6 {
		t.Errorf("a good call allocates %.0f times, want 6 at most", n)
	}
}

func BenchmarkGoodCall(b *testing.B) {
	ctx := b.Context()
	answer := func(context.Context) (int, error) { return 42, nil }
	run := func(context.Context) error { return nil }

	chain := ours(b, nil)
	both := ours(b, func(p *resilience.Policy) { p.Attempt = benchTimeout / 2 })
	stop := make(chan struct{})
	defer close(stop)
	stock := goresilience.RunnerChain(
		stocktimeout.NewMiddleware(stocktimeout.Config{Timeout: benchTimeout}),
		stockbreaker.NewMiddleware(stockbreaker.Config{}),
		stockbulkhead.NewMiddleware(stockbulkhead.Config{Workers: benchLimit, StopC: stop}),
	)
	failsafeChain := failsafe.With[int](
		fstimeout.New[int](benchTimeout),
		fsbreaker.NewWithDefaults[int](),
		fsbulkhead.New[int](benchLimit),
	)
	calls := []struct {
		name string
		call func() error
	}{
		{"chain=ours", func() error { _, err := resilience.Do(ctx, chain, answer); return err }},
		{"chain=ours,run", func() error { return chain.Run(ctx, run) }},
		{"chain=ours,attempt", func() error { _, err := resilience.Do(ctx, both, answer); return err }},
		{"chain=goresilience", func() error { return stock.Run(ctx, run) }},
		{"chain=failsafe-go", func() error {
			_, err := failsafeChain.Get(func() (int, error) { return 42, nil })
			return err
		}},
	}
	for _, c := range calls {
		b.Run(c.name+"/serial", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkOpenBreaker(b *testing.B) {
	chain := ours(b, nil)
	chain.Breaker().SetMode(time.Now(), resilience.ModeForcedOpen)
	ctx := b.Context()
	empty := resilience.Static("")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := resilience.Do(ctx, chain, func(context.Context) (string, error) { return "", nil }, empty); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBreaker(b *testing.B) {
	breaker := resilience.NewBreaker(resilience.DefaultPolicy().Breaker, nil, "")
	b.ReportAllocs()
	for b.Loop() {
		permit, ok := breaker.Allow(time.Now())
		if !ok {
			b.Fatal("refused")
		}
		permit.Done(time.Now(), resilience.Verdict{Outcome: resilience.Succeeded})
	}
}
