//go:build unix

package http1

import (
	"io"
	"net"
	"os"
	"syscall"
)

// socket reads and writes a TCP connection with less in between than
// [net.TCPConn] has. One goroutine at a time may read, and one write.
type socket struct {
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one reading or writing that is under way.
type transfer struct {
	step func(fd uintptr) bool
	p    []byte
	n    int
	err  error
}

// newSocket returns the socket of a TCP connection, or nil.
func newSocket(nc net.Conn) *socket {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{raw: raw}
	s.in.step, s.out.step = s.read, s.write
	return s
}

// Read implements [io.Reader].
func (s *socket) Read(p []byte) (int, error) {
	t := &s.in
	t.p, t.n, t.err = p, 0, nil
	err := s.raw.Read(t.step)
	if err == nil {
		err = t.err
	}
	t.p = nil
	return t.n, err
}

func (s *socket) read(fd uintptr) bool {
	t := &s.in
	n, err := readFD(fd, t.p)
	switch {
	case err == errAgain:
		return false
	case err != nil:
		t.err = os.NewSyscallError("read", err)
	case n == 0 && len(t.p) > 0:
		t.err = io.EOF
	}
	t.n = n
	return true
}

// Write implements [io.Writer].
func (s *socket) Write(p []byte) (int, error) {
	t := &s.out
	t.p, t.n, t.err = p, 0, nil
	err := s.raw.Write(t.step)
	if err == nil {
		err = t.err
	}
	t.p = nil
	return t.n, err
}

func (s *socket) write(fd uintptr) bool {
	t := &s.out
	for t.n < len(t.p) {
		n, err := writeFD(fd, t.p[t.n:])
		t.n += n
		switch {
		case err == errAgain:
			return false
		case err != nil:
			t.err = os.NewSyscallError("write", err)
			return true
		}
	}
	return true
}
