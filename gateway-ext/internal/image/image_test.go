package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// host is what the images of these tests are made for and run on.
var host = v1.Platform{OS: "linux", Architecture: "arm64"}

// requests counts what a registry was asked for.
type requests struct {
	mu   sync.Mutex // guards seen
	seen []string   // "METHOD /path"
}

func (q *requests) count(substring string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.seen {
		if strings.Contains(s, substring) {
			n++
		}
	}
	return n
}

func (q *requests) reset() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seen = nil
}

// registry is a real one on loopback.
type registry struct {
	*image.Registry
	requests
	url, addr, dir string
	// meddle, if not nil, may answer in place of the registry.
	meddle func(w http.ResponseWriter, r *http.Request) (done bool)
}

// discard is for tests that cause errors which are logged.
var discard = slog.New(slog.DiscardHandler)

func quiet(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func newRegistry(t testing.TB, configure ...func(*image.RegistryConfig)) *registry {
	t.Helper()
	cfg := image.RegistryConfig{
		Dir: t.TempDir(),
		Authorize: func(r *http.Request) bool {
			user, password, ok := r.BasicAuth()
			return ok && user == "admin" && password == "secret"
		},
		Logger: quiet(t),
	}
	for _, f := range configure {
		f(&cfg)
	}
	g, err := image.NewRegistry(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	reg := &registry{Registry: g, dir: cfg.Dir}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		reg.seen = append(reg.seen, r.Method+" "+r.URL.Path)
		meddle := reg.meddle
		reg.mu.Unlock()
		if meddle == nil || !meddle(w, r) {
			g.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	reg.url, reg.addr = server.URL, strings.TrimPrefix(server.URL, "http://")
	return reg
}

func (reg *registry) setMeddle(f func(http.ResponseWriter, *http.Request) bool) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.meddle = f
}

var admin = remote.WithAuth(&authn.Basic{Username: "admin", Password: "secret"})

// push pushes an image or an index and returns its reference by digest.
func (reg *registry) push(t testing.TB, ref string, what remote.Taggable) string {
	t.Helper()
	tag, err := name.NewTag(reg.addr + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	var digest string
	switch x := what.(type) {
	case v1.Image:
		digest, err = digestOf(t, x), remote.Write(tag, x, admin)
	case v1.ImageIndex:
		digest, err = digestOf(t, x), remote.WriteIndex(tag, x, admin)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	return tag.Context().Name() + "@" + digest
}

func digestOf(t testing.TB, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	d, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// tarEntry is one name in a layer of these tests.
type tarEntry struct {
	name, body, link string
	kind             byte // 0 is a file
	mode             int64
	size             int64 // what the header says, if not the body's
}

func tarOf(t testing.TB, members ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.kind, Mode: m.mode, Size: int64(len(m.body)), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		if m.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if m.mode == 0 {
			h.Mode = 0o644
		}
		if m.size != 0 {
			h.Size = m.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if len(members) == 0 || members[len(members)-1].size == 0 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(t testing.TB, members ...tarEntry) v1.Layer {
	t.Helper()
	return static.NewLayer(tarOf(t, members...), types.OCIUncompressedLayer)
}

func gzipLayerOf(t testing.TB, members ...tarEntry) v1.Layer {
	t.Helper()
	packed := gzipped(t, tarOf(t, members...))
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf makes an image for the platform of layers.
func imageOf(t testing.TB, p v1.Platform, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Variant = p.OS, p.Architecture, p.Variant
	cf.Config = v1.Config{Entrypoint: []string{"/app/run"}, Cmd: []string{"serve"}, Env: []string{"A=b"}, WorkingDir: "/app", User: "1000"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func indexOf(t testing.TB, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for platform, img := range images {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	return idx
}

func openStore(t testing.TB, configure ...func(*image.StoreConfig)) (*image.Store, string) {
	t.Helper()
	cfg := image.StoreConfig{Dir: t.TempDir(), Platform: host, Logger: quiet(t), DockerConfig: emptyDockerConfig(t)}
	for _, f := range configure {
		f(&cfg)
	}
	s, err := image.OpenStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, cfg.Dir
}

func emptyDockerConfig(t testing.TB) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(p, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// fetch fetches an image that must be there, and releases it at the test's end.
func fetch(t testing.TB, s *image.Store, ref string) string {
	t.Helper()
	img, release, err := s.Fetch(t.Context(), ref)
	if err != nil {
		t.Fatalf("Fetch(%s) = %v", ref, err)
	}
	t.Cleanup(release)
	return img.Root
}

func content(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// within gives up on what should take no time at all.
func within(t testing.TB, ctx context.Context) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancel)
	return ctx
}
