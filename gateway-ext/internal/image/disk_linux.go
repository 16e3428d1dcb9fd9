package image

import (
	"os"

	"golang.org/x/sys/unix"
)

// machine returns the kernel's name for the processor: "armv7l", "aarch64".
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Machine[:])
}

const canSyncAll = true

// syncAll writes everything that was written to f's file system to the disk.
func syncAll(f *os.File) error { return unix.Syncfs(int(f.Fd())) }

// freeBytes returns how much may be written to the file system that dir is on.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
