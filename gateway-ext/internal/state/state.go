// Package state keeps what must outlive the process: one folder with a
// key-value store, the keys that encrypt what is in it, and the generated
// password.
//
// The store is a NATS server with JetStream inside this process, on files, and
// without a port: nobody but this process reaches it. A write is on the disk
// (fsync) before it is acknowledged, so that what was answered survives kill -9
// and a power cut. The folder belongs to one process at a time, which a lock
// on it ensures.
//
// A disk that is nearly full refuses writes before they begin, with a
// [faas.ErrNoSpace]; what was stored stays readable, and writing goes on when
// there is room again, without a restart. Should the disk fill up within a
// write all the same, the server inside stops trusting its files; it is then
// started anew behind the same connection, before the next use.
package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// MaxValue is the most bytes that one value in a [Bucket] may have. One
// message of the store holds it, with its headers.
const MaxValue = 2 << 20

// startTimeout bounds how long the store may take to read its files. Reading
// gigabytes from an SD card takes a while; a healthy start takes milliseconds.
const startTimeout = 30 * time.Second

// callTimeout bounds one call to the store when the caller has no deadline. It
// is far above what an fsync on a slow SD card takes (some 100 ms).
const callTimeout = 10 * time.Second

// Config says where the state is and how much it may grow.
type Config struct {
	// Dir is the state folder. It is made if it isn't there.
	Dir string

	// MaxBytes bounds the store on disk. Default 1 GiB. What is declared takes
	// a few KB per function; queued calls take the rest.
	MaxBytes int64

	// MinFree is how many bytes stay free on the disk: a write that would leave
	// less is refused. Default 16 MiB, which is what the store, the logs and an
	// administrator need to get out of the situation.
	MinFree int64

	// Logger receives what the store has to say. Required.
	Logger *slog.Logger
}

// State is an open state folder. Its methods may be called from any goroutine.
type State struct {
	cfg  Config
	lock *os.File
	nc   *nats.Conn
	js   jetstream.JetStream
	srv  *inside

	reviving chan struct{} // holds one token; taken while the store is started anew
	writing  chan struct{} // holds one token; taken for one write to a bucket and its outcome
	making   sync.Mutex    // held while a key or the password is read or made
}

// Open locks the folder and starts the store in it.
func Open(ctx context.Context, cfg Config) (*State, error) {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 1<<30)
	cfg.MinFree = cmp.Or(cfg.MinFree, 16<<20)
	if cfg.Dir == "" {
		return nil, faas.Errorf(faas.ErrInvalid, "the state folder has no name: set THICKET_DATA")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("state folder %s: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", noSpace(err))
	}
	lock, err := lockFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &State{cfg: cfg, lock: lock, srv: &inside{cfg: cfg}, reviving: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	err = s.checkFormat()
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *State) start(ctx context.Context) error {
	life, err := s.srv.start(ctx)
	if err != nil {
		return s.explain(err)
	}
	nc, err := nats.Connect("",
		nats.InProcessServer(s.srv),
		nats.Name("thicket"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1), // a write is made, or refused; never kept for later
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.cfg.Logger.Warn("state store", "err", err)
		}),
	)
	if err != nil {
		return fmt.Errorf("connect to the state store: %w", err)
	}
	s.nc = nc
	s.js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(callTimeout))
	if err != nil {
		return fmt.Errorf("connect to the state store: %w", err)
	}
	s.srv.use(life)
	return ctx.Err()
}

// Dir returns the folder's absolute path.
func (s *State) Dir() string { return s.cfg.Dir }

// JetStream returns the store's streams, for what isn't a [Bucket]. Who writes
// to them should ask [State.Room] first.
func (s *State) JetStream() jetstream.JetStream { return s.js }

// Close ends the store and gives the folder free. What was acknowledged is on
// the disk with or without it.
func (s *State) Close() error {
	if s.nc != nil {
		s.nc.Close()
	}
	s.srv.stop()
	return s.lock.Close() // the lock goes with the file
}

