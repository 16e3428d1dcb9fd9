package http1_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// TestSilent holds when a request to a machine that falls silent is given up.
func TestSilent(t *testing.T) {
	const never = time.Hour
	const deadline = 10 * time.Second
	for _, tt := range []struct {
		name       string
		replay     bool
		silent     time.Duration // when the machine is not heard of any more
		head, body time.Duration // when these come
		err        error
		took       time.Duration
	}{
		{"while it is waited for", true, 3 * time.Second, never, never, http1.ErrSilent, 3 * time.Second},
		{"before", true, 0, never, never, http1.ErrSilent, 500 * time.Millisecond},
		{"it may not be sent twice", false, 3 * time.Second, 5 * time.Second, 5 * time.Second, nil, 5 * time.Second},
		{"an answer has begun", true, 3 * time.Second, time.Second, 5 * time.Second, nil, 5 * time.Second},
		{"it only takes its time", true, never, 5 * time.Second, 6 * time.Second, nil, 6 * time.Second},
		{"it takes too long", true, never, never, never, os.ErrDeadlineExceeded, deadline},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := http1.NewTransport(http1.TransportConfig{})
				defer transport.Close()
				began := time.Now()
				served := make(chan struct{})
				pool := transport.PoolOver(func(context.Context) (net.Conn, error) {
					client, server := net.Pipe()
					go func() {
						defer close(served)
						defer server.Close()
						if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
							t.Error(err)
						}
						for _, piece := range []struct {
							at   time.Duration
							text string
						}{{tt.head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"}, {tt.body, "hello"}} {
							if piece.at == never {
								io.Copy(io.Discard, server) // until the other side closes
								return
							}
							time.Sleep(time.Until(began.Add(piece.at)))
							io.WriteString(server, piece.text)
						}
					}()
					return client, nil
				}, func() bool { return time.Since(began) >= tt.silent })

				answer, err := transport.Do(t.Context(), pool, &http1.Outgoing{
					Method: http.MethodGet, Path: "/", Host: "a", Now: began, Deadline: began.Add(deadline), Replay: tt.replay,
				})
				var body strings.Builder
				for err == nil {
					var piece []byte
					piece, err = answer.Next()
					body.Write(piece)
				}
				if answer != nil {
					answer.Close()
				}
				if err == io.EOF {
					err = nil
				}
				if took := time.Since(began); !errors.Is(err, tt.err) || took < tt.took || took > tt.took+500*time.Millisecond {
					t.Errorf("the answer is %q, %v after %s, want %v after %s", body.String(), err, took, tt.err, tt.took)
				}
				if tt.err == nil && body.String() != "hello" {
					t.Errorf("the body is %q", body.String())
				}
				transport.Close()
				<-served
			})
		})
	}
}
