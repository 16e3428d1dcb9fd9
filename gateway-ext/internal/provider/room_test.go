package provider_test

import (
	"runtime"
	"testing"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

func TestNeeds(t *testing.T) {
	r := func(memory, cpu string) *types.FunctionResources {
		return &types.FunctionResources{Memory: memory, CPU: cpu}
	}
	for _, tt := range []struct {
		name             string
		limits, requests *types.FunctionResources
		memory, cpu      int64
	}{
		{"nothing said", nil, nil, 0, 0},
		{"a limit of memory is what it may take", r("64Mi", "500m"), nil, 64 << 20, 0},
		{"a request is nearer to the truth", r("64Mi", "500m"), r("16Mi", "100m"), 16 << 20, 100},
		{"CPU alone", r("64Mi", ""), r("", "1"), 64 << 20, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &faas.Function{FunctionDeployment: types.FunctionDeployment{Limits: tt.limits, Requests: tt.requests}}
			if memory, cpu := provider.Needs(f); memory != tt.memory || cpu != tt.cpu {
				t.Errorf("Needs() = %d, %d, want %d, %d", memory, cpu, tt.memory, tt.cpu)
			}
		})
	}
}

// TestRoom reserves CPU for replicas, and memory for as long as they start.
func TestRoom(t *testing.T) {
	table := providertest.NewTable(t)
	images := providertest.NewImages(t, providertest.Program(t))
	p := start(t, provider.ProcessConfig{Images: images, Observer: table})
	before := p.Room()
	if before.Node != "here" || before.CPU != 1000*int64(runtime.NumCPU()) || runtime.GOOS == "linux" && before.Memory <= 0 {
		t.Fatalf("Room() = %+v", before)
	}
	w := providertest.Workload("reserving", 1, 2)
	w.Function.Requests = &types.FunctionResources{CPU: "100m", Memory: "1Ei"}
	if err := p.Apply(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	table.AwaitReady(t, w.Function.Name(), 1, 2)
	if got := p.Room(); got.CPU != before.CPU-200 {
		t.Errorf("Room() = %+v with two replicas of 100m, before it was %+v", got, before)
	}
	if got := p.Room(); runtime.GOOS == "linux" && got.Memory == 0 {
		t.Errorf("Room() = %+v: what is ready holds its memory, and is not to be counted twice", got)
	}
}
