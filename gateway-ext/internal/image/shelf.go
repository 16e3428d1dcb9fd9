package image

import (
	"context"
	"errors"
	"sync"
)

// errClosed is why work ends when the store is closed.
var errClosed = errors.New("the image store is closed")

// shelf holds things that are costly to make and are shared: each is made once,
// whatever number of callers ask for it at the same time, stays while somebody
// holds it, and is taken off only when nobody does.
type shelf[T any] struct {
	// transient things are dropped when the last holder lets go of them.
	transient bool

	mu    sync.Mutex // guards below, and what is in items
	items map[string]*item[T]
	work  sync.WaitGroup
}

type item[T any] struct {
	state   itemState
	holders int // in making: who waits for it
	value   T
	err     error
	changed chan struct{} // closed when making or leaving ends
	cancel  context.CancelCauseFunc
}

type itemState int

const (
	itemMaking itemState = iota
	itemReady
	itemLeaving // being made without anybody waiting any more, or being removed
)

// put adds a thing that is there already.
func (s *shelf[T]) put(key string, value T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.items == nil {
		s.items = map[string]*item[T]{}
	}
	s.items[key] = &item[T]{state: itemReady, value: value}
}

// take returns the thing, making it if it is not there. When ctx ends the
// caller no longer waits; the making stops when the last caller has left.
func (s *shelf[T]) take(ctx context.Context, key string, mk func(context.Context) (T, error)) (value T, release func(), err error) {
	for {
		s.mu.Lock()
		if s.items == nil {
			s.items = map[string]*item[T]{}
		}
		it := s.items[key]
		switch {
		case it == nil:
			it = s.start(ctx, key, mk)
		case it.state == itemReady:
			it.holders++
			s.mu.Unlock()
			return it.value, s.releaser(key, it), nil
		case it.state == itemLeaving:
			s.mu.Unlock()
			select {
			case <-it.changed:
				continue
			case <-ctx.Done():
				return value, nil, context.Cause(ctx)
			}
		default:
			it.holders++
		}
		s.mu.Unlock()

		select {
		case <-it.changed:
			if it.err != nil {
				return value, nil, it.err
			}
			return it.value, s.releaser(key, it), nil
		case <-ctx.Done():
			s.leave(key, it, context.Cause(ctx))
			return value, nil, context.Cause(ctx)
		}
	}
}

// start begins to make a thing for one holder. The lock is held.
func (s *shelf[T]) start(ctx context.Context, key string, mk func(context.Context) (T, error)) *item[T] {
	// The values of the first caller's context are kept, its end is not: there
	// may be others who wait.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	it := &item[T]{state: itemMaking, holders: 1, changed: make(chan struct{}), cancel: cancel}
	s.items[key] = it
	s.work.Go(func() {
		value, err := mk(ctx)
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		it.value, it.err = value, err
		switch {
		case err != nil, s.transient && it.holders == 0:
			delete(s.items, key)
		default:
			it.state = itemReady
		}
		close(it.changed)
	})
	return it
}

// leave is for a caller that waits no longer.
func (s *shelf[T]) leave(key string, it *item[T], why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.err != nil {
		return
	}
	it.holders--
	if it.holders == 0 && it.state == itemMaking {
		it.state = itemLeaving
		it.cancel(why)
	}
	s.drop(key, it)
}

func (s *shelf[T]) releaser(key string, it *item[T]) func() {
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		it.holders--
		s.drop(key, it)
	})
}

// drop forgets a transient thing that nobody holds. The lock is held.
func (s *shelf[T]) drop(key string, it *item[T]) {
	if s.transient && it.holders == 0 && it.state == itemReady && s.items[key] == it {
		delete(s.items, key)
	}
}

// clear takes off what nobody holds and unwanted picks, calls remove for each,
// and returns what was taken. Who asks for one of them meanwhile waits until it
// is gone, and has it made again. unwanted is called under the lock.
func (s *shelf[T]) clear(unwanted func(key string, value T) bool, remove func(key string, value T) error) error {
	s.mu.Lock()
	gone := map[string]*item[T]{}
	for key, it := range s.items {
		if it.state == itemReady && it.holders == 0 && unwanted(key, it.value) {
			it.state, it.changed = itemLeaving, make(chan struct{})
			gone[key] = it
		}
	}
	s.mu.Unlock()

	var errs []error
	for key, it := range gone {
		errs = append(errs, remove(key, it.value))
		s.mu.Lock()
		delete(s.items, key)
		close(it.changed)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// close stops all making and waits for its end.
func (s *shelf[T]) close() {
	s.mu.Lock()
	for _, it := range s.items {
		if it.cancel != nil && it.state == itemMaking {
			it.cancel(errClosed)
		}
	}
	s.mu.Unlock()
	s.work.Wait()
}
