package resilience_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slok/goresilience"
	resilienceerrors "github.com/slok/goresilience/errors"
	"github.com/slok/goresilience/metrics"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// statusError is how the calls of these tests fail.
type statusError struct {
	status int
	after  time.Duration
}

func (e *statusError) Error() string { return "a status" }

// chained returns a chain of a policy that was changed, and its monitor.
func chained(t *testing.T, change func(*resilience.Config)) (*resilience.Chain, *resilience.Monitor) {
	t.Helper()
	monitor := resilience.NewMonitor(100, nil)
	cfg := resilience.Config{
		Name: "weather", Policy: resilience.DefaultPolicy(), Idempotent: true, Monitor: monitor,
		Result: func(err error) resilience.Result {
			if e, ok := errors.AsType[*statusError](err); ok {
				return resilience.Result{Status: e.status, RetryAfter: e.after}
			}
			return resilience.Result{Err: err}
		},
	}
	cfg.Policy.Timeout = time.Second
	if change != nil {
		change(&cfg)
	}
	c, err := resilience.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, monitor
}

// hang waits for its context.
func hang(ctx context.Context) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

// fails returns a call that fails so often, then answers, and counts.
func fails(n int64, err error) (call func(context.Context) (string, error), calls *atomic.Int64) {
	calls = new(atomic.Int64)
	return func(context.Context) (string, error) {
		if calls.Add(1) <= n {
			return "", err
		}
		return "answer", nil
	}, calls
}

func TestChainAttempts(t *testing.T) {
	reset := errors.New("connection reset")
	for _, tt := range []struct {
		name   string
		change func(*resilience.Config)
		fails  int64
		err    error
		calls  int64
		ok     bool
	}{
		{"a good call", nil, 0, nil, 1, true},
		{"one that heals", nil, 2, reset, 3, true},
		{"one that doesn't", nil, 9, reset, 3, false},
		{"one that may be made once", func(c *resilience.Config) { c.Idempotent = false }, 9, reset, 1, false},
		{"one that may be made once, and wasn't", func(c *resilience.Config) {
			c.Idempotent = false
			c.Result = func(err error) resilience.Result { return resilience.Result{Unsent: true, Err: err} }
		}, 1, reset, 2, true},
		{"no retries", func(c *resilience.Config) { c.Policy.Attempts = 1 }, 9, reset, 1, false},
		{"no budget", func(c *resilience.Config) { c.Policy.Budget = resilience.BudgetPolicy{} }, 9, reset, 1, false},
		{"503", nil, 1, &statusError{status: 503}, 2, true},
		{"503, later", nil, 1, &statusError{status: 503, after: 500 * time.Millisecond}, 2, true},
		{"503, much later", nil, 1, &statusError{status: 503, after: 5 * time.Second}, 1, false},
		{"500", nil, 9, &statusError{status: 500}, 1, false},
		{"404", nil, 9, &statusError{status: 404}, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := chained(t, tt.change)
				call, calls := fails(tt.fails, tt.err)
				start := time.Now()
				got, err := resilience.Do(t.Context(), c, call)
				if calls.Load() != tt.calls || (err == nil) != tt.ok || tt.ok && got != "answer" {
					t.Errorf("%q, %v after %d calls, want %d", got, err, calls.Load(), tt.calls)
				}
				if !tt.ok && !errors.Is(err, tt.err) {
					t.Errorf("error %v hides %v", err, tt.err)
				}
				if e, ok := errors.AsType[*statusError](tt.err); ok && tt.ok && time.Since(start) < e.after {
					t.Errorf("it tried again after %s, and was asked to wait %s", time.Since(start), e.after)
				}
			})
		})
	}
}

