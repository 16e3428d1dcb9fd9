package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// A tunnel is a connection from the gateway to one replica. The gateway writes a
// line with the replica's id; the node answers with a line, "ok" or why not, and
// from then on every byte passes as it is. It is spoken over TLS, where it is
// told from HTTP by its ALPN name.

// TunnelProtocol is the ALPN name (RFC 7301) of a tunnel.
const TunnelProtocol = "thicket-tunnel/1"

// handshake bounds how long the two lines may take.
const handshake = 5 * time.Second

// Dial opens a tunnel to a replica over a connection to its node, which it
// closes if that fails.
func Dial(ctx context.Context, conn net.Conn, id string) (_ net.Conn, err error) {
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(handshake)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, id+"\n"); err != nil {
		return nil, err
	}
	// Byte by byte: what follows the line is the replica's.
	line, b := make([]byte, 0, 64), make([]byte, 1)
	for len(line) < 256 {
		if _, err := conn.Read(b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	if string(line) != "ok" {
		return nil, faas.Errorf(faas.ErrUnavailable, "%s", line)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return conn, conn.SetDeadline(time.Time{})
}

// Tunnels serves tunnels on a node.
type Tunnels struct {
	// Lookup finds a replica. Required.
	Lookup func(id string) (faas.Replica, bool)
	Logger *slog.Logger // required
}

// Serve serves one tunnel until one of its ends is closed.
func (t *Tunnels) Serve(conn net.Conn) {
	defer conn.Close()
	if err := t.serve(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.Logger.Debug("a tunnel ended", "from", conn.RemoteAddr(), "err", err)
	}
}

func (t *Tunnels) serve(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(handshake)); err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, 512)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	id := strings.TrimSuffix(string(line), "\n")
	r, ok := t.Lookup(id)
	if !ok {
		_, err := fmt.Fprintf(conn, "no replica %.100q is here\n", id)
		return err
	}
	replica, err := net.DialTimeout("tcp", r.Addr.String(), 2*time.Second)
	if err != nil {
		_, _ = fmt.Fprintf(conn, "replica %s takes no connection\n", id)
		return err
	}
	defer replica.Close()
	if _, err := io.WriteString(conn, "ok\n"); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return Splice(conn, in, replica)
}

// Splice carries all bytes from in, which is a or a reader of it, to b, and those
// of b to a, until both directions have ended. Half a connection may be closed
// before the other: each end sees what the other end did, and nothing is cut that
// is on its way. The caller closes both.
func Splice(a net.Conn, in io.Reader, b net.Conn) error {
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() {
		if _, err := io.Copy(a, b); err != nil {
			a.Close()
			return
		}
		closeWrite(a)
	})
	if _, err := io.Copy(b, in); err != nil {
		return errors.Join(err, b.Close(), a.Close())
	}
	closeWrite(b)
	return nil
}

// closeWrite says that nothing more is written.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		return
	}
	c.Close()
}
