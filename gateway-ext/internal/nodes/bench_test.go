package nodes_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// nothing is a provider that does at once what it is told.
type nothing struct{}

func (nothing) Apply(context.Context, provider.Workload) error   { return nil }
func (nothing) Remove(context.Context, faas.Name) error          { return nil }
func (nothing) Status(faas.Name) (s provider.Status, known bool) { return s, true }
func (nothing) Logs(context.Context, logs.Request) iter.Seq2[logs.Message, error] {
	return func(func(logs.Message, error) bool) {}
}

// BenchmarkApply is how long one function's declaration takes in the presence of
// others that sleep: that of waking one.
func BenchmarkApply(b *testing.B) {
	for _, others := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			authority, err := nodes.NewAuthority([]byte(strings.Repeat("s", 32)))
			if err != nil {
				b.Fatal(err)
			}
			n, err := nodes.New(b.Context(), nodes.Config{
				Authority: authority, Store: &memory{}, Logger: slog.New(slog.DiscardHandler),
				Functions: url.URL{Scheme: "http", Host: "0.0.0.0:8080"},
				Local:     nodes.Local{Name: "nuc", Machine: machine("linux/amd64"), Has: func(string) bool { return true }},
				Source: func(string, netip.AddrPort, func()) (nodes.Source, error) {
					return nil, faas.Errorf(faas.ErrUnavailable, "there are no others")
				},
			})
			if err != nil {
				b.Fatal(err)
			}
			n.Attach(nothing{})
			for i := range others {
				if err := n.Apply(b.Context(), providertest.Workload(fmt.Sprint("f", i), 1, 0)); err != nil {
					b.Fatal(err)
				}
			}
			for i := 0; b.Loop(); i++ {
				if err := n.Apply(b.Context(), providertest.Workload("f5", 1, i%2)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
