// Package function is what the end-to-end tests deploy: it does as its query says.
package function

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
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
