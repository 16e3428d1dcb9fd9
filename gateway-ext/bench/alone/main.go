// Alone is the gateway's way from a request to a replica and nothing else: the
// server, the table of replicas, balancing, policies and metrics, without the
// registry, the state and the provider that the real program has inside. It
// shows what the proxy itself keeps in memory.
//
//	alone LISTEN REPLICA...
package main

import (
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

func run(addr string, replicas []string) error {
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
		Annotations: &map[string]string{"thicket.timeout": "10s/5s", "thicket.attempts": "2"},
	}}
	p, err := proxy.New(proxy.Config{
		Table:      table,
		Known:      func(n faas.Name) (int, string, bool) { return len(replicas), "", n == name },
		Names:      func() []faas.Name { return []faas.Name{name} },
		Declared:   func(faas.Name) *faas.Function { return declared },
		Registerer: prometheus.NewRegistry(),
		Logger:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return (&http.Server{Handler: p.Before(http.NotFoundHandler()), ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}
