package http1_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// serve has a server serve h on a free port, and returns it with its address. It
// is shut down at the end of the test.
func serve(t testing.TB, h http.HandlerFunc, change func(*http1.Server)) (*http1.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http1.Server{Handler: h, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Grace: time.Millisecond}
	if change != nil {
		change(s)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
		if err := <-ended; err != http.ErrServerClosed {
			t.Errorf("Serve() = %v, want %v", err, http.ErrServerClosed)
		}
	})
	return s, l.Addr().String()
}

func TestNetHTTPClient(t *testing.T) {
	_, addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL, len(b))
	}, nil)
	for i := range 3 {
		res, err := http.Post("http://"+addr+"/a%20b?c", "text/plain", strings.NewReader(strings.Repeat("x", i*10000)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if want := fmt.Sprintf("POST /a%%20b?c %d", i*10000); string(b) != want || err != nil {
			t.Errorf("got %q, %v, want %q", b, err, want)
		}
		res.Body.Close()
		t.Log(res)
	}
}
