package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// inside is the server inside this process. It stays one thing for the
// connection while the server behind it is replaced.
type inside struct {
	cfg Config

	mu   sync.Mutex // guards below
	srv  *server.Server
	life life // of the server that is to be used
}

// life is that of one server: its context ends, with a cause, when the server
// can't be trusted any more.
type life struct {
	context.Context
	end context.CancelCauseFunc
}

// InProcessConn implements [nats.InProcessConnProvider].
func (i *inside) InProcessConn() (net.Conn, error) {
	i.mu.Lock()
	srv := i.srv
	i.mu.Unlock()
	if srv == nil {
		return nil, errNotRunning
	}
	return srv.InProcessConn()
}

// living returns the life of the server that is to be used.
func (i *inside) living() life {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.life
}

// use has a server used from now on.
func (i *inside) use(l life) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.life = l
}

// used returns how many bytes the store has on disk.
func (i *inside) used() int64 {
	i.mu.Lock()
	srv := i.srv
	i.mu.Unlock()
	if srv == nil {
		return 0
	}
	info, err := srv.Jsz(nil)
	if err != nil {
		return 0 // it failed: the write that follows finds out
	}
	return int64(info.Store)
}

// start starts a server, which is to be used when the connection has reached it.
func (i *inside) start(ctx context.Context) (life, error) {
	srv, err := server.NewServer(&server.Options{
		ServerName: "thicket",
		DontListen: true,
		JetStream:  true,
		StoreDir:   filepath.Join(i.cfg.Dir, "store"),
		SyncAlways: true,
		// Above MaxBytes there is room for the markers of what is deleted.
		JetStreamMaxStore:      i.cfg.MaxBytes + i.cfg.MaxBytes/8 + 8<<20,
		JetStreamMaxMemory:     16 << 20, // only short-lived consumers are kept in memory
		MaxPayload:             2*MaxValue + 64<<10,
		MaxConn:                16,
		NoSigs:                 true,
		NoLog:                  true,
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return life{}, fmt.Errorf("start the state store: %w", err)
	}
	// The life of the server outlives the context of whoever starts it.
	living, end := context.WithCancelCause(context.WithoutCancel(ctx))
	log := &storeLog{log: i.cfg.Logger, failed: end}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startTimeout) || !srv.JetStreamEnabled() {
		srv.Shutdown()
		srv.WaitForShutdown()
		end(errNotRunning)
		return life{}, fmt.Errorf("start the state store in %s: %w", i.cfg.Dir, cmp.Or(log.last(), error(errNotReady)))
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.srv = srv
	return life{living, end}, nil
}

func (i *inside) stop() {
	i.mu.Lock()
	srv, life := i.srv, i.life
	i.srv = nil
	i.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
	if life.end != nil {
		life.end(errNotRunning)
	}
}

var (
	errNotRunning = errors.New("the state store is not running")
	errNotReady   = fmt.Errorf("it was not ready within %s", startTimeout)
)

// storeLog passes the server's words on. What it has to say while all goes well
// is about itself (its version, its files), and for who debugs it.
type storeLog struct {
	log    *slog.Logger
	failed context.CancelCauseFunc // ends the life of the server

	mu    sync.Mutex // guards below
	fatal error
}

func (l *storeLog) Noticef(format string, v ...any) { l.Debugf(format, v...) }
func (l *storeLog) Tracef(format string, v ...any)  { l.Debugf(format, v...) }

func (l *storeLog) Debugf(format string, v ...any) {
	l.log.Debug("state store", "said", fmt.Sprintf(format, v...))
}

func (l *storeLog) Warnf(format string, v ...any) {
	l.log.Warn("state store", "said", fmt.Sprintf(format, v...))
}

// Errorf also looks for the one error that is only ever logged: that a file
// couldn't be written.
func (l *storeLog) Errorf(format string, v ...any) {
	said := fmt.Sprintf(format, v...)
	l.log.Error("state store", "said", said)
	if err := writeFailure(said); err != nil {
		l.failed(err)
	}
}

// Fatalf keeps why the server gave up; whoever started it says so.
func (l *storeLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fatal = fmt.Errorf(format, v...)
}

func (l *storeLog) last() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatal
}
