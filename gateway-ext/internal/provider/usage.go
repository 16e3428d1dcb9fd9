package provider

import (
	"sync"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// usageEvery is how often a function is measured at most: CPU is a difference
// over time, which says nothing if the time is short.
const usageEvery = time.Second

// usage measures what a function's replicas use.
type usage struct {
	mu   sync.Mutex // guards below
	at   time.Time
	cpu  map[string]time.Duration // by replica, since each was started
	last *types.FunctionUsage
	used []Used // never changed, but replaced
}

// sample is what one replica uses at a moment.
type sample struct {
	cpu    time.Duration // since it was started
	memory int64         // bytes
}

// measure returns what the processes use together, and each; nil if nothing is
// known.
func (u *usage) measure(running map[string]*process, m *machine) (*types.FunctionUsage, []Used) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	elapsed := now.Sub(u.at)
	if elapsed < usageEvery {
		return u.last, u.used
	}
	cpu := make(map[string]time.Duration, len(running))
	var total types.FunctionUsage
	var used []Used
	known := false
	for id, proc := range running {
		s, ok := m.measure(proc)
		if !ok {
			continue
		}
		known = true
		cpu[id] = s.cpu
		used = append(used, Used{Replica: id, CPU: s.cpu, Memory: s.memory})
		total.TotalMemoryBytes += float64(s.memory)
		// A replica that is new has used all it has since it was started.
		total.CPU += 1000 * max(0, s.cpu-u.cpu[id]).Seconds() / min(elapsed, now.Sub(proc.started)).Seconds()
	}
	u.at, u.cpu, u.last, u.used = now, cpu, nil, used
	if known {
		u.last = &total
	}
	return u.last, u.used
}
