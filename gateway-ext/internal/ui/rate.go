package ui

import (
	"strconv"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// load is what a function is asked for, as the page shows it.
type load struct {
	inFlight int64
	rate     string // calls in a second; empty if unknown
}

const (
	// shortest is the least time that a rate is measured over, so that two who
	// look at the page at once see the same.
	shortest = 2 * time.Second

	// longest is how old a look at the counters may be for that. The page asks
	// every three seconds while somebody sees it.
	longest = 30 * time.Second
)

// rates makes rates of counters: over the time since the page was looked at
// before. Its zero value is ready.
type rates struct {
	mu     sync.Mutex // guards below
	at     time.Time  // when started was read
	counts map[faas.Name]uint64
	rates  map[faas.Name]float64
}

// now returns what each function is asked for now.
func (r *rates) now(read func(yield func(faas.Name, faas.Load)), now time.Time) map[faas.Name]load {
	loads := make(map[faas.Name]load)
	if read == nil {
		return loads
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	over := now.Sub(r.at)
	anew := over >= shortest
	var counts map[faas.Name]uint64
	var fresh map[faas.Name]float64
	if anew {
		counts, fresh = make(map[faas.Name]uint64), make(map[faas.Name]float64)
	}
	read(func(name faas.Name, l faas.Load) {
		loads[name] = load{inFlight: l.InFlight}
		if !anew {
			return
		}
		counts[name] = l.Started
		if before, ok := r.counts[name]; ok && over <= longest && l.Started >= before {
			fresh[name] = float64(l.Started-before) / over.Seconds()
		}
	})
	if anew {
		r.at, r.counts, r.rates = now, counts, fresh
	}
	for name, l := range loads {
		if rate, ok := r.rates[name]; ok {
			l.rate = perSecond(rate)
			loads[name] = l
		}
	}
	return loads
}

// perSecond writes a rate with as many digits as say something.
func perSecond(f float64) string {
	if f > 0 && f < 10 {
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return grouped(f)
}
