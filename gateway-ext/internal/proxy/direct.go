package proxy

import (
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Usage is what a client that calls replicas directly, past the gateway, tells of
// its calls to one function in a period.
type Usage struct {
	Started  uint64        // calls that began
	InFlight int64         // those that had not ended when the period did
	Busy     time.Duration // the sum over all calls of the time they were in flight within the period
	Ended    []Ended
}

// Ended is how many calls ended with one status, and how long they took together.
type Ended struct {
	Code  int
	Calls uint64
	Took  time.Duration
}

const (
	// directFor is how long what a client said is in flight counts when it says
	// nothing more. It says so once a second.
	directFor = 5 * time.Second

	// maxDirect is how many pairs of a client and a function are remembered, at
	// about 200 bytes each.
	maxDirect = 4096

	// Nobody has more than this in flight, or begins more in one period.
	maxUsage = 1 << 20
)

// directKey is who called whom.
type directKey struct {
	client string
	name   faas.Name
}

type directCalls struct {
	inFlight int64
	until    time.Time
}

// Direct counts calls that the gateway hasn't seen, because a client sent them
// straight to replicas: into the metrics, and into the function's load. What it
// says is in flight counts until it says something else, at most for five
// seconds. The histogram gets all calls of one status at the length that they
// had on average.
//
// The error is of package faas: the function isn't there, the numbers make no
// sense, or too many clients tell of their calls at the same time.
func (p *Proxy) Direct(client string, name faas.Name, u Usage) error {
	if _, _, ok := p.cfg.Known(name); !ok {
		return faas.Errorf(faas.ErrNotFound, "%w", p.unknown(name))
	}
	ended := uint64(0)
	for _, e := range u.Ended {
		if e.Code < 100 || e.Code > 599 || e.Calls > maxUsage || e.Took < 0 {
			return faas.Errorf(faas.ErrInvalid, "usage of %s: %d calls that ended with status %d within %v can't be", name, e.Calls, e.Code, e.Took)
		}
		ended += e.Calls
	}
	if client == "" || len(client) > 128 {
		return faas.Errorf(faas.ErrInvalid, "usage of %s: the client's name has %d bytes, write 1 to 128", name, len(client))
	}
	if u.InFlight < 0 || u.InFlight > maxUsage || u.Started > maxUsage || ended > maxUsage || u.Busy < 0 || u.Busy > maxUsage*time.Second {
		return faas.Errorf(faas.ErrInvalid, "usage of %s: %d calls begun, %d in flight, %d ended, %v busy: more than %d can't be", name, u.Started, u.InFlight, ended, u.Busy, maxUsage)
	}
	return p.metrics.told(directKey{client, name}, u, time.Now())
}

func (m *metrics) told(key directKey, u Usage, now time.Time) error {
	m.reading.Lock()
	defer m.reading.Unlock()
	if _, known := m.direct[key]; !known && len(m.direct) >= maxDirect && u.InFlight > 0 {
		m.directInFlight(now) // makes room
		if len(m.direct) >= maxDirect {
			return faas.Errorf(faas.ErrOverloaded, "more than %d clients tell of calls to functions: call through the gateway", maxDirect)
		}
	}
	if u.InFlight > 0 {
		m.direct[key] = directCalls{u.InFlight, now.Add(directFor)}
	} else {
		delete(m.direct, key)
	}
	c := m.of(key.name)
	c.started.Add(u.Started)
	c.busy += u.Busy
	for _, e := range u.Ended {
		if e.Calls > 0 {
			c.answer(e.Code).observe(e.Took/time.Duration(e.Calls), e.Calls)
		}
	}
	return nil
}

// directInFlight adds up what clients say is in flight, and forgets what they
// said too long ago. m.reading is held.
func (m *metrics) directInFlight(now time.Time) map[faas.Name]int64 {
	if len(m.direct) == 0 {
		return nil
	}
	sum := make(map[faas.Name]int64)
	for key, d := range m.direct {
		if now.After(d.until) {
			delete(m.direct, key)
			continue
		}
		sum[key.name] += d.inFlight
	}
	return sum
}
