package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// failedFlag says that the store lost its trust in its files.
type failedFlag struct{ v atomic.Bool }

func (f *failedFlag) set()        { f.v.Store(true) }
func (f *failedFlag) clear()      { f.v.Store(false) }
func (f *failedFlag) isSet() bool { return f.v.Load() }

// storeFailed reports whether err says that the store itself doesn't work, as
// opposed to what was asked of it.
func storeFailed(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch server.ErrorIdentifier(api.ErrorCode) {
		case server.JSStreamStoreFailedF, server.JSInsufficientResourcesErr,
			server.JSNotEnabledErr, server.JSNotEnabledForAccountErr:
			return true
		}
		return diskFull(err)
	}
	return errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) ||
		errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, context.DeadlineExceeded)
}

// outOfBounds reports whether err says that the store has reached MaxBytes.
func outOfBounds(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return server.ErrorIdentifier(api.ErrorCode) == server.JSStorageResourcesExceededErr
	}
	return false
}

// diskFull reports whether err says that the disk is full. What JetStream hands
// over is the text of the system's error in a message, hence the substring: see
// isOutOfSpaceErr in nats-server's store.go, which does the same.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// storeLog passes the server's words on. Its notices are about itself (version,
// file names) and of use to who debugs it; it is silent while all goes well.
type storeLog struct {
	log *slog.Logger

	mu    sync.Mutex // guards below
	fatal error
}

func (l *storeLog) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *storeLog) Warnf(format string, v ...any)   { l.say(slog.LevelWarn, format, v) }
func (l *storeLog) Errorf(format string, v ...any)  { l.say(slog.LevelError, format, v) }
func (l *storeLog) Debugf(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }
func (l *storeLog) Tracef(format string, v ...any)  { l.say(slog.LevelDebug, format, v) }

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
