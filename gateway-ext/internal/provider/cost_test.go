package provider_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// TestManyAsleep holds a thousand functions that sleep to costing next to nothing.
func TestManyAsleep(t *testing.T) {
	const functions = 1000
	b := newBench(t, provider.ProcessConfig{})
	before, goroutines := memory(), runtime.NumGoroutine()
	for i := range functions {
		b.apply(providertest.Workload(fmt.Sprint("asleep", i), 1, 0))
	}
	providertest.Await(t, "all images are here", func() bool { return b.images.Held() == functions })
	providertest.Await(t, "nothing goes on", func() bool { return runtime.NumGoroutine() <= goroutines })
	each := (memory() - before) / functions
	t.Logf("%d functions with 0 replicas: %d bytes each, declaration included", functions, each)
	if each > 4<<10 {
		t.Errorf("a function that sleeps costs %d bytes, want at most 4096", each)
	}
	name := b.apply(providertest.Workload("asleep7", 1, 1))
	b.table.AwaitReady(t, name, 1, 1)
}

func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkFirstAnswer measures from the order to start a replica of an image that
// is on disk to its first answer.
func BenchmarkFirstAnswer(b *testing.B) {
	bench := newBench(b, provider.ProcessConfig{})
	var times []time.Duration
	revision := uint64(0)
	for b.Loop() {
		b.StopTimer()
		revision++
		name := bench.apply(providertest.Workload("quick", revision, 0))
		bench.table.AwaitReady(b, name, revision, 0)
		b.StartTimer()
		began := time.Now()
		bench.apply(providertest.Workload("quick", revision, 1))
		bench.table.AwaitReady(b, name, revision, 1)
		bench.table.Get(b, name, "/")
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, "ms-worst")
}
