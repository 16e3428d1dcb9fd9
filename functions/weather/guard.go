package weather

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// The messages of stale and empty reports. The first two are the words that
// this application's ancestor used, and people look for them.
const (
	MessageStale       = "CAUTION - Response out of date!"
	MessageUnreachable = "CAUTION - Response out of date, producer unreachable!"
	MessageEmpty       = "No weather report can be had right now, and none is remembered for this place."
)

// GuardConfig is what a [Guard] needs. Every field must be set, but Simulation.
type GuardConfig struct {
	// Source is what is guarded, and Name what it is called in the log.
	Source Source
	Name   string

	// Deadline bounds one call of the source. Too short, and slow answers are
	// lost; too long, and people wait for a source that is gone.
	Deadline time.Duration

	// Rest is how long a source that failed three times in a row is left alone,
	// and its callers get the fallback at once. It doubles while the source
	// isn't back, twice at most. Too short, and many callers wait in vain; too
	// long, and a source that is back isn't noticed.
	Rest time.Duration

	// Remember is how many reports are remembered, about 1 KB each.
	Remember int

	// RememberFor is the greatest age of a report that is still given.
	RememberFor time.Duration

	// StaleMessage is put into every report that comes from memory.
	StaleMessage string

	// Simulation, if not nil, answers when the source fails and nothing is
	// remembered: something real and old is better than something invented.
	Simulation Source

	Log *slog.Logger
}

// Guard asks a source, within a deadline, and remembers its last good answer
// for each query. When the source fails it gives, in this order, the remembered
// answer marked stale, the simulation if there is one, or an empty report with a
// message: it fails silently, so that a page can always be shown.
type Guard struct {
	source     Source
	chain      *resilience.Chain
	memory     *memory
	stale      string
	simulation Source
	log        *slog.Logger
}

// NewGuard returns a guard of a source. It refuses times that make no sense.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	policy := resilience.DefaultPolicy()
	policy.Timeout = cfg.Deadline
	// There is an old answer to give, which is better than to have people wait
	// for another try; and behind a gateway it is the gateway that tries again.
	policy.Attempts = 1
	policy.Breaker.Consecutive = 3
	policy.Breaker.Open = min(max(cfg.Rest, time.Millisecond), time.Hour)
	policy.Breaker.MaxOpen = 4 * policy.Breaker.Open
	chain, err := resilience.New(resilience.Config{
		Name:   cfg.Name,
		Policy: policy,
		Result: func(err error) resilience.Result { return result(err, cfg.Rest) },
	})
	if err != nil {
		return nil, err
	}
	return &Guard{
		source:     cfg.Source,
		chain:      chain,
		memory:     newMemory(cfg.Remember, cfg.RememberFor),
		stale:      cfg.StaleMessage,
		simulation: cfg.Simulation,
		log:        cfg.Log,
	}, nil
}

// Report answers the query. Its errors are [ErrUnknownPlace], an
// [*InvalidError] of a source that knows better than [ParseQuery], or that the
// caller hung up; a source that fails is no error here.
func (g *Guard) Report(ctx context.Context, q Query) (Report, error) {
	report, err := resilience.Do(ctx, g.chain, func(ctx context.Context) (Report, error) {
		report, err := g.source.Report(ctx, q)
		if err == nil && report.Empty() {
			err = errNothing
		}
		return report, err
	})
	switch {
	case err == nil:
		g.memory.put(q, report)
		return report, nil
	case isAnswer(err):
		return Report{}, err
	case errors.Is(ctx.Err(), context.Canceled):
		return Report{}, context.Cause(ctx)
	}
	g.complain(ctx, q, err)
	return g.fallback(ctx, q)
}

func (g *Guard) fallback(ctx context.Context, q Query) (Report, error) {
	if report, ok := g.memory.get(q); ok {
		report.Message = g.stale
		return report, nil
	}
	if g.simulation != nil {
		return g.simulation.Report(ctx, q)
	}
	return Report{Place: q.Place(), Units: q.Units, Message: MessageEmpty}, nil
}

// complain logs a failure once, where it becomes an old answer. That a source
// rests is not news, and a key that is refused needs somebody to act.
func (g *Guard) complain(ctx context.Context, q Query, err error) {
	level := slog.LevelWarn
	if failed, ok := errors.AsType[*ServiceError](err); ok && (failed.Status == 401 || failed.Status == 403) {
		level = slog.LevelError
	}
	log := g.log.With("zip", q.Zip, "country", q.Country)
	if failed, ok := errors.AsType[*resilience.Error](err); ok {
		switch failed.Kind {
		case resilience.Open:
			level = slog.LevelDebug
		case resilience.Panicked:
			level = slog.LevelError
			log = log.With("stack", string(failed.Stack))
		}
	}
	log.Log(ctx, level, "no fresh weather", "err", err)
}

// isAnswer tells errors that are answers from failures.
func isAnswer(err error) bool {
	_, wrong := errors.AsType[*InvalidError](err)
	return wrong || errors.Is(err, ErrUnknownPlace)
}

// errNothing is an empty report of a source that is a guard elsewhere.
var errNothing = errors.New("it has nothing to report")

// result says in the words of HTTP what an error says about its source. One that
// is too busy is left alone for rest at least, whatever it asks for.
func result(err error, rest time.Duration) resilience.Result {
	if isAnswer(err) {
		return resilience.Result{Status: http.StatusNotFound}
	}
	if errors.Is(err, errNothing) { // it works, and can't help
		return resilience.Result{Status: http.StatusNotImplemented}
	}
	failed, ok := errors.AsType[*ServiceError](err)
	if !ok {
		return resilience.Result{Err: err}
	}
	r := resilience.Result{Status: failed.Status, RetryAfter: failed.RetryAfter, Err: failed.Err}
	if r.RetryAfter > 0 || r.Status == http.StatusTooManyRequests {
		r.RetryAfter = max(r.RetryAfter, rest)
	}
	return r
}
