package fleet_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// maxPerFunction is what a function at 0 replicas may take in memory, as far as
// it is the fleet's and the store's: half of the platform's 8 KB, so that the
// provider, the proxy and the metrics have as much. The provider here keeps a
// copy of each workload, which is counted.
const maxPerFunction = 4 << 10

// usual is a function as people declare them.
func usual(i int) types.FunctionDeployment {
	return types.FunctionDeployment{
		Service: fmt.Sprintf("function-%04d", i),
		Image:   fmt.Sprintf("registry.lab.example:5000/team/function-%04d:1.4.2@%s", i, digest("c")),
		EnvVars: map[string]string{"read_timeout": "30s", "write_timeout": "30s", "exec_timeout": "30s", "upstream": "http://10.0.0.7:9000"},
		Labels: &map[string]string{
			faas.LabelScaleMin: "0", faas.LabelScaleMax: "10", faas.LabelScaleZero: "true", "team": "lab",
		},
		Annotations: &map[string]string{"com.openfaas.git-repo-url": "https://git.lab.example/team/functions", "topic": "readings"},
		Limits:      &types.FunctionResources{Memory: "64Mi", CPU: "250m"},
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers let go
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestThousandFunctionsAsleep measures with the real store, since it keeps
// something for each key as well.
func TestThousandFunctionsAsleep(t *testing.T) {
	const functions = 1000
	dir := t.TempDir()
	f, s, err := openState(t, dir, discard)
	must(t, err)
	for i := range functions {
		must(t, f.Deploy(t.Context(), usual(i)))
	}
	must(t, s.Close())

	s, err = state.Open(t.Context(), state.Config{Dir: dir, Logger: discard})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	key, err := s.Key("secrets")
	must(t, err)
	before := heap()
	b, err := s.Bucket(t.Context(), "fleet")
	must(t, err)
	began := time.Now()
	nodes := newNodes()
	f, err = fleet.New(t.Context(), fleet.Config{Store: b, Provider: nodes, Images: newRegistry(), Key: key, Logger: discard})
	must(t, err)
	stop := runFleet(t, f)
	for nodes.tellings() < functions {
		time.Sleep(time.Millisecond)
	}
	told := time.Since(began)
	each := (heap() - before) / functions
	began = time.Now()
	list := f.Functions("")
	listed := time.Since(began)
	if len(list) != functions {
		t.Fatalf("%d functions are listed, want %d", len(list), functions)
	}
	t.Logf("%d functions asleep: %d bytes of memory each, %v from the start until the provider knows all, listed in %v", functions, each, told, listed)
	if each > maxPerFunction {
		t.Errorf("a function takes %d bytes of memory, want at most %d", each, maxPerFunction)
	}
	stop()
	runtime.KeepAlive(f)
}

// runFleet runs a fleet until what it returns is called, or the test ends.
func runFleet(t *testing.T, f *fleet.Fleet) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); run.Wait() })
	t.Cleanup(stop)
	return stop
}

func BenchmarkList(b *testing.B) {
	for _, functions := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			f, err := fleet.New(b.Context(), fleet.Config{Store: newStore(), Provider: newNodes(), Images: newRegistry(), Key: testKey, Logger: discard})
			if err != nil {
				b.Fatal(err)
			}
			for i := range functions {
				if err := f.Deploy(b.Context(), usual(i)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if got := len(f.Functions("")); got != functions {
					b.Fatalf("%d functions, want %d", got, functions)
				}
			}
		})
	}
}
