package openfaas_test

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

func TestMain(m *testing.M) { os.Exit(providertest.Run(m)) }

func named(s string) faas.Name { return faas.Name{Function: s, Namespace: faas.DefaultNamespace} }

// client is the gateway's end of a line to a provider.
type client struct {
	*openfaas.Client
	beats chan remote.Machine
	lost  chan error
	stop  func()
}

// latest puts v into a channel of one, in the place of what is there.
func latest[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

func connect(t *testing.T, url string, observer provider.Observer, change ...func(*openfaas.Config)) *client {
	t.Helper()
	c := &client{beats: make(chan remote.Machine, 1), lost: make(chan error, 1)}
	cfg := openfaas.Config{
		Node: "nuc", Zone: "shelf-1", Fleet: "us", Every: 40 * time.Millisecond, Grace: 10 * time.Second,
		Endpoint: openfaas.Endpoint{URL: url, User: providertest.StandInUser, Password: providertest.StandInPassword},
		Observer: observer, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Beat: func(m remote.Machine) { latest(c.beats, m) },
		Lost: func(err error) { latest(c.lost, err) },
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if c.Client, err = openfaas.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(c.stop)
	return c
}

// TestContract holds the client to the contract, over what stands in for a faasd
// and for a faas-netes.
func TestContract(t *testing.T) {
	for _, c := range []struct {
		name   string
		quirks providertest.Quirks
		traits providertest.Traits
	}{
		{"faasd", providertest.Faasd(), providertest.Traits{MaxReplicas: 1, Interrupts: true, Opaque: true}},
		{"faas-netes", providertest.Netes(), providertest.Traits{MaxReplicas: 5, MaxFunctions: 15, Opaque: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			providertest.TestWith(t, c.traits, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
				c := connect(t, providertest.NewStandIn(t, c.quirks, images).URL, observer)
				<-c.beats
				return c
			})
		})
	}
}
