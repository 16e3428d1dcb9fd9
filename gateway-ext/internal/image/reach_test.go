package image_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

func TestReach(t *testing.T) {
	for _, tt := range []struct {
		name string
		code int
		want string // in the error; empty: it is reached
	}{
		{"open", http.StatusOK, ""},
		{"wants a password", http.StatusUnauthorized, ""},
		{"behind a proxy", http.StatusForbidden, ""},
		{"no registry", http.StatusNotFound, "as no registry does"},
		{"broken", http.StatusBadGateway, "502"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := ""
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = r.Method + " " + r.URL.Path
				w.WriteHeader(tt.code)
			}))
			defer s.Close()
			store, _ := openStore(t)
			err := store.Reach(t.Context(), strings.TrimPrefix(s.URL, "http://"))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Reach() = %v, want %q", err, tt.want)
			}
			if asked != "GET /v2/" {
				t.Errorf("it was asked %q", asked)
			}
		})
	}
}

func TestReachNobody(t *testing.T) {
	store, _ := openStore(t)
	if err := store.Reach(t.Context(), "127.0.0.1:1"); err == nil {
		t.Error("nobody is reached")
	}
	if err := store.Reach(t.Context(), "no registry"); err == nil {
		t.Error("what is no name is reached")
	}
}

// A registry without TLS that isn't listed is told from one that is away.
func TestReachPlain(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	// Not loopback by its name, which would be spoken to without TLS.
	store, _ := openStore(t, func(c *image.StoreConfig) { c.Dial = dialTo(s.Listener.Addr().String()) })
	err := store.Reach(t.Context(), "nas.lan:"+port)
	if err == nil || !strings.Contains(err.Error(), "THICKET_INSECURE_REGISTRIES") {
		t.Errorf("Reach() = %v, want which setting lists it", err)
	}
}

func TestRegistryOf(t *testing.T) {
	for ref, want := range map[string]string{
		"ghcr.io/a/b:1": "ghcr.io", "nginx": "index.docker.io", "127.0.0.1:8080/probe:latest": "127.0.0.1:8080", "": "", "A B": "",
	} {
		if got := image.RegistryOf(ref); got != want {
			t.Errorf("RegistryOf(%q) = %q, want %q", ref, got, want)
		}
	}
}

// dialTo dials one address, whichever was meant.
func dialTo(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}
