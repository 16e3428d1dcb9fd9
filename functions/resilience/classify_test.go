package resilience_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"time"

	resilienceerrors "github.com/slok/goresilience/errors"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// slowNet is an error of a connection that took too long.
type slowNet struct{}

func (slowNet) Error() string   { return "i/o timeout" }
func (slowNet) Timeout() bool   { return true }
func (slowNet) Temporary() bool { return true }

func TestClassify(t *testing.T) {
	const (
		never, safe, always = resilience.RetryNever, resilience.RetrySafe, resilience.RetryAlways
		none                = resilience.Ignored
		ok, broken          = resilience.Succeeded, resilience.Broken
		slow, hurry         = resilience.Late, resilience.Impatient
		throttled           = resilience.Throttled
	)
	background := t.Context()
	ended := func(cause error) context.Context {
		ctx, cancel := context.WithCancelCause(background)
		cancel(cause)
		return ctx
	}
	policyOver, cancel := context.WithDeadlineCause(background, time.Now(), &resilience.Error{Kind: resilience.Timeout})
	defer cancel()
	callerOver, cancel := context.WithDeadlineCause(background, time.Now(), &resilience.Error{Kind: resilience.Hurried})
	defer cancel()
	plainOver, cancel := context.WithDeadline(background, time.Now())
	defer cancel()
	left := ended(nil)
	broke := &url.Error{Op: "Get", URL: "http://f", Err: &net.OpError{Op: "read", Err: syscall.ECONNRESET}}
	refused := &url.Error{Op: "Get", URL: "http://f", Err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}

	for _, tt := range []struct {
		name     string
		ctx      context.Context
		result   resilience.Result
		outcome  resilience.Outcome
		retry    resilience.Retry
		fallback bool
		wait     time.Duration
	}{
		{"200", nil, resilience.Result{Status: 200}, ok, never, false, 0},
		{"101", nil, resilience.Result{Status: 101}, ok, never, false, 0},
		{"304", nil, resilience.Result{Status: 304}, ok, never, false, 0},
		{"no status, no error", nil, resilience.Result{}, ok, never, false, 0},
		{"400", nil, resilience.Result{Status: 400}, ok, never, false, 0},
		{"401", nil, resilience.Result{Status: 401}, ok, never, false, 0},
		{"404", nil, resilience.Result{Status: 404}, ok, never, false, 0},
		{"409", nil, resilience.Result{Status: 409}, ok, never, false, 0},
		{"404 whose text is an error", nil, resilience.Result{Status: 404, Err: errors.New("no such place")}, ok, never, false, 0},
		{"408", nil, resilience.Result{Status: 408}, none, safe, true, 0},
		{"425", nil, resilience.Result{Status: 425}, none, safe, true, 0},
		{"429", nil, resilience.Result{Status: 429}, throttled, safe, true, 0},
		{"429 with a time", nil, resilience.Result{Status: 429, RetryAfter: 2 * time.Second}, throttled, safe, true, 2 * time.Second},
		{"429 for a day", nil, resilience.Result{Status: 429, RetryAfter: 24 * time.Hour}, throttled, safe, true, 30 * time.Second},
		{"500", nil, resilience.Result{Status: 500}, broken, never, true, 0},
		{"501", nil, resilience.Result{Status: 501}, ok, never, true, 0},
		{"502", nil, resilience.Result{Status: 502}, broken, safe, true, 0},
		{"503", nil, resilience.Result{Status: 503}, broken, safe, true, 0},
		{"503 with a time", nil, resilience.Result{Status: 503, RetryAfter: time.Second}, throttled, safe, true, time.Second},
		{"504", nil, resilience.Result{Status: 504}, broken, safe, true, 0},
		{"504 as time ran out", policyOver, resilience.Result{Status: 504}, broken, safe, true, 0},
		{"505", nil, resilience.Result{Status: 505}, ok, never, true, 0},
		{"599", nil, resilience.Result{Status: 599}, broken, safe, true, 0},

		{"refused", nil, resilience.Result{Err: refused}, broken, always, true, 0},
		{"no such host", nil, resilience.Result{Err: &net.DNSError{Err: "no such host"}}, broken, always, true, 0},
		{"a dial that took too long", nil, resilience.Result{Err: &net.OpError{Op: "dial", Err: slowNet{}}}, broken, always, true, 0},
		{"a certificate of a stranger", nil, resilience.Result{Err: &tls.CertificateVerificationError{Err: errors.New("unknown authority")}}, broken, always, true, 0},
		{"its sender knows that nothing was sent", nil, resilience.Result{Unsent: true, Err: io.EOF}, broken, always, true, 0},
		{"reset", nil, resilience.Result{Err: broke}, broken, safe, true, 0},
		{"EOF", nil, resilience.Result{Err: io.EOF}, broken, safe, true, 0},
		{"truncated 200", nil, resilience.Result{Status: 200, Err: io.ErrUnexpectedEOF}, broken, safe, true, 0},
		{"a transport's own limit", nil, resilience.Result{Err: slowNet{}}, slow, safe, true, 0},

		{"attempt timeout", policyOver, resilience.Result{Err: context.DeadlineExceeded}, slow, safe, true, 0},
		{"attempt timeout, seen as a reset", policyOver, resilience.Result{Err: broke}, slow, safe, true, 0},
		{"caller's deadline", callerOver, resilience.Result{Err: context.DeadlineExceeded}, hurry, never, true, 0},
		{"caller's deadline, unknown to us", plainOver, resilience.Result{Err: context.DeadlineExceeded}, hurry, never, true, 0},
		{"caller left", left, resilience.Result{Err: context.Canceled}, none, never, false, 0},
		{"caller left, seen as refused", left, resilience.Result{Err: refused}, none, never, false, 0},
		{"caller left for a reason", ended(errors.New("shutdown")), resilience.Result{Err: io.EOF}, none, never, false, 0},

		{"open", nil, resilience.Result{Err: &resilience.Error{Kind: resilience.Open}}, none, never, true, 0},
		{"full", nil, resilience.Result{Err: fmt.Errorf("call: %w", &resilience.Error{Kind: resilience.Full})}, none, never, true, 0},
		{"goresilience's open", nil, resilience.Result{Err: resilienceerrors.ErrCircuitOpen}, none, never, true, 0},
		{"goresilience's full", nil, resilience.Result{Err: resilienceerrors.ErrTimeoutWaitingForExecution}, none, never, true, 0},
		{"panic", nil, resilience.Result{Err: &resilience.Error{Kind: resilience.Panicked}}, broken, never, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := tt.ctx
			if ctx == nil {
				ctx = background
			}
			want := resilience.Verdict{Outcome: tt.outcome, Retry: tt.retry, Fallback: tt.fallback, Wait: tt.wait}
			if got := resilience.Classify(ctx, tt.result); got != want {
				t.Errorf("Classify(%+v) = %+v, want %+v", tt.result, got, want)
			}
		})
	}
}

