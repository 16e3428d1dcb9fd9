package remote

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	// Machine is asked for each beat. Required.
	Machine func() Machine

	// Logger is required.
	Logger *slog.Logger

	// Away is how long a gateway may be away before a replica that drains is
	// stopped without its word: 10 s. A gateway that restarts is back sooner.
	Away time.Duration

	// Examine looks at the machine, for [Client.Examine]. Nil can't.
	Examine func(ctx context.Context, question json.RawMessage) (json.RawMessage, error)
}

// Server is the node's end. It is the observer of the node's provider, which is
// attached to it afterwards.
type Server struct {
	cfg ServerConfig

	mu       sync.Mutex // guards below
	p        provider.Provider
	wanted   map[faas.Name]int
	told     map[faas.Name]status
	replicas map[string]faas.Replica
	idle     map[string]chan struct{} // closed when the gateway says so
	dirty    map[faas.Name]struct{}   // of whose replicas one made a step since it was looked at
	streams  map[*stream]struct{}
	visits   int           // streams that there have been
	left     time.Time     // when the last stream ended
	changed  chan struct{} // closed when a stream begins or ends
	images   []string      // that a beat told last
	retell   bool          // a stream has begun since

	kick      chan struct{} // has a token when something is dirty
	examining chan struct{} // is full while the machine is looked at: once at a time
}

var _ provider.Observer = (*Server)(nil)

// NewServer returns a server that has no provider yet.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Away == 0 {
		cfg.Away = 10 * time.Second
	}
	return &Server{
		cfg:      cfg,
		wanted:   make(map[faas.Name]int),
		told:     make(map[faas.Name]status),
		replicas: make(map[string]faas.Replica),
		idle:     make(map[string]chan struct{}),
		dirty:    make(map[faas.Name]struct{}),
		kick:     make(chan struct{}, 1), examining: make(chan struct{}, 1),
		streams: make(map[*stream]struct{}),
		left:    time.Now(),
		changed: make(chan struct{}),
	}
}

// Attach says which provider it stands before. It is called once, before
// anything is served.
func (s *Server) Attach(p provider.Provider) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.p = p
}

// Observe implements [provider.Observer].
func (s *Server) Observe(r faas.Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.State == faas.Gone {
		delete(s.replicas, r.ID)
		delete(s.idle, r.ID)
	} else {
		s.replicas[r.ID] = r
	}
	s.tell(event{Replica: &r})
	// The provider can't be asked from within its own call.
	s.dirty[r.Function] = struct{}{}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Idle implements [provider.Observer]. It returns when the gateway says that the
// replica is idle, or was away for too long.
func (s *Server) Idle(ctx context.Context, id string) error {
	s.mu.Lock()
	done := s.waits(id)
	s.mu.Unlock()
	for {
		s.mu.Lock()
		changed := s.changed
		var alone <-chan time.Time
		if len(s.streams) == 0 {
			timer := time.NewTimer(time.Until(s.left.Add(s.cfg.Away)))
			defer timer.Stop()
			alone = timer.C
		}
		s.mu.Unlock()
		select {
		case <-done:
			return nil
		case <-alone:
			return nil
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// waits returns what is closed when the replica is idle. mu is held.
func (s *Server) waits(id string) chan struct{} {
	done := s.idle[id]
	if done == nil {
		done = make(chan struct{})
		s.idle[id] = done
	}
	return done
}

// Lookup returns the replica with that id, if it is here and takes requests or
// finishes some.
func (s *Server) Lookup(id string) (faas.Replica, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.replicas[id]
	return r, ok && (r.State == faas.Ready || r.State == faas.Draining)
}

// Caller is the host of the gateway that listens to this node now, "" if none
// does, and how often one has come.
func (s *Server) Caller() (host string, visits int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		host = st.from
	}
	return host, s.visits
}

// Run tells of changes that nobody tells the server of (why a function is not
// ready, what it uses), until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	beat := time.NewTicker(Beat)
	defer beat.Stop()
	// A provider may tell of a step before its status says so: it is looked at
	// twice.
	var recent map[faas.Name]struct{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
			s.mu.Lock()
			dirty := s.dirty
			s.dirty = make(map[faas.Name]struct{})
			s.mu.Unlock()
			for name := range dirty {
				s.refresh(name)
			}
			if recent == nil {
				recent, again = dirty, time.After(Beat/20)
			} else {
				maps.Copy(recent, dirty)
			}
		case <-again:
			for name := range recent {
				s.refresh(name)
			}
			recent, again = nil, nil
		case <-beat.C:
			s.look()
		}
	}
}

// look tells what has changed since it was told last, and beats.
func (s *Server) look() {
	s.mu.Lock()
	listened := len(s.streams) > 0
	names := slices.Collect(maps.Keys(s.wanted))
	s.mu.Unlock()
	if !listened {
		return // the next stream begins with everything
	}
	for _, name := range names {
		s.refresh(name)
	}
	m := s.machine()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.retell && slices.Equal(m.Images, s.images) {
		m.Images = nil
	} else {
		s.images, s.retell = m.Images, false
	}
	s.tell(event{Beat: &m})
}

// machine is what the node tells of itself, with all its images.
func (s *Server) machine() Machine {
	m := s.cfg.Machine()
	m.Images = append(make([]string, 0, len(m.Images)), m.Images[:min(len(m.Images), MaxImages)]...) // not nil, which is none
	slices.Sort(m.Images)
	return m
}

// refresh tells a function's status if it has changed.
func (s *Server) refresh(name faas.Name) {
	now, ok := s.p.Status(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, known := s.wanted[name]
	if !ok || !known {
		return
	}
	st := status{Name: name, Revision: now.Revision, Wanted: wanted, Reason: now.Reason, Usage: now.Usage}
	if !reflect.DeepEqual(s.told[name], st) {
		s.told[name] = st
		s.tell(event{Status: &st})
	}
}

// stream is what a gateway has not yet read. The server's mu guards it.
type stream struct {
	events []event
	behind bool
	more   chan struct{} // has a token when there is something to read
	from   string        // the gateway's host
}

// tell gives an event to all streams. mu is held.
func (s *Server) tell(e event) {
	for st := range s.streams {
		if len(st.events) >= maxBehind {
			st.events, st.behind = nil, true
		}
		if !st.behind {
			st.events = append(st.events, e)
		}
		select {
		case st.more <- struct{}{}:
		default:
		}
	}
}

// open begins a stream with all that there is.
func (s *Server) open(from string) *stream {
	st := &stream{more: make(chan struct{}, 1), from: from}
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.streams {
		if other.from != from {
			s.cfg.Logger.Warn("two gateways with one identity call this node: stop one of them, or they undo each other's work", "one", other.from, "other", from)
		}
	}
	for _, told := range s.told {
		st.events = append(st.events, event{Status: new(told)})
	}
	for _, r := range s.replicas {
		st.events = append(st.events, event{Replica: new(r)})
	}
	m := s.machine()
	st.events = append(st.events, event{Synced: true}, event{Beat: &m})
	st.more <- struct{}{}
	s.streams[st] = struct{}{}
	s.visits++
	s.retell = true
	s.turn()
	return st
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.left = time.Now()
	s.turn()
}

func (s *Server) turn() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Handler serves the node's end.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := serve(w, r); err != nil {
				s.cfg.Logger.Debug("the gateway's request was refused", "route", r.Pattern, "err", err)
				refuse(w, err)
			}
		})
	}
	handle("PUT /node/v1/functions/{namespace}/{name}", s.apply)
	handle("DELETE /node/v1/functions/{namespace}/{name}", s.remove)
	handle("POST /node/v1/replicas/{id}/idle", s.isIdle)
	handle("GET /node/v1/logs/{namespace}/{name}", s.logs)
	handle("GET /node/v1/watch", s.watch)
	handle("POST /node/v1/examine", s.examine)
	return mux
}

