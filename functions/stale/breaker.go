package stale

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// fault is what was wrong with a command of the Redis.
type fault int

const (
	noFault     fault = iota
	timeout           // no answer in time, or no connection was free
	unreachable       // refused, reset, no such host
	loading           // it starts, and reads its data
	readOnly          // it is a replica
	full              // out of memory, or can't save what it has
	cluster           // the cluster has no owner for the key, or is moving it
	denied            // the password or its rights
	other
	faultKinds
)

// String returns a word for logs and metrics.
func (f fault) String() string {
	return [...]string{"none", "timeout", "unreachable", "loading", "read_only", "full", "cluster", "denied", "other"}[f]
}

// classify says what an error of go-redis is. That there is no such key is none.
func classify(err error) fault {
	if err == nil || errors.Is(err, redis.Nil) {
		return noFault
	}
	_, moved := redis.IsMovedError(err)
	_, ask := redis.IsAskError(err)
	var netErr interface{ Timeout() bool }
	var answer redis.Error
	switch {
	case redis.IsLoadingError(err):
		return loading
	case redis.IsReadOnlyError(err):
		return readOnly
	case redis.IsOOMError(err), redis.IsNoReplicasError(err), redis.HasErrorPrefix(err, "MISCONF"):
		return full
	case redis.IsClusterDownError(err), redis.IsTryAgainError(err), redis.IsMasterDownError(err), moved, ask:
		return cluster
	case redis.IsAuthError(err), redis.IsPermissionError(err):
		return denied
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout), errors.As(err, &netErr) && netErr.Timeout():
		return timeout
	case errors.As(err, &answer):
		return other
	}
	return unreachable
}

// breaker keeps calls from a Redis that is ill. The first command that fails
// opens it: a Redis that froze then costs those who were on the way, and nobody
// after them, however rare the calls are. That is harsh for one lost packet, and
// so a probe is sent at once, behind the scenes, and one answer closes it. Who
// calls meanwhile loses only the other replicas' answers. If it opens three
// times within two seconds, or the probe fails too, the next probe waits for
// one second, then two, then four.
type breaker struct {
	probe  func(context.Context) error
	spawn  func(func()) bool
	ctx    context.Context
	now    func() time.Time
	logger *slog.Logger

	open atomic.Bool

	mu     sync.Mutex   // guards below
	opened [3]time.Time // the last times, oldest first
	wait   time.Duration
}

const (
	probeWait    = time.Second
	probeWaitMax = 4 * time.Second
	probeTimeout = 100 * time.Millisecond
	often        = 2 * time.Second
)

// closed says whether the Redis may be called.
func (b *breaker) closed() bool { return !b.open.Load() }

// trip opens the breaker because of err, and begins to probe.
func (b *breaker) trip(err error) {
	if !b.open.CompareAndSwap(false, true) {
		return
	}
	b.mu.Lock()
	now := b.now()
	again := now.Sub(b.opened[0]) < often
	if now.Sub(b.opened[2]) > 2*probeWaitMax {
		b.wait = probeWait
	}
	copy(b.opened[:], b.opened[1:])
	b.opened[2] = now
	b.mu.Unlock()
	b.spawn(func() { b.heal(err, again) })
}

// heal probes until there is an answer.
func (b *breaker) heal(err error, wait bool) {
	told := false
	for {
		if wait {
			if !told {
				told = true
				b.logger.Warn("the shared cache does without its Redis", "kind", classify(err), "err", err)
			}
			b.mu.Lock()
			d := b.wait
			b.wait = min(2*d, probeWaitMax)
			b.mu.Unlock()
			select {
			case <-b.ctx.Done():
				return
			case <-time.After(d + rand.N(d/5)):
			}
		}
		if b.ctx.Err() != nil {
			return
		}
		ctx, cancel := context.WithTimeout(b.ctx, probeTimeout)
		err = b.probe(ctx)
		cancel()
		switch {
		case b.ctx.Err() != nil:
			return
		case err == nil:
			b.open.Store(false)
			if told {
				b.logger.Info("the shared cache has its Redis again")
			}
			return
		}
		wait = true
	}
}
