// Package state keeps what must outlive the process: a key-value store, and one
// folder with the keys that encrypt what is in it and the generated password.
//
// The store is a NATS server with JetStream inside this process, on files of the
// folder, and without a port: nobody but this process reaches it. A write is on
// the disk (fsync) before it is acknowledged, so that what was answered survives
// kill -9 and a power cut. The folder belongs to one process at a time, which a
// lock on it ensures.
//
// With [Config.NATS] the store is a NATS cluster elsewhere, on as many of its
// servers as make a majority of three; what it acknowledges survives the loss of
// one. A lease there does what the lock does for the folder: the names under one
// prefix belong to one gateway at a time. While the cluster is away nothing can
// be written, which is said at once; keys and password stay in the folder.
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
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

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

	// NATS is the cluster that keeps the store. Without a URL it is inside this
	// process, in Dir.
	NATS NATS

	// Logger receives what the store has to say. Required.
	Logger *slog.Logger
}

// State is an open state folder. Its methods may be called from any goroutine.
type State struct {
	cfg    Config
	lock   *os.File
	engine engine
	js     jetstream.JetStream

	writing chan struct{} // holds one token; taken for one write to a bucket and its outcome
	making  sync.Mutex    // held while a key or the password is read or made
}

// engine is what runs the store: the server inside, or a cluster elsewhere.
type engine interface {
	// open starts it, and returns its streams.
	open(ctx context.Context) (jetstream.JetStream, error)

	// living returns the life of what is to be used. A call that failed is made
	// again if again says so, and heal has it used again.
	living() life
	again(ctx context.Context, l life, err error, tries int) bool
	heal(ctx context.Context) error

	// stream is how a bucket is kept, and found by its own name. The first way
	// that can be had is taken.
	streams(bucket string) []jetstream.StreamConfig
	bucket(stream string) (name string, ok bool)

	// room returns nil if so many bytes more may be stored.
	room(size int) error
	// settle makes durable what a write has changed beside what it stored.
	settle() error
	// alone says whether there is but one server, which always answers with the
	// newest.
	alone() bool
	// key notes the fingerprint of a key, and refuses another one than before.
	key(name, fingerprint string) error
	// forget removes all that is stored, but for what is in the folder.
	forget(ctx context.Context) error
	// explain makes sentences of what was not understood.
	explain(err error) error

	close()
}

// Open locks the folder and starts the store in it, or connects to the cluster.
func Open(ctx context.Context, cfg Config) (*State, error) {
	s, err := claim(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// claim takes the folder.
func claim(cfg Config) (*State, error) {
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
	s := &State{cfg: cfg, lock: lock, writing: make(chan struct{}, 1)}
	if err := s.checkFormat(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Claim takes a folder that needs no store, such as a node's: as [Open] does, it
// makes it, refuses one that another process has or a newer program has written,
// and brings an older one's up to date. Closing the result gives the folder free.
func Claim(cfg Config) (io.Closer, error) {
	s, err := claim(cfg)
	if err != nil {
		return nil, err
	}
	return s.lock, nil
}

func (s *State) start(ctx context.Context) (err error) {
	if s.cfg.NATS.URL == "" {
		s.engine = &inside{cfg: s.cfg, reviving: make(chan struct{}, 1)}
	} else {
		id, err := s.identity()
		if err != nil {
			return err
		}
		s.engine = newCluster(s.cfg, id)
	}
	if s.js, err = s.engine.open(ctx); err != nil {
		return s.explain(err)
	}
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
	if s.engine != nil {
		s.engine.close()
	}
	return s.lock.Close() // the lock goes with the file
}

// Room returns nil if size more bytes may be stored, else an [faas.ErrNoSpace]
// that says how much is free, and where.
func (s *State) Room(size int) error { return s.engine.room(size) }

// roomOnDisk returns nil if size more bytes may be written in the folder.
func (c *Config) roomOnDisk(size int) error {
	free, err := freeBytes(c.Dir)
	if err != nil {
		return fmt.Errorf("how much is free at %s: %w", c.Dir, err)
	}
	if free-int64(size) < c.MinFree {
		return faas.Errorf(faas.ErrNoSpace,
			"the disk of %s is full: %d KiB are free and %d KiB must stay free; nothing was changed, and what was declared before is safe: free some space, then try again",
			c.Dir, free>>10, c.MinFree>>10)
	}
	return nil
}

// Writable returns nil if a small value can be stored, as far as can be told
// without writing one: two system calls, or what is known of the connection.
func (s *State) Writable() error {
	if err := checkWritable(s.cfg.Dir); err != nil {
		return fmt.Errorf("the state in %s: %w", s.cfg.Dir, err)
	}
	return s.Room(0)
}

// do calls f, which uses the store, and once more if that failed over something
// that passes.
func (s *State) do(caller context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(caller, callTimeout)
	defer cancel()
	for tries := 1; ; tries++ {
		if err := s.engine.heal(ctx); err != nil {
			return s.explain(err)
		}
		life := s.engine.living()
		err := call(ctx, life, f)
		if err == nil || !storeFailed(err) {
			return err
		}
		if caller.Err() != nil {
			return caller.Err() // the caller had no more time, which says nothing of the store
		}
		if !s.engine.again(ctx, life, err, tries) {
			return s.explain(err)
		}
	}
}

// call calls f, which ends when the store fails: a store that can't write its
// files says so in its log, and doesn't answer.
func call(ctx context.Context, life life, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
	if life.attempt > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, life.attempt)
		defer done()
	}
	err := f(ctx)
	if err != nil && life.Err() != nil {
		return context.Cause(life)
	}
	return err
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
	if err == nil || errors.Is(err, faas.ErrNoSpace) || errors.Is(err, faas.ErrUnavailable) || errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*faas.Error](err); ok {
		return err // a sentence already
	}
	return s.engine.explain(err)
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
