package main_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fullDisk mounts a small disk that can be filled, "" where this user may not.
func fullDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Log("not as root: no full disk")
		return ""
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0711"); err != nil {
		t.Logf("no full disk: %v", err)
		return ""
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}
