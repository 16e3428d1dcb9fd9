package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// open sends a request and returns the answer with its body unread.
func (w *world) open(ctx context.Context, method, path string, body io.Reader, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	return res
}

// TestStreams holds that each piece of an answer arrives before the next is made,
// and the head before the first.
func TestStreams(t *testing.T) {
	for _, kind := range []string{"text/event-stream", "text/event-stream; charset=utf-8", "application/x-ndjson", "text/plain"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, nil)
			next := make(chan struct{})
			w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Type", kind)
				http.NewResponseController(rw).Flush()
				for i := range 3 {
					<-next
					fmt.Fprintf(rw, "piece %d\n", i)
					http.NewResponseController(rw).Flush()
				}
			})
			res := w.open(t.Context(), "GET", "/function/echo", nil)
			lines := bufio.NewReader(res.Body)
			for i := range 3 {
				next <- struct{}{}
				line, err := lines.ReadString('\n')
				if want := fmt.Sprintf("piece %d\n", i); line != want || err != nil {
					t.Fatalf("read %q, %v, want %q", line, err, want)
				}
			}
		})
	}
}

// TestBothWays holds that a function can answer while the body is being sent.
func TestBothWays(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		rc.Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(rw, strings.ToUpper(line))
			rc.Flush()
		}
	})
	r, out := io.Pipe()
	res := w.open(t.Context(), "POST", "/function/echo", r)
	in := bufio.NewReader(res.Body)
	for _, word := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(out, word); err != nil {
			t.Fatal(err)
		}
		if got, err := in.ReadString('\n'); got != strings.ToUpper(word) || err != nil {
			t.Fatalf("got %q, %v for %q", got, err, word)
		}
	}
	out.Close()
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Errorf("then came %q, %v", rest, err)
	}
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.Timeout = 100 * time.Millisecond })
	ended := make(chan error, 1)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("header = %v", r.Header)
		}
		rw.Header().Set("Upgrade", "websocket")
		rw.Header().Set("Connection", "Upgrade")
		rw.WriteHeader(http.StatusSwitchingProtocols)
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, err = io.Copy(conn, buf)
		ended <- err
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /function/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("X-Call-Id") == "" {
		t.Fatalf("answer = %d %v", res.StatusCode, res.Header)
	}
	// Longer than the function's timeout, which ends calls and no conversation.
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); {
		io.WriteString(conn, "ping\n")
		if got, err := in.ReadString('\n'); got != "ping\n" || err != nil {
			t.Fatalf("echo = %q, %v", got, err)
		}
	}
	if got := w.table.Replicas()[0].InFlight; got != 1 {
		t.Errorf("InFlight = %d while the socket is open, want 1", got)
	}
	conn.Close()
	<-ended
	eventually(t, "the replica is released", func() bool { return w.table.Replicas()[0].InFlight == 0 })
	if n := w.proxy.Invocations(echo); n != 1 {
		t.Errorf("Invocations() = %v, want 1", n)
	}
}

func TestTrailers(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		io.Copy(rw, r.Body)
		rw.Header().Set("X-Sum", "of "+r.Trailer.Get("X-In"))
		rw.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	})
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/function/echo", io.MultiReader(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-In": {"tail"}}
	res, err := noRedirects.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if string(b) != "body" || err != nil {
		t.Errorf("body = %q, %v", b, err)
	}
	if res.Trailer.Get("X-Sum") != "of tail" || res.Trailer.Get("X-Late") != "yes" {
		t.Errorf("trailer = %v", res.Trailer)
	}
}

// TestExpectContinue holds that the client is asked for the body only when the
// function wants it.
func TestExpectContinue(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		io.Copy(rw, r.Body)
	})
	for _, tt := range []struct {
		path string
		code int
		read bool
	}{{"/yes", 200, true}, {"/no", 403, false}} {
		sent := &sentinel{Reader: strings.NewReader("body")}
		continued := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }})
		req, err := http.NewRequestWithContext(ctx, "PUT", w.url+"/function/echo"+tt.path, sent)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue")
		transport := &http.Transport{ExpectContinueTimeout: time.Minute}
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		transport.CloseIdleConnections()
		if res.StatusCode != tt.code || sent.read != tt.read || continued != tt.read {
			t.Errorf("%s: code %d, body read %v, 100 seen %v", tt.path, res.StatusCode, sent.read, continued)
		}
	}
}

type sentinel struct {
	io.Reader
	read bool
}

func (s *sentinel) Read(p []byte) (int, error) { s.read = true; return s.Reader.Read(p) }

func TestEarlyHints(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Link", "</style.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.WriteHeader(http.StatusOK)
	})
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, " ", h.Get("Link")))
			return nil
		},
	})
	res := w.open(ctx, "GET", "/function/echo", nil)
	if len(hints) != 1 || hints[0] != "103 </style.css>; rel=preload" || res.StatusCode != 200 {
		t.Errorf("hints = %q, code %d", hints, res.StatusCode)
	}
}

// TestClientGone holds that a function whose client leaves is told so.
func TestClientGone(t *testing.T) {
	w := newWorld(t, nil)
	began, ended := make(chan struct{}), make(chan error, 1)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+"/function/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := noRedirects.Do(req); !errors.Is(err, context.Canceled) {
		t.Fatalf("Do() = %v", err)
	}
	<-ended
	eventually(t, "the call is counted", func() bool { return w.proxy.Invocations(echo) == 1 })
}

func TestTimeout(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) {
		c.Timeout = 50 * time.Millisecond
		c.TimeoutSetting = "THE_SETTING"
	})
	over := make(chan struct{})
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // a server sees that its client is gone only after the body
		if r.URL.Path == "/events" {
			rw.Header().Set("Content-Type", "text/event-stream")
			http.NewResponseController(rw).Flush()
			<-over
			io.WriteString(rw, "data: late\n\n")
			return
		}
		if r.URL.Path == "/half" {
			io.WriteString(rw, "half")
			http.NewResponseController(rw).Flush()
		}
		<-r.Context().Done()
	})
	res, text := w.do("POST", "/function/echo", "body")
	if res.StatusCode != http.StatusGatewayTimeout || !strings.Contains(text, "longer than 50ms") || !strings.Contains(text, "THE_SETTING") {
		t.Errorf("answer = %d %q", res.StatusCode, text)
	}
	half := w.open(t.Context(), "GET", "/function/echo/half", nil)
	if b, err := io.ReadAll(half.Body); string(b) != "half" || err == nil {
		t.Errorf("half an answer = %q, %v, want it to break off", b, err)
	}
	events := w.open(t.Context(), "GET", "/function/echo/events", nil)
	timer := time.AfterFunc(200*time.Millisecond, func() { close(over) })
	defer timer.Stop()
	if b, err := io.ReadAll(events.Body); string(b) != "data: late\n\n" || err != nil {
		t.Errorf("events = %q, %v, want them to go on after the timeout", b, err)
	}
}
