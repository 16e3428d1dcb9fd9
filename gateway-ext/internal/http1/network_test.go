package http1_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// eventually waits for a condition, and fails the test if it doesn't come true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// TestStalledReaders holds that clients which take nothing of an answer are cut,
// also when the kernel has taken all of it for them.
func TestStalledReaders(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the kernel's queue is known on Linux only")
	}
	for _, size := range []int{64 << 20, 512 << 10} {
		cause := make(chan error, 1)
		returned := make(chan struct{})
		w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
			defer close(returned)
			w.Header().Set("Content-Length", fmt.Sprint(size))
			if _, err := w.Write(make([]byte, size)); err != nil {
				cause <- context.Cause(r.Context())
			}
		}, func(s *http1.Server) { s.WriteTimeout = 500 * time.Millisecond })
		c := w.dial()
		if err := c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		c.send(get("/"))
		<-returned
		if size > 32<<20 { // more than the kernel takes
			if err := <-cause; err != http1.ErrClientStalled {
				t.Errorf("cause = %v, want %v", err, http1.ErrClientStalled)
			}
		}
		eventually(t, "the connection is cut", func() bool { return w.server.Conns() == 0 })
		if _, err := io.Copy(io.Discard, c.r); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading on = %v, want %v", err, syscall.ECONNRESET)
		}
	}
}

// TestSteadyReader holds that who takes an answer slowly gets all of it, though
// the one call that writes it takes longer than a client may pause.
func TestSteadyReader(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the kernel's queue is known on Linux only")
	}
	const size = 24 << 20
	const timeout = time.Second
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Errorf("Write() = %v, %v", err, context.Cause(r.Context()))
		}
	}, func(s *http1.Server) { s.WriteTimeout = timeout })
	c := w.dial()
	start := time.Now()
	c.send(get("/"))
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	for err == nil {
		var m int64
		m, err = io.CopyN(io.Discard, res.Body, 256<<10)
		n += m
		time.Sleep(2 * timeout / (size / (256 << 10)))
	}
	if n != size || err != io.EOF {
		t.Errorf("%d bytes came in %v, then %v; want %d", n, time.Since(start), err, size)
	}
}

// TestNoDescriptors holds that a server outlives what it is short of.
func TestNoDescriptors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	short := &shortListener{Listener: l}
	short.times.Store(5)
	w := newWorld(t, short, echo, nil)
	c := w.dial()
	c.send(get("/a"))
	if _, body := c.answer("GET"); body != "GET x /a " {
		t.Errorf("answer %q", body)
	}
}

// shortListener is one in a process without free descriptors, for some times.
type shortListener struct {
	net.Listener
	times atomic.Int64
}

// Accept implements [net.Listener].
func (l *shortListener) Accept() (net.Conn, error) {
	if l.times.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// TestMaxConns holds that idle connections make room for new ones, and that new
// ones wait for busy ones.
func TestMaxConns(t *testing.T) {
	release := make(chan struct{})
	busy := make(chan struct{}, 10)
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/busy" {
			busy <- struct{}{}
			<-release
		}
		echo(w, r)
	}, func(s *http1.Server) { s.MaxConns = 3 })
	idle := w.dial()
	idle.send(get("/a"))
	idle.answer("GET")
	clients := make([]*client, 3)
	for i := range clients {
		clients[i] = w.dial()
		clients[i].send(get("/busy"))
		<-busy
	}
	idle.ended()
	waiting := w.dial()
	waiting.send(get("/a"))
	if n := w.server.Conns(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	close(release)
	for _, c := range clients {
		c.answer("GET")
	}
	if _, body := waiting.answer("GET"); body != "GET x /a " {
		t.Errorf("answer %q", body)
	}
}

// TestDetach hands a listener from one server to another while clients come:
// none is turned away.
func TestDetach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served [2]atomic.Int64
	server := func(i int) *http1.Server {
		return &http1.Server{
			Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served[i].Add(1) }),
			Logger:  slog.New(slog.DiscardHandler),
		}
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				nc, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.WriteString(nc, strings.Replace(get("/"), "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
				b, err2 := io.ReadAll(nc)
				if err != nil || err2 != nil || len(b) == 0 {
					t.Errorf("call = %q, %v, %v", b, err, err2)
				}
				nc.Close()
			}
		})
	}
	first, second := server(0), server(1)
	ended := make(chan error, 2)
	go func() { ended <- first.Serve(l) }()
	eventually(t, "the first serves", func() bool { return served[0].Load() > 20 })
	if err := first.Detach(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve() = %v", err)
	}
	if err := first.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	go func() { ended <- second.Serve(l) }()
	eventually(t, "the second serves", func() bool { return served[1].Load() > 20 })
	close(stop)
	clients.Wait()
	if err := second.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
}

// handed is a listener of connections that somebody else has accepted.
type handed struct {
	pipes
	addr net.Addr
}

func (h *handed) Addr() net.Addr { return h.addr }

