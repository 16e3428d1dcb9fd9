// Alone is the gateway's way from a request to a replica and nothing else: the
// server, the table of replicas, balancing, policies and metrics, without the
// registry, the state and the provider that the real program has inside. It
// shows what the proxy itself keeps in memory, and can be profiled.
//
//	alone [-cpu FILE] [-allocs FILE] LISTEN REPLICA...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

func main() {
	cpu := flag.String("cpu", "", "file for a profile of the CPU time")
	allocs := flag.String("allocs", "", "file for a profile of the allocations")
	flag.Parse()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // as the gateway does
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := profiled(*cpu, *allocs, func() error { return run(ctx, flag.Arg(0), flag.Args()[1:]) }); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, addr string, replicas []string) error {
	name := faas.Name{Function: "bench", Namespace: faas.DefaultNamespace}
	table := discovery.New()
	for i, r := range replicas {
		at, err := netip.ParseAddrPort(r)
		if err != nil {
			return err
		}
		table.Observe(faas.Replica{ID: fmt.Sprintf("bench-%d", i), Function: name, Addr: at, State: faas.Ready, Since: time.Now()})
	}
	declared := &faas.Function{Replicas: len(replicas), FunctionDeployment: types.FunctionDeployment{
		Service: name.Function, Namespace: name.Namespace,
		Annotations: &map[string]string{"thicket.timeout": "10s/5s", "thicket.attempts": "3", "thicket.bulkhead": "512"},
	}}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	p, err := proxy.New(proxy.Config{
		Table:      table,
		Known:      func(n faas.Name) (int, string, bool) { return len(replicas), "", n == name },
		Names:      func() []faas.Name { return []faas.Name{name} },
		Declared:   func(faas.Name) *faas.Function { return declared },
		Registerer: prometheus.NewRegistry(),
		Logger:     logger,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s := &http1.Server{Handler: p.Before(http.NotFoundHandler()), Logger: logger}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// profiled runs f, and writes what was asked for about it.
func profiled(cpu, allocs string, f func() error) (err error) {
	if cpu != "" {
		out, err := os.Create(cpu)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if err := f(); err != nil || allocs == "" {
		return err
	}
	out, err := os.Create(allocs)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("allocs").WriteTo(out, 0), out.Close())
}
