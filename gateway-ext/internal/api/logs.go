package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// logsBack is how far logs go back when nothing else is asked for.
	logsBack = 5 * time.Minute
	// logsStall is how long a client may take to read one message before its
	// stream is ended. It takes the place of the server's write timeout, which
	// would cut streams that are merely long.
	logsStall = 30 * time.Second
)

// logs streams what a function's replicas wrote, a message per line.
func (h *Handler) logs(w http.ResponseWriter, r *http.Request) error {
	request, err := logsRequest(r.URL.Query(), time.Now())
	if err != nil {
		return err
	}
	if _, err := h.cfg.Fleet.Function(faas.Name{Function: request.Name, Namespace: request.Namespace}); err != nil {
		return err
	}
	ctx, done, err := h.streams.open(r.Context())
	if err != nil {
		return err
	}
	defer done()

	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy in between must not hold lines back
	stream := http.NewResponseController(w)
	line := json.NewEncoder(w)
	line.SetEscapeHTML(false)
	send := func(m logs.Message) bool {
		_ = stream.SetWriteDeadline(time.Now().Add(logsStall)) // not every writer has deadlines
		return line.Encode(m) == nil && stream.Flush() == nil
	}
	_ = stream.SetWriteDeadline(time.Now().Add(logsStall))
	w.WriteHeader(http.StatusOK)
	if stream.Flush() != nil { // a client sees at once that it is connected
		return nil
	}
	for m, err := range h.cfg.Fleet.Logs(ctx, request) {
		if err != nil {
			h.endLogs(ctx, request, err, send)
			break
		}
		if !send(m) {
			break
		}
	}
	_ = stream.SetWriteDeadline(time.Now().Add(logsStall)) // for the last chunk
	return nil
}

// endLogs tells why a stream that has begun ends, if it doesn't end because
// somebody wants it to.
func (h *Handler) endLogs(ctx context.Context, r logs.Request, err error, send func(logs.Message) bool) {
	if ctx.Err() != nil {
		return
	}
	text := "the log stream broke off"
	if e, ok := errors.AsType[*faas.Error](err); ok {
		text += ": " + e.Error()
	}
	h.cfg.Logger.ErrorContext(ctx, "log stream broke off", "function", r.Name+"."+r.Namespace, "err", err)
	send(logs.Message{Name: r.Name, Namespace: r.Namespace, Timestamp: time.Now().UTC(), Text: text})
}

// logsRequest reads the parameters of a query.
func logsRequest(q url.Values, now time.Time) (logs.Request, error) {
	invalid := func(key, allowed string) error {
		return faas.Errorf(errUnprocessable, "parameter %s is %.40q: write %s", key, q.Get(key), allowed)
	}
	name, err := nameOf(q.Get("name"), q.Get("namespace"))
	if err != nil {
		return logs.Request{}, faas.Errorf(errUnprocessable, "parameter name: %w", err)
	}
	r := logs.Request{Name: name.Function, Namespace: name.Namespace, Instance: q.Get("instance")}
	if len(r.Instance) > 253 {
		return r, invalid("instance", "the name of a replica")
	}
	if s := q.Get("tail"); s != "" {
		if r.Tail, err = strconv.Atoi(s); err != nil {
			return r, invalid("tail", "a whole number, -1 for all")
		}
	}
	if s := q.Get("follow"); s != "" {
		if r.Follow, err = strconv.ParseBool(s); err != nil {
			return r, invalid("follow", "true or false")
		}
	}
	switch s := q.Get("since"); {
	case s != "":
		since, err := time.Parse(time.RFC3339, s)
		if back, err2 := time.ParseDuration(s); err != nil && err2 == nil && back >= 0 {
			since, err = now.Add(-back), nil
		}
		if err != nil {
			return r, invalid("since", `a time as in RFC 3339, "2006-01-02T15:04:05Z", or how long ago, "5m"`)
		}
		r.Since = &since
	case q.Get("tail") == "":
		r.Since = new(now.Add(-logsBack))
	}
	return r, nil
}

// errDraining is why streams end when the gateway does.
var errDraining = errors.New("the gateway is stopping")

// streams are the streams of one kind that are open: a bounded number, which end
// together when the gateway does.
type streams struct {
	what  string // "log streams"
	limit int

	mu       sync.Mutex // guards below
	draining bool
	cancels  map[*context.CancelCauseFunc]struct{}
}

func newStreams(what string, limit int) *streams {
	return &streams{what: what, limit: limit, cancels: map[*context.CancelCauseFunc]struct{}{}}
}

// open returns a context for a new stream, and what to call when it has ended.
func (s *streams) open(ctx context.Context) (context.Context, func(), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		cancel(errDraining)
		return nil, nil, faas.Errorf(faas.ErrUnavailable, "%w", errDraining)
	case len(s.cancels) >= s.limit:
		cancel(faas.ErrOverloaded)
		return nil, nil, faas.Errorf(faas.ErrOverloaded, "%d %s are open, as many as are allowed: close one", s.limit, s.what)
	}
	s.cancels[&cancel] = struct{}{}
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancels, &cancel)
		cancel(nil)
	}, nil
}

// drain ends all streams, and lets none open any more.
func (s *streams) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for cancel := range s.cancels {
		(*cancel)(errDraining)
	}
}
