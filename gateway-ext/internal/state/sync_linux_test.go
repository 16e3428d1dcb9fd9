package state_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// dirty returns how many pages of the files below dir wait in memory to be
// written to the disk: what a power cut would take.
func dirty(t *testing.T, dir string) (pages uint64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.HasSuffix(path, ".blk") && !strings.HasSuffix(path, ".key") {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		var s unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &s, 0); err != nil {
			return err
		}
		pages += s.Dirty + s.Writeback
		return nil
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel doesn't tell what waits to be written: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// TestAcknowledgedIsOnTheDisk asks the kernel after each answer whether anything
// of it is still only in memory. Killing a process doesn't show that.
func TestAcknowledgedIsOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	probe := filepath.Join(dir, "probe.key")
	if err := os.WriteFile(probe, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	if dirty(t, dir) == 0 {
		t.Skip("a file that was just written doesn't wait to be written here: the temporary folder is no disk")
	}
	if err := os.Remove(probe); err != nil {
		t.Fatal(err)
	}

	s := open(t, state.Config{Dir: dir})
	if _, err := s.Key("secrets"); err != nil {
		t.Fatal(err)
	}
	if n := dirty(t, dir); n != 0 {
		t.Errorf("after Key, %d pages wait to be written", n)
	}
	b := bucket(t, s, "b")
	for i := range 20 {
		put(t, b, fmt.Sprint("k", i%3), strings.Repeat("x", 10_000))
		if n := dirty(t, dir); n != 0 {
			t.Fatalf("after Put number %d, %d pages wait to be written", i, n)
		}
	}
	if err := b.Delete(t.Context(), "k0"); err != nil {
		t.Fatal(err)
	}
	if n := dirty(t, dir); n != 0 {
		t.Errorf("after Delete, %d pages wait to be written", n)
	}
}
