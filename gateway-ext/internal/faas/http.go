package faas

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"syscall"
)

// statuses is the one place where a kind of error becomes an HTTP status, and
// back: between this program and its callers, and between a gateway and its
// nodes.
var statuses = [...]struct {
	kind error
	code int
}{
	{ErrTooLarge, http.StatusRequestEntityTooLarge},
	{ErrInvalid, http.StatusBadRequest},
	{ErrForbidden, http.StatusForbidden},
	{ErrNotFound, http.StatusNotFound},
	{ErrConflict, http.StatusConflict},
	{ErrOverloaded, http.StatusTooManyRequests},
	{ErrUnavailable, http.StatusServiceUnavailable},
	{ErrNoSpace, http.StatusInsufficientStorage},
	{syscall.ENOSPC, http.StatusInsufficientStorage},
}

// StatusOf returns the HTTP status of err's kind, 500 if it is of none. What an
// [*Error] wraps doesn't change its kind.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		err = e.Kind
	}
	for _, s := range statuses {
		if errors.Is(err, s.kind) {
			return s.code
		}
	}
	return http.StatusInternalServerError
}

// KindOf returns the kind of error that an HTTP status stands for, nil if it
// stands for none.
func KindOf(code int) error {
	for _, s := range statuses {
		if s.code == code {
			return s.kind
		}
	}
	return nil
}

// WriteJSON answers with one value, as an operator reads it.
func WriteJSON(w http.ResponseWriter, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(b, '\n')) // the client is gone: nobody to tell
	return nil
}

// ReadJSON reads the one value that a body of at most limit bytes has. A field
// that v doesn't have is an [ErrInvalid], as is all else that can't be read.
func ReadJSON(body io.Reader, limit int64, v any) error {
	limited := &io.LimitedReader{R: body, N: limit + 1}
	d := json.NewDecoder(limited)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.More() {
		err = errors.New("something stands behind it")
	}
	switch {
	case limited.N <= 0:
		return Errorf(ErrTooLarge, "the body has more than %d bytes", limit)
	case errors.Is(err, io.EOF):
		return Errorf(ErrInvalid, "the body is empty: JSON is asked for")
	case err != nil:
		return Errorf(ErrInvalid, "the body is not what is asked for: %w", err)
	}
	return nil
}
