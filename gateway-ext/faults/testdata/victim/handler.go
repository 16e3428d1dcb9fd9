// Package function is what the fault suite breaks: it answers, relays a call to
// another function, and goes wrong in the ways it is told to, replica by replica.
package function

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// fault is how a replica goes wrong.
type fault struct {
	Mode    string        // what is done, see broken; empty is nothing
	Share   float64       // of the calls, from 0 to 1
	Status  int           // of the mode "status"
	Latency time.Duration // of every call
}

// counts are what a replica has seen.
type counts struct {
	Calls, InFlight, Cancelled int64
}

var (
	now                        atomic.Pointer[fault]
	calls, inFlight, cancelled atomic.Int64

	client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Second, DisableCompression: true}}
)

// A replica that is not to live ends before it listens, so that a killed function
// stays dead however often it is started.
func init() {
	latency, _ := time.ParseDuration(os.Getenv("FAULTS_LATENCY")) // none by default
	now.Store(&fault{Latency: latency})
	control := os.Getenv("FAULTS_CONTROL")
	if control == "" {
		return
	}
	resp, err := client.Get(control + "/alive?function=" + url.QueryEscape(os.Getenv("FAULTS_NAME")))
	if err != nil {
		fmt.Fprintln(os.Stderr, "ask whether to live:", err)
		os.Exit(3)
	}
	defer resp.Body.Close()
	var f fault
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&f) != nil {
		os.Exit(3)
	}
	now.Store(&f)
}

// Handle answers one request.
func Handle(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/fault":
		var f fault
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		now.Store(&f)
	case r.URL.Path == "/counts":
		json.NewEncoder(w).Encode(counts{calls.Load(), inFlight.Load(), cancelled.Load()})
	case r.URL.Query().Has("to"):
		relay(w, r)
	default:
		answer(w, r)
	}
}

// relay is what a consumer does: it calls another function by its name, and
// passes on what that says.
func relay(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	to := os.Getenv("gateway_url") + "/function/" + q.Get("to")
	q.Del("to")
	req, err := http.NewRequestWithContext(r.Context(), r.Method, to+"?"+q.Encode(), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		http.Error(w, "the consumer got no answer: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, vs := range resp.Header {
		w.Header()[k] = vs
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	n := calls.Add(1)
	inFlight.Add(1)
	defer inFlight.Add(-1)
	f := now.Load()
	if f.Latency > 0 {
		timer := time.NewTimer(f.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			cancelled.Add(1)
			return
		}
	}
	body, err := json.Marshal(map[string]any{"key": r.URL.Query().Get("key"), "call": n, "replica": os.Getenv("THICKET_REPLICA")})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if f.Mode != "" && rand.Float64() < f.Share {
		broken(w, f, body)
		return
	}
	w.Write(body)
}

// broken answers in a way that no function should.
func broken(w http.ResponseWriter, f *fault, body []byte) {
	h := w.Header()
	switch f.Mode {
	case "status":
		w.WriteHeader(f.Status)
		w.Write(body)
	case "short": // less than it says
		h.Set("Content-Length", fmt.Sprint(len(body)+100))
		w.Write(body)
		panic(http.ErrAbortHandler)
	case "cut": // breaks off in a stream
		w.Write(body[:len(body)/2])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "json": // says that it is, and isn't
		w.Write(body[:len(body)-1])
	case "huge": // 256 MiB, in pieces
		h.Set("Content-Type", "application/octet-stream")
		piece := bytes.Repeat([]byte("x"), 64<<10)
		for range 4096 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	case "bomb": // 32 MiB of zeros in 32 KB
		h.Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		piece := make([]byte, 1<<20)
		for range 32 {
			z.Write(piece)
		}
		z.Close()
	case "headers": // more than anybody reads
		for i := range 400 {
			h.Set(fmt.Sprintf("X-Flood-%d", i), strings.Repeat("x", 1000))
		}
		w.Write(body)
	}
}