// What the target said is passed on as it was said; what went wrong is an *Error.
func TestChainErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, nil)
		notFound := &statusError{status: 404}
		if _, err := resilience.Do(t.Context(), c, func(context.Context) (string, error) { return "", notFound }, resilience.Static("instead")); err != error(notFound) {
			t.Errorf("error %#v, want the call's own", err)
		}
		got, err := resilience.Do(t.Context(), c, func(context.Context) (string, error) { return "", &statusError{status: 500} }, resilience.Static("instead"))
		if got != "instead" || err != nil {
			t.Errorf("%q, %v, want the fallback", got, err)
		}
		_, err = resilience.Do(t.Context(), c, func(context.Context) (string, error) { panic("oops") })
		if e, ok := errors.AsType[*resilience.Error](err); !ok || e.Kind != resilience.Panicked {
			t.Errorf("error %v, want the panic", err)
		}
		cause := errors.New("why")
		nothing := func(_ context.Context, err error) (string, error) { return "", cause }
		_, err = resilience.Do(t.Context(), c, func(context.Context) (string, error) { panic("oops") }, nothing, nothing)
		if !errors.Is(err, cause) {
			t.Errorf("error %v, want the fallback's in it", err)
		}
		want := map[resilience.EventKind]uint64{
			resilience.Success: 1, resilience.Failure: 1, resilience.Panic: 2,
			resilience.FallbackServed: 1, resilience.FallbackFailed: 2,
		}
		for kind, n := range want {
			if got := c.Meter().Counts()[kind]; got != n {
				t.Errorf("%v is counted %d times, want %d", kind, got, n)
			}
		}
	})
}

func TestChainDeadline(t *testing.T) {
	for _, tt := range []struct {
		name    string
		caller  time.Duration // the caller's own deadline; 0 for none
		timeout time.Duration
		attempt time.Duration
		once    bool
		kind    resilience.Kind
		took    time.Duration
		opens   bool // five of them
	}{
		{"the policy's", 0, time.Second, 0, true, resilience.Timeout, time.Second, true},
		{"the policy's, sooner than the caller's", 5 * time.Second, time.Second, 0, true, resilience.Timeout, time.Second, true},
		{"the caller's", 500 * time.Millisecond, time.Second, 0, true, resilience.Hurried, 480 * time.Millisecond, false},
		{"the caller's alone", 500 * time.Millisecond, 0, 0, true, resilience.Hurried, 480 * time.Millisecond, false},
		{"a caller with hardly any", 20 * time.Millisecond, time.Second, 0, true, resilience.Hurried, 15 * time.Millisecond, false},
		{"each attempt's", 0, time.Second, 300 * time.Millisecond, true, resilience.Timeout, 300 * time.Millisecond, true},
		{"each attempt's, retried to the end", 0, time.Second, 400 * time.Millisecond, false, resilience.Timeout, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := chained(t, func(c *resilience.Config) {
					c.Policy.Timeout, c.Policy.Attempt = tt.timeout, tt.attempt
					if tt.once {
						c.Policy.Attempts = 1
					}
				})
				calls := 5
				if !tt.once {
					calls = 1
				}
				for i := range calls {
					ctx := t.Context()
					if tt.caller > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, tt.caller)
						defer cancel()
					}
					if c.Breaker().Snapshot(time.Now()).State != resilience.StateClosed {
						break
					}
					start := time.Now()
					_, err := resilience.Do(ctx, c, hang)
					e, ok := errors.AsType[*resilience.Error](err)
					if !ok || e.Kind != tt.kind || !errors.Is(err, context.DeadlineExceeded) {
						t.Fatalf("call %d: error %v, want one of kind %v", i, err, tt.kind)
					}
					if took := time.Since(start); took != tt.took {
						t.Errorf("call %d took %s, want %s", i, took, tt.took)
					}
				}
				if got := c.Breaker().Snapshot(time.Now()).State == resilience.StateOpen; got != tt.opens {
					t.Errorf("the breaker opened: %v, want %v", got, tt.opens)
				}
			})
		})
	}
}

