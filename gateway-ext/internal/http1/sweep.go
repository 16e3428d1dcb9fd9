package http1

import (
	"net/http"
	"os"
	"time"
)

// A connection has neither timers nor deadlines of its own: setting one for each
// phase of each request costs more than parsing it. It says what it waits for in
// an atomic word, which changes with each wait, and one goroutine looks at the
// words of all connections, now and then. Who is seen with the same word for too
// long is interrupted, by a deadline in the past.

const (
	// sweepInterval is how exact all times are. It is also how long a request
	// goes on before somebody watches whether its client is still there.
	sweepInterval = 25 * time.Millisecond

	// sleepInterval is how exact times are while all connections are asleep, so
	// that a machine on which nothing happens is left in peace.
	sleepInterval = time.Second

	// idleBuffers is how long an idle connection keeps its buffers.
	idleBuffers = time.Second

	// lingerTime is how long a client that still sends gets to read its answer,
	// before the connection is cut.
	lingerTime = 2 * time.Second

	// minProgress is how many bytes of a body must come within
	// [Server.BodyTimeout], and of an answer be taken within
	// [Server.WriteTimeout], for the client not to count as stalled.
	minProgress = 1 << 10

	// chunksPatience is how many times longer a body in chunks may pause.
	chunksPatience = 12
)

// A wait is what a connection's reading side does, in its lowest bits, below a
// number that makes it unlike those before.
type wait = uint32

const (
	waitBusy     wait = iota // nothing: the handler runs, and the body has come
	waitBodyLeft             // nothing: the handler runs, and there is more of the body
	waitWatch                // as waitBusy, with a goroutine that sees the client leave
	waitFresh                // for the first byte of a connection
	waitIdle                 // for the first byte of another request
	waitAsleep               // for that, without buffers
	waitHead                 // for the rest of a head
	waitBody                 // for bytes of a body, which has a length
	waitChunks               // for bytes of a body in chunks
	waitLinger               // for the client to go

	waitKind   wait = 1<<4 - 1
	waitKicked wait = 1 << 4 // it was interrupted
	waitNext   wait = 1 << 5
)

// sweep looks at all connections until there are none.
func (s *Server) sweep() {
	timer := time.NewTimer(sweepInterval)
	defer timer.Stop()
	var stalled []*conn
	last := time.Now()
	for {
		select {
		case <-timer.C:
		case <-s.awake:
		}
		now := time.Now()
		// A machine that was asleep, or is very busy, is nobody's fault.
		passed := min(now.Sub(last), 10*sweepInterval)
		last = now
		s.mu.Lock()
		if len(s.conns) == 0 {
			s.sweeping = false
			s.notify()
			s.mu.Unlock()
			return
		}
		s.refreshDate(now)
		s.dozing.Store(true) // before looking: who ceases to sleep meanwhile wakes us
		interval := sleepInterval
		for _, c := range s.conns {
			s.lookAtReading(c, now, passed)
			if s.lookAtWriting(c, now) {
				stalled = append(stalled, c)
			}
			if c.seen.wait&waitKind != waitAsleep || !c.seen.drained {
				interval = sweepInterval
			}
		}
		if s.closing.Load() {
			interval = sweepInterval
		}
		s.dozing.Store(interval == sleepInterval)
		timer.Reset(interval)
		s.mu.Unlock()
		for _, c := range stalled {
			c.cancel(ErrClientStalled)
			c.abort()
		}
		clear(stalled)
		stalled = stalled[:0]
	}
}

// wake has the sweeper look at once if all have slept until now.
func (s *Server) wake() {
	if !s.dozing.Load() {
		return
	}
	select {
	case s.awake <- struct{}{}:
	default:
	}
}

// sweeper is what the goroutine that sweeps remembers of a connection.
type sweeper struct {
	wait   wait
	since  time.Time // it is seen
	waited time.Duration
	bytes  uint64 // of the body, when waited was zero

	write   uint32    // the number of the write that is under way
	stuck   time.Time // since then the client takes too little
	looked  bool      // at what it acknowledges
	acked   uint64    // then
	drained bool      // nothing is unsent of an idle connection
}

