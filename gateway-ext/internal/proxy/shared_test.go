package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

// TestSharedAddress: a replica that hasn't its address for itself is called by
// its path and by its host's name, over TLS too, with all else of the call as it
// came.
func TestSharedAddress(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.Host, r.RequestURI, body, r.Header.Get("X-Call-Id"))
			}))
			s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
			if secure {
				s.StartTLS()
			} else {
				s.Start()
			}
			t.Cleanup(s.Close)
			w := newWorld(t, func(_ *world, cfg *proxy.Config) {
				cfg.Dial = func(e *discovery.Endpoint) func(context.Context) (net.Conn, error) {
					if !secure {
						return nil
					}
					return func(ctx context.Context) (net.Conn, error) {
						d := tls.Dialer{Config: &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com", NextProtos: []string{"http/1.1"}}}
						return d.DialContext(ctx, "tcp", e.Addr.String())
					}
				}
			})
			w.table.Observe(faas.Replica{
				ID: "echo-1", Function: echo, Addr: netip.MustParseAddrPort(s.Listener.Addr().String()), State: faas.Ready,
				Path: "/base/function/echo.openfaas-fn", Host: "faas.example.com",
			})
			for _, c := range []struct{ path, want string }{
				{"/function/echo", "/base/function/echo.openfaas-fn/"},
				{"/function/echo/", "/base/function/echo.openfaas-fn/"},
				{"/function/echo/a%2Fb//c?x=1&y", "/base/function/echo.openfaas-fn/a%2Fb//c?x=1&y"},
				{"/function/echo?", "/base/function/echo.openfaas-fn/?"},
			} {
				res, body := w.do(http.MethodPost, c.path, "payload", "X-Call-Id", "call-7")
				if want := "POST faas.example.com " + c.want + " payload call-7"; res.StatusCode != http.StatusOK || body != want {
					t.Errorf("POST %s: the replica got %q (%d), want %q", c.path, body, res.StatusCode, want)
				}
			}
		})
	}
}
