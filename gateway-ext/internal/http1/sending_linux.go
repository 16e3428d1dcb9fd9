package http1

import (
	"encoding/binary"
	"net"
	"syscall"
	"unsafe"
)

// seesSending says that sending is known of TCP connections.
const seesSending = true

// sending returns how many bytes of what was written the other side has not
// acknowledged, and how many it has in all. ok is false if that isn't known.
func sending(nc net.Conn) (unsent int, acked uint64, ok bool) {
	sc, is := plain(nc).(syscall.Conn)
	if !is {
		return 0, 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	// tcp(7): SIOCOUTQ, and tcpi_bytes_acked of TCP_INFO, since Linux 4.1.
	const ackedAt = 120
	var queue int32
	var info [ackedAt + 8]byte
	err = raw.Control(func(fd uintptr) {
		size := uint32(len(info))
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queue)))
		_, _, errno2 := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		ok = errno == 0 && errno2 == 0 && size == uint32(len(info))
	})
	return int(queue), binary.NativeEndian.Uint64(info[ackedAt:]), ok && err == nil
}
