//go:build unix

package http1_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// TestClosedWhileIdle holds that a connection which its server has closed while
// nobody used it isn't used, whatever the request: over TCP, where that is seen.
func TestClosedWhileIdle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	closed := make(chan struct{})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(conn)
			if req, err := http.ReadRequest(r); err == nil {
				io.Copy(io.Discard, req.Body)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
			conn.Close() // without a word of it
			closed <- struct{}{}
		}
	})
	dialed := make(chan *net.TCPConn, 100)
	tr := http1.NewTransport(http1.TransportConfig{Dial: func(_ context.Context, addr netip.AddrPort) (net.Conn, error) {
		conn, err := net.Dial("tcp", addr.String())
		if err == nil {
			dialed <- conn.(*net.TCPConn)
		}
		return conn, err
	}})
	defer func() {
		tr.Close()
		l.Close()
		serving.Wait()
	}()
	b := &backend{t: t, transport: tr, pool: tr.Pool(netip.MustParseAddrPort(l.Addr().String()))}
	for i := range 20 {
		out := &http1.Outgoing{Method: "POST"}
		switch i % 3 {
		case 1:
			out.Ready = []byte("hello")
		case 2:
			out.Body, out.Length = strings.NewReader("hello"), 5
		}
		if res, err := b.do(t.Context(), out); err != nil || res.body != "ok" {
			t.Fatalf("request %d: %v, %v", i, res, err)
		}
		<-closed
		awaitEnd(t, <-dialed)
	}
}

// awaitEnd waits until the end of what the other side sends has arrived.
func awaitEnd(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		n := -1
		if err := raw.Control(func(fd uintptr) {
			n, _, err = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		}); err != nil || n == 0 && err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the connection stays open")
		}
	}
}
