package api_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
)

// TestHealth holds that /healthz says when nothing can be stored, to everybody
// and without details, and that this is no reason to restart the gateway.
func TestHealth(t *testing.T) {
	var trouble error
	g := newGateway(t, func(c *api.Config) { c.Health = func() error { return trouble } })
	if w := g.ask("GET", "/healthz", ""); w.Code != 200 || w.Body.String() != "OK\n" {
		t.Errorf("GET /healthz = %d %q, want OK", w.Code, w.Body)
	}
	trouble = errors.New("the disk of /var/lib/thicket is full")
	w := g.ask("GET", "/healthz", "")
	if body := w.Body.String(); w.Code != 200 || !strings.HasPrefix(body, "degraded: ") || strings.Contains(body, "/var/lib") {
		t.Errorf("GET /healthz = %d %q, want 200, degraded and no path", w.Code, body)
	}
}
