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
// collector of its own rather than a set of vectors, because of what it costs: a
// call takes no lock and allocates nothing; a function that is never called
// costs nothing, one that is, about 150 bytes for each status code it has
// answered with.
type metrics struct {
	cfg   Config
	epoch time.Time // what load counts time from

	total, seconds, started, inflight, wanted, ready *prometheus.Desc
	waiting, wakes                                   *prometheus.Desc

	held func(faas.Name) int // how many calls wait for a replica

	functions sync.Map // faas.Name -> *counts

	reading sync.Mutex // guards what counts says it guards, and below
	direct  map[directKey]directCalls
}

func newMetrics(cfg Config, held func(faas.Name) int) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"function_name"}, labels...), nil)
	}
	return &metrics{
		cfg:      cfg,
		epoch:    time.Now(),
		direct:   make(map[directKey]directCalls),
		total:    desc("gateway_function_invocation_total", "Calls of a function that were answered, by status code.", "code"),
		seconds:  desc("gateway_functions_seconds", "How long calls took, from their arrival to the end of the answer, waiting included.", "code"),
		started:  desc("gateway_function_invocation_started", "Calls of a function that arrived."),
		inflight: desc("gateway_function_invocation_inflight", "Calls of a function that are not yet answered."),
		wanted:   desc("gateway_service_count", "Replicas that are wanted."),
		ready:    desc("gateway_service_ready_count", "Replicas that take calls."),
		// OpenFaaS has none of these.
		waiting: desc("thicket_function_calls_waiting", "Calls of a function that wait until a replica is ready."),
		wakes:   desc("thicket_function_wakes_total", "How often a call has waked a function that slept."),
		held:    held,
	}
}

// counts are those of one function.
type counts struct {
	started atomic.Uint64
	wakes   atomic.Uint64

	// load is how many calls are in flight, and the integral of that number
	// over time, in one word, so that who reads it sees both at one moment.
	//
	// A call that begins at the time t adds 1 and takes t from the integral; when
	// it ends, at u, it takes 1 and adds u: what stays is u-t, the time for which
	// it counted. At any time t the integral so far is therefore what is stored
	// plus t for each call in flight. The averages that follow from it are exact:
	// no call is so short that it is missed.
	//
	// The low 20 bits are the number, which sockets and memory bound far below
	// 2^20. The high 44 are the integral in microseconds, which may overflow: only
	// its differences are used, from one look to the next.
	load atomic.Uint64

	// answered are the answers by status code. The slice is replaced under mu to
	// add one; most functions have one code or two, so looking through it takes
	// no longer than an index would.
	answered atomic.Pointer[[]*series]
	mu       sync.Mutex

	// What the last look found. metrics.reading guards it.
	seen uint64        // the integral
	busy time.Duration // its differences added up, and what direct callers told
}

const (
	countBits = 20
	countMask = 1<<countBits - 1
)

// series are the calls of one function that were answered with one code.
type series struct {
	code    int // below 10: all of its class
	nanos   atomic.Int64
	buckets [len(buckets) + 1]atomic.Uint64 // the last one is of what took longer
}

func (m *metrics) of(name faas.Name) *counts {
	v, ok := m.functions.Load(name)
	if !ok {
		v, _ = m.functions.LoadOrStore(name, &counts{})
	}
	return v.(*counts)
}

// since is a time as load counts it.
func (m *metrics) since(t time.Time) uint64 { return uint64(t.Sub(m.epoch).Microseconds()) }

// begin counts a call of a function that exists and arrived at start. Call end
// once when it is answered.
func (m *metrics) begin(name faas.Name, start time.Time) *counts {
	c := m.of(name)
	c.started.Add(1)
	c.load.Add(1 - m.since(start)<<countBits)
	return c
}

// end counts the answer to a call that arrived at start and took so long.
func (m *metrics) end(c *counts, code int, start time.Time, took time.Duration) {
	c.load.Add(m.since(start.Add(took))<<countBits - 1)
	c.answer(code).observe(took, 1)
}

// observe counts calls that took so long each.
func (s *series) observe(took time.Duration, calls uint64) {
	i := 0
	for i < len(buckets) && took.Seconds() > buckets[i] {
		i++
	}
	s.buckets[i].Add(calls)
	s.nanos.Add(int64(took) * int64(calls))
}

func (s *series) count() (n uint64) {
	for i := range s.buckets {
		n += s.buckets[i].Load()
	}
	return n
}

// all returns the series there are.
func (c *counts) all() []*series {
	if p := c.answered.Load(); p != nil {
		return *p
	}
	return nil
}

// answer returns the series of a code.
func (c *counts) answer(code int) *series {
	for _, s := range c.all() {
		if s.code == code {
			return s
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all()
	if len(all) >= maxCodes {
		code /= 100 // there may be up to ten of these besides
	}
	for _, s := range all {
		if s.code == code {
			return s
		}
	}
	s := &series{code: code}
	next := append(all[:len(all):len(all)], s)
	c.answered.Store(&next)
	return s
}

func (m *metrics) forget(name faas.Name) { m.functions.Delete(name) }

func (m *metrics) invocations(name faas.Name) (n float64) {
	v, ok := m.functions.Load(name)
	if !ok {
		return 0
	}
	for _, s := range v.(*counts).all() {
		n += float64(s.count())
	}
	return n
}

// each yields the load of every function that was called, as of now.
func (m *metrics) each(yield func(faas.Name, faas.Load)) {
	m.reading.Lock()
	defer m.reading.Unlock()
	waiting := m.directInFlight(time.Now())
	for k, v := range m.functions.Range {
		name, c := k.(faas.Name), v.(*counts)
		word := c.load.Load()
		n := word & countMask
		integral := word>>countBits + n*m.since(time.Now())
		// Both wrap around at 2^44. A call that ends between the two lines above
		// makes the difference a little too large, and the next one smaller,
		// negative even.
		c.busy += time.Duration(int64((integral-c.seen)<<countBits)>>countBits) * time.Microsecond
		c.seen = integral
		yield(name, faas.Load{InFlight: int64(n) + waiting[name], Started: c.started.Load(), Busy: max(0, c.busy)})
	}
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
	for _, d := range [...]*prometheus.Desc{m.total, m.seconds, m.started, m.inflight, m.wanted, m.ready, m.waiting, m.wakes} {
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
		value(m.inflight, prometheus.GaugeValue, float64(c.load.Load()&countMask), name)
		value(m.waiting, prometheus.GaugeValue, float64(m.held(k.(faas.Name))), name)
		value(m.wakes, prometheus.CounterValue, float64(c.wakes.Load()), name)
		for _, s := range c.all() {
			sofar, upto := uint64(0), make(map[float64]uint64, len(buckets))
			for i, bound := range buckets {
				sofar += s.buckets[i].Load()
				upto[bound] = sofar
			}
			count := sofar + s.buckets[len(buckets)].Load()
			value(m.total, prometheus.CounterValue, float64(count), name, label(s.code))
			ch <- prometheus.MustNewConstHistogram(m.seconds, count, time.Duration(s.nanos.Load()).Seconds(), upto, name, label(s.code))
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
