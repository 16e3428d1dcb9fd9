package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// front puts the gateway's own server before the proxy, in place of net/http's.
func (w *world) front() {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &http1.Server{Handler: w.proxy, Logger: slog.New(slog.DiscardHandler), Grace: time.Millisecond}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			w.t.Errorf("Shutdown() = %v", err)
		}
		<-ended
	})
	w.url = "http://" + l.Addr().String()
}

// bothFronts runs a test with net/http's server in front, as HTTP/2 has it, and
// with our own.
func bothFronts(t *testing.T, set func(*world, *proxy.Config), test func(t *testing.T, w *world)) {
	t.Run("net/http", func(t *testing.T) { test(t, newWorld(t, set)) })
	t.Run("http1", func(t *testing.T) {
		w := newWorld(t, set)
		w.front()
		test(t, w)
	})
}

// replica starts a replica of echo that is no HTTP server: serve is called for
// each connection, which is closed afterwards.
func (w *world) replica(id string, serve func(conn net.Conn, r *bufio.Reader)) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn, bufio.NewReader(conn))
			})
		}
	})
	w.t.Cleanup(func() {
		l.Close()
		w.proxy.Close()
		wg.Wait()
	})
	w.observe(id, l.Addr().String(), faas.Ready)
}

// readHead reads a request's head; false if there is none.
func readHead(r *bufio.Reader) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == "\r\n" {
			return true
		}
	}
}

// TestGarbage holds that what is no answer is a 502 that says what is wrong with
// it, whoever is in front.
func TestGarbage(t *testing.T) {
	for _, tt := range []struct{ name, answer, text string }{
		{"another protocol", "-ERR unknown command 'GET'\r\n", "begins with"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "several Content-Length fields"},
		{"both lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length and Transfer-Encoding"},
		{"a flood of fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 1000) + "\r\n", "more than 256 fields"},
		{"a flood in one field", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", 1<<20) + "\r\n\r\n", "larger than 65536 bytes"},
		{"10,000 hints", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 10000), "more than 256 informational"},
		{"a switch that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "switched to the protocol"},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", "closed the connection"},
		{"nothing", "", "closed the connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothFronts(t, nil, func(t *testing.T, w *world) {
				w.replica("a", func(conn net.Conn, r *bufio.Reader) {
					if readHead(r) {
						io.WriteString(conn, tt.answer)
					}
				})
				for _, method := range []string{"GET", "POST"} {
					res, text := w.do(method, "/function/echo", "")
					if res.StatusCode != http.StatusBadGateway || !strings.Contains(text, tt.text) || !strings.Contains(text, "replica a") {
						t.Errorf("%s: %d %q, want 502 with %q", method, res.StatusCode, text, tt.text)
					}
					if strings.Contains(text, "127.0.0.1") {
						t.Errorf("the answer tells an address: %q", text)
					}
				}
			})
		})
	}
}

// TestBrokenAnswer holds that an answer which breaks off in its middle breaks off
// for the client, too, and counts as a failure of the replica.
func TestBrokenAnswer(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n",
	} {
		bothFronts(t, nil, func(t *testing.T, w *world) {
			w.replica("a", func(conn net.Conn, r *bufio.Reader) {
				if readHead(r) {
					io.WriteString(conn, answer)
				}
			})
			res := w.open(t.Context(), "GET", "/function/echo", nil)
			if b, err := io.ReadAll(res.Body); string(b) != "hello" || err == nil {
				t.Errorf("got %q, %v for %q, want it to break off", b, err, answer)
			}
		})
	}
}

// TestLeftover holds that a connection on which something came that nobody asked
// for is not used again: the next caller would get it for an answer.
func TestLeftover(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		var mu sync.Mutex
		conns := 0
		w.replica("a", func(conn net.Conn, r *bufio.Reader) {
			mu.Lock()
			conns++
			mu.Unlock()
			for readHead(r) {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
			}
		})
		const calls = 20
		for range calls {
			if res, body := w.do("GET", "/function/echo", ""); res.StatusCode != 200 || body != "good" {
				t.Fatalf("answer = %d %q", res.StatusCode, body)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if conns != calls {
			t.Errorf("%d connections for %d poisoned answers", conns, calls)
		}
	})
}

