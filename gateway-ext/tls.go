package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The public address speaks TLS if there is a certificate, and then HTTP/2 or
// HTTP/1.1 as the client chooses; without one it speaks plain HTTP/1.1, and
// HTTP/2 with clients that know of it beforehand. HTTP/1.1 is served by package
// http1, HTTP/2 by net/http.
//
// There is no Strict-Transport-Security: it would bind every port of the host's
// name, for months, to a certificate that many give themselves.

// certificate is what the gateway proves its name with. It is read again when its
// files change, as certbot and its like have them do, so that a renewal needs no
// restart.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               atomic.Pointer[tls.Certificate]
	next              atomic.Int64 // when to look at the files again, in Unix nanoseconds

	mu   sync.Mutex // guards below
	seen [2]os.FileInfo
}

// certificateLook is how often the files are looked at, while clients come.
const certificateLook = time.Second

// openCertificate reads a certificate and its key. An error says which setting is
// wrong.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if _, err := c.read(); err != nil {
		return nil, err
	}
	if info := c.seen[1]; info.Mode().Perm()&0o007 != 0 {
		log.Warn("everybody on this machine can read the key of the certificate: run chmod o-rwx", "file", keyFile)
	}
	return c, nil
}

// read reads the files if they are others than before, and says whether they are.
func (c *certificate) read() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var seen [2]os.FileInfo
	for i, f := range [...]struct{ setting, path string }{{"THICKET_TLS_CERT", c.certFile}, {"THICKET_TLS_KEY", c.keyFile}} {
		if seen[i], err = os.Stat(f.path); errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("%s: %s does not exist", f.setting, f.path)
		} else if err != nil {
			return false, fmt.Errorf("%s: %w", f.setting, err)
		}
		changed = changed || c.seen[i] == nil || !os.SameFile(c.seen[i], seen[i]) ||
			!c.seen[i].ModTime().Equal(seen[i].ModTime()) || c.seen[i].Size() != seen[i].Size()
	}
	if !changed {
		return false, nil
	}
	c.seen = seen // if they are wrong, that is said once
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return false, fmt.Errorf("THICKET_TLS_CERT and THICKET_TLS_KEY: %s and %s are no certificate and its key, in PEM: %w", c.certFile, c.keyFile, err)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore) {
		c.log.Warn("clients won't trust the certificate: now is not in its time", "file", c.certFile, "from", pair.Leaf.NotBefore, "until", pair.Leaf.NotAfter)
	}
	c.now.Store(&pair)
	return true, nil
}

// get is for [tls.Config.GetCertificate].
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now, next := time.Now(), c.next.Load()
	if now.UnixNano() >= next && c.next.CompareAndSwap(next, now.Add(certificateLook).UnixNano()) {
		switch changed, err := c.read(); {
		case err != nil:
			c.log.Error("the new certificate can't be used, and the old one goes on", "err", err)
		case changed && next > 0:
			c.log.Info("the certificate was renewed", "file", c.certFile, "until", c.now.Load().Leaf.NotAfter)
		}
	}
	return c.now.Load(), nil
}

// config is how the public address speaks TLS.
func (c *certificate) config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
}

// name is a name that the certificate is for: what clients call the gateway.
func (c *certificate) name() string {
	leaf := c.now.Load().Leaf
	for _, name := range leaf.DNSNames {
		if !strings.HasPrefix(name, "*.") {
			return name
		}
	}
	if len(leaf.IPAddresses) > 0 {
		return leaf.IPAddresses[0].String()
	}
	return ""
}

// dialPlain returns a dialer for this process's own calls of the public address
// by a loopback address, where images are pulled from that were pushed there. It
// leads to the inner address, which speaks plain HTTP as all on loopback do.
func dialPlain(public, inner net.Addr) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	_, port, _ := net.SplitHostPort(public.String())
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if host, p, err := net.SplitHostPort(addr); err == nil && p == port {
			if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
				addr = inner.String()
			}
		}
		return dialer.DialContext(ctx, network, addr)
	}
}

// http2 serves the connections that package http1 hands over because they speak
// HTTP/2.
type http2 struct {
	server  *http.Server
	conns   chan net.Conn
	leaving atomic.Bool
	open    atomic.Int64 // connections

	closed chan struct{} // closed when no more are taken
	once   sync.Once
	addr   net.Addr
}

func newHTTP2(h http.Handler, addr net.Addr, log *slog.Logger) *http2 {
	s := &http2{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.leaving.Load() {
				// For net/http this means that the connection takes no more
				// requests, and ends when those that it has are answered.
				w.Header().Set("Connection", "close")
			}
			h.ServeHTTP(w, r)
		}),
		Protocols:      &protocols,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			// One that takes nothing, or doesn't answer, is gone.
			WriteByteTimeout: 4 * time.Second,
			SendPingTimeout:  30 * time.Second,
			PingTimeout:      10 * time.Second,
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				s.open.Add(-1)
			}
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// take is for [http1.Server.HTTP2].
func (s *http2) take(nc net.Conn) {
	_ = nc.SetDeadline(time.Time{})
	select {
	case s.conns <- nc:
	case <-s.closed:
		_ = nc.Close()
	}
}

// serve serves until shutdown.
func (s *http2) serve() error {
	if err := s.server.Serve(s); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP/2: %w", err)
	}
	return nil
}

// When the gateway stops, HTTP/2 clients are told to go by the answers that they
// get, and those that ask nothing are cut after http2Grace. Connections that were
// accepted have shown after http2Late what they speak.
const (
	http2Grace = time.Second
	http2Late  = 5 * time.Second
)

// shutdown waits for what is in flight until ctx ends, then cuts it. done is
// closed when no more connections are handed over.
func (s *http2) shutdown(ctx context.Context, done <-chan struct{}) error {
	s.leaving.Store(true)
	grace := time.After(http2Grace)
	select {
	case <-done:
	case <-time.After(http2Late):
	case <-ctx.Done():
	}
	if s.open.Load() > 0 {
		select {
		case <-grace:
		case <-ctx.Done():
		}
	}
	if err := s.server.Shutdown(ctx); err != nil {
		return s.server.Close()
	}
	return nil
}

// Accept implements [net.Listener].
func (s *http2) Accept() (net.Conn, error) {
	select {
	case nc := <-s.conns:
		return nc, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (s *http2) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr implements [net.Listener].
func (s *http2) Addr() net.Addr { return s.addr }
