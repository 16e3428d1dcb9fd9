package weather

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/stale"
)

// The messages of stale and empty reports. The first two are the words that
// this application's ancestor used, and people look for them.
const (
	MessageStale       = "CAUTION - Response out of date!"
	MessageUnreachable = "CAUTION - Response out of date, producer unreachable!"
	MessageEmpty       = "No weather report can be had right now, and none is remembered for this place."
)

// GuardConfig is what a [Guard] needs. Every field must be set, but Fresh,
// RedisURL and Simulation.
type GuardConfig struct {
	// Source is what is guarded, and Name what it is called in the log.
	Source Source
	Name   string

	// Function is whose reports these are, such as
	// "weather-producer.openfaas-fn", and Origin what they depend on beside the
	// question, such as the services' addresses. Guards that have both in common,
	// and the Redis, share what they remember.
	Function string
	Origin   []string

	// Deadline bounds one call of the source. Too short, and slow answers are
	// lost; too long, and people wait for a source that is gone.
	Deadline time.Duration

	// Rest is how long a source that failed three times in a row is left alone,
	// and its callers get the fallback at once. It doubles while the source
	// isn't back, twice at most. Too short, and many callers wait in vain; too
	// long, and a source that is back isn't noticed.
	Rest time.Duration

	// Fresh is how long a report is given again without a call, give or take a
	// tenth; for as long after that it is given while a younger one is fetched,
	// for which nobody waits. 0 calls the source for every question. The greater
	// it is, the fewer the calls, and the older are reports that aren't marked.
	Fresh time.Duration

	// Remember is how many reports are remembered in this process, of
	// [rememberBytes] each.
	Remember int

	// RememberFor is the greatest age of a report that is still given, at most 7
	// days.
	RememberFor time.Duration

	// RedisURL is where all replicas share what they remember, in a form that
	// [stale.Config] knows. Empty shares nothing.
	RedisURL string

	// StaleMessage is put into every report that is given because the source
	// fails.
	StaleMessage string

	// Simulation, if not nil, answers when the source fails and nothing is
	// remembered: something real and old is better than something invented.
	Simulation Source

	Log *slog.Logger
}

const (
	// rememberBytes is what a remembered report takes: its JSON of some 600
	// bytes, and what the cache needs for it.
	rememberBytes = 2 << 10

	// maxReport is the largest report that is remembered.
	maxReport = 16 << 10

	// maxRemember is how long the cache keeps anything.
	maxRemember = 7 * 24 * time.Hour

	// unknownFor is how long a place that no service knows is not asked for
	// again. People who mistyped try again at once, and programs for ever.
	unknownFor = 10 * time.Second

	// reserve is what is kept of a caller's time to give a fallback in.
	reserve = 20 * time.Millisecond
)

// Guard asks a source, within a deadline, and remembers its last good answer
// for each query, if it may in a Redis for all replicas. A report that is fresh
// is given again without asking; of many callers of one query, one asks.
//
// When the source fails it gives, in this order, the remembered report marked
// stale, the simulation if there is one, or an empty report with a message: it
// fails silently, so that a page can always be shown. While the source rests,
// and until it has answered once, nobody for whom a report is remembered waits
// for it.
type Guard struct {
	source     Source
	chain      *resilience.Chain
	cache      *stale.Cache
	function   string
	origin     []string
	times      stale.Times
	keep       time.Duration // how long a report is given after it was fresh
	stale      string
	simulation Source
	log        *slog.Logger
}

