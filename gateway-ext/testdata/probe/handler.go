// Package function is what the end-to-end tests deploy: it does as its query says.
package function

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Handle answers with the setting "answer", or does what the query asks for.
func Handle(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if text := q.Get("log"); text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	if d, err := time.ParseDuration(q.Get("sleep")); err == nil {
		time.Sleep(d)
	}
	switch {
	case q.Has("crash"):
		fmt.Fprintln(os.Stderr, "crashing as asked")
		os.Exit(3)
	case q.Has("secret"):
		dir := os.Getenv("secret_mount_path")
		if dir == "" {
			dir = "/var/openfaas/secrets"
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.Base(q.Get("secret"))))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Write(b)
	case q.Has("replica"):
		io.WriteString(w, os.Getenv("THICKET_REPLICA"))
	case q.Has("arch"):
		io.WriteString(w, runtime.GOARCH+" "+os.Getenv("THICKET_REPLICA"))
	case q.Has("env"):
		io.WriteString(w, os.Getenv(q.Get("env")))
	case q.Has("call"): // another function, by way of the gateway
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, os.Getenv("gateway_url")+"/function/"+q.Get("call"), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if passed := q.Get("passon"); passed != "" { // a header of the request
			req.Header.Set(passed, r.Header.Get(passed))
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	case q.Has("raw"): // exactly these bytes, then the end; after "…" there is none
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer conn.Close()
		text, endless := strings.CutSuffix(q.Get("raw"), "…")
		io.WriteString(conn, text)
		for endless {
			if _, err := io.WriteString(conn, strings.Repeat("a", 4096)); err != nil {
				return
			}
		}
	case q.Has("upgrade"): // to a protocol that says back what it is told
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
		io.Copy(conn, rw)
	case q.Has("events"): // one, and then one each time the clock ticks, until nobody listens
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 0; ; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				fmt.Fprintln(os.Stderr, "nobody listens to the events")
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	case q.Has("wait"): // until the caller has left
		fmt.Fprintln(os.Stderr, "waiting")
		<-r.Context().Done()
		fmt.Fprintln(os.Stderr, "the caller has left")
	case q.Has("count"): // the body
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d bytes, %v, trailer %q", n, err, r.Trailer.Get("X-Sum"))
	case q.Has("zeros"):
		n, _ := strconv.ParseInt(q.Get("zeros"), 10, 64)
		w.Header().Set("Trailer", "X-Sum")
		for piece := make([]byte, 64<<10); n > 0; n -= int64(len(piece)) {
			piece = piece[:min(n, int64(len(piece)))]
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
		w.Header().Set("X-Sum", "0")
	case q.Has("header"):
		io.WriteString(w, r.Header.Get(q.Get("header")))
	case q.Has("path"):
		io.WriteString(w, r.Method+" "+r.URL.RequestURI())
	case r.Method == http.MethodPost:
		io.Copy(w, r.Body)
	default:
		io.WriteString(w, os.Getenv("answer"))
	}
}