// TestConnectionsAreKept holds that one connection does for one caller.
func TestConnectionsAreKept(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		var mu sync.Mutex
		conns := map[string]bool{}
		w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			rw.Write(b)
			mu.Lock()
			defer mu.Unlock()
			conns[r.RemoteAddr] = true
		})
		for i := range 50 {
			body := strings.Repeat("x", i*1000)
			if res, got := w.do("POST", "/function/echo", body); res.StatusCode != 200 || got != body {
				t.Fatalf("answer = %d with %d bytes, want %d", res.StatusCode, len(got), len(body))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(conns) > 2 { // a body of which we learn late that it was sent may cost one
			t.Errorf("%d connections for calls one after the other", len(conns))
		}
	})
}

// TestForwarded holds what a function is told of who asked.
func TestForwarded(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		var got http.Header
		w.serve("a", func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
		host := strings.TrimPrefix(w.url, "http://")
		for _, tt := range []struct {
			name string
			sent []string
			want map[string]string
		}{
			{"nobody before us", nil, map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host, "X-Forwarded-Proto": "http", "Forwarded": ""}},
			{"a proxy before us", []string{"X-Forwarded-For", "192.0.2.1, 192.0.2.2", "X-Forwarded-Host", "example.com", "X-Forwarded-Proto", "https", "Forwarded", "for=192.0.2.1;proto=https"},
				map[string]string{"X-Forwarded-For": "192.0.2.1, 192.0.2.2, 127.0.0.1", "X-Forwarded-Host": "example.com", "X-Forwarded-Proto": "https",
					"Forwarded": `for=192.0.2.1;proto=https, for=127.0.0.1;host="` + host + `";proto=http`}},
		} {
			w.do("GET", "/function/echo", "", tt.sent...)
			for k, want := range tt.want {
				if v := strings.Join(got.Values(k), "|"); v != want {
					t.Errorf("%s: %s = %q, want %q", tt.name, k, v, want)
				}
			}
		}
	})
}

// TestClientGoneInTheMiddle holds that a function learns at once that nobody waits
// for the rest of its answer, or for the first of it.
func TestClientGoneInTheMiddle(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		for _, begun := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"} {
			asked, closed := make(chan struct{}), make(chan struct{})
			w.replica("a", func(conn net.Conn, r *bufio.Reader) {
				if !readHead(r) {
					return
				}
				io.WriteString(conn, begun)
				close(asked)
				r.ReadByte() // until the gateway closes it
				close(closed)
			})
			conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "GET /function/echo HTTP/1.1\r\nHost: x\r\n\r\n")
			<-asked
			if begun != "" {
				if _, err := io.ReadFull(conn, make([]byte, 20)); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
			<-closed
			eventually(t, "the replica is released", func() bool { return w.table.Replicas()[0].InFlight == 0 })
			w.observe("a", "127.0.0.1:1", faas.Gone)
		}
	})
}

// TestLargeBothWays sends a large body and gets it back while it is being sent.
func TestLargeBothWays(t *testing.T) {
	const size = 100 << 20
	bothFronts(t, nil, func(t *testing.T, w *world) {
		w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
			http.NewResponseController(rw).EnableFullDuplex()
			if r.ContentLength >= 0 {
				rw.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			io.Copy(rw, r.Body)
		})
		for _, declared := range []bool{true, false} {
			sent, got := crc32.NewIEEE(), crc32.NewIEEE()
			body := io.TeeReader(io.LimitReader(&pattern{}, size), sent)
			req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/function/echo", body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = -1
			if declared {
				req.ContentLength = size
			}
			res, err := noRedirects.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(got, res.Body)
			res.Body.Close()
			if n != size || err != nil || got.Sum32() != sent.Sum32() {
				t.Errorf("declared %v: %d bytes came back, %v; sums %x and %x", declared, n, err, got.Sum32(), sent.Sum32())
			}
		}
	})
}

// pattern is a stream of bytes that looks alike nowhere near.
type pattern struct{ at int }

// patternBlock has a length that no buffer has.
var patternBlock = func() []byte {
	b := make([]byte, 100_003)
	n := uint32(1)
	for i := range b {
		n = n*1664525 + 1013904223
		b[i] = byte(n >> 24)
	}
	return b
}()

