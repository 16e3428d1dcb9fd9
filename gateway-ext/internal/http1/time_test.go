package http1_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// within fails the test unless about d has passed since start: no less, and no
// more than what looking now and then costs.
func within(t *testing.T, start time.Time, d time.Duration) {
	t.Helper()
	if took := time.Since(start); took < d-time.Millisecond || took > d+100*time.Millisecond {
		t.Errorf("it took %v, want %v", took, d)
	}
}

// trickle sends a piece now and then, after a first one, while the test lasts.
func (c *client) trickle(first, piece string, every time.Duration) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for text := first; ; text = piece {
			if text != "" { // which a pipe would deliver
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(every):
			}
		}
	})
	c.t.Cleanup(func() { close(stop); c.Close(); wg.Wait() })
}

// TestSlowHeads holds that the whole head of a request has few seconds, in however
// many pieces it comes.
func TestSlowHeads(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first string // sent at once
		every time.Duration
		again bool // it is the connection's second request
		want  string
	}{
		{"nothing", "", time.Hour, false, ""},
		{"a byte now and then", "G", time.Second, false, "408"},
		{"a byte every 10 s", "GET / HTTP/1.1\r\nHost: x\r\nX:", 10 * time.Second, false, "408"},
		{"many bytes", "GET / HTTP/1.1\r\nHost: x\r\nX:", 5 * time.Millisecond, false, "408"},
		{"the second", "GET / HTTP/1.1\r\n", time.Second, true, "408"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := onPipes(t, echo, nil)
				c := w.dial()
				start := time.Now()
				if tt.again {
					c.send(get("/a"))
					c.answer("GET")
					time.Sleep(10 * time.Second) // idle, which is no matter
					start = time.Now()
				}
				c.trickle(tt.first, "x", tt.every)
				if tt.want != "" {
					if res, body := c.answer("GET"); res.StatusCode != http.StatusRequestTimeout || !res.Close || !strings.Contains(body, "4s") {
						t.Errorf("answer = %d %q, close %t, want 408 and close", res.StatusCode, body, res.Close)
					}
				}
				c.ended()
				within(t, start, 4*time.Second)
			})
		})
	}
}

func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onPipes(t, echo, nil)
		c := w.dial()
		for _, pause := range []time.Duration{0, 500 * time.Millisecond, 2 * time.Second, time.Minute, 119 * time.Second} {
			time.Sleep(pause)
			c.send(get("/a"))
			if _, got := c.answer("GET"); got != "GET x /a " {
				t.Fatalf("after %v: answer %q", pause, got)
			}
		}
		start := time.Now()
		c.ended()
		if took := time.Since(start); took < 2*time.Minute || took > 2*time.Minute+2*time.Second {
			t.Errorf("it was closed after %v, want 2 min", took)
		}
	})
}

// TestSlowBodies holds what a client may take for a body, and that a handler that
// reads slowly isn't taken for a client that sends slowly.
func TestSlowBodies(t *testing.T) {
	const sized = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
	const chunks = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tt := range []struct {
		name, head, piece string
		every             time.Duration
		begun             bool // the answer is, before the body is read
		stalled           time.Duration
	}{
		{"nothing", sized, "", time.Second, false, 4 * time.Second},
		{"a byte now and then", sized, "x", time.Second, false, 4 * time.Second},
		{"a byte every 10 s", sized, "x", 10 * time.Second, false, 4 * time.Second},
		{"a kilobyte now and then", sized, strings.Repeat("x", 1100), 2 * time.Second, false, 0},
		{"chunks may be made as they are sent", chunks, "1\r\nx\r\n", 20 * time.Second, false, 48 * time.Second},
		{"a conversation may pause", chunks, "1\r\nx\r\n", time.Minute, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				done := make(chan error, 1)
				w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
					if tt.begun {
						http.NewResponseController(w).Flush()
					}
					_, err := io.CopyN(io.Discard, r.Body, int64(10*len(tt.piece)+10)/2)
					done <- err
					if err == nil && !tt.begun {
						w.Header().Set("Connection", "close")
					}
				}, nil)
				c := w.dial()
				c.send(tt.head)
				c.trickle(tt.piece, tt.piece, tt.every)
				go io.Copy(io.Discard, c.r)
				if tt.stalled == 0 {
					if err := <-done; err != nil {
						t.Errorf("the body ended after %v: %v", time.Since(start), err)
					}
				} else {
					if err := <-done; !errors.Is(err, http1.ErrBodyStalled) {
						t.Errorf("reading = %v, want %v", err, http1.ErrBodyStalled)
					}
					within(t, start, tt.stalled)
				}
			})
		})
	}
}

