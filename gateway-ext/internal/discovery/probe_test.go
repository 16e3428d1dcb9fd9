package discovery_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
)

func TestAsk(t *testing.T) {
	redirected := false
	mux := http.NewServeMux()
	mux.HandleFunc("/up", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "a=b" {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/secret", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/target", http.StatusFound) })
	mux.HandleFunc("/target", func(http.ResponseWriter, *http.Request) { redirected = true })
	mux.HandleFunc("/cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	server := httptest.NewServer(mux)
	defer server.Close()
	up := netip.MustParseAddrPort(server.Listener.Addr().String())

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(closed.Addr().String())
	closed.Close()

	for _, tt := range []struct {
		target discovery.Target
		want   discovery.Answer
	}{
		{discovery.Target{Addr: up}, discovery.Answered},
		{discovery.Target{Addr: up, Health: "/up?a=b"}, discovery.Answered},
		{discovery.Target{Addr: up, Health: "/secret"}, discovery.Answered},
		{discovery.Target{Addr: up, Health: "/nowhere"}, discovery.Answered},
		{discovery.Target{Addr: up, Health: "/away"}, discovery.Answered},
		{discovery.Target{Addr: up, Health: "/down"}, discovery.Refused},
		{discovery.Target{Addr: up, Health: "/cut"}, discovery.Refused},
		{discovery.Target{Addr: up, Health: "no path\x00"}, discovery.Answered},
		{discovery.Target{Addr: nobody}, discovery.Refused},
		{discovery.Target{Addr: nobody, Health: "/up"}, discovery.Refused},
	} {
		if got := discovery.Ask(t.Context(), tt.target); got != tt.want {
			t.Errorf("Ask(%v) = %v, want %v", tt.target, got, tt.want)
		}
	}
	if redirected {
		t.Error("a redirect was followed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := discovery.Ask(ctx, discovery.Target{Addr: up}); got != discovery.Unknown {
		t.Errorf("Ask() of who stops = %v, want unknown", got)
	}
}
