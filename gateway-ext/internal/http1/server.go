package http1

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves HTTP/1.1 and 1.0. Set its fields before the first call of
// [Server.Serve], and don't change them then.
//
// A handler is called as net/http calls it, but for these:
//   - The request, its header, URL and context, and the header of the answer
//     serve the next request of the connection once the handler has returned:
//     what lives longer clones them ([http.Request.Clone]). The strings in them
//     may be kept. [Isolate] is for handlers that can't promise that.
//   - The request's context is that of the connection: it ends when the client is
//     gone, with [ErrClientGone] as cause, and not when the handler returns.
//   - A request may always be read while it is answered.
//   - A body that a client stops sending ends with [ErrBodyStalled].
type Server struct {
	// Handler answers the requests. Required.
	Handler http.Handler

	// Logger gets panics of handlers and trouble with accepting as errors, and
	// at level debug what clients did wrong. Required.
	Logger *slog.Logger

	// HeadTimeout is how long the head of a request may take: from its first
	// byte, or for a connection's first request from when it was accepted.
	// Default 4 s. It is what gets rid of clients that send a byte now and then.
	HeadTimeout time.Duration

	// BodyTimeout is how long the handler waits for another kilobyte of a body of
	// declared length; one that is sent in chunks may be made as it is sent, and
	// gets twelve times as much, and all the time once the answer has begun.
	// Default 4 s.
	BodyTimeout time.Duration

	// WriteTimeout is how long a client may take to take a kilobyte of an answer. It
	// counts only while there is something to take, whether the handler waits for
	// that or has returned. Default 3.5 s.
	WriteTimeout time.Duration

	// IdleTimeout is how long a connection is kept between two requests.
	// Default 2 min.
	IdleTimeout time.Duration

	// Grace is how long idle connections are kept once the server shuts down, for
	// a request that is on its way. Default 1 s.
	Grace time.Duration

	// MaxConns bounds the open connections. At the bound the one that has been
	// idle longest makes room; if none is idle, new ones wait to be accepted.
	// Default 0: as many as the system allows.
	MaxConns int

	// HTTP2 is given the connections whose client speaks HTTP/2: by TLS, which has
	// then shaken hands and is a [*tls.Conn], or because it begins with the preface
	// of HTTP/2, which can still be read. It must not wait for the connection's
	// end. Nil, and HTTP/2 isn't served.
	HTTP2 func(net.Conn)

	buffers buffers
	copies  copyBuffers
	date    atomic.Pointer[[]byte] // the Date field of this second

	mu         sync.Mutex // guards below
	listeners  map[*listener]bool
	conns      []*conn
	changed    chan struct{} // closed and made anew when a connection ends
	sweeping   bool
	dozing     atomic.Bool   // the sweeper looks seldom
	awake      chan struct{} // has it look now; made anew with it
	second     int64         // of date
	onShutdown []func()
	closing    atomic.Bool // is read without mu
	closingAt  time.Time
}

// listener is one that Serve accepts from.
type listener struct {
	net.Listener
	detached atomic.Bool
	stopped  chan struct{} // closed when Serve doesn't accept from it any more
}

// Causes for which the context of a request ends.
var (
	// ErrClientGone is the cause when the client has closed the connection, or
	// it broke.
	ErrClientGone = errors.New("the client closed the connection")
	// ErrClientStalled is the cause when the client took nothing of the answer
	// for [Server.WriteTimeout].
	ErrClientStalled = errors.New("the client takes nothing of the answer")
	// ErrBodyStalled is what reading a body returns when its client stops
	// sending it.
	ErrBodyStalled = errors.New("the client sends nothing more of the body")
)

// Serve accepts connections and serves them until the server is shut down or
// closed; then it returns [http.ErrServerClosed]. It closes the listener, unless
// [Server.Detach] was called. It may be called for several listeners.
//
// While the system has no file descriptors left it waits, and goes on.
func (s *Server) Serve(l net.Listener) error { return s.serve(l, nil) }

// ServeTLS is Serve for connections that begin with TLS. For HTTP/2 config must
// name it in NextProtos.
func (s *Server) ServeTLS(l net.Listener, config *tls.Config) error { return s.serve(l, config) }

func (s *Server) serve(inner net.Listener, config *tls.Config) error {
	if s.Handler == nil || s.Logger == nil {
		return errors.New("http1: Server.Handler or Server.Logger is nil")
	}
	l := &listener{Listener: inner, stopped: make(chan struct{})}
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		return errors.Join(http.ErrServerClosed, inner.Close())
	}
	if s.listeners == nil {
		s.listeners = make(map[*listener]bool)
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		if !l.detached.Load() {
			_ = inner.Close() // as a rule it is closed
		}
		close(l.stopped)
	}()

	const longest = time.Second
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			if config != nil {
				nc = tls.Server(nc, config)
			}
			if !s.start(nc) {
				_ = nc.Close()
			}
		case s.closing.Load() || l.detached.Load():
			return http.ErrServerClosed
		case isTemporary(err):
			pause = min(max(2*pause, 5*time.Millisecond), longest)
			s.Logger.Error("accept a connection", "addr", l.Addr().String(), "err", err, "again_in", pause.String())
			if !s.wait(pause) {
				return http.ErrServerClosed
			}
		default:
			return err
		}
		if !s.room(l) {
			return http.ErrServerClosed
		}
	}
}

