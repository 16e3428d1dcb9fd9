//go:build linux || darwin

package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// lockFolder takes the folder for this process. The lock goes with the process,
// however it ends; a child doesn't inherit it.
func lockFolder(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state folder: %w", noSpace(err))
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b, rerr := io.ReadAll(io.LimitReader(f, 32))
		who := "another process"
		if pid := strings.TrimSpace(string(b)); rerr == nil && pid != "" {
			who = "process " + pid
		}
		return nil, errors.Join(faas.Errorf(faas.ErrConflict,
			"the state folder %s is in use by %s: stop that one first, or give this one a folder of its own (THICKET_DATA)", dir, who), f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	// The number is for people; a full disk that can't hold it is no reason not
	// to start.
	if f.Truncate(0) == nil {
		fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

// checkWritable returns nil if files can be written in a folder: a file system that
// is mounted read-only, or has become so because its disk fails, says so even to
// root.
func checkWritable(dir string) error { return unix.Access(dir, unix.W_OK) }

// freeBytes returns how much a process without privileges can still write.
func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return int64(uint64(fs.Bavail) * uint64(fs.Bsize)), nil
}
