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
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// inside is the server inside this process, in the folder. It stays one thing for
// the connection while the server behind it is replaced.
type inside struct {
	cfg      Config
	nc       *nats.Conn
	reviving chan struct{} // holds one token; taken while the server is started anew

	mu   sync.Mutex // guards below
	srv  *server.Server
	life life // of the server that is to be used
}

// life is that of what runs the store: its context ends, with a cause, when it
// can't be trusted any more.
type life struct {
	context.Context
	end     context.CancelCauseFunc
	attempt time.Duration // how long one call may take; 0 is as long as the caller has
}

// open implements [engine].
func (i *inside) open(ctx context.Context) (jetstream.JetStream, error) {
	life, err := i.start(ctx)
	if err != nil {
		return nil, err
	}
	i.nc, err = nats.Connect("",
		nats.InProcessServer(i),
		nats.Name("thicket"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1), // a write is made, or refused; never kept for later
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			i.cfg.Logger.Warn("state store", "err", err)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to the state store: %w", err)
	}
	js, err := jetstream.New(i.nc, jetstream.WithDefaultTimeout(callTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect to the state store: %w", err)
	}
	i.use(life)
	return js, nil
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

// again implements [engine]: the server that failed is of no more use, and its
// successor worth one more try, unless only who frees some space can help.
func (i *inside) again(_ context.Context, l life, err error, tries int) bool {
	l.end(err) // of the server that failed, should another run by now
	return tries == 1 && !diskFull(err)
}

// heal starts the store anew if it failed.
func (i *inside) heal(ctx context.Context) error {
	if i.living().Err() == nil {
		return nil
	}
	if err := take(ctx, i.reviving); err != nil {
		return err
	}
	defer func() { <-i.reviving }()
	if i.living().Err() == nil {
		return nil // by somebody else, meanwhile
	}
	i.cfg.Logger.Warn("state store failed and is started anew", "dir", i.cfg.Dir)
	i.stop()
	life, err := i.start(ctx)
	if err != nil {
		return err
	}
	for { // the connection comes back on its own, within its ReconnectWait
		err := i.nc.FlushWithContext(ctx)
		if err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("connect to the state store again: %w", err)
		}
	}
	i.use(life)
	return nil
}

// streams implements [engine].
func (i *inside) streams(bucket string) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{streamOf(bucket)}
}

// bucket implements [engine].
func (i *inside) bucket(stream string) (string, bool) { return stream, true }

// room implements [engine].
func (i *inside) room(size int) error {
	if used := i.used(); used+int64(size) > i.cfg.MaxBytes {
		return faas.Errorf(faas.ErrNoSpace,
			"the state in %s has grown to its bound of %d MiB, nothing was changed: delete what is not needed, or raise the bound",
			i.cfg.Dir, i.cfg.MaxBytes>>20)
	}
	return i.cfg.roomOnDisk(size)
}

// settle implements [engine].
func (i *inside) settle() error { return syncTree(i.cfg.Dir) }

// alone implements [engine].
func (i *inside) alone() bool { return true }

// key implements [engine]: the keys are beside the store.
func (i *inside) key(string, string) error { return nil }

// forget implements [engine]: all is in the folder.
func (i *inside) forget(context.Context) error { return nil }

// explain implements [engine].
func (i *inside) explain(err error) error {
	if diskFull(err) {
		return faas.Errorf(faas.ErrNoSpace, "the disk of %s is full; nothing was changed, and what was declared before is safe: free some space, then try again (%w)",
			i.cfg.Dir, err)
	}
	if full := i.room(0); full != nil {
		return full
	}
	return faas.Errorf(faas.ErrUnavailable, "the state in %s can't be written or read: %w", i.cfg.Dir, err)
}

// close implements [engine].
func (i *inside) close() {
	if i.nc != nil {
		i.nc.Close()
	}
	i.stop()
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
	return life{Context: living, end: end}, nil
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
