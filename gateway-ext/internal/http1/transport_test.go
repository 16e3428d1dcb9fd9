package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

var somewhere = netip.MustParseAddrPort("192.0.2.1:80")

// backend is a server that answers as a test tells it to, on connections in
// memory, where each write is a piece that the client reads by itself.
type backend struct {
	t         testing.TB
	transport *http1.Transport
	pool      *http1.Pool
	serving   sync.WaitGroup

	mu    sync.Mutex // guards below
	conns int
}

// newBackend returns a server that calls serve for each connection, with its
// number, and closes it afterwards.
func newBackend(t testing.TB, cfg http1.TransportConfig, serve func(n int, conn net.Conn, r *bufio.Reader)) *backend {
	b := &backend{t: t}
	cfg.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) {
		client, server := net.Pipe()
		b.mu.Lock()
		n := b.conns
		b.conns++
		b.mu.Unlock()
		b.serving.Go(func() {
			defer server.Close()
			serve(n, server, bufio.NewReader(server))
		})
		return client, nil
	}
	b.transport = http1.NewTransport(cfg)
	b.pool = b.transport.Pool(somewhere)
	t.Cleanup(func() {
		b.transport.Close()
		b.serving.Wait()
	})
	return b
}

// opened returns how many connections there were.
func (b *backend) opened() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conns
}

// result is an answer that was read to its end.
type result struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
}

// do sends a request and reads its answer.
func (b *backend) do(ctx context.Context, out *http1.Outgoing) (*result, error) {
	if out.Method == "" {
		out.Method = "GET"
	}
	out.Path, out.Host = "/", "x"
	if out.Now.IsZero() {
		out.Now = time.Now()
	}
	a, err := b.transport.Do(ctx, b.pool, out)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	res := &result{status: a.Status, header: a.Header().Clone()}
	for {
		piece, err := a.Next()
		res.body += string(piece)
		if err == io.EOF {
			res.trailer = a.Trailer()
			return res, nil
		}
		if err != nil {
			return res, err
		}
	}
}

// skipRequest reads a request without a body and returns its head.
func skipRequest(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if line == "\r\n" {
			return head.String(), nil
		}
		head.WriteString(line)
	}
}

// inPieces answers each request of a connection with the same text, cut there.
func inPieces(answer string, at ...int) func(int, net.Conn, *bufio.Reader) {
	return func(_ int, conn net.Conn, r *bufio.Reader) {
		for {
			if _, err := skipRequest(r); err != nil {
				return
			}
			from := 0
			for _, to := range append(at, len(answer)) {
				if _, err := io.WriteString(conn, answer[from:to]); err != nil {
					return
				}
				from = to
			}
		}
	}
}

