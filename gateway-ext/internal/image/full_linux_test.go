package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// smallDisk returns a folder on a disk of its own that can be made larger.
func smallDisk(t *testing.T) (dir string, grow func(options string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("no disk can be mounted here:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func(options string) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, options); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFetchOntoAFullDisk(t *testing.T) {
	reg := newRegistry(t)
	img := imageOf(t, host, static.NewLayer(noise(t, 700_000), types.OCIUncompressedLayer))
	ref := reg.push(t, "app:1", img)
	small := reg.push(t, "small:1", imageOf(t, host, layerOf(t, tarEntry{name: "x", body: "x"})))
	disk, grow := smallDisk(t)
	s, dir := openStore(t, func(c *image.StoreConfig) { c.Dir = filepath.Join(disk, "images") })
	t.Cleanup(func() { s.Close() })

	root := fetch(t, s, small)
	_, _, err := s.Fetch(t.Context(), ref) // the layer arrives, and doesn't fit twice
	if !errors.Is(err, faas.ErrNoSpace) || !strings.Contains(err.Error(), "image "+ref) || !strings.Contains(err.Error(), "is full") {
		t.Errorf("Fetch() = %v, want %v", err, faas.ErrNoSpace)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	content(t, root, "x")
	grow("size=4m")
	content(t, fetch(t, s, ref), "noise")
}

func TestPushOntoAFullDisk(t *testing.T) {
	disk, grow := smallDisk(t)
	reg := newRegistry(t, func(c *image.RegistryConfig) { c.Dir = filepath.Join(disk, "registry") })
	img := imageOf(t, host, static.NewLayer(noise(t, 700_000), types.OCIUncompressedLayer))
	err := remote.Write(reg.tag(t, "app:1"), img, admin)
	if err == nil || !strings.Contains(err.Error(), "DENIED") || !strings.Contains(err.Error(), "disk of the registry is full") {
		t.Errorf("push = %v, want it refused", err)
	}
	if n := sizeOf(t, filepath.Join(disk, "registry")); n > 10_000 {
		t.Errorf("%d bytes are left of a refused push", n)
	}
	grow("size=80m")
	if ref := reg.push(t, "app:1", img); !reg.has(t, ref) {
		t.Error("it is not whole")
	}
}