func (s *Server) lookAtReading(c *conn, now time.Time, passed time.Duration) {
	w := c.waits.Load()
	seen := &c.seen
	if w != seen.wait {
		if seen.wait&waitKind != waitFresh || w&waitKind != waitHead { // a first head counts from the start
			seen.since = now
		}
		seen.wait = w
	}
	if w&waitKicked != 0 {
		return
	}
	age := now.Sub(seen.since)
	switch kind := w & waitKind; kind {
	case waitBusy:
		seen.waited = 0
		if age >= sweepInterval {
			c.startWatch(w)
		}
	case waitIdle, waitAsleep:
		closing := s.closing.Load() && min(age, now.Sub(s.closingAt)) >= s.grace()
		switch {
		case closing || age >= s.idleTimeout():
			c.kick(w, errIdle)
		case kind == waitIdle && age >= idleBuffers:
			c.kick(w, errAsleep)
		}
	case waitFresh, waitHead:
		seen.waited = 0
		switch {
		case age >= s.headTimeout():
			c.kick(w, errHeadStalled)
		case kind == waitFresh && s.closing.Load() && min(age, now.Sub(s.closingAt)) >= s.grace():
			c.kick(w, errIdle)
		}
	case waitBody, waitChunks:
		limit := s.bodyTimeout()
		if kind == waitChunks {
			if limit *= chunksPatience; c.begun.Load() {
				break
			}
		}
		if n := c.bodyBytes.Load(); n-seen.bytes >= minProgress {
			seen.bytes, seen.waited = n, 0
		}
		if seen.waited += passed; seen.waited >= limit {
			c.kick(w, ErrBodyStalled)
		}
	case waitLinger:
		if age >= lingerTime {
			c.kick(w, errIdle)
		}
	}
}

// lookAtWriting says whether the client takes nothing of an answer for too long.
func (s *Server) lookAtWriting(c *conn, now time.Time) bool {
	w := c.writes.Load()
	seen := &c.seen
	kind := seen.wait & waitKind
	idle := w&1 == 0
	switch {
	case w != seen.write:
		seen.write, seen.stuck, seen.looked, seen.drained = w, now, false, false
		return false
	case idle && (seen.drained || kind != waitIdle && kind != waitAsleep && kind != waitLinger):
		seen.stuck = now
		return false
	case !seen.looked && now.Sub(seen.stuck) < s.writeTimeout()/8:
		return false // mostly it's over by now
	}
	// The kernel takes megabytes, and tells of room only once there is much:
	// whether a client takes anything is seen in what it acknowledges alone.
	unsent, acked, ok := sending(c.nc)
	switch {
	case idle && (!ok || unsent == 0):
		seen.drained = true
	case ok && unsent == 0: // it waits for what is copied
		seen.stuck = now
	case ok && !seen.looked:
		seen.looked, seen.acked = true, acked
	case ok && acked-seen.acked >= minProgress:
		seen.stuck, seen.acked = now, acked
	default:
		return now.Sub(seen.stuck) >= s.writeTimeout()
	}
	return false
}

// evict ends the connection that has been idle longest.
func (s *Server) evict() {
	var longest *conn
	for _, c := range s.conns {
		if k := c.seen.wait & waitKind; (k == waitIdle || k == waitAsleep) && c.seen.wait&waitKicked == 0 &&
			(longest == nil || c.seen.since.Before(longest.seen.since)) {
			longest = c
		}
	}
	if longest != nil {
		longest.kick(longest.seen.wait, errIdle)
	}
}

// refreshDate makes the Date field of this second.
func (s *Server) refreshDate(now time.Time) {
	if second := now.Unix(); second != s.second || s.date.Load() == nil {
		s.second = second
	} else {
		return
	}
	text := now.UTC().AppendFormat(append(make([]byte, 0, 40), "Date: "...), http.TimeFormat)
	text = append(text, '\r', '\n')
	s.date.Store(&text)
}

// enter says what the reading side does from now on, and undoes an interruption
// of what it did before.
func (c *conn) enter(kind wait) {
	c.kind = kind
	c.number += waitNext
	old := c.waits.Swap(c.number | kind)
	switch {
	case old&waitKicked != 0:
		c.mu.Lock() // by now the deadline has been set
		_ = c.nc.SetReadDeadline(time.Time{})
		c.mu.Unlock()
	case old&waitKind == waitWatch:
		c.stopWatch()
	}
}

// kick interrupts the wait w with an error, if it still goes on.
func (c *conn) kick(w wait, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits.CompareAndSwap(w, w|waitKicked) {
		c.why = why
		_ = c.nc.SetReadDeadline(longAgo) // a connection that is closed is interrupted
	}
}

// kicked returns why reading was interrupted; nil if it was not.
func (c *conn) kicked(err error) error {
	if !isTimeout(err) || c.waits.Load()&waitKicked == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

func isTimeout(err error) bool { return os.IsTimeout(err) }

// startWatch has a goroutine see whether the client leaves.
func (c *conn) startWatch(w wait) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waits.CompareAndSwap(w, w&^waitKind|waitWatch) {
		return
	}
	done := make(chan struct{})
	c.watched = done
	go func() { // stopWatch waits for it
		defer close(done)
		n, err := c.nc.Read(c.spare[:])
		switch {
		case n > 0:
			c.spared = true // of the next request
		case !isTimeout(err):
			c.cancel(ErrClientGone)
		}
	}()
}

// stopWatch ends that.
func (c *conn) stopWatch() {
	c.mu.Lock()
	done := c.watched
	c.mu.Unlock()
	_ = c.nc.SetReadDeadline(longAgo)
	<-done
	_ = c.nc.SetReadDeadline(time.Time{})
	if c.spared {
		c.spared = false
		c.in.push(c.spare[0])
	}
}
