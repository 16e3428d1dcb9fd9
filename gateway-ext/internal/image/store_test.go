package image_test

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

func TestFetch(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "weather:latest", imageOf(t, host,
		gzipLayerOf(t,
			tarEntry{name: "app/", kind: '5', mode: 0o700},
			tarEntry{name: "app/run", body: "#!/bin/sh\n", mode: 0o4700},
			tarEntry{name: "etc/old", body: "old"},
			tarEntry{name: "etc/keep/a", body: "a"},
			tarEntry{name: "etc/keep/b", body: "b"},
		),
		layerOf(t,
			tarEntry{name: "app/conf", body: "x", mode: 0o622},
			tarEntry{name: "app/also", kind: '1', link: "app/run"},
			tarEntry{name: "etc/.wh.old"},
			tarEntry{name: "etc/keep/.wh..wh..opq"},
			tarEntry{name: "etc/keep/c", body: "c"},
		)))
	s, dir := openStore(t)

	pin, err := s.Resolve(t.Context(), reg.addr+"/weather:latest")
	if err != nil || !strings.HasSuffix(ref, pin.Digest) {
		t.Fatalf("Resolve() = %v, %v, want the digest in %s", pin, err, ref)
	}
	img, release, err := s.Fetch(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if img.Ref != ref || !slices.Equal(img.Entrypoint, []string{"/app/run"}) || !slices.Equal(img.Cmd, []string{"serve"}) ||
		!slices.Equal(img.Env, []string{"A=b"}) || img.WorkingDir != "/app" || img.User != "1000" {
		t.Errorf("Fetch() = %+v", img)
	}
	if got := content(t, img.Root, "app/also"); got != "#!/bin/sh\n" {
		t.Errorf("app/also = %q", got)
	}
	for p, want := range map[string]fs.FileMode{
		"app": fs.ModeDir | 0o755, "app/run": 0o555, "app/conf": 0o444,
		"tmp": fs.ModeDir | fs.ModeSticky | 0o777, "dev": fs.ModeDir | 0o755, "proc": fs.ModeDir | 0o755,
		"var/openfaas/secrets": fs.ModeDir | 0o755, "etc/hosts": 0o444, "etc/resolv.conf": 0o444,
	} {
		if fi, err := os.Lstat(filepath.Join(img.Root, p)); err != nil || fi.Mode() != want {
			t.Errorf("%s: mode %v, %v, want %v", p, fi.Mode(), err, want)
		}
	}
	for _, p := range []string{"etc/old", "etc/keep/a", "etc/keep/b"} {
		if _, err := os.Lstat(filepath.Join(img.Root, p)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", p, err)
		}
	}
	content(t, img.Root, "etc/keep/c")

	// From disk, nobody is asked, by this store or by one after it.
	reg.reset()
	fetch(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, _ := openStore(t, func(c *image.StoreConfig) { c.Dir = dir })
	if got := fetch(t, again, ref); got != img.Root {
		t.Errorf("after a restart the image is in %s, was in %s", got, img.Root)
	}
	if n := reg.count("/"); n != 0 {
		t.Errorf("%d requests for an image on disk", n)
	}
}

func TestFetchTakesItsPlatformOnly(t *testing.T) {
	reg := newRegistry(t)
	images := map[string]v1.Image{}
	for _, p := range []string{"linux/arm64", "linux/amd64", "linux/arm/v7", "linux/arm/v6"} {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		images[p] = imageOf(t, *platform, layerOf(t, tarEntry{name: "platform", body: p}))
	}
	ref := reg.push(t, "many:1", indexOf(t, images))
	offered := []string{"linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64"}
	for _, tt := range []struct {
		host v1.Platform
		want string
		err  string
	}{
		{host: v1.Platform{OS: "linux", Architecture: "arm64"}, want: "linux/arm64"},
		{host: v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, want: "linux/arm64"},
		{host: v1.Platform{OS: "linux", Architecture: "amd64"}, want: "linux/amd64"},
		{host: v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, want: "linux/arm/v7"},
		{host: v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, want: "linux/arm/v6"},
		{host: v1.Platform{OS: "linux", Architecture: "arm", Variant: "v5"}, err: "has no linux/arm/v5: it has linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64"},
		{host: v1.Platform{OS: "darwin", Architecture: "arm64"}, err: "has no darwin/arm64: it has linux/amd64, "},
	} {
		t.Run(tt.host.String(), func(t *testing.T) {
			s, _ := openStore(t, func(c *image.StoreConfig) { c.Platform = tt.host })
			reg.reset()
			img, release, err := s.Fetch(t.Context(), ref)
			if tt.err != "" {
				if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Fetch() = %v, want %q", err, tt.err)
				}
				if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, faas.ErrInvalid) {
					t.Errorf("Resolve() = %v, want the same", err)
				}
				others, _ := openStore(t, func(c *image.StoreConfig) { c.Platform, c.Others = tt.host, func() bool { return true } })
				pin, err := others.Resolve(t.Context(), ref)
				if err != nil || !strings.HasSuffix(ref, pin.Digest) || !slices.Equal(pin.Platforms, offered) {
					t.Errorf("Resolve() with other machines = %v, %v, want what it is for: %v", pin, err, offered)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			// From the disk, and so it is after a restart.
			if pin, err := s.Resolve(t.Context(), ref); err != nil || !slices.Equal(pin.Platforms, offered) {
				t.Errorf("Resolve() of an image that is here = %v, %v, want what it is for: %v", pin, err, offered)
			}
			if got := content(t, img.Root, "platform"); got != tt.want {
				t.Errorf("got the image for %s, want %s", got, tt.want)
			}
			// The index and the manifest; the configuration and the layer.
			if m, b := reg.count("/manifests/"), reg.count("/blobs/"); m != 2 || b != 2 {
				t.Errorf("asked for %d manifests and %d blobs, want 2 and 2", m, b)
			}
		})
	}
}

func TestFetchOfOlderArm(t *testing.T) {
	reg := newRegistry(t)
	v6 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}
	ref := reg.push(t, "old:1", imageOf(t, v6, layerOf(t, tarEntry{name: "x"})))
	s, _ := openStore(t, func(c *image.StoreConfig) { c.Platform = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"} })
	fetch(t, s, ref)

	// A single manifest has its platform in its configuration.
	other, _ := openStore(t)
	_, _, err := other.Fetch(t.Context(), ref)
	if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "has no linux/arm64: it has linux/arm/v6") {
		t.Errorf("Fetch() = %v", err)
	}
}

func TestFetchSharesWork(t *testing.T) {
	reg := newRegistry(t)
	shared := layerOf(t, tarEntry{name: "shared", body: strings.Repeat("shared", 1000)})
	a := reg.push(t, "a:1", imageOf(t, host, shared, layerOf(t, tarEntry{name: "a"})))
	b := reg.push(t, "b:1", imageOf(t, host, shared, layerOf(t, tarEntry{name: "b"})))
	s, dir := openStore(t)
	reg.reset()

	var wg sync.WaitGroup
	roots := make([]string, 40)
	for i := range roots {
		wg.Go(func() {
			img, release, err := s.Fetch(t.Context(), []string{a, b}[i%2])
			if err != nil {
				t.Errorf("Fetch() = %v", err)
				return
			}
			defer release()
			roots[i] = img.Root
		})
	}
	wg.Wait()
	// Three layers and two configurations.
	if n := reg.count("/blobs/"); n != 5 {
		t.Errorf("asked for %d blobs, want 5", n)
	}
	x, errX := os.Stat(filepath.Join(roots[0], "shared"))
	y, errY := os.Stat(filepath.Join(roots[1], "shared"))
	if errX != nil || errY != nil || !os.SameFile(x, y) {
		t.Errorf("the shared layer is on disk twice (%v, %v)", errX, errY)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestFetchErrors(t *testing.T) {
	reg := newRegistry(t)
	reg.push(t, "there:1", imageOf(t, host, layerOf(t, tarEntry{name: "x"})))
	s, _ := openStore(t)
	answer := func(code int) string {
		server := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.WriteHeader(code)
		})
		return server + "/x:1"
	}
	missing := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		name, ref string
		kind      error
		want      string
	}{
		{"no tag", reg.addr + "/there:2", faas.ErrNotFound, "registry " + reg.addr + " has no tag 2 in there"},
		{"no repository", reg.addr + "/elsewhere:1", faas.ErrNotFound, "registry " + reg.addr + " has no tag 1 in elsewhere"},
		{"no digest", reg.addr + "/there@" + missing, faas.ErrNotFound, "has no manifest " + missing},
		{"not a name", "Not A Name", faas.ErrInvalid, "host/name:tag"},
		{"empty", "", faas.ErrInvalid, "host/name:tag"},
		{"bad digest", reg.addr + "/there@sha256:12", faas.ErrInvalid, "is not a name for an image"},
		{"nobody there", "127.0.0.1:1/x:1", faas.ErrUnavailable, "registry 127.0.0.1:1 can't be reached"},
		{"unauthorized", answer(401), faas.ErrNotFound, "it needs credentials"},
		{"too often", answer(429), faas.ErrUnavailable, "too often"},
		{"broken", answer(503), faas.ErrUnavailable, "answered 503 when asked for tag 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := s.Fetch(within(t, t.Context()), tt.ref)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) || tt.ref != "" && !strings.Contains(err.Error(), tt.ref) {
				t.Errorf("Fetch(%s) = %v, want a %v with %q", tt.ref, err, tt.kind, tt.want)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	reg := newRegistry(t)
	shared := layerOf(t, tarEntry{name: "shared", body: "shared"})
	kept := reg.push(t, "kept:1", imageOf(t, host, shared))
	held := reg.push(t, "held:1", imageOf(t, host, layerOf(t, tarEntry{name: "held", body: "held"})))
	gone := reg.push(t, "gone:1", imageOf(t, host, shared, layerOf(t, tarEntry{name: "gone", body: "1234567"})))
	s, dir := openStore(t)
	for _, ref := range []string{kept, gone} {
		_, release, err := s.Fetch(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		release()
		release() // once is as good as twice
	}
	heldRoot := fetch(t, s, held)
	keep := func(ref string) bool { return ref == kept }

	freed, err := s.Prune(t.Context(), keep)
	if err != nil || freed != 7 {
		t.Errorf("Prune() = %d, %v, want 7", freed, err)
	}
	content(t, heldRoot, "held")
	for folder, want := range map[string]int{"trees": 2, "layers": 2, "tmp": 0} {
		if list, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(list) != want {
			t.Errorf("%s has %d names, %v, want %d", folder, len(list), err, want)
		}
	}
	reg.reset()
	content(t, fetch(t, s, kept), "shared")
	if n := reg.count("/"); n != 0 {
		t.Errorf("%d requests for an image that was to be kept", n)
	}
	content(t, fetch(t, s, gone), "gone")
	if n := reg.count("/blobs/"); n != 2 { // its configuration and the one layer that is not shared
		t.Errorf("%d blobs asked for after the image was pruned, want 2", n)
	}
}

func TestOpenStoreRemovesWhatIsNotWhole(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "a:1", imageOf(t, host, layerOf(t, tarEntry{name: "x", body: "x"})))
	s, dir := openStore(t)
	root := fetch(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"tmp/layer-half/f", "layers/half/f", "trees/half/rootfs"} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "trees/half/image.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, _ := openStore(t, func(c *image.StoreConfig) { c.Dir = dir })
	for folder, want := range map[string]int{"trees": 1, "layers": 1, "tmp": 0} {
		if list, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(list) != want {
			t.Errorf("%s has %d names, %v, want %d", folder, len(list), err, want)
		}
	}
	if fetch(t, again, ref) != root {
		t.Error("the image that was whole is gone")
	}
}
