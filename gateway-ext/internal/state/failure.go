package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// errWrite says that the store couldn't write its files.
var errWrite = errors.New("a file can't be written")

// writeFailure returns an error if an error that the server logs says that it
// couldn't write. That is told nobody else: processJetStreamMsg in nats-server's
// stream.go doesn't answer then, and disables the stream. The file store's
// setWriteErr has the other text.
func writeFailure(logged string) error {
	switch {
	case strings.Contains(logged, syscall.ENOSPC.Error()):
		return fmt.Errorf("%w: %w", errWrite, syscall.ENOSPC)
	case strings.Contains(logged, "Critical write error"), strings.Contains(logged, "failed to store a msg"):
		return fmt.Errorf("%w: %s", errWrite, logged)
	}
	return nil
}

// storeFailed reports whether err says that the store itself doesn't work, as
// opposed to what was asked of it.
func storeFailed(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch server.ErrorIdentifier(api.ErrorCode) {
		case server.JSStreamStoreFailedF, server.JSNotEnabledErr, server.JSNotEnabledForAccountErr,
			server.JSClusterNotAvailErr, server.JSClusterNotLeaderErr, server.JSClusterIncompleteErr, server.JSStreamOfflineErr:
			return true
		}
		return diskFull(err)
	}
	return errors.Is(err, errWrite) ||
		errors.Is(err, errNotRunning) ||
		errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) ||
		errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrConnectionReconnecting) ||
		errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrNoServers) ||
		errors.Is(err, context.DeadlineExceeded)
}

// dialFailed reports whether err says that nobody was reached at an address.
func dialFailed(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok || errors.Is(err, io.EOF)
}

// diskFull reports whether err says that the disk is full. What JetStream hands
// over is the text of the system's error in a message, hence the substring: see
// isOutOfSpaceErr in nats-server's store.go, which does the same.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error())
}
