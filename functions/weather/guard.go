package weather

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/slok/goresilience"
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
	// Source is what is guarded.
	Source Source

	// Deadline bounds one call of the source. Too short, and slow answers are
	// lost; too long, and people wait for a source that is gone.
	Deadline time.Duration

	// Rest is how long a source that kept a caller waiting in vain is left
	// alone, and its callers get the fallback at once. Too short, and many
	// callers wait in vain; too long, and a source that is back isn't noticed.
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
//
// The chain is goresilience's, deadline outside, rest inside. Its own
// middlewares for these are not used: as of v0.2.0 they leak a goroutine for
// each timeout and count a caller who hung up as a failure of the source.
type Guard struct {
	source     Source
	chain      goresilience.Runner
	memory     *memory
	stale      string
	simulation Source
	log        *slog.Logger
}

// NewGuard returns a guard of a source.
func NewGuard(cfg GuardConfig) *Guard {
	return &Guard{
		source:     cfg.Source,
		chain:      goresilience.RunnerChain(deadline(cfg.Deadline), rest(cfg.Rest)),
		memory:     newMemory(cfg.Remember, cfg.RememberFor),
		stale:      cfg.StaleMessage,
		simulation: cfg.Simulation,
		log:        cfg.Log,
	}
}

// Report answers the query. Its errors are [ErrUnknownPlace], an
// [*InvalidError] of a source that knows better than [ParseQuery], or that the
// caller hung up; a source that fails is no error here.
func (g *Guard) Report(ctx context.Context, q Query) (Report, error) {
	// The chain runs its function before it returns, so report is written by
	// nobody else.
	var report Report
	err := g.chain.Run(ctx, func(ctx context.Context) error {
		var err error
		report, err = g.source.Report(ctx, q)
		if err == nil && report.Empty() {
			return errNothing
		}
		return err
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
	if errors.Is(err, errResting) {
		level = slog.LevelDebug
	}
	g.log.Log(ctx, level, "no fresh weather", "zip", q.Zip, "country", q.Country, "err", err)
}

// isAnswer tells errors that are answers from failures.
func isAnswer(err error) bool {
	_, wrong := errors.AsType[*InvalidError](err)
	return wrong || errors.Is(err, ErrUnknownPlace)
}

var (
	// errNothing is an empty report of a source that is a guard elsewhere.
	errNothing = errors.New("it has nothing to report")

	// errDeadline is the cause of a call that took too long.
	errDeadline = errors.New("it did not answer within the deadline")

	// errHurry is the cause of a call whose caller had less time than that.
	errHurry = errors.New("the caller had too little time left to wait for it")

	// errResting refuses a call to a source that is left alone.
	errResting = errors.New("it kept callers waiting in vain a moment ago, and is left alone")
)

// reserve is what is kept of the caller's own time to give the fallback in.
const reserve = 100 * time.Millisecond

// deadline bounds a call by its context alone: no goroutine waits beside it. A
// caller with less time than d gets a call that is shorter, and its fallback in
// time.
func deadline(d time.Duration) goresilience.Middleware {
	return func(next goresilience.Runner) goresilience.Runner {
		return goresilience.RunnerFunc(func(ctx context.Context, f goresilience.Func) error {
			d, cause := d, errDeadline
			if end, ok := ctx.Deadline(); ok {
				if left := time.Until(end) - reserve; left < d {
					d, cause = left, errHurry
				}
			}
			ctx, cancel := context.WithTimeoutCause(ctx, d, cause)
			defer cancel()
			err := next.Run(ctx, f)
			if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), cause) {
				return cause
			}
			return err
		})
	}
}