func nameIn(r *http.Request) (faas.Name, error) {
	return faas.ParseName(r.PathValue("name") + "." + r.PathValue("namespace"))
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) error {
	name, err := nameIn(r)
	if err != nil {
		return err
	}
	var load provider.Workload
	if err := decode(r.Body, maxWorkload, &load); err != nil {
		return err
	}
	if load.Function.Name() != name {
		return faas.Errorf(faas.ErrInvalid, "the workload is %s, and the path says %s", load.Function.Name(), name)
	}
	if err := s.p.Apply(r.Context(), load); err != nil {
		return err
	}
	s.mu.Lock()
	s.wanted[name] = load.Function.Replicas
	s.mu.Unlock()
	s.refresh(name)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) error {
	name, err := nameIn(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.wanted, name)
	if _, ok := s.told[name]; ok {
		delete(s.told, name)
		s.tell(event{Removed: &name})
	}
	s.mu.Unlock()
	if err := s.p.Remove(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) isIdle(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	s.mu.Lock()
	if _, here := s.replicas[id]; here {
		select {
		case <-s.waits(id):
		default:
			close(s.idle[id])
		}
	}
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// logs writes messages as lines of JSON. An error after the first line is a
// line of its own, with nothing but the text.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	name, err := nameIn(r)
	if err != nil {
		return err
	}
	v := r.URL.Query()
	q := logs.Request{Name: name.Function, Namespace: name.Namespace, Instance: v.Get("instance"), Follow: v.Get("follow") == "true"}
	if q.Tail, err = strconv.Atoi(v.Get("tail")); err != nil {
		return faas.Errorf(faas.ErrInvalid, "tail: %w", err)
	}
	if since := v.Get("since"); since != "" {
		at, err := time.Parse(time.RFC3339Nano, since)
		if err != nil {
			return faas.Errorf(faas.ErrInvalid, "since: %w", err)
		}
		q.Since = &at
	}
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	begun := false
	for m, err := range s.p.Logs(r.Context(), q) {
		if err != nil {
			if !begun {
				return err
			}
			return nil // the gateway sees the end, and asks anew if it wants more
		}
		begun = true
		if out.Encode(m) != nil || q.Follow && flush.Flush() != nil {
			return nil // it is gone
		}
	}
	return nil
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) error {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	st := s.open(host)
	defer s.close(st)
	s.cfg.Logger.Info("a gateway has come", "from", r.RemoteAddr)
	defer s.cfg.Logger.Info("the gateway has gone", "from", r.RemoteAddr)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-st.more:
		}
		s.mu.Lock()
		events, behind := st.events, st.behind
		st.events = nil
		s.mu.Unlock()
		if behind {
			return nil // it comes again, and gets everything anew
		}
		_ = flush.SetWriteDeadline(time.Now().Add(10 * time.Second)) // of no importance where it can't be set
		for _, e := range events {
			if out.Encode(e) != nil {
				return nil
			}
		}
		if flush.Flush() != nil {
			return nil
		}
	}
}
