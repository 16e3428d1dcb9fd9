package proxy

import (
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// chaos is a fault that an operator puts into a function, to see what its
// callers get. It sits where the replicas are, so that all else is as in earnest.
type chaos struct {
	latency time.Duration // before each answer
	errors  float64       // the share of calls that fail
	status  int           // of those
	until   time.Time
}

// The bounds of a fault: it is for looking at, and must not be forgotten.
const (
	maxChaos     = 10 * time.Minute
	maxChaosWait = time.Minute
)

// fault returns what the function is to suffer now; nil for nothing.
func (f *function) fault(now time.Time) *chaos {
	x := f.chaos.Load()
	if x == nil {
		return nil
	}
	if now.After(x.until) {
		f.chaos.CompareAndSwap(x, nil)
		return nil
	}
	return x
}

// suffer waits as long as a call has to, at most until end. It returns what the
// call gets in place of the function's answer, or nil if it gets that.
func (x *chaos) suffer(ctx context.Context, end time.Time) (reply, error) {
	if x.latency > 0 {
		timer := time.NewTimer(min(x.latency, time.Until(end)))
		defer timer.Stop()
		select {
		case <-timer.C:
			if !time.Now().Before(end) {
				return nil, context.DeadlineExceeded
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if rand.Float64() >= x.errors {
		return nil, nil
	}
	return &failure{body: "an operator makes this call fail\n"}, nil
}

// failure is the answer to a call that is made fail.
type failure struct{ body string }

func (f *failure) Header() http.Header {
	return http.Header{
		"Content-Type": {"text/plain; charset=utf-8"}, "X-Openfaas-Internal": {"chaos"},
		"Content-Length": {strconv.Itoa(len(f.body))},
	}
}

func (f *failure) MoveHeader(w http.ResponseWriter) { maps.Copy(w.Header(), f.Header()) }
func (f *failure) Next() ([]byte, error)            { return []byte(f.body), io.EOF }
func (f *failure) Ready() bool                      { return true }
func (f *failure) Sending() bool                    { return false }
func (f *failure) Unlimited()                       {}
func (f *failure) Trailers() []string               { return nil }
func (f *failure) Trailer() http.Header             { return nil }
