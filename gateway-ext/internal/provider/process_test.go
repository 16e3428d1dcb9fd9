package provider_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// open returns a running provider and what stops it.
func open(t *testing.T, cfg provider.ProcessConfig) *provider.Process {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Node = "here"
	cfg.GatewayURL = "http://127.0.0.1:8080"
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, err := provider.NewProcess(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run() = %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run doesn't end")
		}
	})
	return p
}

func TestContract(t *testing.T) {
	providertest.Test(t, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
		return open(t, provider.ProcessConfig{Images: images, Observer: observer})
	})
}