// Callers that leave are no failures, and what they left is not waited for.
func TestChainCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, nil)
		for range 1000 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			start := time.Now()
			_, err := resilience.Do(ctx, c, hang, resilience.Static("instead"))
			if !errors.Is(err, context.Canceled) || !errors.Is(err, resilienceerrors.ErrContextCanceled) || time.Since(start) != 20*time.Millisecond {
				t.Fatalf("%v after %s", err, time.Since(start))
			}
		}
		counts := c.Meter().Counts()
		if len(counts) != 1 || counts[resilience.CallerLeft] != 1000 {
			t.Errorf("counts = %v, want 1000 callers that left", counts)
		}
	})
}

func TestChainFailsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, func(c *resilience.Config) { c.Policy.Attempts = 1 })
		for range 5 {
			resilience.Do(t.Context(), c, hang)
		}
		start := time.Now()
		_, err := resilience.Do(t.Context(), c, hang)
		e, ok := errors.AsType[*resilience.Error](err)
		if !ok || !errors.Is(err, resilienceerrors.ErrCircuitOpen) || e.RetryAfter() < 4*time.Second || e.RetryAfter() > 6*time.Second {
			t.Errorf("error %v, want one that says when to come again", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %s to say that nobody is asked", took)
		}
		if got, err := resilience.Do(t.Context(), c, hang, resilience.Static("")); got != "" || err != nil {
			t.Errorf("failing silently: %q, %v", got, err)
		}
		time.Sleep(e.RetryAfter())
		if got, err := resilience.Do(t.Context(), c, func(context.Context) (string, error) { return "back", nil }); got != "back" || err != nil {
			t.Errorf("after Retry-After: %q, %v", got, err)
		}
	})
}

func TestChainBulkhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, func(c *resilience.Config) {
			c.Policy.Bulkhead = resilience.BulkheadPolicy{Limit: 3, Wait: 50 * time.Millisecond}
			c.Policy.Attempts = 1
		})
		var inside, most atomic.Int64
		var errs sync.Map
		var callers sync.WaitGroup
		for i := range 10 {
			callers.Go(func() {
				_, err := resilience.Do(t.Context(), c, func(context.Context) (string, error) {
					n := inside.Add(1)
					defer inside.Add(-1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(500 * time.Millisecond)
					return "", nil
				})
				if err != nil {
					errs.Store(i, err)
				}
			})
		}
		// One gives up earlier than the bulkhead does.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		synctest.Wait()
		if _, err := resilience.Do(ctx, c, hang); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller who left the queue got %v", err)
		}
		callers.Wait()
		refused := 0
		for _, err := range errs.Range {
			refused++
			if !errors.Is(err.(error), resilienceerrors.ErrRejectedExecution) {
				t.Errorf("error %v, want a rejection", err)
			}
		}
		if most.Load() != 3 || refused != 7 {
			t.Errorf("%d were inside at once and %d refused, want 3 and 7", most.Load(), refused)
		}
		if s := c.Breaker().Snapshot(time.Now()); s.Failures != 0 || s.Calls != 3 {
			t.Errorf("the breaker counted what never reached the target: %+v", s)
		}
	})
}

// Under a target that always fails, retries are a bounded share of the calls.
func TestChainRetryStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, func(c *resilience.Config) { c.Policy.Breaker.Mode = resilience.ModeOff })
		var calls atomic.Int64
		var callers sync.WaitGroup
		const n = 2000
		for range n {
			time.Sleep(5 * time.Millisecond) // 200 a second
			callers.Go(func() {
				resilience.Do(t.Context(), c, func(context.Context) (string, error) {
					calls.Add(1)
					return "", &statusError{status: 503}
				})
			})
		}
		callers.Wait()
		// The floor may be spent once more, where the oldest tenth of the ten
		// seconds has been forgotten.
		if got := calls.Load(); got <= n || got > n*11/10+6 {
			t.Errorf("%d calls became %d, want at most a tenth and 6 more", n, got)
		}
	})
}