func TestIdempotent(t *testing.T) {
	for method, want := range map[string]bool{"GET": true, "HEAD": true, "OPTIONS": true, "TRACE": true, "POST": false, "PUT": false, "PATCH": false, "DELETE": false} {
		if got := resilience.Idempotent(method, nil); got != want {
			t.Errorf("Idempotent(%s) = %v, want %v", method, got, want)
		}
		if !resilience.Idempotent(method, http.Header{"Idempotency-Key": {"7"}}) {
			t.Errorf("Idempotent(%s) = false for a request with a key", method)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "1.5": 0, "99999999999999999999": 0,
		"Sat, 01 Aug 2026 12:00:30 GMT": 30 * time.Second, "Sat, 01 Aug 2026 11:00:00 GMT": 0,
	} {
		if got := resilience.RetryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("RetryAfter(%q) = %s, want %s", value, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for n, most := range map[int]time.Duration{2: 25, 3: 50, 4: 100, 5: 200, 6: 250, 60: 250} {
		most *= time.Millisecond
		var longest time.Duration
		for range 2000 {
			d := resilience.Backoff(n)
			if d < 0 || d > most {
				t.Fatalf("Backoff(%d) = %s, want at most %s", n, d, most)
			}
			longest = max(longest, d)
		}
		if longest < most/2 {
			t.Errorf("Backoff(%d) is never above %s of %s", n, longest, most)
		}
	}
}

func TestError(t *testing.T) {
	cause := errors.New("why")
	for _, tt := range []struct {
		kind resilience.Kind
		is   []error
		text string
	}{
		{resilience.Failed, nil, "weather failed: why"},
		{resilience.Timeout, []error{resilienceerrors.ErrTimeout, context.DeadlineExceeded}, "weather did not answer within 2s, its limit for a call"},
		{resilience.Hurried, []error{context.DeadlineExceeded}, "weather was not done when its caller's time was over: 2s were left for it"},
		{resilience.Canceled, []error{resilienceerrors.ErrContextCanceled, context.Canceled}, "the caller of weather left"},
		{resilience.Open, []error{resilienceerrors.ErrCircuitOpen}, "weather failed too often and is left alone: it is tried again in 1.5s"},
		{resilience.Full, []error{resilienceerrors.ErrRejectedExecution}, "weather has as many calls at the same time as its bulkhead allows"},
		{resilience.Panicked, nil, "the call of weather panicked: why"},
	} {
		e := &resilience.Error{Kind: tt.kind, Target: "weather", Limit: 2 * time.Second, Wait: 1500 * time.Millisecond, Err: cause}
		if e.Error() != tt.text {
			t.Errorf("%v: Error() = %q, want %q", tt.kind, e, tt.text)
		}
		for _, known := range []error{resilienceerrors.ErrTimeout, resilienceerrors.ErrContextCanceled, resilienceerrors.ErrCircuitOpen, resilienceerrors.ErrRejectedExecution, context.Canceled, context.DeadlineExceeded} {
			want := false
			for _, is := range tt.is {
				want = want || is == known
			}
			if got := errors.Is(e, known); got != want {
				t.Errorf("%v: Is(%v) = %v, want %v", tt.kind, known, got, want)
			}
		}
		if !errors.Is(e, cause) || e.RetryAfter() != 2*time.Second {
			t.Errorf("%v: it hides its cause, or RetryAfter() = %s", tt.kind, e.RetryAfter())
		}
	}
}
