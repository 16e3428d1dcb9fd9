package resilience

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/slok/goresilience/metrics"
)

// EventKind is what happened.
type EventKind uint8

// What is counted, and all but Success told as an event: good calls are many,
// and would push out what people look for.
const (
	Success         EventKind = iota // an attempt was answered
	Failure                          // an attempt failed
	TimeOut                          // an attempt took longer than allowed
	CallerHurried                    // the caller's own deadline came first
	CallerLeft                       // the caller went away
	Throttling                       // the target asked to be left alone
	ShortCircuit                     // the breaker refused a call
	BulkheadFull                     // the bulkhead refused a call
	Panic                            // a call panicked
	Retrying                         // another attempt is made
	BudgetSpent                      // another attempt would have been made
	FallbackServed                   // a fallback answered
	FallbackFailed                   // a fallback had nothing
	BreakerOpened                    // a breaker went to open
	BreakerHalfOpen                  // a breaker went to half-open
	BreakerClosed                    // a breaker went back to closed
	BreakerForced                    // somebody changed a breaker's mode
	eventKinds      = iota
)

var eventNames = [eventKinds]string{
	"success", "failure", "timeout", "caller_hurried", "caller_left", "throttling", "short_circuit", "bulkhead_full", "panic",
	"retry", "budget_spent", "fallback_served", "fallback_failed",
	"breaker_opened", "breaker_half_open", "breaker_closed", "breaker_forced",
}

// String returns the kind as metrics have it.
func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// MarshalText writes the kind as metrics have it.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Event is one thing that happened.
type Event struct {
	Seq     uint64    `json:"seq"` // grows by one with each event
	Time    time.Time `json:"time"`
	Kind    EventKind `json:"kind"`
	Target  string    `json:"target"`
	Replica string    `json:"replica,omitempty"`
}

// maxTargets bounds the targets that a monitor knows one by one. What is beyond
// is counted together, as "other".
const maxTargets = 4096

// Monitor counts what chains do, and remembers the latest of it. It is a
// [prometheus.Collector]; its labels are the names of targets, which whoever
// makes a [Meter] has to bound by what is deployed, and short lists.
//
// It is safe for concurrent use.
type Monitor struct {
	recorder metrics.Recorder

	mu     sync.Mutex // guards below
	meters map[string]*Meter
	ring   []Event // the newest at next-1, modulo its length
	next   uint64  // the Seq of the next event
}

// NewMonitor returns a monitor that remembers that many events: 1,024 take about
// 100 KB. The recorder, one of goresilience's, is told the same; nil is none.
func NewMonitor(size int, recorder metrics.Recorder) *Monitor {
	return &Monitor{recorder: recorder, meters: make(map[string]*Meter), ring: make([]Event, max(size, 1)), next: 1}
}

// Meter counts for one target. It is made by [Monitor.Meter]; a nil one counts
// nothing.
type Meter struct {
	monitor  *Monitor
	target   string
	recorder metrics.Recorder // nil for none

	success  atomic.Uint64
	counts   [eventKinds]uint64    // guarded by monitor.mu
	breakers map[*Breaker]struct{} // guarded by monitor.mu
}

// Meter returns the target's meter, the same each time.
func (m *Monitor) Meter(target string) *Meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.meters[target]
	if t == nil && len(m.meters) >= maxTargets {
		target = "other"
		t = m.meters[target]
	}
	if t == nil {
		t = &Meter{monitor: m, target: target, breakers: make(map[*Breaker]struct{})}
		if m.recorder != nil {
			t.recorder = m.recorder.WithID(target)
		}
		m.meters[target] = t
	}
	return t
}

// Forget drops the counters of a target that is no more. What its meter still
// counts is told as events only.
func (m *Monitor) Forget(target string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.meters, target)
}

// Events returns the events after the one with that Seq, the oldest first; after
// 0 all that are remembered. If the first isn't the next, what lies between is
// forgotten.
func (m *Monitor) Events(after uint64) []Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := uint64(len(m.ring))
	first := max(after+1, 1)
	if m.next > size {
		first = max(first, m.next-size)
	}
	var events []Event
	for seq := first; seq < m.next; seq++ {
		events = append(events, m.ring[seq%size])
	}
	return events
}