// Each attempt has a result of its own, also within runners that abandon calls
// and go on without them. The race detector is the judge.
func TestDoSharesNothing(t *testing.T) {
	twice := goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- f(ctx) }()
		}
		return <-errs
	})
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		for range 200 {
			got, err := resilience.Do(t.Context(), twice, func(context.Context) ([]int64, error) {
				return slices.Repeat([]int64{n.Add(1)}, 100), nil
			})
			if err != nil || len(got) != 100 || got[0] != got[99] {
				t.Fatalf("%v, %v", got, err)
			}
		}
		none := goresilience.RunnerFunc(func(context.Context, goresilience.Func) error { return nil })
		if _, err := resilience.Do(t.Context(), none, hang); err == nil {
			t.Error("a runner that calls nothing has a result")
		}
		synctest.Wait()
	})
}

// The parts go into a chain with the parts of others.
func TestMiddlewaresCompose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := chained(t, nil)
		var seen int
		tries := func(next goresilience.Runner) goresilience.Runner {
			return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
				seen++
				return next.Run(ctx, f)
			})
		}
		r := goresilience.RunnerChain(append(c.Middlewares(), tries)...)
		call, _ := fails(2, errors.New("reset"))
		if got, err := resilience.Do(t.Context(), r, call); got != "answer" || err != nil || seen != 3 {
			t.Errorf("%q, %v after %d tries", got, err, seen)
		}
	})
}

func TestChainLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	c, _ := chained(t, func(c *resilience.Config) {
		c.Policy.Timeout = 2 * time.Millisecond
		c.Policy.Breaker.Mode = resilience.ModeObserve
	})
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			for range 20 {
				resilience.Do(t.Context(), c, hang)
			}
		})
	}
	callers.Wait()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, there were %d", runtime.NumGoroutine(), before)
		}
	}
	if n := c.Meter().Counts()[resilience.TimeOut]; n != 1000 {
		t.Errorf("%d timeouts, want 1000", n)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := resilience.New(resilience.Config{Policy: resilience.DefaultPolicy()}); err == nil {
		t.Error("a chain without a name")
	}
	if _, err := resilience.New(resilience.Config{Name: "x"}); err == nil {
		t.Error("a chain that attempts nothing")
	}
}

// recorder counts what goresilience's recorders are told.
type recorder struct {
	metrics.Recorder // panics where a test doesn't expect a call
	mu               sync.Mutex
	got              map[string]int
}

func (r *recorder) inc(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got[what]++
}
func (r *recorder) WithID(string) metrics.Recorder { return r }
func (r *recorder) ObserveCommandExecution(_ time.Time, ok bool) {
	r.inc(map[bool]string{true: "ok", false: "failed"}[ok])
}
func (r *recorder) IncRetry()                       { r.inc("retry") }
func (r *recorder) IncTimeout()                     { r.inc("timeout") }
func (r *recorder) IncBulkheadQueued()              { r.inc("queued") }
func (r *recorder) IncBulkheadProcessed()           { r.inc("processed") }
func (r *recorder) IncBulkheadTimeout()             { r.inc("full") }
func (r *recorder) IncCircuitbreakerState(s string) { r.inc(s) }

func TestRecorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{got: make(map[string]int)}
		c, _ := chained(t, func(c *resilience.Config) {
			c.Monitor = resilience.NewMonitor(10, rec)
			c.Policy.Attempt = 100 * time.Millisecond
		})
		call, _ := fails(1, errors.New("reset"))
		resilience.Do(t.Context(), c, call)
		resilience.Do(t.Context(), c, hang)
		resilience.Do(t.Context(), c, hang)
		want := map[string]int{"ok": 1, "failed": 2, "retry": 3, "timeout": 4, "queued": 6, "processed": 6}
		for what, n := range want {
			if rec.got[what] != n {
				t.Errorf("%s is recorded %d times, want %d: %v", what, rec.got[what], n, rec.got)
			}
		}
	})
}
