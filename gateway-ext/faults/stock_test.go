//go:build faults && linux

package faults_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slok/goresilience"
	"github.com/slok/goresilience/bulkhead"
	"github.com/slok/goresilience/circuitbreaker"
	"github.com/slok/goresilience/retry"
	"github.com/slok/goresilience/timeout"
)

// stockChain is a proxy that does with goresilience v0.2.0's own middlewares, in
// the order of its Hystrix example, what a policy does: to see that the suite
// tells the two apart.
type stockChain struct {
	url    string
	runner goresilience.Runner
	target string
	client *http.Client
	sent   atomic.Int64 // attempts
}

// newStock puts the chain in front of a URL.
func newStock(t *testing.T, target string, attempt time.Duration) *stockChain {
	stop := make(chan struct{})
	s := &stockChain{
		target: target,
		client: newCaller(),
		runner: goresilience.RunnerChain(
			bulkhead.NewMiddleware(bulkhead.Config{Workers: 64, MaxWaitTime: time.Second, StopC: stop}),
			circuitbreaker.NewMiddleware(circuitbreaker.Config{}),
			retry.NewMiddleware(retry.Config{}),
			timeout.NewMiddleware(timeout.Config{Timeout: attempt}),
		),
	}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		s.client.CloseIdleConnections()
	})
	s.url = server.URL
	return s
}

func (s *stockChain) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var mu sync.Mutex // its timeout abandons attempts, which go on
	var header http.Header
	var body []byte
	err := s.runner.Run(r.Context(), func(ctx context.Context) error {
		s.sent.Add(1)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.target+"&"+r.URL.RawQuery, nil)
		if err != nil {
			return err
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode >= 500 {
			return fmt.Errorf("the target says %s", resp.Status)
		}
		mu.Lock()
		defer mu.Unlock()
		header, body = resp.Header, b
		return nil
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	mu.Lock()
	defer mu.Unlock()
	w.Header().Set("Content-Type", header.Get("Content-Type"))
	w.Write(body)
}
