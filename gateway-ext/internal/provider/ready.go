package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// readyPath is the annotation by which a function names its own readiness check.
const readyPath = "com.openfaas.ready.http.path"

// probeTimeout is how long one readiness check may take.
const probeTimeout = 2 * time.Second

// newProbeClient returns a client that asks afresh each time: a connection kept
// for later would hold a draining server open.
func newProbeClient() *http.Client {
	return &http.Client{
		Timeout: probeTimeout,
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
			DialContext:            (&net.Dialer{Timeout: probeTimeout}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// awaitReady returns nil once the process at addr says that it takes requests,
// else, when ctx ends, what it said last.
func (p *Process) awaitReady(ctx context.Context, addr netip.AddrPort, path string) error {
	began := time.Now()
	var last error
	for {
		err := p.probe(ctx, addr, path)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // what it said, and not that the waiting ended
		}
		// Often while it is young, so that a quick start is seen at once;
		// seldom when it takes long, so that waiting costs nothing.
		pause := time.NewTimer(min(max(time.Since(began)/8, 2*time.Millisecond), 250*time.Millisecond))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return last
		}
	}
}

// probe asks once.
func (p *Process) probe(ctx context.Context, addr netip.AddrPort, path string) error {
	if path != "" {
		code, err := p.ask(ctx, addr, path)
		if err != nil {
			return err
		}
		if code/100 != 2 {
			return fmt.Errorf("GET %s (annotation %s) answers %d", path, readyPath, code)
		}
		return nil
	}
	for _, path := range []string{"/_/ready", "/_/health"} {
		code, err := p.ask(ctx, addr, path)
		switch {
		case err != nil:
			return err
		case code/100 == 2:
			return nil
		case code == http.StatusTooManyRequests, code/100 == 5 && code != http.StatusNotImplemented:
			return fmt.Errorf("GET %s answers %d", path, code)
		}
		// It doesn't know the path: 404, or what its handler makes of it.
	}
	return nil // the port answers
}

func (p *Process) ask(ctx context.Context, addr netip.AddrPort, path string) (code int, err error) {
	url := "http://" + addr.String() + "/" + strings.TrimPrefix(path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("readiness path %q: %w", path, err)
	}
	req.Header.Set("User-Agent", "thicket-probe")
	res, err := p.client.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return 0, fmt.Errorf("nothing listens on port %d (given in the environment variable port)", addr.Port())
		}
		return 0, err
	}
	// What it says doesn't matter; a stranger's body is not read to its end.
	_, _ = io.CopyN(io.Discard, res.Body, 1<<10)
	return res.StatusCode, res.Body.Close()
}
