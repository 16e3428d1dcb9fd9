package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// TestLost holds what becomes of calls that are under way on a machine which is
// gone, of a function that asks for no policy.
func TestLost(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then the server sees its client leave
		<-r.Context().Done()
	}
	cut := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	for _, tt := range []struct {
		name   string
		method string
		node   string // that the replica is on
		does   http.HandlerFunc
		body   string
		want   int
	}{
		{"frozen", http.MethodGet, "pi-1", hang, "", http.StatusOK},
		{"frozen, may not be repeated", http.MethodPost, "pi-1", hang, "x", http.StatusGatewayTimeout},
		{"broken off", http.MethodGet, "pi-1", cut, "", http.StatusOK},
		{"broken off, may not be repeated", http.MethodPost, "pi-1", cut, "x", http.StatusBadGateway},
		{"broken off on the gateway's machine", http.MethodGet, "nuc", cut, "", http.StatusBadGateway},
		{"an answer is one", http.MethodGet, "pi-1", refuse, "", http.StatusBadGateway},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(_ *world, c *proxy.Config) {
				c.Timeout = 3 * time.Second
				c.Dial = func(e *discovery.Endpoint) func(context.Context) (net.Conn, error) {
					if e.Node == "nuc" {
						return nil
					}
					return func(ctx context.Context) (net.Conn, error) {
						return (&net.Dialer{}).DialContext(ctx, "tcp", e.Addr.String())
					}
				}
			})
			ctx, stop := context.WithCancel(t.Context())
			var judging sync.WaitGroup
			defer judging.Wait()
			defer stop()
			judging.Go(func() { w.table.Run(ctx) })

			run := func(id, node string, lease time.Duration, h http.HandlerFunc) {
				s := httptest.NewServer(h)
				t.Cleanup(s.Close)
				source, err := w.table.Source("node", node, discovery.Lease{Suspect: lease, Gone: time.Hour}, nil)
				if err != nil {
					t.Fatal(err)
				}
				source.Observe(faas.Replica{ID: id, Function: echo, Node: node, Addr: netip.MustParseAddrPort(s.Listener.Addr().String()), State: faas.Ready})
			}
			var asked atomic.Int32
			run("lost", tt.node, 10*time.Millisecond, func(rw http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					// There is another one from now on.
					run("other", "pi-2", time.Hour, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "other") })
				}
				tt.does(rw, r)
			})
			resp, body := w.do(tt.method, "/function/echo", tt.body)
			if resp.StatusCode != tt.want || tt.want == http.StatusOK && body != "other" {
				t.Errorf("answer is %d %q, want %d", resp.StatusCode, body, tt.want)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("the replica was asked %d times, want once", n)
			}
		})
	}
}
