package http1_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// world is a server under test, with its listener.
type world struct {
	t      testing.TB
	server *http1.Server
	l      net.Listener
}

// newWorld has a server serve h on l, until the test ends. change may set what is
// not to be as usual.
func newWorld(t testing.TB, l net.Listener, h http.HandlerFunc, change func(*http1.Server)) *world {
	t.Helper()
	w := &world{t: t, l: l, server: &http1.Server{
		Handler: h,
		Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Grace:   time.Millisecond,
	}}
	if change != nil {
		change(w.server)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.server.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve() = %v, want %v", err, http.ErrServerClosed)
		}
	})
	return w
}

// onTCP is newWorld on a port of this machine.
func onTCP(t testing.TB, h http.HandlerFunc, change func(*http1.Server)) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, l, h, change)
}

// onPipes is newWorld without a network: what a client writes at a time is read
// at a time, and time can be the test's.
func onPipes(t testing.TB, h http.HandlerFunc, change func(*http1.Server)) *world {
	t.Helper()
	return newWorld(t, &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}, h, change)
}

// pipes is a listener of net.Pipe.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// client is a connection to the server.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

// dial opens a connection.
func (w *world) dial() *client {
	w.t.Helper()
	var nc net.Conn
	if p, ok := w.l.(*pipes); ok {
		var other net.Conn
		nc, other = net.Pipe()
		p.conns <- other
	} else {
		var err error
		if nc, err = net.Dial("tcp", w.l.Addr().String()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.t.Cleanup(func() { nc.Close() })
	return &client{w.t, nc, bufio.NewReader(nc)}
}

// send writes to the server.
func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatalf("write %.60q: %v", text, err)
	}
}

// sendAside writes while the test does something else, as a client does that
// doesn't care whether it is heard.
func (c *client) sendAside(text string) {
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.WriteString(c, text) })
	c.t.Cleanup(func() { c.Close(); wg.Wait() })
}

// answer reads an answer with its body, to a request of the method.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read the answer: %v", err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("read the answer's body: %v", err)
	}
	return res, string(b)
}

// ended fails the test if more comes than the connection's end.
func (c *client) ended() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil {
		c.t.Errorf("then came %.200q, %v, want the end", b, err)
	}
}

// get is a whole request.
func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// echo answers with what the request is.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	io.WriteString(w, r.Method+" "+r.Host+" "+r.RequestURI+" "+string(b))
}

func TestKeepAlive(t *testing.T) {
	w := onTCP(t, echo, nil)
	const connections, requests = 10, 1000
	var wg sync.WaitGroup
	for range connections {
		c := w.dial()
		wg.Go(func() {
			for range requests {
				if _, err := io.WriteString(c, get("/a")); err != nil {
					t.Error(err)
					return
				}
				res, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(res.Body)
				if string(b) != "GET x /a " || err != nil || res.Close {
					t.Errorf("answer %q, %v, close %t", b, err, res.Close)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := w.server.Conns(); n != connections {
		t.Errorf("%d connections, want %d", n, connections)
	}
}

func TestPipelining(t *testing.T) {
	w := onTCP(t, echo, nil)
	c := w.dial()
	const n = 200
	post := "POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	c.sendAside(strings.Repeat(get("/a")+post, n))
	for range n {
		for _, want := range []string{"GET x /a ", "POST x /b abc"} {
			if _, got := c.answer("GET"); got != want {
				t.Fatalf("answer %q, want %q", got, want)
			}
		}
	}
}

// TestSplit sends a request in two pieces, cut everywhere.
func TestSplit(t *testing.T) {
	w := onPipes(t, echo, nil)
	for _, request := range []string{
		"POST /b?c=d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"POST /b?c=d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n02\r\nbc\r\n0\r\nX-T: 1\r\n\r\n",
	} {
		c := w.dial()
		for i := 1; i < len(request); i++ {
			c.send(request[:i])
			c.sendAside(request[i:])
			if _, got := c.answer("POST"); got != "POST x /b?c=d abc" {
				t.Fatalf("cut at %d: answer %q", i, got)
			}
		}
	}
}

func TestLargeBodies(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", r.Header.Get("Content-Length"))
		}
		n, err := io.Copy(w, r.Body)
		if err != nil {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}, nil)
	const size = 16 << 20
	for _, path := range []string{"/sized", "/chunks"} {
		c := &http.Client{Transport: &http.Transport{}}
		defer c.CloseIdleConnections()
		res, err := c.Post("http://"+w.l.Addr().String()+path, "text/plain", strings.NewReader(strings.Repeat("0123456789abcdef", size/16)))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var sum int
		buf := make([]byte, 64<<10)
		for at := 0; ; {
			n, err := res.Body.Read(buf)
			for i := range n {
				if buf[i] != "0123456789abcdef"[(at+i)%16] {
					t.Fatalf("byte %d is %q", at+i, buf[i])
				}
			}
			at += n
			sum = at
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if sum != size {
			t.Errorf("%s: %d bytes came back, want %d", path, sum, size)
		}
	}
}
