package resilience

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/slok/goresilience"
)

// Config is what a [Chain] is made of.
type Config struct {
	// Name is the target's, in errors, events and metrics. Required.
	Name string

	// Policy is what the target's callers ask for. Stale and Fallback are not
	// the chain's: what stands in for an answer is given to [Do].
	Policy Policy

	// Idempotent says that a call may be made twice. Else only that is tried
	// again of which nothing was sent.
	Idempotent bool

	// Result reads what a call's error says in the words of HTTP. Nil takes
	// every error for a target that broke.
	Result func(error) Result

	// Monitor counts. Nil counts for the chain alone.
	Monitor *Monitor
}

// Chain is what all calls to one target share: a [goresilience.Runner] made of
// this package's middlewares in their order. It is safe for concurrent use, and
// needs no closing; it starts nothing.
type Chain struct {
	cfg      Config
	run      goresilience.Runner
	meter    *Meter
	breaker  *Breaker
	bulkhead *Bulkhead
	budget   *Budget
	timeout  *Error // the cause of contexts that the policy ends
	attempt  *Error // and of those of one attempt
}

// New returns the chain of a policy.
func New(cfg Config) (*Chain, error) {
	if cfg.Name == "" {
		return nil, errors.New("resilience: Config.Name is empty")
	}
	if err := cfg.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("the policy of %s: %w", cfg.Name, err)
	}
	if cfg.Result == nil {
		cfg.Result = func(err error) Result { return Result{Err: err} }
	}
	if cfg.Monitor == nil {
		cfg.Monitor = NewMonitor(1, nil)
	}
	p := cfg.Policy
	c := &Chain{
		cfg:      cfg,
		meter:    cfg.Monitor.Meter(cfg.Name),
		bulkhead: NewBulkhead(p.Bulkhead),
		budget:   NewBudget(p.Budget),
		timeout:  &Error{Kind: Timeout, Target: cfg.Name, Limit: p.Timeout},
		attempt:  &Error{Kind: Timeout, Target: cfg.Name, Limit: p.Attempt},
	}
	p.Breaker.Probe = cmp.Or(p.Breaker.Probe, p.Attempt, p.Timeout)
	c.breaker = NewBreaker(p.Breaker, c.meter, "")
	c.run = goresilience.RunnerChain(c.Middlewares()...)
	return c, nil
}

var _ goresilience.Runner = (*Chain)(nil)

// Run implements [goresilience.Runner].
func (c *Chain) Run(ctx context.Context, f goresilience.Func) error { return c.run.Run(ctx, f) }

// Breaker returns the chain's breaker, for operators.
func (c *Chain) Breaker() *Breaker { return c.breaker }

// Meter returns the chain's counters.
func (c *Chain) Meter() *Meter { return c.meter }

// Middlewares returns the parts of the chain, outermost first, for a
// [goresilience.RunnerChain] that has something else between or around them.
func (c *Chain) Middlewares() []goresilience.Middleware {
	return []goresilience.Middleware{c.guard, c.retry, c.breaking, c.limit, c.judge}
}

func (c *Chain) count(k EventKind) {
	if c != nil {
		c.meter.Add(k, "")
	}
}
