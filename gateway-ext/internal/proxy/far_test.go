package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// TestLostMachine: a call that waits for an answer when its machine is lost is
// made again elsewhere if that is safe, also where the function has no policy;
// one that may not be repeated is not, and nothing is repeated for ever.
func TestLostMachine(t *testing.T) {
	var mu sync.Mutex
	var lines []net.Conn // to the replica that never answers
	w := newWorld(t, func(_ *world, cfg *proxy.Config) {
		cfg.Dial = func(e *discovery.Endpoint) func(context.Context) (net.Conn, error) {
			return func(ctx context.Context) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", e.Addr.String())
				if err == nil && e.ID == "silent" {
					mu.Lock()
					defer mu.Unlock()
					lines = append(lines, conn)
				}
				return conn, err
			}
		}
	})
	asked := make(chan struct{}, 16)
	w.serve("silent", func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	for _, tt := range []struct {
		method string
		code   int
	}{{http.MethodGet, http.StatusOK}, {http.MethodPost, http.StatusBadGateway}} {
		var done sync.WaitGroup
		var code int
		var body string
		done.Go(func() {
			res, text := w.do(tt.method, "/function/echo", "")
			code, body = res.StatusCode, text
		})
		<-asked
		other := w.serve("other-"+strings.ToLower(tt.method), func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") })
		mu.Lock()
		for _, l := range lines {
			l.Close()
		}
		mu.Unlock()
		done.Wait()
		if code != tt.code || code == http.StatusOK && body != "here" {
			t.Errorf("a %s whose machine is lost is answered %d %q, want %d", tt.method, code, body, tt.code)
		}
		w.observe("other-"+strings.ToLower(tt.method), other.Listener.Addr().String(), faas.Gone)
	}
}
