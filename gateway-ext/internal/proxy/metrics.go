package proxy

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// buckets are the upper bounds of gateway_functions_seconds: those that
// OpenFaaS's dashboards were made for, the client library's defaults.
var buckets = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// maxCodes is how many different status codes are counted one by one for each
// function; a function that invents more has the rest counted by their class,
// as "4xx".
const maxCodes = 24

// metrics counts calls under the names that OpenFaaS publishes. It is a
// collector of its own rather than a set of vectors, because of what it costs:
// a function that is never called costs nothing, one that is, about 150 bytes
// for each status code it has answered with.
type metrics struct {
	cfg Config

	total, seconds, started, inflight, wanted, ready *prometheus.Desc

	functions sync.Map // faas.Name -> *counts
}

func newMetrics(cfg Config) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"function_name"}, labels...), nil)
	}
	return &metrics{
		cfg:      cfg,
		total:    desc("gateway_function_invocation_total", "Calls of a function that were answered, by status code.", "code"),
		seconds:  desc("gateway_functions_seconds", "How long calls took, from their arrival to the end of the answer, waiting included.", "code"),
		started:  desc("gateway_function_invocation_started", "Calls of a function that arrived."),
		inflight: desc("gateway_function_invocation_inflight", "Calls of a function that are not yet answered."),
		wanted:   desc("gateway_service_count", "Replicas that are wanted."),
		ready:    desc("gateway_service_ready_count", "Replicas that take calls."),
	}
}

// counts are those of one function.
type counts struct {
	started, inflight atomic.Int64

	mu    sync.Mutex // guards below
	codes map[int]*series
}

// series are the calls of one function that were answered with one code.
type series struct {
	count   uint64
	sum     float64 // seconds
	buckets [len(buckets)]uint64
}

// begin counts a call of a function that exists. Call end once when it is answered.
func (m *metrics) begin(name faas.Name) *counts {
	v, ok := m.functions.Load(name)
	if !ok {
		v, _ = m.functions.LoadOrStore(name, &counts{codes: make(map[int]*series)})
	}
	c := v.(*counts)
	c.started.Add(1)
	c.inflight.Add(1)
	return c
}

func (c *counts) end(code int, took time.Duration) {
	c.inflight.Add(-1)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.codes[code]
	if s == nil {
		if len(c.codes) >= maxCodes {
			code /= 100
			s = c.codes[code]
		}
		if s == nil {
			s = &series{}
			c.codes[code] = s
		}
	}
	s.count++
	s.sum += took.Seconds()
	for i, bound := range buckets {
		if took.Seconds() <= bound {
			s.buckets[i]++
			break
		}
	}
}

// snapshot copies the series, so that calls need not wait for a scrape.
func (c *counts) snapshot() map[int]series {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[int]series, len(c.codes))
	for code, s := range c.codes {
		all[code] = *s
	}
	return all
}

func (m *metrics) forget(name faas.Name) { m.functions.Delete(name) }

func (m *metrics) invocations(name faas.Name) (n float64) {
	v, ok := m.functions.Load(name)
	if !ok {
		return 0
	}
	c := v.(*counts)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.codes {
		n += float64(s.count)
	}
	return n
}

// label is the code as the label says it. Codes below 10 are classes.
func label(code int) string {
	if code < 10 {
		return strconv.Itoa(code) + "xx"
	}
	return strconv.Itoa(code)
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range [...]*prometheus.Desc{m.total, m.seconds, m.started, m.inflight, m.wanted, m.ready} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	value := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	for k, v := range m.functions.Range {
		if _, _, ok := m.cfg.Known(k.(faas.Name)); !ok {
			m.functions.Delete(k) // a call that came just as the function went
			continue
		}
		name, c := k.(faas.Name).String(), v.(*counts)
		value(m.started, prometheus.CounterValue, float64(c.started.Load()), name)
		value(m.inflight, prometheus.GaugeValue, float64(c.inflight.Load()), name)
		for code, s := range c.snapshot() {
			sofar, upto := uint64(0), make(map[float64]uint64, len(buckets))
			for i, bound := range buckets {
				sofar += s.buckets[i]
				upto[bound] = sofar
			}
			value(m.total, prometheus.CounterValue, float64(s.count), name, label(code))
			ch <- prometheus.MustNewConstHistogram(m.seconds, s.count, s.sum, upto, name, label(code))
		}
	}
	if m.cfg.Names == nil {
		return
	}
	for _, name := range m.cfg.Names() {
		wanted, _, ok := m.cfg.Known(name)
		if !ok {
			continue
		}
		value(m.wanted, prometheus.GaugeValue, float64(wanted), name.String())
		value(m.ready, prometheus.GaugeValue, float64(len(m.cfg.Table.Route(name).Endpoints)), name.String())
	}
}
