package http1_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// TestLikeNetHTTP holds that a handler's answer is what net/http makes of it: the
// same status, fields and body, and the connection kept or closed alike.
func TestLikeNetHTTP(t *testing.T) {
	flush := func(w http.ResponseWriter) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	}
	file := filepath.Join(t.TempDir(), "file.txt")
	if err := os.WriteFile(file, bytes.Repeat([]byte("0123456789abcdef"), 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
	}{
		{"nothing", func(http.ResponseWriter, *http.Request) {}},
		{"status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }},
		{"unknown status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }},
		{"small", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "small") }},
		{"empty write", func(w http.ResponseWriter, _ *http.Request) { w.Write(nil) }},
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<!doctype html><p>") }},
		{"two writes", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte("\x89PNG"))
			w.Write([]byte("\x0d\x0a\x1a\x0a"))
		}},
		{"type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "a/b")
			io.WriteString(w, "<p>")
		}},
		{"no type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "<p>")
		}},
		{"encoded", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "<p>")
		}},
		{"no date", func(w http.ResponseWriter, _ *http.Request) { w.Header()["Date"] = nil }},
		{"own date", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", "today") }},
		{"large", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 100000)) }},
		{"many writes", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 10000 {
				fmt.Fprintln(w, i)
			}
		}},
		{"streamed", func(w http.ResponseWriter, _ *http.Request) {
			flush(w)
			for i := range 10 {
				fmt.Fprintln(w, i)
				flush(w)
			}
		}},
		{"length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "01234")
			flush(w)
			io.WriteString(w, "56789")
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("Write() beyond the length = %v, want %v", err, http.ErrContentLength)
			}
		}},
		{"length zero", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }},
		{"own coding", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Transfer-Encoding", "chunked")
			flush(w)
			io.WriteString(w, "x")
		}},
		{"no content", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("Write() = %v, want %v", err, http.ErrBodyNotAllowed)
			}
		}},
		{"not modified", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"a"`)
			w.WriteHeader(http.StatusNotModified)
		}},
		{"close", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			io.WriteString(w, "x")
		}},
		{"second head", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			w.WriteHeader(500)
		}},
		{"fields after the head", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1")
			w.WriteHeader(200)
			w.Header().Set("X-A", "2")
			w.Header().Set("X-B", "2")
		}},
		{"several values", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Add("Set-Cookie", "a=b")
			w.Header().Add("Set-Cookie", "c=d")
		}},
		{"split answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-A", "1\r\nX-B: 2")
			w.Header()["X Y"] = []string{"1"}
		}},
		{"trailers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A, X-C")
			io.WriteString(w, "x")
			w.Header().Set("X-A", "1")
			w.Header().Set(http.TrailerPrefix+"X-B", "2")
		}},
		{"trailers nobody announced", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "x")
			flush(w)
			w.Header().Set(http.TrailerPrefix+"X-B", "2")
		}},
		{"file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }},
		{"request", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, r.Method, r.URL, r.Proto, r.ProtoMajor, r.ProtoMinor, r.Host, r.RequestURI, r.ContentLength, r.TransferEncoding, r.Close, r.TLS == nil)
			for _, name := range slices.Sorted(maps.Keys(r.Header)) {
				fmt.Fprintln(w, name, r.Header[name])
			}
			fmt.Fprintln(w, r.Trailer)
			b, err := io.ReadAll(r.Body)
			fmt.Fprintln(w, string(b), err, r.Trailer)
			n, err := r.Body.Read(make([]byte, 1))
			fmt.Fprintln(w, n, err, r.Body.Close())
			_, err = r.Body.Read(make([]byte, 1))
			fmt.Fprintln(w, err == nil || err == io.EOF)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours := onTCP(t, tt.h, nil)
			theirs := httptest.NewUnstartedServer(tt.h)
			theirs.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			theirs.Start()
			defer theirs.Close()
			for _, request := range []string{
				"GET /a?b=c HTTP/1.1\r\nHost: x\r\nx-a: 1\r\nX-A: 2\r\n\r\n",
				"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n",
				"GET /a HTTP/1.0\r\n\r\n",
				"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
				"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
				"GET /%41%2f%20b?%zz HTTP/1.1\r\nHost: x\r\n\r\n",
				"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
				"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
			} {
				method, _, _ := strings.Cut(request, " ")
				var got [2]string
				for i, addr := range []string{ours.l.Addr().String(), theirs.Listener.Addr().String()} {
					nc, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					c := &client{t, nc, bufio.NewReader(nc)}
					c.send(request)
					res, body := c.answer(method)
					if res.Header.Get("Date") != "" && tt.name != "own date" {
						res.Header.Set("Date", "now")
					}
					res.Header.Del("Last-Modified")
					if res.Close {
						res.Header.Del("Connection")
					}
					got[i] = fmt.Sprintln(res.StatusCode, res.ContentLength, res.TransferEncoding, res.Close, res.Header, res.Trailer, len(body), body[:min(len(body), 1000)])
				}
				if got[0] != got[1] {
					t.Errorf("to %q\nthe answer is        %s\nand with net/http is %s", request, got[0], got[1])
				}
			}
		})
	}
}

func TestInformational(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.WriteString(w, "x")
	}, nil)
	c := w.dial()
	c.send(get("/"))
	if res, _ := c.answer("GET"); res.StatusCode != 103 || res.Header.Get("Link") != "</a>" {
		t.Errorf("first answer = %d %v", res.StatusCode, res.Header)
	}
	if res, body := c.answer("GET"); res.StatusCode != 200 || body != "x" || res.Header.Get("Link") != "" {
		t.Errorf("second answer = %d %v %q", res.StatusCode, res.Header, body)
	}
}

func TestContinue(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/no":
			w.WriteHeader(http.StatusForbidden)
		case "/by-hand":
			w.WriteHeader(http.StatusContinue)
			echo(w, r)
		default:
			echo(w, r)
		}
	}, nil)
	const fields = " HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n"
	c := w.dial()
	for _, path := range []string{"/yes", "/by-hand"} {
		c.send("POST " + path + fields)
		if res, _ := c.answer("POST"); res.StatusCode != 100 {
			t.Fatalf("first answer = %d, want 100", res.StatusCode)
		}
		c.send("abc")
		if res, body := c.answer("POST"); res.StatusCode != 200 || body != "POST x "+path+" abc" {
			t.Errorf("answer = %d %q", res.StatusCode, body)
		}
	}
	// Who doesn't wait to be asked.
	c.send("POST /yes" + fields + "abc")
	c.answer("POST")
	if res, body := c.answer("POST"); res.StatusCode != 200 || body != "POST x /yes abc" {
		t.Errorf("answer = %d %q", res.StatusCode, body)
	}
	// HTTP/1.0 has no such thing.
	old := w.dial()
	old.send(strings.Replace("POST /yes"+fields, "1.1", "1.0", 1) + "abc")
	if res, _ := old.answer("POST"); res.StatusCode != 200 {
		t.Errorf("answer = %d, want 200", res.StatusCode)
	}
	// Whether the body comes or not can't be known now.
	c.send("POST /no" + fields)
	if res, _ := c.answer("POST"); res.StatusCode != 403 || !res.Close {
		t.Errorf("answer = %d, close %t, want 403 and close", res.StatusCode, res.Close)
	}
	c.ended()
}

// TestUnreadBodies holds that what a handler leaves of a body is read for it, up
// to a bound, and that beyond it the client can read the answer.
func TestUnreadBodies(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/some" {
			io.ReadFull(r.Body, make([]byte, 10))
		}
		http.Error(w, "no", http.StatusRequestEntityTooLarge)
	}, nil)
	for _, path := range []string{"/none", "/some"} {
		for _, tt := range []struct {
			size   int
			chunks bool
			kept   bool
		}{
			{1000, false, true},
			{200 << 10, false, true},
			{200 << 10, true, true},
			{16 << 20, false, false},
			{16 << 20, true, false},
		} {
			c := w.dial()
			head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", path, tt.size)
			body := strings.Repeat("x", tt.size)
			if tt.chunks {
				head = "POST " + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
				body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", tt.size, body)
			}
			// The whole is sent before anything is read, if it is taken.
			if _, err := io.WriteString(c, head+body); err != nil && tt.kept {
				t.Errorf("%s, %d bytes: write: %v", path, tt.size, err)
			}
			if res, got := c.answer("POST"); res.StatusCode != 413 || got != "no\n" || res.Close && tt.kept {
				t.Errorf("%s, %d bytes: answer = %d %q, close %t", path, tt.size, res.StatusCode, got, res.Close)
			}
			if !tt.kept {
				continue
			}
			c.send(get("/none"))
			if res, _ := c.answer("GET"); res.StatusCode != 413 {
				t.Errorf("%s, %d bytes: the next answer = %d", path, tt.size, res.StatusCode)
			}
		}
	}
}

// TestPanics holds that who breaks off an answer cuts the connection.
func TestPanics(t *testing.T) {
	var log strings.Builder
	var mu sync.Mutex
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			io.WriteString(w, "begun")
			http.NewResponseController(w).Flush()
		}
		if r.URL.Path == "/oops" {
			panic("oops")
		}
		panic(http.ErrAbortHandler)
	}, func(s *http1.Server) {
		s.Logger = slog.New(slog.NewTextHandler(locked{&mu, &log}, nil))
	})
	for _, tt := range []struct{ path, version string }{
		{"/abort", "1.1"}, {"/oops", "1.1"}, {"/begun", "1.1"}, {"/begun", "1.0"},
	} {
		c := w.dial()
		c.send("GET " + tt.path + " HTTP/" + tt.version + "\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(c.r, nil)
		if tt.path == "/begun" {
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%v: read %q and a regular end, want an error", tt, b)
			}
		} else if err == nil {
			t.Errorf("%v: answer = %d, want none", tt, res.StatusCode)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "oops") {
		t.Errorf("the log has %d errors, want one for oops:\n%s", n, log.String())
	}
}

// locked is a writer for several goroutines.
type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// TestShortAnswer holds that a client can tell when a handler wrote less than it
// announced.
func TestShortAnswer(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "short")
	}, nil)
	c := w.dial()
	c.send(get("/") + get("/"))
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); string(b) != "short" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %q, %v, want %v", b, err, io.ErrUnexpectedEOF)
	}
}

func TestHijack(t *testing.T) {
	for _, first := range []string{"", "ping\n"} { // with the request, or not
		ended := make(chan struct{})
		w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			nc, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			if n := rw.Reader.Buffered(); n != len(first) {
				t.Errorf("%d bytes are buffered, want %d", n, len(first))
			}
			if _, err := w.Write(nil); !errors.Is(err, http.ErrHijacked) {
				t.Errorf("Write() = %v, want %v", err, http.ErrHijacked)
			}
			if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrHijacked) {
				t.Errorf("Hijack() again = %v, want %v", err, http.ErrHijacked)
			}
			io.Copy(nc, rw)
		}, nil)
		c := w.dial()
		c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n" + first)
		res, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" || res.Header.Get("Connection") != "Upgrade" || res.Header.Get("Content-Length") != "" {
			t.Errorf("answer = %d %v", res.StatusCode, res.Header)
		}
		if first == "" {
			c.send("ping\n")
		}
		for range 3 {
			if line, err := c.r.ReadString('\n'); line != "ping\n" {
				t.Fatalf("read %q, %v", line, err)
			}
			c.send("ping\n")
		}
		c.Close()
		<-ended
	}
}

// TestBothWays holds that a handler may answer while the body comes.
func TestBothWays(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			if n > 0 {
				w.Write(bytes.ToUpper(b[:n]))
				http.NewResponseController(w).Flush()
			}
			if err != nil {
				return
			}
		}
	}, nil)
	c := w.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		c.send("3\r\n" + word + "\r\n")
		var b [3]byte
		if _, err := io.ReadFull(res.Body, b[:]); string(b[:]) != strings.ToUpper(word) || err != nil {
			t.Fatalf("read %q, %v", b, err)
		}
	}
	c.send("0\r\n\r\n")
	if b, err := io.ReadAll(res.Body); len(b) > 0 || err != nil {
		t.Errorf("then came %q, %v", b, err)
	}
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.answer("GET")
}

// TestCloseInterrupts holds that closing a body ends a Read that waits for it,
// and that a handler which leaves one waiting is none the worse.
func TestCloseInterrupts(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		reading, ended, body := make(chan struct{}), make(chan error, 1), r.Body
		go func() {
			close(reading)
			_, err := io.Copy(io.Discard, body)
			ended <- err
		}()
		<-reading
		io.WriteString(w, "enough")
		if r.URL.Path == "/close" {
			r.Body.Close()
			if err := <-ended; !errors.Is(err, http.ErrBodyReadAfterClose) {
				t.Errorf("Read() = %v, want %v", err, http.ErrBodyReadAfterClose)
			}
		}
	}, nil)
	for _, path := range []string{"/close", "/leave"} {
		c := w.dial()
		c.send("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
		if _, body := c.answer("POST"); body != "enough" {
			t.Errorf("answer %q", body)
		}
		c.send(strings.Repeat("x", 997) + strings.Replace(get("/none"), "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
		if _, body := c.answer("GET"); body != "enough" {
			t.Errorf("the next answer %q", body)
		}
		c.ended()
	}
}

// TestHandlersDeadlines holds that a handler's deadlines are its own: the next request
// has none.
func TestHandlersDeadlines(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.EnableFullDuplex(), rc.SetWriteDeadline(time.Now().Add(time.Minute)), rc.SetReadDeadline(time.Now().Add(-time.Second))); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(r.Body); r.ContentLength > 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read() after its deadline = %v", err)
		}
	}, nil)
	c := w.dial()
	for range 2 {
		c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
		if res, _ := c.answer("POST"); res.StatusCode != 200 {
			t.Errorf("answer = %d", res.StatusCode)
		}
		c.send("abc")
	}
}

// TestIsolate holds what the server doesn't promise by itself: that the request
// may be kept, and that its context ends with the handler.
func TestIsolate(t *testing.T) {
	var kept []*http.Request
	h := http1.Isolate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { kept = append(kept, r) }))
	w := onTCP(t, h.ServeHTTP, nil)
	c := w.dial()
	for i := range 3 {
		c.send(fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: x\r\nX-A: %d\r\n\r\n", i, i))
		c.answer("GET")
	}
	for i, r := range kept {
		if want := fmt.Sprint(i); r.Header.Get("X-A") != want || r.URL.Path != "/"+want {
			t.Errorf("request %d is %s %v", i, r.URL, r.Header)
		}
		if r.Context().Err() == nil {
			t.Errorf("the context of request %d goes on", i)
		}
	}
}
