//go:build go1.26

package resilient

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bounds are the upper ends of the histogram's buckets, in seconds: those that
// Prometheus's own clients use, and so of-watchdog.
var bounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// metrics counts requests under of-watchdog's names, and is the handler that
// Prometheus asks. Both labels are from short lists, so there are at most some
// thousand series, however strange the requests.
type metrics struct {
	inFlight atomic.Int64

	mu     sync.Mutex
	series map[series]*histogram // guarded by mu
}

type series struct{ code, method string }

type histogram struct {
	count   uint64
	sum     float64
	buckets [len(bounds)]uint64 // not cumulative
}

func newMetrics() *metrics { return &metrics{series: make(map[series]*histogram)} }

// observe counts one request.
func (m *metrics) observe(method string, status int, took time.Duration) {
	key := series{code: "unknown", method: "unknown"}
	if status >= 100 && status <= 599 {
		key.code = strconv.Itoa(status)
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		key.method = strings.ToLower(method)
	}
	seconds := took.Seconds()
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.series[key]
	if h == nil {
		h = new(histogram)
		m.series[key] = h
	}
	h.count++
	h.sum += seconds
	for i, bound := range bounds {
		if seconds <= bound {
			h.buckets[i]++
			break
		}
	}
}

// ServeHTTP writes the metrics in Prometheus's text format, version 0.0.4.
func (m *metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(m.text())
}

func (m *metrics) text() []byte {
	var requests, durations bytes.Buffer
	m.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(m.series), func(a, b series) int {
		return cmp.Or(cmp.Compare(a.code, b.code), cmp.Compare(a.method, b.method))
	})
	for _, key := range keys {
		h := m.series[key]
		labels := fmt.Sprintf("code=%q,method=%q", key.code, key.method)
		fmt.Fprintf(&requests, "http_requests_total{%s} %d\n", labels, h.count)
		total := uint64(0)
		for i, bound := range bounds {
			total += h.buckets[i]
			fmt.Fprintf(&durations, "http_request_duration_seconds_bucket{%s,le=\"%g\"} %d\n", labels, bound, total)
		}
		fmt.Fprintf(&durations, "http_request_duration_seconds_bucket{%s,le=\"+Inf\"} %d\n", labels, h.count)
		fmt.Fprintf(&durations, "http_request_duration_seconds_sum{%s} %g\n", labels, h.sum)
		fmt.Fprintf(&durations, "http_request_duration_seconds_count{%s} %d\n", labels, h.count)
	}
	m.mu.Unlock()

	var out bytes.Buffer
	out.WriteString("# HELP http_request_duration_seconds Seconds spent serving HTTP requests.\n# TYPE http_request_duration_seconds histogram\n")
	out.Write(durations.Bytes())
	out.WriteString("# HELP http_requests_in_flight Number of HTTP requests being served now.\n# TYPE http_requests_in_flight gauge\n")
	fmt.Fprintf(&out, "http_requests_in_flight %d\n", m.inFlight.Load())
	out.WriteString("# HELP http_requests_total Number of HTTP requests served.\n# TYPE http_requests_total counter\n")
	out.Write(requests.Bytes())
	return out.Bytes()
}
