package weather

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
)

// Problem is an error as RFC 9457 writes it. Its type is "about:blank": the
// status says what kind it is, and Detail is the sentence to read.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"` // the parameter that is wrong
}

// ContentTypeProblem is the media type of a [Problem].
const ContentTypeProblem = "application/problem+json"

// ProblemOf returns the problem that tells a stranger who asked q about err: what
// they did wrong in full, and of what went wrong in here only that it did.
func ProblemOf(q Query, err error) Problem {
	if wrong, ok := errors.AsType[*InvalidError](err); ok {
		return NewProblem(http.StatusBadRequest, wrong.Field, wrong.Detail)
	}
	if errors.Is(err, ErrUnknownPlace) {
		return NewProblem(http.StatusNotFound, "zip", "No weather service knows the zip code "+q.Zip+" in "+q.Country+".")
	}
	return NewProblem(http.StatusInternalServerError, "", "The answer could not be made. The function's log says why.")
}

// NewProblem returns a problem with the standard title of its status.
func NewProblem(status int, field, detail string) Problem {
	return Problem{Title: http.StatusText(status), Status: status, Detail: detail, Field: field}
}

// Write answers with the problem.
func (p Problem) Write(w http.ResponseWriter) {
	writeJSON(w, p.Status, ContentTypeProblem, p)
}

// WriteJSON answers 200 with v. Weather is never cached by what is between us
// and the reader: who may give an old answer marks it as old.
func WriteJSON(w http.ResponseWriter, v any) {
	writeJSON(w, http.StatusOK, "application/json", v)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // only a value that isn't ours: a NaN, a channel
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	body = append(body, '\n')
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body) // if it fails, the reader is gone and nobody is left to tell
}

// Answerable checks that r is something the weather functions answer: GET, HEAD
// or POST (which faas-cli invoke sends; its body is not read) at the root. It
// answers what isn't, and returns false.
func Answerable(w http.ResponseWriter, r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		NewProblem(http.StatusMethodNotAllowed, "", "Ask with GET: ?zip=70569&country=DE").Write(w)
		return false
	}
	if r.URL.Path != "/" && r.URL.Path != "" {
		NewProblem(http.StatusNotFound, "", "There is only / here: ask /?zip=70569&country=DE").Write(w)
		return false
	}
	return true
}

// HeaderCallID is the header that follows one question through all functions.
const HeaderCallID = "X-Call-Id"

type callIDKey struct{}

// RequestContext is the request's context with its call id in it, so that what
// is asked on its behalf carries it too.
func RequestContext(r *http.Request) context.Context {
	return context.WithValue(r.Context(), callIDKey{}, r.Header.Get(HeaderCallID))
}

// CallID returns what [RequestContext] put in; empty if nothing.
func CallID(ctx context.Context) string {
	id, _ := ctx.Value(callIDKey{}).(string)
	return id
}
