package main_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startNATSServer starts a NATS server on files in a folder; at 0 it takes a free
// port.
func startNATSServer(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	if port == 0 {
		port = server.RANDOM_PORT
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the NATS server doesn't start")
	}
	return s
}

// TestNATSElsewhere is a gateway whose state is in a NATS server: it goes away and
// comes back while a function is called, and the gateway is killed and started
// anew.
func TestNATSElsewhere(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	nats := startNATSServer(t, files, 0)
	t.Cleanup(func() { nats.Shutdown() })
	port := nats.Addr().(*net.TCPAddr).Port
	setting := "THICKET_NATS_URL=" + nats.ClientURL()
	g := start(t, dir, setting, "THICKET_NODE=nuc")
	g.deploy(g.probe())
	g.want("/function/probe", 200, "hello")

	// Another gateway doesn't get it.
	code, _, stderr := run(t, ".", []string{"THICKET_ADDR=127.0.0.1:0", "THICKET_DATA=" + t.TempDir(), setting}, "serve")
	if code == 0 || !strings.Contains(stderr, "is used by the gateway nuc") {
		t.Errorf("a second gateway ended with %d and said %q", code, stderr)
	}

	nats.Shutdown()
	nats.WaitForShutdown()
	other := g.probe()
	other.Service = "other"
	eventually(t, "it is noticed", func() bool {
		_, _, body := g.get("/healthz")
		return strings.HasPrefix(body, "degraded")
	})
	for range 20 {
		g.want("/function/probe", 200, "hello")
	}
	if status, err := g.client.Deploy(t.Context(), other); status != 503 || err == nil || !strings.Contains(err.Error(), "what runs goes on") {
		t.Errorf("a deploy while NATS is away = %d %v, want 503 and a sentence", status, err)
	}
	nats = startNATSServer(t, files, port)
	eventually(t, "NATS is back", func() bool {
		_, _, body := g.get("/healthz")
		return body == "OK\n"
	})
	g.deploy(other)

	g.kill()
	g = start(t, dir, setting, "THICKET_NODE=nuc")
	for _, name := range []string{"probe", "other"} {
		g.ready(name, 1)
		g.want("/function/"+name, 200, "hello")
	}
	if code := g.stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
}
