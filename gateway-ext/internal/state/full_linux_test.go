package state_test

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// smallDisk mounts a disk of the given size, which needs root.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Skipf("no small disk here: mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all the space of a disk but leave bytes, and returns what gives it
// back.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 4096)
	for {
		if _, err := f.Write(chunk); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, info.Size()-leave)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWritable(t *testing.T) {
	dir := smallDisk(t, "32m")
	s := open(t, state.Config{Dir: filepath.Join(dir, "state"), MinFree: 4 << 20})
	if err := s.Writable(); err != nil {
		t.Errorf("Writable() = %v", err)
	}
	free := fill(t, dir, 0)
	if err := s.Writable(); !errors.Is(err, faas.ErrNoSpace) {
		t.Errorf("Writable() on a full disk = %v, want an ErrNoSpace", err)
	}
	free()
	if err := s.Writable(); err != nil {
		t.Errorf("Writable() when there is room again = %v", err)
	}
	// What is open for writing keeps a file system from becoming read-only, but
	// a mount of it can.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("no second mount here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Writable(); !errors.Is(err, unix.EROFS) {
		t.Errorf("Writable() on a read-only disk = %v, want %v", err, unix.EROFS)
	}
}

func TestFullDiskIsRefused(t *testing.T) {
	tests := []struct {
		name    string
		minFree int64 // below 0: the store itself must run into the end of the disk
		leave   int64
	}{
		{"before a write", 4 << 20, 2 << 20},
		{"within a write", -1 << 40, 100 << 10},
		{"with nothing left", -1 << 40, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := smallDisk(t, "32m")
			s := open(t, state.Config{Dir: filepath.Join(dir, "state"), MinFree: tt.minFree})
			b := bucket(t, s, "b")
			want := make(map[string]string)
			for i := range 20 {
				key := fmt.Sprintf("before%d", i)
				put(t, b, key, key)
				want[key] = key
			}

			free := fill(t, dir, tt.leave)
			var err error
			for i := 0; i < 200 && err == nil; i++ {
				key := fmt.Sprintf("full%d", i)
				value := key + strings.Repeat("x", 8<<10)
				if err = b.Put(t.Context(), key, []byte(value)); err == nil {
					want[key] = value
				}
			}
			if !errors.Is(err, faas.ErrNoSpace) || !strings.Contains(err.Error(), "full") {
				t.Fatalf("Put on a full disk = %v, want an ErrNoSpace that says so", err)
			}
			t.Logf("refused: %v", err)
			if err := b.Put(t.Context(), "again", make([]byte, 16<<10)); !errors.Is(err, faas.ErrNoSpace) {
				t.Errorf("second Put on a full disk = %v, want ErrNoSpace", err)
			}

			free()
			put(t, b, "after", "after")
			want["after"] = "after"
			if got := all(t, b); !maps.Equal(got, want) {
				t.Errorf("when there is room again: %d keys, want %d", len(got), len(want))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, state.Config{Dir: filepath.Join(dir, "state"), MinFree: tt.minFree})
			if got := all(t, bucket(t, s, "b")); !maps.Equal(got, want) {
				t.Errorf("after a restart: %d keys, want %d", len(got), len(want))
			}
		})
	}
}

// Whoever was answered while the disk filled up keeps what was acknowledged.
func TestFullDiskWithManyWriters(t *testing.T) {
	dir := smallDisk(t, "32m")
	b := bucket(t, open(t, state.Config{Dir: filepath.Join(dir, "state"), MinFree: -1 << 40}), "b")
	free := fill(t, dir, 128<<10)
	var mu sync.Mutex
	want := make(map[string]string)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 8 {
				key := fmt.Sprintf("k%d.%d", w, i)
				value := key + strings.Repeat("x", 8<<10)
				switch err := b.Put(t.Context(), key, []byte(value)); {
				case err == nil:
					mu.Lock()
					want[key] = value
					mu.Unlock()
				case !errors.Is(err, faas.ErrNoSpace):
					t.Errorf("Put = %v, want nil or ErrNoSpace", err)
				}
			}
		})
	}
	writers.Wait()
	free()
	put(t, b, "after", "after")
	want["after"] = "after"
	if got := all(t, b); !maps.Equal(got, want) {
		t.Errorf("%d keys are there, want the %d that were acknowledged and no other", len(got), len(want))
	}
	t.Logf("%d of 32 writes were acknowledged", len(want)-1)
}

func TestOpenOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "16m")
	cfg := state.Config{Dir: filepath.Join(dir, "state"), MinFree: 1 << 20, Logger: slog.New(slog.DiscardHandler)}

	t.Run("new folder", func(t *testing.T) {
		defer fill(t, dir, 0)()
		s, err := state.Open(t.Context(), cfg)
		if err == nil {
			_, err = s.Bucket(t.Context(), "b")
			s.Close()
		}
		if !errors.Is(err, faas.ErrNoSpace) {
			t.Errorf("Open and Bucket = %v, want ErrNoSpace", err)
		}
	})
	// What was declared must run after a power cut that met a full disk.
	t.Run("folder with something in it", func(t *testing.T) {
		s := open(t, cfg)
		b := bucket(t, s, "b")
		put(t, b, "k", "v")
		put(t, b, "gone", "v")
		if err := b.Delete(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		free := fill(t, dir, 0)
		b = bucket(t, open(t, cfg), "b")
		if got := all(t, b); !maps.Equal(got, map[string]string{"k": "v"}) {
			t.Errorf("read %v on a full disk, want what was there", got)
		}
		if err := b.Put(t.Context(), "k2", nil); !errors.Is(err, faas.ErrNoSpace) {
			t.Errorf("Put = %v, want ErrNoSpace", err)
		}
		free()
		put(t, b, "k2", "v2")
		if got := all(t, b); !maps.Equal(got, map[string]string{"k": "v", "k2": "v2"}) {
			t.Errorf("read %v when there was room again, want k and k2", got)
		}
	})
}
