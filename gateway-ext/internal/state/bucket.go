package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
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
		b.kv, err = openBucket(ctx, s.js, s.engine.streams(name), s.engine.settle)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s of the state: %w", name, s.explain(err))
	}
	return b, nil
}

// bucketPrefix is how the streams of buckets are called, as JetStream has it.
const bucketPrefix = "KV_"

// streamOf is a bucket's stream, the way JetStream's own key-value store makes it.
func streamOf(bucket string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketPrefix + bucket,
		Subjects:          []string{"$KV." + bucket + ".>"},
		MaxMsgsPerSubject: 1, // no history
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxConsumers:      -1,
		MaxMsgSize:        MaxValue,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		Replicas:          1,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       true,
	}
}

// openBucket opens a bucket, or makes it in the first of the given ways that the
// store allows.
func openBucket(ctx context.Context, js jetstream.JetStream, ways []jetstream.StreamConfig, made func() error) (jetstream.KeyValue, error) {
	name := strings.TrimPrefix(ways[0].Name, bucketPrefix)
	// Making it anew would write to a disk that may be full.
	kv, err := js.KeyValue(ctx, name)
	if err == nil {
		changed, err := spread(ctx, js, &ways[0])
		if changed {
			return js.KeyValue(ctx, name)
		}
		return kv, err
	}
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, err
	}
	for _, way := range ways {
		if _, err = js.CreateStream(ctx, way); !tooMany(err) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if kv, err = js.KeyValue(ctx, name); err != nil {
		return nil, err
	}
	return kv, made()
}

// spread has a stream kept by as many servers as it should be, if it was made when
// there were fewer, and says whether it has changed anything. Where there are
// still fewer, it stays as it is.
func spread(ctx context.Context, js jetstream.JetStream, way *jetstream.StreamConfig) (changed bool, err error) {
	if way.Replicas == 1 {
		return false, nil
	}
	s, err := js.Stream(ctx, way.Name)
	if err != nil {
		return false, err
	}
	cfg := s.CachedInfo().Config
	if cfg.Replicas >= way.Replicas {
		return false, nil
	}
	cfg.Replicas, cfg.AllowDirect = way.Replicas, way.AllowDirect
	_, err = js.UpdateStream(ctx, cfg)
	return err == nil, nil
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
		return b.st.engine.settle()
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
	var all []jetstream.KeyValueEntry
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		var read uint64
		var stopped error
		err := b.each(ctx, func(e jetstream.KeyValueEntry) bool {
			read = e.Revision()
			switch {
			case e.Operation() != jetstream.KeyValuePut: // it was deleted
			case b.st.engine.alone():
				stopped = f(e.Key(), e.Value())
			default:
				all = append(all, e)
			}
			return stopped == nil
		})
		if stopped != nil {
			return stopped
		}
		if err == nil && !b.st.engine.alone() {
			var newest bool
			if newest, err = b.newest(ctx, read); err == nil && !newest {
				// A server of the cluster has answered that is behind the others.
				all = all[:0]
				select {
				case <-time.After(wait):
					continue
				case <-ctx.Done():
					err = ctx.Err()
				}
			}
		}
		if err != nil {
			return b.wrap("read", "all keys", err)
		}
		for _, e := range all {
			if err := f(e.Key(), e.Value()); err != nil {
				return err
			}
		}
		return nil
	}
}

// newest says whether a revision is the newest, or a newer one than was when it
// was asked.
func (b *Bucket) newest(ctx context.Context, read uint64) (ok bool, err error) {
	err = b.st.do(ctx, func(ctx context.Context) error {
		s, err := b.st.js.Stream(ctx, bucketPrefix+b.kv.Bucket()) // its leader tells
		ok = err == nil && read >= s.CachedInfo().State.LastSeq
		return err
	})
	return ok, err
}

// each calls f for each entry, also those of keys that were deleted, as long as f
// wants more.
func (b *Bucket) each(ctx context.Context, f func(jetstream.KeyValueEntry) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var w jetstream.KeyWatcher
	life := b.st.engine.living()
	err := b.st.do(ctx, func(context.Context) (err error) {
		life = b.st.engine.living()
		w, err = b.kv.WatchAll(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := w.Stop(); err != nil {
			b.st.cfg.Logger.Debug("state store", "err", err)
		}
	}()
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the store ended meanwhile")
			case e == nil: // all that was there has been read
				return nil
			}
			if !f(e) {
				return nil
			}
		case <-life.Done():
			return context.Cause(life)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(startTimeout):
			return nats.ErrTimeout
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