// Room returns nil if size more bytes may be written, else an
// [faas.ErrNoSpace] that says how much is free, and where.
func (s *State) Room(size int) error {
	if used := s.srv.used(); used+int64(size) > s.cfg.MaxBytes {
		return faas.Errorf(faas.ErrNoSpace,
			"the state in %s has grown to its bound of %d MiB, nothing was changed: delete what is not needed, or raise the bound",
			s.cfg.Dir, s.cfg.MaxBytes>>20)
	}
	free, err := freeBytes(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("how much is free at %s: %w", s.cfg.Dir, err)
	}
	if free-int64(size) < s.cfg.MinFree {
		return faas.Errorf(faas.ErrNoSpace,
			"the disk of %s is full: %d KiB are free and %d KiB must stay free; nothing was changed, and what was declared before is safe: free some space, then try again",
			s.cfg.Dir, free>>10, s.cfg.MinFree>>10)
	}
	return nil
}

// Writable returns nil if a small value can be stored, as far as the disk can
// tell without being written to: two system calls.
func (s *State) Writable() error {
	if err := checkWritable(s.cfg.Dir); err != nil {
		return fmt.Errorf("the state in %s: %w", s.cfg.Dir, err)
	}
	return s.Room(0)
}

// do calls f, which uses the store. A store that lost its files to a full or
// broken disk is started anew before, and f then called once more.
func (s *State) do(caller context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(caller, callTimeout)
	defer cancel()
	var err error
	for range 2 {
		if err := s.revive(ctx); err != nil {
			return s.explain(err)
		}
		life := s.srv.living()
		if err = call(ctx, life, f); err == nil || !storeFailed(err) {
			return err
		}
		if caller.Err() != nil {
			return caller.Err() // the caller had no more time, which says nothing of the store
		}
		life.end(err) // of the server that failed, should another run by now
		if diskFull(err) {
			break // only who frees some space can help
		}
	}
	return s.explain(err)
}

// call calls f, which ends when the store fails: a store that can't write its
// files says so in its log, and doesn't answer.
func call(ctx context.Context, life life, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
	err := f(ctx)
	if err != nil && life.Err() != nil {
		return context.Cause(life)
	}
	return err
}

// revive starts the store anew if it failed.
func (s *State) revive(ctx context.Context) error {
	if s.srv.living().Err() == nil {
		return nil
	}
	if err := take(ctx, s.reviving); err != nil {
		return err
	}
	defer func() { <-s.reviving }()
	if s.srv.living().Err() == nil {
		return nil // by somebody else, meanwhile
	}
	s.cfg.Logger.Warn("state store failed and is started anew", "dir", s.cfg.Dir)
	s.srv.stop()
	life, err := s.srv.start(ctx)
	if err != nil {
		return err
	}
	for { // the connection comes back on its own, within its ReconnectWait
		err := s.nc.FlushWithContext(ctx)
		if err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("connect to the state store again: %w", err)
		}
	}
	s.srv.use(life)
	return nil
}

// take takes the one token that a channel holds; receiving from it gives it back.
func take(ctx context.Context, token chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// explain makes an [faas.ErrNoSpace] of what means a full disk or a full store,
// and an [faas.ErrUnavailable] of what is left of a failed store.
func (s *State) explain(err error) error {
	switch {
	case err == nil, errors.Is(err, faas.ErrNoSpace), errors.Is(err, faas.ErrUnavailable), errors.Is(err, context.Canceled):
		return err
	case diskFull(err):
		return faas.Errorf(faas.ErrNoSpace, "the disk of %s is full; nothing was changed, and what was declared before is safe: free some space, then try again (%w)",
			s.cfg.Dir, err)
	}
	if full := s.Room(0); full != nil {
		return full
	}
	return faas.Errorf(faas.ErrUnavailable, "the state in %s can't be written or read: %w", s.cfg.Dir, err)
}

// noSpace marks an error of the file system that means a full disk.
func noSpace(err error) error {
	if err != nil && diskFull(err) && !errors.Is(err, faas.ErrNoSpace) {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			return faas.Errorf(faas.ErrNoSpace, "the disk is full, nothing was changed: %w", pe)
		}
		return faas.Errorf(faas.ErrNoSpace, "the disk is full, nothing was changed: %w", err)
	}
	return err
}
