package proxy

import (
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
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

// faulty is a transport of which some calls are slow or fail.
type faulty struct {
	next  http.RoundTripper
	chaos *chaos
}

// RoundTrip implements [http.RoundTripper].
func (t *faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.chaos.latency > 0 {
		timer := time.NewTimer(t.chaos.latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if rand.Float64() >= t.chaos.errors {
		return t.next.RoundTrip(r)
	}
	const text = "an operator makes this call fail\n"
	return &http.Response{
		StatusCode: t.chaos.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "X-Openfaas-Internal": {"chaos"}},
		ContentLength: int64(len(text)),
		Body:          io.NopCloser(strings.NewReader(text)),
		Request:       r,
	}, nil
}
