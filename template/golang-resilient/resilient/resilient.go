//go:build go1.26

// Package resilient is what stands around a function's handler in its process:
// the HTTP server, its health and readiness, deadlines, a bound on requests at
// the same time, a clean stop, logs and metrics. It takes the place of
// OpenFaaS's of-watchdog, understands the same settings and keeps the same
// contract, but the request goes straight to the handler: there is no second
// process and no second hop.
//
// It uses the standard library alone, so it compiles in any function's module
// without a requirement of its own.
package resilient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Main serves a handler as the environment says, until SIGTERM or SIGINT. It
// doesn't return: the exit code is 0 after a clean stop, else 1.
func Main(handle http.HandlerFunc) {
	settings, err := ReadSettings(os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	logger := NewLogger(os.Stderr, settings)
	slog.SetDefault(logger) // the handler's own slog.InfoContext has the call's id then

	stop, stopped := context.WithCancel(context.Background())
	hurry, hurried := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	go func() { // ends with the process
		<-signals
		stopped()
		<-signals
		hurried()
	}()
	if err := Run(stop, hurry, settings, handle, logger); err != nil {
		logger.Error("stopped", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Run serves a handler until stop ends. Then it reports itself unhealthy, goes
// on serving for HealthcheckInterval, and lets what is in flight finish for
// at most WriteTimeout. If hurry ends too, it cuts all that short.
//
// An error means that the port can't be had, or the server broke.
func Run(stop, hurry context.Context, s Settings, handle http.Handler, logger *slog.Logger) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(s.ListenHost, strconv.Itoa(s.Port)))
	if err != nil {
		return fmt.Errorf("listen for requests (settings port and listen_host): %w", err)
	}
	h := newHandler(s, handle, logger)
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: s.ReadTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	if s.WriteTimeout > 0 {
		server.WriteTimeout = s.WriteTimeout + answerMargin
	}
	servers := []*http.Server{server}

	broken := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() { broken <- server.Serve(listener) })
	if metrics := s.listenMetrics(logger); metrics != nil {
		m := &http.Server{Handler: h.metrics, ReadHeaderTimeout: idleTimeout, WriteTimeout: idleTimeout}
		servers = append(servers, m)
		serving.Go(func() { broken <- m.Serve(metrics) })
	}
	unlock := s.lock(logger)
	defer unlock()
	logger.Info("ready", "addr", listener.Addr().String())

	select {
	case err = <-broken:
		err = fmt.Errorf("serve: %w", err)
	case <-stop.Done():
		h.draining.Store(true)
		unlock()
		h.drain(hurry, server)
	}
	for _, s := range servers {
		s.Close()
	}
	serving.Wait()
	return err
}

const (
	// idleTimeout is for how long a connection without a request is kept. It
	// is longer than gateways keep theirs, so that they and not we close it:
	// else a request could meet a connection that is just being closed.
	idleTimeout = 3 * time.Minute

	// answerMargin is what it may take to send "out of time" after
	// WriteTimeout is over.
	answerMargin = time.Second

	// drainLimit bounds a stop where WriteTimeout is off.
	drainLimit = 30 * time.Second
)

// drain goes on serving until the platform had time to notice, then waits for
// what is in flight.
func (h *handler) drain(hurry context.Context, server *http.Server) {
	h.logger.Info("stopping", "in_flight", h.inFlight.Load())
	notice := time.NewTimer(h.settings.HealthcheckInterval)
	defer notice.Stop()
	select {
	case <-notice.C:
	case <-hurry.Done():
	}
	limit := h.settings.WriteTimeout
	if limit <= 0 {
		limit = drainLimit
	}
	ctx, cancel := context.WithTimeout(hurry, limit)
	defer cancel()
	err := server.Shutdown(ctx)
	if err == nil { // connections that were taken over, and handlers that are late
		err = h.idle(ctx)
	}
	if err != nil {
		h.logger.Warn("stopped with requests in flight", "in_flight", h.inFlight.Load(), "limit", limit, "err", err)
	}
}

// listenMetrics returns nil if metrics are off or the port is taken, as it is
// where several functions are processes of one machine: that must not stop a
// function.
func (s Settings) listenMetrics(logger *slog.Logger) net.Listener {
	if s.MetricsPort == 0 {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.ListenHost, strconv.Itoa(s.MetricsPort)))
	if err != nil {
		logger.Warn("no metrics: the port can't be had, set metrics_port to another one, or to 0 for none", "err", err)
		return nil
	}
	return l
}

// lock makes the file that an orchestrator looks for that checks health by
// running a command, and returns what removes it.
func (s Settings) lock(logger *slog.Logger) func() {
	if s.SuppressLock {
		return func() {}
	}
	path := filepath.Join(s.TempDir, ".lock")
	if err := os.WriteFile(path, nil, 0o660); err != nil {
		logger.Warn("no lock file, set suppress_lock=true if nothing looks for it", "err", err)
		return func() {}
	}
	return sync.OnceFunc(func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			logger.Warn("remove the lock file", "err", err)
		}
	})
}
