package stale

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the cache does. Its labels are words of this package, so
// that nobody's requests make them grow.
type metrics struct {
	c        *Cache
	requests [Passed + 2]atomic.Int64 // by Source; the last are errors
	dropped  atomic.Int64
	corrupt  atomic.Int64
	faults   [faultKinds]atomic.Int64

	requestsDesc, droppedDesc, corruptDesc, faultsDesc, bytesDesc, upDesc *prometheus.Desc
}

func newMetrics(c *Cache) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("thicket_cache_"+name, help, labels, nil)
	}
	return &metrics{
		c:            c,
		requestsDesc: desc("requests_total", "Calls of the cache, by where their answer was from.", "result"),
		droppedDesc:  desc("dropped_writes_total", "Writes to the Redis that were dropped because they queued up, or because it takes none."),
		corruptDesc:  desc("corrupt_total", "Values from the Redis that were broken or of another version, and so misses."),
		faultsDesc:   desc("redis_faults_total", "Failed commands of the Redis, by what was wrong.", "kind"),
		bytesDesc:    desc("memory_bytes", "What the answers kept in process weigh."),
		upDesc:       desc("redis_up", "1 if the Redis is used, 0 if it is given time to recover."),
	}
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n *atomic.Int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n.Load()), labels...)
	}
	for s := Miss; s <= Passed; s++ {
		counter(m.requestsDesc, &m.requests[s], s.String())
	}
	counter(m.requestsDesc, &m.requests[Passed+1], "error")
	ch <- prometheus.MustNewConstMetric(m.bytesDesc, prometheus.GaugeValue, float64(m.c.memory.cache.WeightedSize()))
	if m.c.shared == nil {
		return
	}
	counter(m.droppedDesc, &m.dropped)
	counter(m.corruptDesc, &m.corrupt)
	for k := range faultKinds {
		counter(m.faultsDesc, &m.faults[k], k.String())
	}
	up := 0.0
	if m.c.shared.breaker.closed() {
		up = 1
	}
	ch <- prometheus.MustNewConstMetric(m.upDesc, prometheus.GaugeValue, up)
}

// count counts a call.
func (m *metrics) count(r Result, err error) {
	if err != nil {
		m.requests[Passed+1].Add(1)
		return
	}
	m.requests[r.Source].Add(1)
}