// TestSlowHandlers holds that only clients are slow: a handler may take its time.
func TestSlowHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute) // to begin to read
			var b [5]byte
			for range 20 {
				if _, err := io.ReadFull(r.Body, b[:]); err != nil {
					t.Error(err)
				}
				time.Sleep(10 * time.Second)
			}
			for range 10 {
				w.Write(b[:])
				http.NewResponseController(w).Flush()
				time.Sleep(time.Minute) // between two events
			}
			if err := r.Context().Err(); err != nil {
				t.Errorf("the context has ended: %v", context.Cause(r.Context()))
			}
		}, nil)
		c := w.dial()
		c.sendAside("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("01234", 20))
		if res, body := c.answer("POST"); res.StatusCode != 200 || body != strings.Repeat("01234", 10) {
			t.Errorf("answer = %d %q", res.StatusCode, body)
		}
	})
}

// TestSlowReader holds that a client which takes nothing is cut, and that its
// handler learns why.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := make(chan error, 1)
		w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 8<<10)); err != nil {
					cause <- context.Cause(r.Context())
					return
				}
			}
		}, nil)
		c := w.dial()
		c.send(get("/"))
		if _, err := io.ReadFull(c, make([]byte, 100000)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if got := <-cause; got != http1.ErrClientStalled {
			t.Errorf("cause = %v, want %v", got, http1.ErrClientStalled)
		}
		within(t, start, 3500*time.Millisecond)
	})
}

// TestClientGone holds that a handler learns at once that nobody waits for it,
// but for the first moments.
func TestClientGone(t *testing.T) {
	for _, request := range []string{
		get("/"),
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		get("/") + "G", // and something of the next
	} {
		synctest.Test(t, func(t *testing.T) {
			started, gone := make(chan struct{}), make(chan error)
			w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				close(started)
				<-r.Context().Done()
				gone <- context.Cause(r.Context())
			}, nil)
			c := w.dial()
			c.send(request)
			<-started
			if !strings.HasSuffix(request, "G") {
				time.Sleep(time.Second)
			}
			start := time.Now()
			c.Close()
			if err := <-gone; err != http1.ErrClientGone {
				t.Errorf("cause = %v, want %v", err, http1.ErrClientGone)
			}
			if took := time.Since(start); took > 60*time.Millisecond || took > 0 && !strings.HasSuffix(request, "G") {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestWatchedThenUsed holds that watching a client takes nothing of what it sends.
func TestWatchedThenUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			echo(w, r)
		}, nil)
		c := w.dial()
		c.sendAside(strings.Repeat("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 5))
		for range 5 {
			if _, got := c.answer("POST"); got != "POST x /a abc" {
				t.Errorf("answer %q", got)
			}
		}
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-release
			}
			echo(w, r)
		}, func(s *http1.Server) { s.Grace = time.Second })
		told := make(chan struct{})
		w.server.RegisterOnShutdown(func() { close(told) })

		idle, late, busy, fresh := w.dial(), w.dial(), w.dial(), w.dial()
		for _, c := range []*client{idle, late} {
			c.send(get("/"))
			c.answer("GET")
		}
		busy.send(get("/slow"))
		time.Sleep(5 * time.Second / 2) // fresh has 1.5 s left, the others are asleep

		start := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- w.server.Shutdown(t.Context()) }()
		<-told

		time.Sleep(500 * time.Millisecond)
		late.send(get("/late"))
		if res, body := late.answer("GET"); body != "GET x /late " || !res.Close {
			t.Errorf("answer on an idle connection = %q, close %t, want close", body, res.Close)
		}
		late.ended()
		idle.ended()
		within(t, start, time.Second)
		fresh.ended()
		within(t, start, time.Second)

		time.Sleep(10 * time.Second)
		close(release)
		if res, body := busy.answer("GET"); body != "GET x /slow " || !res.Close {
			t.Errorf("answer while stopping = %q, close %t, want close", body, res.Close)
		}
		busy.ended()
		if err := <-ended; err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if n := w.server.Conns(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// TestShutdownGivesUp holds that who doesn't want to wait any longer can cut all.
func TestShutdownGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		causes := make(chan error, 1)
		w := onPipes(t, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
		}, nil)
		c := w.dial()
		c.send(get("/"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown() = %v, want %v", err, context.DeadlineExceeded)
		}
		if err := w.server.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
		if err := <-causes; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("cause = %v, want %v", err, http.ErrServerClosed)
		}
		c.ended()
	})
}
