package http1

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// link is a connection to a server. While it is idle it has no buffer, and
// nobody reads from it.
type link struct {
	pool *Pool
	conn net.Conn
	raw  syscall.RawConn // nil if conn has none
	base syscall.RawConn // of what conn encrypts for, if raw is nil; may be nil, too

	place  int       // in the pool, -1 for none
	since  time.Time // when it became idle
	reused bool      // there was a request on it before

	// The deadline that is wanted, and the one that conn has, which may be
	// earlier: to set it costs more than to see once in a while that there is
	// still time. Zero is none.
	limit, set time.Time

	// While the link looks out, it looks now and then whether its server has
	// fallen silent; it has left if that was so.
	looksOut, left bool

	abort func() // closes conn, from any goroutine

	trip trip
}

// trip is what [link.roundTrip] does in one go.
type trip struct {
	step    func(fd uintptr) bool
	out     []byte // what is to be written
	written int
	in      []byte // where what comes goes
	read    int
	err     error
	stage   int
}

func newLink(p *Pool, conn net.Conn) *link {
	l := &link{pool: p, conn: conn, place: -1}
	l.abort = func() { _ = l.conn.Close() }
	if !canStep {
		return l
	}
	l.trip.step = l.step
	if sc, ok := conn.(syscall.Conn); ok {
		l.raw, _ = sc.SyscallConn() // nil with an error
	} else if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		if sc, ok := over.NetConn().(syscall.Conn); ok {
			l.base, _ = sc.SyscallConn()
		}
	}
	return l
}

// close closes the connection and gives its place away. The caller has it.
func (l *link) close() {
	l.pool.disown(l)
	_ = l.conn.Close() // it is of no more use, whatever becomes of it
}

// until sets the deadline of all that follows, zero for none.
func (l *link) until(now, t time.Time) {
	l.limit = t
	if l.looksOut {
		l.look(now)
		return
	}
	// One that was set for an earlier request will do if half of the time is
	// left when it is over.
	if t.IsZero() || l.set.IsZero() || l.set.After(t) || l.set.Sub(now) < t.Sub(now)/2 {
		l.extend()
	}
}

// exactly sets the deadline, also if another goroutine writes.
func (l *link) exactly(t time.Time) {
	l.limit = t
	l.extend()
}

// lookEvery is how often a link that looks out does.
const lookEvery = 500 * time.Millisecond

// look has what is read next return for a look in time. Writing must not: a
// connection that encrypts is of no more use after a write that was cut short.
func (l *link) look(now time.Time) {
	next := now.Add(lookEvery)
	if !l.limit.IsZero() && l.limit.Before(next) {
		next = l.limit
	}
	if l.set.After(now.Add(lookEvery/2)) && !l.set.After(next) {
		return // that of an earlier request will do
	}
	l.set = next
	_ = l.conn.SetWriteDeadline(l.limit) // as in extend
	_ = l.conn.SetReadDeadline(next)
}

func (l *link) extend() {
	l.set = l.limit
	_ = l.conn.SetDeadline(l.limit) // a closed connection says so when it is used
}

// early says whether an error is that of a deadline which came before the one
// that is wanted. Then it is set anew. Only the goroutine that called until may
// ask.
func (l *link) early(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || l.set.Equal(l.limit) {
		return false
	}
	if l.looksOut {
		l.left = l.pool.silent()
		l.look(time.Now())
		return !l.left
	}
	l.extend()
	return true
}

// Read implements [io.Reader].
func (l *link) Read(p []byte) (int, error) {
	for {
		n, err := l.conn.Read(p)
		if n > 0 || err == nil || !l.early(err) {
			return n, err
		}
	}
}

// write writes all of b, and returns how much it could.
func (l *link) write(b []byte) (int, error) {
	written := 0
	for {
		n, err := l.conn.Write(b[written:])
		written += n
		if err == nil || !l.early(err) {
			return written, err
		}
	}
}

// errStale says that a connection which was kept can't be used: its server has
// closed it, or has sent something that nobody asked for.
var errStale = errors.New("the connection is no longer good")

// roundTrip writes out and waits for the first bytes of the answer. It returns
// how much was written, and what came into in. If it is errStale, nothing was.
func (l *link) roundTrip(out, in []byte) (written, read int, err error) {
	if l.raw == nil {
		if l.stale() {
			return 0, 0, errStale
		}
		if written, err = l.write(out); err != nil {
			return written, 0, err
		}
		read, err = l.Read(in)
		return written, read, err
	}
	t := &l.trip
	t.out, t.in, t.written, t.read, t.err, t.stage = out, in, 0, 0, nil, tripWrite
	if l.reused {
		t.stage = tripProbe
	}
	for {
		err = l.raw.Read(t.step)
		if err == nil || !l.early(err) {
			break
		}
	}
	written, read = t.written, t.read
	if err == nil {
		err = t.err
	}
	t.out, t.in = nil, nil
	if err == nil && written < len(out) { // the system's buffer is full
		var n int
		n, err = l.write(out[written:])
		written += n
		if err == nil {
			read, err = l.Read(in)
		}
	}
	return written, read, err
}

// stale says whether a connection that was idle is no longer good. One that
// encrypts isn't either if anything has come: nobody has asked for it, or it is
// the word that the other side has closed.
func (l *link) stale() bool {
	raw := l.raw
	if raw == nil {
		raw = l.base
	}
	if raw == nil || !l.reused {
		return false
	}
	t := &l.trip
	var one [1]byte
	t.out, t.in, t.written, t.read, t.err, t.stage = nil, one[:], 0, 0, nil, tripProbeOnly
	if err := raw.Read(t.step); err != nil && !l.early(err) {
		return true
	}
	t.in = nil
	return t.err != nil
}

// The stages of a trip.
const (
	tripProbe     = iota // see that nothing has come, then write
	tripProbeOnly        // see that nothing has come
	tripWrite            // write, then wait
	tripRead             // wait
)