// TestAnswers reads answers whole, and cut in two at every byte, and a byte at a
// time; and holds which leave a connection that can be used again.
func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, method, answer string
		rest                 string // what comes with its end and wasn't asked for
		status               int
		body                 string
		trailer              http.Header
		reused               bool
	}{
		{name: "a length", answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", status: 200, body: "hello", reused: true},
		{name: "the same length twice", answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", status: 200, body: "hello", reused: true},
		{name: "nothing", answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, reused: true},
		{name: "no reason", answer: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reused: true},
		{name: "chunks", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;ext=x\r\n!\r\n0\r\n\r\n", status: 200, body: "hello!", reused: true},
		{name: "trailers", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n",
			status: 200, body: "hi", trailer: http.Header{"X-Sum": {"7"}}, reused: true},
		{name: "no length", answer: "HTTP/1.1 204 No Content\r\n\r\n", status: 204, reused: true},
		{name: "204 with a length", answer: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", status: 204, reused: true},
		{name: "304 with a length", answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", status: 304, reused: true},
		{name: "head", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", status: 200, reused: true},
		{name: "head of chunks", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", status: 200, reused: true},
		{name: "hints", answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reused: true},
		{name: "an old server that stays", answer: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok", reused: true},
		{name: "an old server", answer: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
		{name: "it closes", answer: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
		{name: "more than it says", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", rest: "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", status: 200, body: "ok"},
		{name: "more than chunks say", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", rest: "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", status: 200},
		{name: "a body where there is none", answer: "HTTP/1.1 204 No Content\r\n\r\n", rest: "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", status: 204},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cuts := [][]int{nil}
			for i := 1; i < len(tt.answer); i++ {
				cuts = append(cuts, []int{i})
			}
			var each []int
			for i := 1; i < len(tt.answer); i++ {
				each = append(each, i)
			}
			for _, at := range append(cuts, each) {
				b := newBackend(t, http1.TransportConfig{}, inPieces(tt.answer+tt.rest, at...))
				const calls = 2
				for range calls {
					res, err := b.do(t.Context(), &http1.Outgoing{Method: tt.method})
					if err != nil {
						t.Fatalf("cut at %v: %v", at, err)
					}
					if res.status != tt.status || res.body != tt.body || !maps.EqualFunc(res.trailer, tt.trailer, slices.Equal) {
						t.Fatalf("cut at %v: %d %q %v, want %d %q %v", at, res.status, res.body, res.trailer, tt.status, tt.body, tt.trailer)
					}
				}
				want := calls
				if tt.reused {
					want = 1
				}
				if got := b.opened(); got != want {
					t.Errorf("cut at %v: %d connections for %d requests, want %d", at, got, calls, want)
				}
				b.transport.Close()
			}
		})
	}
}

// TestNoAnswers holds what is said of what is no answer.
func TestNoAnswers(t *testing.T) {
	for _, tt := range []struct{ name, answer, text string }{
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1.0 or HTTP/1.1"},
		{"garbage", "\x00\x01\x02\r\n\r\n", "not HTTP/1.0 or HTTP/1.1"},
		{"HTTP/2", "HTTP/2 200\r\n\r\n", "not HTTP/1.0 or HTTP/1.1"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "several Content-Length"},
		{"both lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length and Transfer-Encoding"},
		{"a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "Content-Length is not a number"},
		{"a coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "no transfer coding but"},
		{"a folded field", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "goes on in a second line"},
		{"a bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", "LF without CR"},
		{"no colon", "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "no colon"},
		{"a status", "HTTP/1.1 2000 OK\r\n\r\n", "not a number of three digits"},
		{"a flood of fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 10000) + "\r\n", "more than 256 fields"},
		{"a flood in a field", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", 1<<20) + "\r\n\r\n", "larger than 65536 bytes"},
		{"a flood of hints", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 10000), "more than 256 informational answers"},
		{"an unwanted switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", `protocol "x" when "" was asked for`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, http1.TransportConfig{}, inPieces(tt.answer))
			_, err := b.do(t.Context(), &http1.Outgoing{})
			f, ok := errors.AsType[*http1.Failure](err)
			if !ok || f.Stage != http1.Sent {
				t.Fatalf("Do() = %v, want a failure after sending", err)
			}
			if p, ok := errors.AsType[*http1.ProtocolError](err); !ok || p.Status != http.StatusBadGateway || !strings.Contains(p.Text, tt.text) {
				t.Errorf("Do() = %v, want a ProtocolError with 502 and %q", err, tt.text)
			}
		})
	}
}

// TestCutShort holds that an answer which breaks off isn't taken for a whole one.
func TestCutShort(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
	} {
		b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
			if _, err := skipRequest(r); err == nil {
				io.WriteString(conn, answer)
			}
		})
		if res, err := b.do(t.Context(), &http1.Outgoing{Replay: true}); res == nil || res.body != "hello" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, %v", answer, res, err)
		}
	}
	b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
		if _, err := skipRequest(r); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nup to the end")
		}
	})
	if res, err := b.do(t.Context(), &http1.Outgoing{}); err != nil || res.body != "up to the end" {
		t.Errorf("a body that ends with the connection: %v, %v", res, err)
	}
}

// TestReplay holds which requests are sent again when a connection that was kept
// is closed with the answer outstanding.
func TestReplay(t *testing.T) {
	for _, tt := range []struct {
		name   string
		replay bool
		answer int // the request of a connection that is not answered
		conns  int
		ok     bool
	}{
		{"on a connection that was kept", true, 1, 2, true},
		{"that must not be sent twice", false, 1, 1, false},
		{"on a new connection", true, 0, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
				for i := 0; ; i++ {
					if _, err := skipRequest(r); err != nil || i == tt.answer {
						return
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			for range tt.answer {
				if _, err := b.do(t.Context(), &http1.Outgoing{}); err != nil {
					t.Fatal(err)
				}
			}
			_, err := b.do(t.Context(), &http1.Outgoing{Replay: tt.replay})
			if (err == nil) != tt.ok || b.opened() != tt.conns {
				t.Errorf("Do() = %v with %d connections, want %d", err, b.opened(), tt.conns)
			}
			if f, ok := errors.AsType[*http1.Failure](err); err != nil && (!ok || f.Stage != http1.Sent || !errors.Is(err, io.EOF)) {
				t.Errorf("Do() = %#v", err)
			}
		})
	}
}

// TestDeadlines holds that each request has its own deadline, also where the
// connection still has that of an earlier one.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan time.Duration, 1)
		b := newBackend(t, http1.TransportConfig{IdleTimeout: time.Hour}, func(_ int, conn net.Conn, r *bufio.Reader) {
			for {
				if _, err := skipRequest(r); err != nil {
					return
				}
				time.Sleep(<-wait)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		for i, tt := range []struct {
			pause, wait, limit time.Duration
			ok                 bool
		}{
			{0, 0, 10 * time.Second, true},
			{4 * time.Second, 8 * time.Second, 10 * time.Second, true}, // later than the first one's
			{0, 0, time.Minute, true},
			{0, 0, 0, true}, // none
			{0, 3 * time.Second, 10 * time.Second, true},
			{50 * time.Second, 9 * time.Second, 10 * time.Second, true},
			{0, 1500 * time.Millisecond, time.Second, false}, // shorter than what is set
			{0, 11 * time.Second, 10 * time.Second, false},
		} {
			time.Sleep(tt.pause)
			wait <- tt.wait
			out := &http1.Outgoing{Now: time.Now()}
			if tt.limit > 0 {
				out.Deadline = out.Now.Add(tt.limit)
			}
			_, err := b.do(t.Context(), out)
			took := time.Since(out.Now)
			switch {
			case tt.ok && err != nil:
				t.Errorf("%d: %v after %v", i, err, took)
			case !tt.ok && (!errors.Is(err, os.ErrDeadlineExceeded) || took != tt.limit):
				t.Errorf("%d: %v after %v, want the deadline after %v", i, err, took, tt.limit)
			}
		}
	})
}

// TestIdle holds that what is idle is closed in time, and that what is used is
// not.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open sync.WaitGroup
		b := newBackend(t, http1.TransportConfig{IdleTimeout: 4 * time.Second}, func(_ int, conn net.Conn, r *bufio.Reader) {
			open.Add(1)
			defer open.Done()
			inPieces("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(0, conn, r)
		})
		for range 10 {
			if _, err := b.do(t.Context(), &http1.Outgoing{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
		}
		if n := b.opened(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
		begun := time.Now()
		open.Wait()
		if left := 3*time.Second + time.Since(begun); left < 4*time.Second || left > 6*time.Second {
			t.Errorf("an idle connection was closed after %v, want about 4 s", left)
		}
		if _, err := b.do(t.Context(), &http1.Outgoing{}); err != nil || b.opened() != 2 {
			t.Errorf("afterwards: %v, %d connections", err, b.opened())
		}
		b.pool.Close()
		open.Wait()
		if _, err := b.do(t.Context(), &http1.Outgoing{}); err != nil || b.opened() != 3 {
			t.Errorf("with a closed pool: %v, %d connections", err, b.opened())
		}
		open.Wait() // and it isn't kept
	})
}

// TestMany holds that calls at the same time have a connection each, and that no
// more of them are kept than may be.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls, kept = 600, 100
		answer := make(chan struct{})
		var open sync.WaitGroup
		b := newBackend(t, http1.TransportConfig{MaxConns: kept, IdleTimeout: time.Hour}, func(_ int, conn net.Conn, r *bufio.Reader) {
			open.Add(1)
			defer open.Done()
			for {
				if _, err := skipRequest(r); err != nil {
					return
				}
				<-answer
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		for round := range 2 {
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					if _, err := b.do(t.Context(), &http1.Outgoing{}); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			if want := calls + round*(calls-kept); b.opened() != want {
				t.Errorf("round %d: %d connections, want %d", round, b.opened(), want)
			}
			for range calls {
				answer <- struct{}{}
			}
			wg.Wait()
		}
		b.transport.Close()
		open.Wait()
	})
}

// TestCanceled holds that the connection is closed as soon as nobody waits for the
// answer, be it for the head or in the middle of the body.
func TestCanceled(t *testing.T) {
	for _, begun := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"} {
		closed, asked := make(chan struct{}), make(chan struct{})
		b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
			defer close(closed)
			if _, err := skipRequest(r); err != nil {
				return
			}
			if begun != "" {
				io.WriteString(conn, begun)
			}
			close(asked)
			r.ReadByte() // until it is closed
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		res, err := b.do(ctx, &http1.Outgoing{Replay: true})
		<-closed
		if err == nil || (res == nil) != (begun == "") || b.opened() != 1 {
			t.Errorf("do() = %v, %v with %d connections", res, err, b.opened())
		}
	}
}

// TestHeaders holds what of a header is sent and what isn't.
func TestHeaders(t *testing.T) {
	var got string
	b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
		got, _ = skipRequest(r)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nX-Kept: 1\r\nX-Kept: 2\r\n\r\n")
	})
	res, err := b.do(t.Context(), &http1.Outgoing{
		Method: "POST", Query: "a b&c", HasQuery: true,
		Header: http.Header{
			"Connection": {"X-Secret, keep-alive"}, "X-Secret": {"1"}, "Keep-Alive": {"5"}, "Proxy-Authorization": {"x"},
			"Te": {"trailers"}, "Upgrade": {"x"}, "Transfer-Encoding": {"chunked"}, "Content-Length": {"7"},
			"X-Mine": {"old"}, "X-Gone": {"1"}, "X-Two": {"1", "2"}, "X-Evil": {"a\r\nX-Injected: 1"},
		},
		Own: []http1.Field{{Name: "X-Mine", Value: "new"}, {Name: "X-Gone"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(got, "\r\n"), "\r\n")
	slices.Sort(lines)
	want := []string{"Content-Length: 0", "Host: x", "POST /?a%20b&c HTTP/1.1", "X-Evil: a  X-Injected: 1", "X-Mine: new", "X-Two: 1", "X-Two: 2"}
	if !slices.Equal(lines, want) {
		t.Errorf("sent %q, want %q", lines, want)
	}
	if want := (http.Header{"Content-Length": {"0"}, "X-Kept": {"1", "2"}}); !maps.EqualFunc(res.header, want, slices.Equal) {
		t.Errorf("got %v, want %v", res.header, want)
	}
}

// FuzzAnswer reads anything as an answer, and compares what is understood with
// what net/http understands.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.0 200\r\n\r\nrest", "HTTP/1.1 204 No\r\nConnection: a, b\r\n\r\n", "HTTP/1.1 103 A\r\n\r\nHTTP/1.1 304 B\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
			if _, err := skipRequest(r); err == nil {
				conn.Write(answer)
			}
		})
		got, err := b.do(t.Context(), &http1.Outgoing{})
		if err != nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(answer))
		for {
			want, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("%d %q was read where net/http says %v", got.status, got.body, err)
			}
			if want.StatusCode < 200 {
				continue
			}
			body, err := io.ReadAll(want.Body)
			if err != nil || want.StatusCode != got.status || string(body) != got.body {
				t.Fatalf("%d %q was read where net/http reads %d %q, %v", got.status, got.body, want.StatusCode, body, err)
			}
			return
		}
	})
}

func ExampleTransport() {
	t := http1.NewTransport(http1.TransportConfig{
		Dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
			client, server := net.Pipe()
			go inPieces("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")(0, server, bufio.NewReader(server))
			return client, nil
		},
	})
	defer t.Close()
	a, err := t.Do(context.Background(), t.Pool(somewhere), &http1.Outgoing{Method: "GET", Path: "/", Host: "example", Now: time.Now()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	piece, err := a.Next()
	fmt.Printf("%d %s %v\n", a.Status, piece, err)
	// Output: 200 hello EOF
}
