package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	resilienceerrors "github.com/slok/goresilience/errors"
)

// Result is what came of one attempt, in the words of HTTP.
type Result struct {
	Status     int           // of the answer; 0 if there was none
	RetryAfter time.Duration // what the answer asked for; 0 if nothing
	Unsent     bool          // certainly nothing of the request reached the target
	Err        error         // why there is no answer, or none that is of use; nil if there is
}

// Outcome is what an attempt says about its target.
type Outcome uint8

// The outcomes. Ignored is the zero value: whoever knows nothing says nothing.
const (
	Ignored   Outcome = iota // nothing: the caller left, or was refused here
	Succeeded                // it works; also if it said 404, which is an answer
	Broken                   // it fails
	Late                     // it fails, by being slow
	Impatient                // its caller gave up early: only counts if it was slow nonetheless
	Throttled                // it works, and wants to be left alone for a while
)

// Retry says who may try again.
type Retry uint8

// Whether an attempt may be repeated.
const (
	RetryNever  Retry = iota // another attempt would end the same, or nobody waits for it
	RetrySafe                // if to do it twice is as good as once, see [Idempotent]; costs budget
	RetryAlways              // whatever it is: nothing was sent. Costs no budget
)

// Verdict is what follows from a [Result].
type Verdict struct {
	Outcome  Outcome
	Retry    Retry
	Fallback bool          // something else may be given in its place
	Wait     time.Duration // how long the target wants to be left alone; 0 for not at all
}

// Event returns what an attempt with this verdict is counted as.
func (v Verdict) Event() EventKind {
	switch v.Outcome {
	case Succeeded:
		return Success
	case Late:
		return TimeOut
	case Impatient:
		return CallerHurried
	case Throttled:
		return Throttling
	case Ignored:
		if !v.Fallback { // there is nobody to give it to
			return CallerLeft
		}
	}
	return Failure
}

// maxQuiet bounds what a Retry-After can ask for: a target must not be able to
// take itself out for a day by one header.
const maxQuiet = 30 * time.Second

// Classify decides what an attempt says, once for everybody who has to know. ctx
// is the attempt's own, so that its cause tells who ran out of time.
//
//	Result                        Breaker       Retry         Fallback
//	2xx, 3xx, and 4xx but these   succeeded     never         no
//	408, 425                      ignored       safe          yes
//	429, 503 with Retry-After     throttled     safe          yes
//	500                           broken        never         yes
//	501, 505                      succeeded     never         yes
//	502, 503, 504, other 5xx      broken        safe          yes
//	not reached, nothing sent     broken        always        yes
//	broke off, cut short, invalid broken        safe          yes
//	longer than the policy allows late          safe          yes
//	the caller's deadline         impatient     never         yes
//	the caller left               ignored       never         no
//	refused here: open, full      ignored       never         yes
//	panic                         broken        never         yes
func Classify(ctx context.Context, r Result) Verdict {
	// A refusal is one, also if the rest of it broke off.
	if r.Err != nil && r.Status < 400 {
		return classifyError(ctx, r)
	}
	wait := min(max(r.RetryAfter, 0), maxQuiet)
	switch code := r.Status; {
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		return Verdict{Outcome: Ignored, Retry: RetrySafe, Fallback: true}
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable && r.RetryAfter > 0:
		return Verdict{Outcome: Throttled, Retry: RetrySafe, Fallback: true, Wait: wait}
	case code < 500:
		return Verdict{Outcome: Succeeded}
	case code == http.StatusNotImplemented, code == http.StatusHTTPVersionNotSupported:
		return Verdict{Outcome: Succeeded, Fallback: true}
	case code == http.StatusInternalServerError:
		return Verdict{Outcome: Broken, Fallback: true}
	}
	return Verdict{Outcome: Broken, Retry: RetrySafe, Fallback: true}
}

func classifyError(ctx context.Context, r Result) Verdict {
	if e, ok := errors.AsType[*Error](r.Err); ok {
		switch e.Kind {
		case Open, Full:
			return Verdict{Fallback: true}
		case Panicked:
			return Verdict{Outcome: Broken, Fallback: true}
		case Canceled:
			return Verdict{}
		}
	}
	for _, refused := range [...]error{resilienceerrors.ErrCircuitOpen, resilienceerrors.ErrRejectedExecution, resilienceerrors.ErrTimeoutWaitingForExecution} {
		if errors.Is(r.Err, refused) {
			return Verdict{Fallback: true}
		}
	}
	if ctx.Err() != nil {
		switch e := cause(ctx); {
		case e != nil && e.Kind == Timeout:
			return Verdict{Outcome: Late, Retry: RetrySafe, Fallback: true}
		case e != nil && e.Kind == Hurried, ctx.Err() == context.DeadlineExceeded:
			return Verdict{Outcome: Impatient, Fallback: true}
		}
		return Verdict{}
	}
	if r.Unsent || unsent(r.Err) {
		return Verdict{Outcome: Broken, Retry: RetryAlways, Fallback: true}
	}
	if ne, ok := errors.AsType[net.Error](r.Err); ok && ne.Timeout() {
		return Verdict{Outcome: Late, Retry: RetrySafe, Fallback: true}
	}
	return Verdict{Outcome: Broken, Retry: RetrySafe, Fallback: true}
}

// unsent says whether an error means that no connection was made.
func unsent(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok && !errors.Is(err, io.ErrUnexpectedEOF)
}

// Idempotent says whether a request may be sent twice: its method only reads, or
// its sender promises by a header Idempotency-Key that the second does nothing.
// PUT and DELETE are not among them, though RFC 9110 (9.2.2) says that they are
// idempotent: functions are written by people who have not read it.
func Idempotent(method string, h http.Header) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, "":
		return true
	}
	return len(h["Idempotency-Key"]) > 0 || len(h["X-Idempotency-Key"]) > 0
}

// RetryAfter reads the header of that name, seconds or a date. It is 0 if there
// is none that can be understood.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if date, err := http.ParseTime(v); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// Backoff returns how long to pause before attempt n, counted from 2: anything
// between nothing and 25 ms, doubled with each attempt, at most 250 ms. The whole
// range is random, for callers that failed together must not come back together.
func Backoff(n int) time.Duration {
	const first, most = 25 * time.Millisecond, 250 * time.Millisecond
	d := most
	if n < 6 {
		d = min(first<<max(n-2, 0), most)
	}
	return rand.N(d + 1)
}
