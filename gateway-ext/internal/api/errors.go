package api

import (
	"errors"
	"io"
	"net/http"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// internalHeader marks answers that the platform makes, not a function.
const internalHeader = "X-OpenFaaS-Internal"

// The kinds of error that only this API has.
var (
	errUnprocessable  = errors.New("unprocessable")   // parameters of a query: 422
	errNotImplemented = errors.New("not implemented") // 501
)

// statusOf returns the HTTP status of err's kind.
func statusOf(err error) int {
	kind := err
	if e, ok := errors.AsType[*faas.Error](err); ok {
		kind = e.Kind
	}
	switch {
	case errors.Is(kind, errUnprocessable):
		return http.StatusUnprocessableEntity
	case errors.Is(kind, errNotImplemented):
		return http.StatusNotImplemented
	}
	return faas.StatusOf(err)
}

// handler adapts a function that returns an error. One that has begun its
// answer returns nil.
func (h *Handler) handler(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := serve(w, r)
		switch {
		case err == nil:
			return
		case r.Context().Err() != nil:
			// As a rule the client is gone. If it is the server that gives up,
			// silence would be a 200 for something that wasn't done.
			answer(w, http.StatusServiceUnavailable, "given up before it was done: look whether it was, and try again")
			return
		}
		code, text := statusOf(err), ""
		if e, ok := errors.AsType[*faas.Error](err); ok {
			text = e.Error()
		} else if code == http.StatusInsufficientStorage {
			text = "the gateway's disk is full: nothing was changed; make room and try again"
		}
		if code >= 500 && code != http.StatusNotImplemented {
			h.cfg.Logger.ErrorContext(r.Context(), "request failed", "route", r.Pattern, "status", code, "err", err)
		}
		answer(w, code, text)
	})
}

// answer sends an error of the platform: text, or if it is empty the status's.
func answer(w http.ResponseWriter, code int, text string) {
	if text == "" {
		text = http.StatusText(code)
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set(internalHeader, "gateway")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text) // the client is gone: nobody to tell
}

func methodNotAllowed(allow string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allow)
		answer(w, http.StatusMethodNotAllowed, "use "+allow)
	})
}