// TestHTTP2 holds that who wants HTTP/2 gets it, by TLS or by knowing, and who
// doesn't gets HTTP/1.1 at the same address.
func TestHTTP2(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.TLS != nil)
	})
	helper := httptest.NewTLSServer(nil) // for its certificate
	config := helper.TLS.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	trust := helper.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	helper.Close()

	plain, secure := listen(t), listen(t)
	second := &handed{pipes{conns: make(chan net.Conn), closed: make(chan struct{})}, plain.Addr()}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	behind := &http.Server{Handler: h, Protocols: &protocols, TLSConfig: config}
	go behind.Serve(second)
	defer behind.Close()

	ended := make(chan error, 1)
	t.Cleanup(func() { <-ended }) // after the shutdown
	w := newWorld(t, plain, h.ServeHTTP, func(s *http1.Server) {
		s.HTTP2 = func(nc net.Conn) { second.conns <- nc }
	})
	go func() { ended <- w.server.ServeTLS(secure, config) }()

	for _, tt := range []struct {
		url    string
		set    func(*http.Protocols)
		answer string
	}{
		{"http://" + plain.Addr().String(), func(p *http.Protocols) { p.SetHTTP1(true) }, "HTTP/1.1 false"},
		{"http://" + plain.Addr().String(), func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }, "HTTP/2.0 false"},
		{"https://" + secure.Addr().String(), func(p *http.Protocols) { p.SetHTTP1(true) }, "HTTP/1.1 true"},
		{"https://" + secure.Addr().String(), func(p *http.Protocols) { p.SetHTTP2(true) }, "HTTP/2.0 true"},
	} {
		var protocols http.Protocols
		tt.set(&protocols)
		transport := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: trust}}
		c := &http.Client{Transport: transport}
		for range 3 {
			res, err := c.Get(tt.url)
			if err != nil {
				t.Fatalf("%s, %s: %v", tt.url, tt.answer, err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(b) != tt.answer {
				t.Errorf("%s: answer %q, want %q", tt.url, b, tt.answer)
			}
		}
		transport.CloseIdleConnections()
	}

	// Who takes https for http is told.
	nc, err := net.Dial("tcp", secure.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, get("/"))
	if b, _ := io.ReadAll(nc); !strings.HasPrefix(string(b), "HTTP/1.1 400 ") || !strings.Contains(string(b), "https://") {
		t.Errorf("answer to http at the port of https = %q", b)
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestAllocations holds what a request costs: its head, as one string. The client
// here allocates nothing.
func TestAllocations(t *testing.T) {
	kind, body := []string{"text/plain"}, []byte("hello")
	var sum atomic.Int64
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		var buf []byte
		if r.Body != http.NoBody {
			buf = make([]byte, 16)
		}
		for buf != nil {
			n, err := r.Body.Read(buf)
			sum.Add(int64(n))
			if err != nil {
				break
			}
		}
		w.Header()["Content-Type"] = kind
		w.Write(body)
	}, nil)
	for _, tt := range []struct {
		request string
		most    float64
	}{
		{"GET /function/echo?a=b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/8\r\naccept: */*\r\nX-Call-Id: abc\r\n\r\n", 1},
		{"POST /function/echo HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: 5\r\n\r\nhello", 2}, // with what the test's handler reads into
		{"POST /function/echo HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 2},
	} {
		c := w.dial()
		request, answer := []byte(tt.request), make([]byte, 4096)
		got := testing.AllocsPerRun(500, func() {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(answer); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%.0f allocations for %.20q", got, tt.request)
		if got > tt.most {
			t.Errorf("%.1f allocations for %q, want at most %.0f", got, tt.request, tt.most)
		}
		c.Close()
	}
}

// BenchmarkIdle says what a connection costs that nobody uses.
func BenchmarkIdle(b *testing.B) {
	const n = 1000
	w := onTCP(b, echo, nil)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		clients := make([]net.Conn, n)
		answer := make([]byte, 4096)
		for i := range clients {
			c, err := net.Dial("tcp", w.l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			clients[i] = c
			if _, err := io.WriteString(c, get("/")); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(answer); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second) // they fall asleep
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heap-B/conn")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stack-B/conn")
		for _, c := range clients {
			c.Close()
		}
	}
}

// TestSlowSource holds that a client isn't taken for stalled while the handler
// copies from a connection on which nothing comes.
func TestSlowSource(t *testing.T) {
	source := listen(t)
	defer source.Close()
	const piece = 64 << 10
	const timeout = 200 * time.Millisecond
	go func() {
		nc, err := source.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		for range 2 {
			_, _ = nc.Write(make([]byte, piece)) // the test fails where it is read
			time.Sleep(3 * timeout)
		}
	}()
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		nc, err := net.Dial("tcp", source.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		w.Header().Set("Content-Type", "a/b")
		w.Header().Set("Content-Length", fmt.Sprint(2*piece))
		if n, err := io.CopyN(w, nc, 2*piece); err != nil {
			t.Errorf("after %d bytes: %v, %v", n, err, context.Cause(r.Context()))
		}
	}, func(s *http1.Server) { s.WriteTimeout = timeout })
	c := w.dial()
	c.send(get("/"))
	if res, body := c.answer("GET"); res.StatusCode != 200 || len(body) != 2*piece {
		t.Errorf("answer = %d with %d bytes", res.StatusCode, len(body))
	}
}
