//go:build unix

package http1

import (
	"errors"
	"io"
	"os"
)

// errAgain is what readFD and writeFD return when they would have to wait.
var errAgain = errors.New("not now")

// canStep says whether step works here.
const canStep = true

// step is called by the connection's [syscall.RawConn] when it may be that
// something can be read, the first time at once, and returns false to wait for
// more to come.
//
// It does in one go what would otherwise be three: to look whether the server
// has closed the connection, to write, and to read. The look costs nothing,
// since the runtime would try to read before it waits anyhow; here that is tried
// before the request is written instead, when it can still be given to another.
// What comes after the look wakes us, because the runtime forgets what came
// before only before it calls this the first time.
func (l *link) step(fd uintptr) bool {
	t := &l.trip
	switch t.stage {
	case tripProbe, tripProbeOnly:
		if _, err := readFD(fd, t.in); err != errAgain {
			t.err = errStale
			return true
		}
		if t.stage == tripProbeOnly {
			return true
		}
		fallthrough
	case tripWrite:
		t.stage = tripRead
		for t.written < len(t.out) {
			n, err := writeFD(fd, t.out[t.written:])
			if n > 0 {
				t.written += n
			}
			switch {
			case err == errAgain:
				return true // the rest is written in the usual way
			case err != nil:
				t.err = os.NewSyscallError("write", err)
				return true
			}
		}
		return false
	}
	n, err := readFD(fd, t.in)
	switch {
	case err == errAgain:
		return false
	case err != nil:
		t.err = os.NewSyscallError("read", err)
	case n == 0:
		t.err = io.EOF
	default:
		t.read = n
	}
	return true
}
