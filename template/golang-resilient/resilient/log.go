//go:build go1.26

package resilient

import (
	"context"
	"io"
	"log/slog"
	"net/http"
)

// maxCallID is how much of a caller's X-Call-Id is logged.
const maxCallID = 128

type callKey struct{}

// callID returns the id that the platform gave to the call.
func callID(r *http.Request) string {
	id := r.Header.Get("X-Call-Id")
	return id[:min(len(id), maxCallID)]
}

// NewLogger returns a logger that writes one line for each record, with the id
// of the call (call_id) if it is given the context of a request.
func NewLogger(w io.Writer, s Settings) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogFormat == "text" {
		return slog.New(callHandler{slog.NewTextHandler(w, options)})
	}
	return slog.New(callHandler{slog.NewJSONHandler(w, options)})
}

// callHandler adds the id of the call to records.
type callHandler struct{ slog.Handler }

// Handle implements [slog.Handler].
func (h callHandler) Handle(ctx context.Context, r slog.Record) error {
	if id, ok := ctx.Value(callKey{}).(string); ok {
		r = r.Clone()
		r.AddAttrs(slog.String("call_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h callHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return callHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements [slog.Handler].
func (h callHandler) WithGroup(name string) slog.Handler {
	return callHandler{h.Handler.WithGroup(name)}
}
