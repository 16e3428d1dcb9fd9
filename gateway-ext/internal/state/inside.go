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

	mu      sync.Mutex // guards below
	srv     *server.Server
	living  context.Context // ends when srv can't be trusted any more
	failing context.CancelCauseFunc
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

// life ends, with a cause, when the server fails.
func (i *inside) life() context.Context {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.living
}

// fail ends the life of the server that runs now.
func (i *inside) fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failing != nil {
		i.failing(err)
	}
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

func (i *inside) start(ctx context.Context) error {
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
		return fmt.Errorf("start the state store: %w", err)
	}
	// The life of the server outlives the context of whoever starts it.
	living, failing := context.WithCancelCause(context.WithoutCancel(ctx))
	log := &storeLog{log: i.cfg.Logger, failed: failing}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startTimeout) || !srv.JetStreamEnabled() {
		srv.Shutdown()
		srv.WaitForShutdown()
		failing(errNotRunning)
		return fmt.Errorf("start the state store in %s: %w", i.cfg.Dir, cmp.Or(log.last(), error(errNotReady)))
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.srv, i.living, i.failing = srv, living, failing
	return nil
}

func (i *inside) stop() {
	i.mu.Lock()
	srv, failing := i.srv, i.failing
	i.srv = nil
	i.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		failing(errNotRunning)
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

func (l *storeLog) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *storeLog) Warnf(format string, v ...any)   { l.say(slog.LevelWarn, format, v) }
func (l *storeLog) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *storeLog) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }

// Errorf also looks for the one error that is only ever logged: that a file
// couldn't be written.
func (l *storeLog) Errorf(format string, v ...any) {
	l.say(slog.LevelError, format, v)
	if err := writeFailure(fmt.Sprintf(format, v...)); err != nil {
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

func (l *storeLog) say(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "state store", "said", fmt.Sprintf(format, v...))
	}
}
