package weather_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

// reply is how a vendor answers: the status and a file of testdata, or nothing
// until the caller gives up.
type reply struct {
	status     int
	file       string
	body       string
	retryAfter string
	hang       bool
}

// vendor is a weather service that answers by path.
type vendor struct {
	*httptest.Server

	mu       sync.Mutex // guards below
	replies  map[string][]reply
	requests []*url.URL
}

// newVendor starts a vendor. The last reply of a path is repeated.
func newVendor(t *testing.T, replies map[string][]reply) *vendor {
	t.Helper()
	v := &vendor{replies: replies}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		v.requests = append(v.requests, r.URL)
		queue := v.replies[r.URL.Path]
		if len(queue) > 1 {
			v.replies[r.URL.Path] = queue[1:]
		}
		v.mu.Unlock()
		if len(queue) == 0 {
			http.Error(w, "no such path: "+r.URL.Path, http.StatusTeapot)
			return
		}
		now := queue[0]
		if now.hang {
			<-r.Context().Done()
			return
		}
		body := []byte(now.body)
		if now.file != "" {
			body = golden(t, now.file)
		}
		if now.retryAfter != "" {
			w.Header().Set("Retry-After", now.retryAfter)
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.WriteHeader(now.status)
		w.Write(body)
	}))
	t.Cleanup(v.Close)
	return v
}

// asked returns the requests so far.
func (v *vendor) asked() []*url.URL {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]*url.URL(nil), v.requests...)
}

func (v *vendor) base(t *testing.T) *url.URL {
	t.Helper()
	u, err := url.Parse(v.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func golden(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Error(err)
	}
	return text
}

// byPath is a transport that answers with a body for each path.
type byPath map[string][]byte

func (b byPath) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(b[r.URL.Path]))), Request: r}, nil
}

// refusal is what a source is to make of a vendor's bad answer.
type refusal struct {
	unknown    bool // the place is
	status     int
	retryAfter time.Duration
	text       string
}

func (want refusal) check(t *testing.T, service string, report weather.Report, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("Report() = %+v, want an error", report)
	}
	if errors.Is(err, weather.ErrUnknownPlace) != want.unknown {
		t.Fatalf("Report() error = %v, unknown place: want %t", err, want.unknown)
	}
	if want.unknown {
		return
	}
	failed, ok := errors.AsType[*weather.ServiceError](err)
	if !ok || failed.Service != service || failed.Status != want.status || failed.RetryAfter != want.retryAfter || !strings.Contains(err.Error(), want.text) {
		t.Errorf("Report() error = %#v %v, want %s, status %d, %q", err, err, service, want.status, want.text)
	}
}
