package http1_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// clientBody is a request's body as a server hands it out: Read may wait, and
// interrupt ends that.
type clientBody struct {
	*io.PipeReader
	in *io.PipeWriter
}

var errInterrupted = errors.New("interrupted")

func newClientBody() *clientBody {
	r, w := io.Pipe()
	return &clientBody{r, w}
}

func (b *clientBody) interrupt() { b.in.CloseWithError(errInterrupted) }

// TestBodies holds what a server gets of a body.
func TestBodies(t *testing.T) {
	for _, tt := range []struct {
		name    string
		out     func(o *http1.Outgoing)
		body    string
		length  int64
		trailer http.Header
	}{
		{"none", func(o *http1.Outgoing) {}, "", 0, nil},
		{"at hand", func(o *http1.Outgoing) { o.Ready = []byte("hello") }, "hello", 5, nil},
		{"coming", func(o *http1.Outgoing) { o.Body, o.Length = strings.NewReader("hello"), 5 }, "hello", 5, nil},
		{"of unknown length", func(o *http1.Outgoing) { o.Body, o.Length = strings.NewReader("hello"), -1 }, "hello", -1, nil},
		{"with a trailer", func(o *http1.Outgoing) {
			o.Body, o.Length, o.Trailer = strings.NewReader("hello"), -1, http.Header{"X-Sum": {"7"}, "Content-Length": {"9"}}
		}, "hello", -1, http.Header{"X-Sum": {"7"}}},
		{"large", func(o *http1.Outgoing) { o.Body, o.Length = strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20 }, strings.Repeat("x", 1<<20), 1 << 20, nil},
		{"large, of unknown length", func(o *http1.Outgoing) { o.Body, o.Length = strings.NewReader(strings.Repeat("x", 1<<20)), -1 }, strings.Repeat("x", 1<<20), -1, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					body, err := io.ReadAll(req.Body)
					if string(body) != tt.body || err != nil || req.ContentLength != tt.length || fmt.Sprint(req.Trailer) != fmt.Sprint(tt.trailer) {
						t.Errorf("the server got %d bytes, %v, length %d, trailer %v", len(body), err, req.ContentLength, req.Trailer)
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			for range 2 {
				out := &http1.Outgoing{Method: "POST"}
				tt.out(out)
				if res, err := b.do(t.Context(), out); err != nil || res.body != "ok" {
					t.Fatalf("do() = %v, %v", res, err)
				}
			}
			if n := b.opened(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

// TestBodyBreaksOff holds that a server never takes half a body for a whole one.
func TestBodyBreaksOff(t *testing.T) {
	broken := errors.New("the client is gone")
	for _, length := range []int64{10, -1} {
		got := make(chan error, 1)
		b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				got <- nil
				return
			}
			_, err = io.ReadAll(req.Body)
			got <- err
		})
		body := newClientBody()
		go func() {
			io.WriteString(body.in, "hello")
			body.in.CloseWithError(broken)
		}()
		_, err := b.do(t.Context(), &http1.Outgoing{Method: "POST", Body: body, Length: length, Interrupt: body.interrupt})
		if f, ok := errors.AsType[*http1.Failure](err); !ok || f.Stage != http1.Sent {
			t.Errorf("do() = %v, want a failure after sending", err)
		}
		if err := <-got; err == nil {
			t.Error("the server took it for the whole")
		}
	}
}

// TestAnswerFirst holds that an answer may come before the body has, and that
// closing it ends the reading of the body.
func TestAnswerFirst(t *testing.T) {
	b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
		if _, err := skipRequest(r); err == nil {
			io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
			io.Copy(io.Discard, r)
		}
	})
	for range 2 {
		body := newClientBody()
		res, err := b.do(t.Context(), &http1.Outgoing{Method: "POST", Body: body, Length: 10, Interrupt: body.interrupt})
		if err != nil || res.status != 403 {
			t.Errorf("do() = %v, %v", res, err)
		}
		if _, err := body.in.Write([]byte("x")); err != io.ErrClosedPipe {
			t.Errorf("the body is still read: %v", err)
		}
	}
	if n := b.opened(); n != 2 {
		t.Errorf("%d connections, want one for each half-sent request", n)
	}
}

// TestExpect holds when a server that is asked whether it wants the body gets it.
func TestExpect(t *testing.T) {
	for _, tt := range []struct {
		name, word string
		wait       time.Duration // until the body comes
		status     int
	}{
		{"it says yes", "HTTP/1.1 100 Continue\r\n\r\n", 0, 200},
		{"it says nothing", "", time.Second, 200},
		{"it says no", "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", -1, 417},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackend(t, http1.TransportConfig{}, func(_ int, conn net.Conn, r *bufio.Reader) {
					head, err := skipRequest(r)
					if err != nil {
						return
					}
					if !strings.Contains(head, "Expect: 100-continue\r\n") {
						t.Errorf("the head is %q", head)
					}
					begun := time.Now()
					if tt.word != "" {
						io.WriteString(conn, tt.word)
					}
					_, err = io.ReadFull(r, make([]byte, 5))
					switch {
					case tt.wait < 0 && err == nil:
						t.Error("the body came")
					case tt.wait >= 0 && (err != nil || time.Since(begun) != tt.wait):
						t.Errorf("the body came after %v, %v, want %v", time.Since(begun), err, tt.wait)
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				})
				now := time.Now()
				res, err := b.do(t.Context(), &http1.Outgoing{Method: "PUT", Body: strings.NewReader("hello"), Length: 5, Expect: true, Now: now, Deadline: now.Add(10 * time.Second)})
				if err != nil || res.status != tt.status {
					t.Errorf("do() = %v, %v", res, err)
				}
				b.transport.Close()
			})
		})
	}
}
