//go:build !race

// The race detector makes allocations of its own, and sync.Pool forget: so these
// are measured without it, by make test's second call.

package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

var updateAllocs = flag.Bool("update", false, "write testdata/allocs.txt anew")

// hot are the calls that most calls are like.
var hot = []struct {
	name        string
	annotations map[string]string
	request     string
}{
	{"GET", nil, "GET /function/echo HTTP/1.1\r\nHost: gateway\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"},
	{"POST", nil, "POST /function/echo HTTP/1.1\r\nHost: gateway\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + kilobyte},
	{"policy", map[string]string{"thicket.timeout": "10s/5s", "thicket.attempts": "3", "thicket.bulkhead": "64"},
		"GET /function/echo HTTP/1.1\r\nHost: gateway\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"},
}

var kilobyte = strings.Repeat("0123456789abcde\n", 64)

// TestAllocations holds the calls to what they allocated when somebody last
// looked: in the whole way from the client's connection to the replica's and
// back. What a call costs in Go is mostly what it leaves to the collector.
func TestAllocations(t *testing.T) {
	const runs = 2000
	baseline := filepath.Join("testdata", "allocs.txt")
	stored, err := os.ReadFile(baseline)
	if err != nil && !*updateAllocs {
		t.Fatal(err)
	}
	var found strings.Builder
	for _, h := range hot {
		call := newHotCall(t, h.annotations, h.request)
		for range 100 { // fill the pools
			call()
		}
		// A collection would empty the pools.
		gc := debug.SetGCPercent(-1)
		got := int(testing.AllocsPerRun(runs, call))
		debug.SetGCPercent(gc)
		fmt.Fprintf(&found, "%s %d\n", h.name, got)

		want, known := 0, false
		for line := range strings.Lines(string(stored)) {
			if n, _ := fmt.Sscanf(line, h.name+" %d", &want); n == 1 {
				known = true
				break
			}
		}
		const look = "go test -run '^$' -bench Call/%s -benchmem -memprofilerate 1 -memprofile mem.out ./gateway-ext/internal/proxy && go tool pprof -sample_index alloc_objects -top mem.out"
		const store = "go test ./gateway-ext/internal/proxy -run TestAllocations -update"
		switch {
		case *updateAllocs:
		case !known:
			t.Errorf("%s has no line in %s: write it with: %s", h.name, baseline, store)
		case got > want:
			t.Errorf("a %s allocates %d times, %d more than the stored %d. See where with:\n\t"+look+"\nIf it can't be less, or it is Go's doing, store it and say in the commit why, with:\n\t%s", h.name, got, got-want, want, h.name, store)
		case got < want:
			t.Logf("a %s allocates %d times, %d less than the stored %d. So that it stays so: %s", h.name, got, want-got, want, store)
		}
	}
	if *updateAllocs {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(baseline, []byte(found.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkCall makes the calls that TestAllocations counts. Client and replica
// allocate nothing, and are in its time.
func BenchmarkCall(b *testing.B) {
	for _, h := range hot {
		b.Run(h.name, func(b *testing.B) {
			call := newHotCall(b, h.annotations, h.request)
			call()
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// newHotCall returns a function that makes one call, through a gateway as main
// makes it, to one of two replicas. All that it allocates is the gateway's.
func newHotCall(t testing.TB, annotations map[string]string, request string) func() {
	t.Helper()
	table := discovery.New()
	for _, id := range []string{"a", "b"} {
		table.Observe(faas.Replica{ID: id, Function: echo, State: faas.Ready, Addr: netip.MustParseAddrPort(newHotReplica(t))})
	}
	p, err := proxy.New(proxy.Config{
		Table: table, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Known: func(faas.Name) (int, string, bool) { return 2, "", true },
		Declared: func(faas.Name) *faas.Function {
			return &faas.Function{FunctionDeployment: types.FunctionDeployment{Annotations: &annotations}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http1.Server{Handler: p.Before(http.NotFoundHandler()), Logger: slog.New(slog.DiscardHandler)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	r, sent := bufio.NewReader(conn), []byte(request)
	return func() {
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		line, err := r.ReadSlice('\n')
		if err != nil || !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			t.Fatalf("answer %q, %v", line, err)
		}
		for len(line) > 2 {
			if line, err = r.ReadSlice('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Discard(len(kilobyte)); err != nil {
			t.Fatal(err)
		}
	}
}

// newHotReplica starts a replica that answers each request with a kilobyte, and
// returns its address.
func newHotReplica(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + kilobyte)
	serve := func(conn net.Conn) {
		defer conn.Close()
		for r := bufio.NewReader(conn); ; {
			length := 0
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return // the proxy closes what it doesn't need
				}
				if len(line) == 2 {
					break
				}
				if name, _, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
					length = len(kilobyte)
				}
			}
			if _, err := r.Discard(length); err != nil {
				return
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}
	go func() { // until the listener is closed
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn) // until the proxy closes it
		}
	}()
	return l.Addr().String()
}
