package state

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Bucket is a named set of keys with values. Keys are made of a-z, A-Z, 0-9 and
// "-", "_", "=", "/", "."; values have at most [MaxValue] bytes.
type Bucket struct {
	st *State
	kv jetstream.KeyValue
}

// Bucket opens the bucket with this name, which is made if it isn't there.
func (s *State) Bucket(ctx context.Context, name string) (*Bucket, error) {
	b := &Bucket{st: s}
	err := s.do(ctx, func(ctx context.Context) (err error) {
		// Making it anew would write to a disk that may be full.
		b.kv, err = s.js.KeyValue(ctx, name)
		if !errors.Is(err, jetstream.ErrBucketNotFound) {
			return err
		}
		b.kv, err = s.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket:       name,
			History:      1,
			Storage:      jetstream.FileStorage,
			MaxValueSize: MaxValue,
		})
		return cmp.Or(err, syncTree(s.cfg.Dir))
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s of the state: %w", name, s.explain(err))
	}
	return b, nil
}

// Put stores the value, in place of an older one. When it returns nil, the
// value is on the disk. An [faas.ErrNoSpace] means that nothing was changed.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	if len(value) > MaxValue {
		return faas.Errorf(faas.ErrTooLarge, "%s has %d bytes, at most %d can be stored", key, len(value), MaxValue)
	}
	if err := b.st.Room(len(value)); err != nil {
		return err
	}
	return b.wrap("store", key, b.write(ctx, func(ctx context.Context) error {
		_, err := b.kv.Put(ctx, key, value)
		return err
	}, func() bool {
		now, err := b.Get(ctx, key)
		return err == nil && bytes.Equal(now, value)
	}))
}

// Delete removes a key, if it is there. When it returns nil, that is on the
// disk: as a marker of some 100 bytes, which stays. (JetStream could purge
// markers; killed soon after, it would find the old value without its marker
// and bring it back.) It works on a disk that is nearly full, where Put doesn't.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	return b.wrap("delete", key, b.write(ctx, func(ctx context.Context) error {
		return b.kv.Delete(ctx, key)
	}, func() bool {
		_, err := b.Get(ctx, key)
		return errors.Is(err, faas.ErrNotFound)
	}))
}

// write does one write. It may have been done although it failed, when the
// store failed over something else and took the answer along. Whoever is told
// that nothing was changed must not find it changed after the next restart, so
// then it is looked up what is there. One write at a time: the store syncs one
// by one anyway, and another one that fails would disturb the look-up.
func (b *Bucket) write(ctx context.Context, f func(context.Context) error, done func() bool) error {
	if err := take(ctx, b.st.writing); err != nil {
		return err
	}
	defer func() { <-b.st.writing }()
	err := b.st.do(ctx, f)
	unsure := errors.Is(err, faas.ErrNoSpace) || errors.Is(err, faas.ErrUnavailable)
	if unsure && done() {
		return syncTree(b.st.cfg.Dir)
	}
	return err
}

// Get returns a key's value, or an [faas.ErrNotFound].
func (b *Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	err := b.st.do(ctx, func(ctx context.Context) error {
		e, err := b.kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return faas.Errorf(faas.ErrNotFound, "there is no %s", key)
		}
		if err == nil {
			value = e.Value()
		}
		return err
	})
	return value, b.wrap("read", key, err)
}

// Each calls f for each key and its value, in the order in which they were
// written, until f returns an error, which it returns.
func (b *Bucket) Each(ctx context.Context, f func(key string, value []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var w jetstream.KeyWatcher
	err := b.st.do(ctx, func(context.Context) (err error) {
		w, err = b.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
		return err
	})
	if err != nil {
		return b.wrap("read", "all keys", err)
	}
	defer func() {
		if err := w.Stop(); err != nil {
			b.st.cfg.Logger.Debug("state store", "err", err)
		}
	}()
	life := b.st.srv.living()
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return b.wrap("read", "all keys", errors.New("the store ended meanwhile"))
			case e == nil: // all that was there has been read
				return nil
			}
			if err := f(e.Key(), e.Value()); err != nil {
				return err
			}
		case <-life.Done():
			return b.wrap("read", "all keys", context.Cause(life))
		case <-ctx.Done():
			return b.wrap("read", "all keys", ctx.Err())
		}
	}
}

func (b *Bucket) wrap(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s %s: %w", doing, key, err)
	}
	err = b.st.explainCall(err)
	if _, ok := errors.AsType[*faas.Error](err); ok {
		return err // already a sentence
	}
	return fmt.Errorf("%s %s: %w", doing, key, err)
}

// explainCall explains what the store said, and leaves other errors alone.
func (s *State) explainCall(err error) error {
	if storeFailed(err) || diskFull(err) {
		return s.explain(err)
	}
	return err
}