// isTemporary says whether accepting may work again: the system is short of
// something, or the connection was gone already.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// wait pauses, or until a connection ends. It returns false if the server ends.
func (s *Server) wait(d time.Duration) bool {
	s.mu.Lock()
	changed := s.changes()
	s.mu.Unlock()
	select {
	case <-time.After(d):
	case <-changed:
	}
	return !s.closing.Load()
}

// changes returns what is closed when a connection ends, or the server does.
func (s *Server) changes() chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// notify tells who waits for changes.
func (s *Server) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// room waits until there may be another connection. It returns false if the
// listener is to be left.
func (s *Server) room(l *listener) bool {
	for s.MaxConns > 0 {
		s.mu.Lock()
		full := len(s.conns) >= s.MaxConns
		if full {
			s.evict()
		}
		changed := s.changes()
		s.mu.Unlock()
		if !full {
			break
		}
		select {
		case <-changed:
		case <-time.After(sweepInterval): // another may have become idle
		}
		if s.closing.Load() || l.detached.Load() {
			return false
		}
	}
	return true
}

// start serves a connection. It returns false if the server is closing.
func (s *Server) start(nc net.Conn) bool {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	c.index = len(s.conns)
	s.conns = append(s.conns, c)
	if s.sweeping {
		s.wake()
	} else {
		s.sweeping = true
		s.awake = make(chan struct{}, 1)
		s.refreshDate(time.Now())
		go s.sweep() // ends with the last connection, which Shutdown waits for
	}
	go c.serve() // Shutdown waits for it
	return true
}

// remove forgets a connection. It is not the server's any more, but is only
// counted once.
func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.index < 0 {
		return
	}
	last := s.conns[len(s.conns)-1]
	s.conns[c.index] = last
	last.index = c.index
	s.conns[len(s.conns)-1] = nil
	s.conns = s.conns[:len(s.conns)-1]
	c.index = -1
	if len(s.conns) == 0 {
		s.wake()
	}
	s.notify()
}

// Conns returns how many connections there are.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// RegisterOnShutdown has f called in a goroutine of its own when [Server.Shutdown]
// begins: it is to end what would go on for ever.
func (s *Server) RegisterOnShutdown(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onShutdown = append(s.onShutdown, f)
}

// Detach has every Serve return without closing its listener, which then is whole
// and in nobody's use: connections wait in it for who accepts next, be it another
// process. Connections that are served go on. It returns when Serve has let go of
// them all.
func (s *Server) Detach() error {
	s.mu.Lock()
	listeners := make([]*listener, 0, len(s.listeners))
	for l := range s.listeners {
		listeners = append(listeners, l)
	}
	s.mu.Unlock()
	var errs []error
	for _, l := range listeners {
		d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
		if !ok {
			errs = append(errs, errors.New("detach from "+l.Addr().String()+": the listener can't be interrupted"))
			continue
		}
		l.detached.Store(true)
		if err := d.SetDeadline(longAgo); err != nil {
			errs = append(errs, err)
			continue
		}
		<-l.stopped
		errs = append(errs, d.SetDeadline(time.Time{}))
	}
	return errors.Join(errs...)
}

// longAgo is a deadline that interrupts.
var longAgo = time.Unix(1, 0)

// Shutdown stops accepting and waits until the last connection has ended: those
// that are busy once their answer, which says so, is sent, those that are idle
// after [Server.Grace]. When ctx ends before, it returns its error, and leaves the
// connections as they are. Connections that were hijacked or speak HTTP/2 are not
// the server's any more.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing.Swap(true) {
		s.closingAt = time.Now()
		for _, f := range s.onShutdown {
			go f() // as with net/http
		}
	}
	s.wake()
	err := s.closeListeners()
	s.notify()
	for len(s.conns) > 0 || s.sweeping {
		changed := s.changes()
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	return err
}

// Close cuts all connections and stops accepting. It doesn't wait for handlers.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closing.Swap(true) {
		s.closingAt = time.Now()
	}
	err := s.closeListeners()
	conns := slices.Clone(s.conns)
	s.notify()
	s.mu.Unlock()
	for _, c := range conns {
		c.cancel(http.ErrServerClosed)
		_ = c.nc.Close() // there is nothing to do about it
	}
	return err
}

func (s *Server) closeListeners() error {
	var errs []error
	for l := range s.listeners {
		if l.detached.Load() {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) headTimeout() time.Duration  { return cmp.Or(s.HeadTimeout, 4*time.Second) }
func (s *Server) bodyTimeout() time.Duration  { return cmp.Or(s.BodyTimeout, 4*time.Second) }
func (s *Server) writeTimeout() time.Duration { return cmp.Or(s.WriteTimeout, 3500*time.Millisecond) }
func (s *Server) idleTimeout() time.Duration  { return cmp.Or(s.IdleTimeout, 2*time.Minute) }
func (s *Server) grace() time.Duration        { return cmp.Or(s.Grace, time.Second) }

// Isolate returns a handler that calls next with a request of its own, whose
// context ends when next returns: all of it may be kept, as with net/http.
func Isolate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		own := r.Clone(ctx)
		own.Trailer = r.Trailer // is filled in at the body's end
		next.ServeHTTP(w, own)
		if own.MultipartForm != nil {
			_ = own.MultipartForm.RemoveAll() // files in the temporary folder
		}
	})
}
