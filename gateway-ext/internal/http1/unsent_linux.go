package http1

import (
	"net"
	"syscall"
	"unsafe"
)

// seesUnsent says that unsent is known of TCP connections.
const seesUnsent = true

// unsent returns how many bytes of what was written the other side hasn't
// acknowledged; ok is false if that isn't known.
func unsent(nc net.Conn) (n int, ok bool) {
	sc, is := plain(nc).(syscall.Conn)
	if !is {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	var queue int32 // tcp(7): SIOCOUTQ
	err = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queue)))
		ok = errno == 0
	})
	return int(queue), ok && err == nil
}
