package weather_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
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