// Counts returns how often what happened.
func (t *Meter) Counts() map[EventKind]uint64 {
	if t == nil {
		return nil
	}
	t.monitor.mu.Lock()
	defer t.monitor.mu.Unlock()
	counts := make(map[EventKind]uint64)
	for k, n := range t.all() {
		if n > 0 {
			counts[EventKind(k)] = n
		}
	}
	return counts
}

// all is called with mu held.
func (t *Meter) all() [eventKinds]uint64 {
	counts := t.counts
	counts[Success] = t.success.Load()
	return counts
}

// Add counts one thing that happened, to a replica if it has a name.
func (t *Meter) Add(k EventKind, replica string) {
	switch {
	case t == nil || int(k) >= eventKinds:
		return
	case k == Success:
		t.success.Add(1)
		return
	}
	t.record(k)
	m := t.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	t.counts[k]++
	m.ring[m.next%uint64(len(m.ring))] = Event{Seq: m.next, Time: time.Now(), Kind: k, Target: t.target, Replica: replica}
	m.next++
}

// record tells goresilience's recorder.
func (t *Meter) record(k EventKind) {
	if t.recorder == nil {
		return
	}
	switch k {
	case TimeOut:
		t.recorder.IncTimeout()
	case Retrying:
		t.recorder.IncRetry()
	case BulkheadFull:
		t.recorder.IncBulkheadTimeout()
	case BreakerOpened:
		t.recorder.IncCircuitbreakerState("open")
	case BreakerHalfOpen:
		t.recorder.IncCircuitbreakerState("halfopen")
	case BreakerClosed:
		t.recorder.IncCircuitbreakerState("closed")
	}
}

// changed is called by a breaker with its lock held; so a breaker is never asked
// for anything while a monitor's lock is held.
func (t *Meter) changed(replica string, s State) {
	switch s {
	case StateOpen:
		t.Add(BreakerOpened, replica)
	case StateHalfOpen:
		t.Add(BreakerHalfOpen, replica)
	case StateClosed:
		t.Add(BreakerClosed, replica)
	}
}

func (t *Meter) watch(b *Breaker) {
	if t == nil {
		return
	}
	t.monitor.mu.Lock()
	defer t.monitor.mu.Unlock()
	t.breakers[b] = struct{}{}
}

func (t *Meter) unwatch(b *Breaker) {
	if t == nil {
		return
	}
	t.monitor.mu.Lock()
	defer t.monitor.mu.Unlock()
	delete(t.breakers, b)
}

var (
	descEvents = prometheus.NewDesc("thicket_resilience_events_total",
		"What happened to calls and breakers.", []string{"target", "event"}, nil)
	descBreakers = prometheus.NewDesc("thicket_resilience_breakers",
		"Breakers by their state: one of each replica.", []string{"target", "state"}, nil)
	descDropped = prometheus.NewDesc("thicket_resilience_events_dropped_total",
		"Events that are no longer remembered; they are counted nonetheless.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (m *Monitor) Describe(ch chan<- *prometheus.Desc) {
	ch <- descEvents
	ch <- descBreakers
	ch <- descDropped
}

// Collect implements [prometheus.Collector].
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	type target struct {
		name     string
		counts   [eventKinds]uint64
		breakers []*Breaker
	}
	m.mu.Lock()
	targets := make([]target, 0, len(m.meters))
	for name, t := range m.meters {
		c := target{name: name, counts: t.all()}
		for b := range t.breakers {
			c.breakers = append(c.breakers, b)
		}
		targets = append(targets, c)
	}
	dropped := max(m.next-1, uint64(len(m.ring))) - uint64(len(m.ring))
	m.mu.Unlock()

	ch <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(dropped))
	now := time.Now()
	for _, t := range targets {
		for k, n := range t.counts {
			if n == 0 {
				continue // of a thousand targets, most kinds never happen to most
			}
			ch <- prometheus.MustNewConstMetric(descEvents, prometheus.CounterValue, float64(n), t.name, EventKind(k).String())
		}
		var states [len(stateNames)]int
		for _, b := range t.breakers {
			states[b.Snapshot(now).State]++
		}
		for s, n := range states {
			ch <- prometheus.MustNewConstMetric(descBreakers, prometheus.GaugeValue, float64(n), t.name, State(s).String())
		}
	}
}
