// Package function answers with what it was asked.
package function

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
)

// Sample: replace it with your own.

// maxBody is how many bytes of a request are read.
const maxBody = 1 << 20

// Handle is called for every request, at the same time for as many as there are.
// The context of the request ends when the function's time is up.
func Handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	slog.DebugContext(r.Context(), "asked", "bytes", len(body)) // shown if log_level=debug
	fmt.Fprintf(w, "Hello! You said: %s\n", body)
}
