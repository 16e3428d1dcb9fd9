package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// instrument counts the requests to next under the names that OpenFaaS's
// dashboards use. The label path is the pattern of the route, never what a
// stranger wrote. Streams are counted, but not timed: they last as long as
// somebody watches.
func instrument(reg prometheus.Registerer, next http.Handler) http.Handler {
	labels := []string{"method", "path", "status"}
	total := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total",
		Help: "Requests to the management API, by method, route and status.",
	}, labels)
	seconds := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name: "http_request_duration_seconds",
		Help: "How long requests to the management API took, by method, route and status.",
	}, labels)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(rec, r)
		values := []string{method(r.Method), path(r.Pattern), strconv.Itoa(rec.code)}
		total.WithLabelValues(values...).Inc()
		if values[1] != "/system/logs" && rec.Header().Get("Content-Type") != "text/event-stream" {
			seconds.WithLabelValues(values...).Observe(time.Since(start).Seconds())
		}
	})
}

// path returns a pattern without its method.
func path(pattern string) string {
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return pattern
}

// method bounds what a stranger may write as a method.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	code  int
	begun bool
}

// WriteHeader implements [http.ResponseWriter].
func (r *recorder) WriteHeader(code int) {
	if !r.begun && code >= 200 {
		r.code, r.begun = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

// Write implements [http.ResponseWriter].
func (r *recorder) Write(p []byte) (int, error) {
	r.begun = true
	return r.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
