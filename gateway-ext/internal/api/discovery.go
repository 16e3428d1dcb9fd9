package api

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Discovery is what the API tells of replicas, and whom. What travels is
// described in functions/discovery, whose client reads it.
//
// It is readable with the password, and with the token of a function
// ([DiscoveryToken]), which is good for nothing else but telling of direct calls.
type Discovery struct {
	// Snapshot returns all replicas.
	Snapshot func() wire.Snapshot

	// Watch yields all replicas first, then in each snapshot those that changed,
	// in order, until ctx ends.
	Watch func(context.Context) iter.Seq2[wire.Snapshot, error]

	// Direct is told of calls that a client made past the gateway. Its errors are
	// those of a [Fleet].
	Direct func(client string, name faas.Name, u wire.FunctionUsage) error

	// Key makes tokens: 32 bytes.
	Key []byte

	// Allowed says whether the function a token was made for may still use it.
	Allowed func(faas.Name) bool

	// MaxStreams is how many event streams may be open at a time; more are
	// answered 429. 0 is 1024: each costs about 30 KB.
	MaxStreams int
}

// DiscoveryToken returns the token with which a function reads where replicas
// are. It is the function's name and a MAC over it, so that nothing has to be
// remembered, and it is the same after a restart.
func DiscoveryToken(key []byte, name faas.Name) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "thicket discovery\n%s", name)
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(name.String())) + "." + e.EncodeToString(mac.Sum(nil))
}

// holder returns the function that a token was made for.
func (d *Discovery) holder(token string) (faas.Name, bool) {
	encoded, _, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || len(d.Key) == 0 {
		return faas.Name{}, false
	}
	name, err := faas.ParseName(string(text))
	if err != nil {
		return faas.Name{}, false
	}
	return name, hmac.Equal([]byte(token), []byte(DiscoveryToken(d.Key, name)))
}

// admit lets the token of a function in where it is good, and asks everybody
// else for the password.
func (h *Handler) admit(next http.Handler) http.Handler {
	password := h.cfg.Auth.Require(next)
	d := h.cfg.Discovery
	if d == nil {
		return password
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !bearer || r.URL.Path != wire.Path && !strings.HasPrefix(r.URL.Path, wire.Path+"/") {
			password.ServeHTTP(w, r)
			return
		}
		name, ok := d.holder(token)
		switch {
		case !ok:
			w.Header().Set("WWW-Authenticate", `Bearer realm="discovery"`)
			answer(w, http.StatusUnauthorized, "this token was not made here: a function gets its own in THICKET_DISCOVERY_TOKEN when its annotation thicket.discovery is \"true\"")
		case !d.Allowed(name):
			answer(w, http.StatusForbidden, fmt.Sprintf("function %s doesn't ask for this any more: its annotation thicket.discovery must be \"true\"", name))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (h *Handler) discoveryRoutes() []route {
	if h.cfg.Discovery == nil {
		return nil
	}
	return []route{
		{"GET", wire.Path, h.discovery},
		{"GET", wire.Path + "/events", h.discoveryEvents},
		{"POST", wire.Path + "/usage", h.discoveryUsage},
	}
}

// discovery tells where all replicas are, once or, to who accepts an event
// stream, for as long as they listen.
func (h *Handler) discovery(w http.ResponseWriter, r *http.Request) error {
	w.Header().Add("Vary", "Accept")
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		return h.discoveryEvents(w, r)
	}
	w.Header().Set("Cache-Control", "no-store")
	s := h.cfg.Discovery.Snapshot()
	s.Replicas = orEmpty(s.Replicas)
	return encode(w, s)
}

// streamStall is how long a client may take to read one event.
const streamStall = 10 * time.Second

// discoveryEvents streams where all replicas are, and each step in their lives.
// The stream always begins with all of them, whatever the client saw last: that
// is little, and right after a restart too.
func (h *Handler) discoveryEvents(w http.ResponseWriter, r *http.Request) error {
	ctx, done, err := h.watchers.open(r.Context())
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy in between must not hold events back
	if r.Method == http.MethodHead {
		return nil
	}
	s := &eventStream{w: w, control: http.NewResponseController(w)}

	var beating sync.WaitGroup
	defer beating.Wait()
	defer cancel()
	begun := false
	for change, err := range h.cfg.Discovery.Watch(ctx) {
		if err != nil {
			h.cfg.Logger.DebugContext(ctx, "a reader of the discovery stream was too slow", "err", err)
			return nil // it comes again, and gets all anew
		}
		if !begun {
			change.Replicas = orEmpty(change.Replicas)
			err = s.send(event{change.Version, wire.EventSnapshot, change})
		} else {
			events := make([]event, 0, len(change.Replicas))
			for _, r := range change.Replicas {
				events = append(events, event{change.Version, wire.EventReplica, r})
			}
			err = s.send(events...)
		}
		if err != nil {
			return nil // the client is gone
		}
		if !begun {
			begun = true
			beating.Go(func() {
				defer cancel()
				s.beat(ctx)
			})
		}
	}
	return nil
}

// event is one event of a stream.
type event struct {
	id   uint64
	name string
	data any
}

// eventStream is an event stream (HTML standard, 9.2) that two goroutines write.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController

	mu   sync.Mutex // held while something is written
	last time.Time  // when something was
}

// send writes events, and has them sent.
func (s *eventStream) send(events ...event) error {
	var b bytes.Buffer
	for _, e := range events {
		data, err := json.Marshal(e.data) // has no line breaks
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.id, e.name, data)
	}
	return s.write(b.Bytes())
}

func (s *eventStream) write(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	_ = s.control.SetWriteDeadline(s.last.Add(streamStall)) // not every writer has deadlines
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.control.Flush()
}

// beat writes a comment whenever nothing else was written for a while, until ctx
// ends or the client is gone.
func (s *eventStream) beat(ctx context.Context) {
	for {
		s.mu.Lock()
		rest := time.Until(s.last.Add(wire.Heartbeat))
		s.mu.Unlock()
		if rest <= 0 {
			if s.write([]byte(":\n\n")) != nil {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// discoveryUsage takes note of calls that a client made directly.
func (h *Handler) discoveryUsage(w http.ResponseWriter, r *http.Request) error {
	var u wire.Usage
	if err := h.decode(w, r, &u); err != nil {
		return err
	}
	if len(u.Functions) > wire.MaxUsage {
		return faas.Errorf(faas.ErrTooLarge, "field functions has %d entries, at most %d are allowed", len(u.Functions), wire.MaxUsage)
	}
	if !(0 <= u.Seconds && u.Seconds <= 3600) { // also not a number
		return faas.Errorf(faas.ErrInvalid, "field seconds is %v: write how long the period was, at most an hour", u.Seconds)
	}
	for i, f := range u.Functions {
		name, err := nameOf(f.Function.Function, f.Function.Namespace)
		if err != nil {
			return faas.Errorf(faas.ErrInvalid, "field functions[%d].function: %w", i, err)
		}
		// One that was removed meanwhile is no mistake of the client's.
		if err := h.cfg.Discovery.Direct(u.Client, name, f); err != nil && !errors.Is(err, faas.ErrNotFound) {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