// NewGuard returns a guard of a source, which Close ends. It refuses times and a
// RedisURL that make no sense, but doesn't wait for a Redis.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	if cfg.RememberFor > maxRemember {
		return nil, fmt.Errorf("reports are to be remembered for %s: %s is the longest", cfg.RememberFor, maxRemember)
	}
	if cfg.Fresh > cfg.RememberFor {
		return nil, fmt.Errorf("reports are to be fresh for %s and remembered for %s: fresh must be the shorter time", cfg.Fresh, cfg.RememberFor)
	}
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
	cache, err := stale.Open(stale.Config{
		RedisURL: cfg.RedisURL,
		Memory:   int64(cfg.Remember) * rememberBytes,
		MaxEntry: maxReport,
		Logger:   cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	keep := cfg.RememberFor - cfg.Fresh
	times := stale.Times{
		Fresh:    cfg.Fresh,
		While:    min(cfg.Fresh, keep),
		IfError:  keep,
		Negative: min(unknownFor, cfg.Fresh),
		Errors:   min(time.Second, cfg.Fresh),
		Load:     cfg.Deadline + time.Second, // it is the chain that ends a call
	}
	if cfg.Fresh == 0 {
		times.Errors = -1 // or else the cache's default
	}
	return &Guard{
		source:     cfg.Source,
		chain:      chain,
		cache:      cache,
		function:   cfg.Function,
		origin:     cfg.Origin,
		times:      times,
		keep:       keep,
		stale:      cfg.StaleMessage,
		simulation: cfg.Simulation,
		log:        cfg.Log,
	}, nil
}

// Close ends the calls that are under way, and waits for them.
func (g *Guard) Close() error { return g.cache.Close() }

// Report answers the query. Its errors are [ErrUnknownPlace], an
// [*InvalidError] of a source that knows better than [ParseQuery], or that the
// caller hung up; a source that fails is no error here.
func (g *Guard) Report(ctx context.Context, q Query) (Report, error) {
	report, err := g.answer(ctx, q)
	switch {
	case err == nil || isAnswer(err):
		return report, err
	case errors.Is(ctx.Err(), context.Canceled):
		return Report{}, context.Cause(ctx)
	case g.simulation != nil:
		return g.simulation.Report(ctx, q)
	}
	return Report{Place: q.Place(), Units: q.Units, Message: MessageEmpty}, nil
}

// answer returns what is remembered, as far as its age and the source's state
// allow, or else asks. An error that is no answer says that there is nothing to
// give.
func (g *Guard) answer(ctx context.Context, q Query) (Report, error) {
	if until, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until.Add(-min(reserve, time.Until(until)/4)))
		defer cancel()
	}
	key := stale.NewKey(g.function, reportVersion, append([]string{q.Zip, q.Country, string(q.Units)}, g.origin...)...)
	load := func(ctx context.Context) (stale.Entry, error) { return g.ask(ctx, q) }
	times, down := g.times, g.down()
	if down && times.Fresh > 0 {
		times.While = g.keep // what is remembered at once, and the question behind
	}
	r, err := g.cache.Do(ctx, key, times, load)
	if err != nil {
		return Report{}, err
	}
	report, err := g.unpack(ctx, &r)
	if err != nil {
		return Report{}, err
	}
	switch kept := r.Source == stale.Hit || r.Source == stale.While; {
	case kept && g.times.Fresh == 0:
		// Another replica is asking, whose answer this question is not to do
		// without. If there is none, what is remembered is.
		own, failed := g.ask(ctx, q)
		if failed != nil {
			break
		}
		r = stale.Result{Entry: own, Source: stale.Miss, Age: own.Age}
		if report, err = g.unpack(ctx, &r); err != nil {
			return Report{}, err
		}
	case kept && !down && doubtful(report):
		// The source was in trouble when it gave this. It may be well by now.
		times.Fresh, times.While = 0, 0
		if r, err = g.cache.Do(ctx, key, times, load); err != nil {
			return Report{}, err
		}
		if report, err = g.unpack(ctx, &r); err != nil {
			return Report{}, err
		}
	}
	report.AgeSeconds = int64(r.Age / time.Second)
	// Between fresh and old there is a time in which a report is merely not the
	// youngest, and nothing is wrong.
	old := r.Source == stale.While && -r.TTL >= g.times.While
	switch {
	case r.Source == stale.Failed, down && (old || r.Source == stale.While && report.Stale):
		report.Stale, report.Message = true, g.stale
	case old: // and another replica is asking
		report.Stale, report.Message = true, MessageStale
	}
	return report, nil
}

// unpack returns the result's report, or its error that is an answer.
func (g *Guard) unpack(ctx context.Context, r *stale.Result) (Report, error) {
	report, err := unpack(&r.Entry)
	if err != nil && !isAnswer(err) {
		g.log.ErrorContext(ctx, "what is remembered is no report", "key", r.Key, "err", err)
	}
	return report, err
}

// down says whether the source is believed to fail: it rests, or has not
// answered since.
func (g *Guard) down() bool {
	b := g.chain.Breaker().Snapshot(time.Now())
	return b.State == resilience.StateOpen || b.State == resilience.StateHalfOpen && b.Allowed == 1
}

// ask gets an entry for the cache from the source. Its error is a failure.
func (g *Guard) ask(ctx context.Context, q Query) (stale.Entry, error) {
	report, err := resilience.Do(ctx, g.chain, func(ctx context.Context) (Report, error) {
		report, err := g.source.Report(ctx, q)
		if err == nil && report.Empty() {
			err = errNothing
		}
		return report, err
	})
	switch {
	case err == nil:
		return pack(report)
	case isAnswer(err):
		return packRefusal(err)
	case !errors.Is(ctx.Err(), context.Canceled): // or all callers hung up
		g.complain(ctx, q, err)
	}
	return stale.Entry{}, err
}

// complain logs a failure once, where all its callers are given something else.
// That a source rests is not news, and a key that is refused needs somebody to
// act.
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
