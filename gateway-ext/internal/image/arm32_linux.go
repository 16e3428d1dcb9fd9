package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// nothing32 is a program for 32-bit ARM, of version 6 and later, that ends at
// once: a header, one segment, and exit(0).
func nothing32() []byte {
	const at, head, segment = 0x10000, 52, 32
	code := []uint32{0xe3a00000, 0xe3a07001, 0xef000000} // mov r0, #0; mov r7, #1; svc 0
	size := uint32(head + segment + 4*len(code))
	b := []byte{0x7f, 'E', 'L', 'F', 1 /* 32 bit */, 1 /* little endian */, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)  // an executable
	b = le.AppendUint16(b, 40) // for ARM
	for _, v := range []uint32{1, at + head + segment, head, 0, 0x05000000 /* EABI 5 */} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{head, segment, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{1 /* loaded */, 0, at, at, size, size, 5 /* read, execute */, at} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range code {
		b = le.AppendUint32(b, v)
	}
	return b
}

// runs32 says whether this machine, a 64-bit ARM, runs programs for 32-bit ARM.
// Not all processors can, nor all kernels are built for it, and neither says so
// in a way that can be relied on: so one is run.
func runs32() bool {
	fd, err := unix.MemfdCreate("arm32", unix.MFD_CLOEXEC)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "arm32")
	defer f.Close()
	if _, err := f.Write(nothing32()); err != nil {
		return false
	}
	// A file that is open for writing can't be run: it is opened anew for that.
	program, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return false
	}
	defer program.Close()
	if f.Close() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{program}
	return cmd.Run() == nil
}