func (p *pattern) Read(b []byte) (int, error) {
	n := copy(b, patternBlock[p.at:])
	p.at = (p.at + n) % len(patternBlock)
	return n, nil
}

// TestAnswerBeforeTheBody holds that a function may answer and not take the body,
// whether or not the client goes on to send it, and that what is left of it is
// nobody's next request.
func TestAnswerBeforeTheBody(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		w.replica("a", func(conn net.Conn, r *bufio.Reader) {
			if readHead(r) {
				io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
				io.Copy(io.Discard, r)
			}
		})
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nsome")
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); res.StatusCode != 413 || string(b) != "no" || err != nil {
			t.Errorf("answer = %d %q, %v", res.StatusCode, b, err)
		}
		smuggled := "GET /function/echo/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
		io.WriteString(conn, smuggled)
		if tc, ok := conn.(*net.TCPConn); ok {
			tc.CloseWrite()
		}
		if rest, _ := io.ReadAll(r); bytes.Contains(rest, []byte("HTTP/1.1 ")) {
			t.Errorf("the rest of a body was answered: %q", rest)
		}
	})
}

// TestSlowReader holds that a client which takes its time costs the replica's
// answer nothing, and nobody else anything.
func TestSlowReader(t *testing.T) {
	const size = 20 << 20
	bothFronts(t, nil, func(t *testing.T, w *world) {
		w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/large" {
				io.Copy(rw, io.LimitReader(&pattern{}, size))
			}
		})
		res := w.open(t.Context(), "GET", "/function/echo/large", nil)
		got := int64(0)
		for range 50 { // it reads a little, others are served in between
			n, err := io.CopyN(io.Discard, res.Body, 10000)
			if err != nil {
				t.Fatal(err)
			}
			got += n
			if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
				t.Fatalf("another caller gets %d", res.StatusCode)
			}
		}
		n, err := io.Copy(io.Discard, res.Body)
		if got += n; got != size || err != nil {
			t.Errorf("%d bytes came, %v", got, err)
		}
	})
}

// TestManyAtOnce has many callers call with bodies of all kinds, and checks that
// each gets its own back.
func TestManyAtOnce(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		for _, id := range []string{"a", "b", "c"} {
			w.serve(id, func(rw http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				rw.Header().Set("X-Echo", r.Header.Get("X-Caller"))
				for len(b) > 5000 {
					rw.Write(b[:5000])
					b = b[5000:]
					http.NewResponseController(rw).Flush()
				}
				rw.Write(b)
			})
		}
		var wg sync.WaitGroup
		for caller := range 64 {
			wg.Go(func() {
				for call := range 20 {
					me := fmt.Sprintf("%d-%d", caller, call)
					body := strings.Repeat(me+" ", (caller*call)%4000)
					method := "POST"
					if body == "" {
						method = "GET"
					}
					var r io.Reader = strings.NewReader(body)
					if call%3 == 0 {
						r = io.MultiReader(r) // of unknown length
					}
					req, err := http.NewRequestWithContext(t.Context(), method, w.url+"/function/echo", r)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("X-Caller", me)
					res, err := noRedirects.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(res.Body)
					res.Body.Close()
					if res.StatusCode != 200 || string(b) != body || err != nil || res.Header.Get("X-Echo") != me {
						t.Errorf("%s: %d, %d bytes of %d, %v, X-Echo %q", me, res.StatusCode, len(b), len(body), err, res.Header.Get("X-Echo"))
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// TestUpgradeHalfClosed holds that of a connection that was upgraded each side may
// end its direction by itself, and what is sent with the head isn't lost.
func TestUpgradeHalfClosed(t *testing.T) {
	bothFronts(t, nil, func(t *testing.T, w *world) {
		w.replica("a", func(conn net.Conn, r *bufio.Reader) {
			if !readHead(r) {
				return
			}
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
			b, err := io.ReadAll(r) // to the client's end
			fmt.Fprintf(conn, "%s %v", b, err)
		})
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /function/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwith the head, ")
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer = %v, %v", res, err)
		}
		io.WriteString(conn, "after it")
		conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(r); string(b) != "early with the head, after it <nil>" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	})
}
