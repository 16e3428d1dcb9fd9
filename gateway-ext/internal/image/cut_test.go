package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// serveParts serves fixed bytes under fixed paths.
func serveParts(parts map[string][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, ok := parts[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// noise is a layer that doesn't compress, and is the same each time.
func noise(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b) // never fails
	return tarOf(t, tarEntry{name: "noise", body: string(b)})
}

// cutter cuts the connection after n bytes of each answer for a blob.
func cutter(reg *registry, blob string, n int, ranges *[]string) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+blob) {
			return false
		}
		mu.Lock()
		*ranges = append(*ranges, r.Header.Get("Range"))
		mu.Unlock()
		reg.ServeHTTP(&cutWriter{ResponseWriter: w, left: n}, r)
		return true
	}
}

// cutWriter cuts the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestFetchGoesOnAfterCuts(t *testing.T) {
	reg := newRegistry(t)
	raw := noise(t, 1_000_000)
	layer := static.NewLayer(raw, types.OCIUncompressedLayer)
	ref := reg.push(t, "cut:1", imageOf(t, host, layer))
	var ranges []string
	reg.setMeddle(cutter(reg, digestOf(t, layer), 300_000, &ranges))

	var last atomic.Int64
	s, _ := openStore(t, func(c *image.StoreConfig) {
		c.Progress = func(_ string, done, total int64) {
			if total != int64(len(raw)) || done < last.Load() {
				t.Errorf("progress: %d of %d after %d", done, total, last.Load())
			}
			last.Store(done)
		}
	})
	root := fetch(t, s, ref)
	if got := content(t, root, "noise"); !bytes.Contains(raw, []byte(got)) || len(got) != 1_000_000 {
		t.Errorf("the file has %d bytes and is not what was pushed", len(got))
	}
	if last.Load() != int64(len(raw)) {
		t.Errorf("progress ended at %d of %d", last.Load(), len(raw))
	}
	if len(ranges) != 4 || ranges[0] != "" || ranges[1] != "bytes=300000-" || ranges[3] != "bytes=900000-" {
		t.Errorf("asked for the ranges %q", ranges)
	}
}

func TestFetchGoesOnWhereAnEarlierOneStopped(t *testing.T) {
	reg := newRegistry(t)
	layer := static.NewLayer(noise(t, 1_000_000), types.OCIUncompressedLayer)
	ref := reg.push(t, "stop:1", imageOf(t, host, layer))
	var ranges []string
	ctx, cancel := context.WithCancel(t.Context())
	stop := cutter(reg, digestOf(t, layer), 300_000, &ranges)
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			cancel() // the caller gives up while the second part is asked for
			<-r.Context().Done()
			return true
		}
		return stop(w, r)
	})
	s, _ := openStore(t)
	if _, _, err := s.Fetch(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Fatalf("Fetch() = %v, want it to stop with its context", err)
	}
	var after []string
	reg.setMeddle(cutter(reg, digestOf(t, layer), 1<<30, &after))
	fetch(t, s, ref)
	if len(after) != 1 || after[0] != "bytes=300000-" {
		t.Errorf("asked for the ranges %q, want the rest only", after)
	}
}

func TestFetchWithoutRanges(t *testing.T) {
	reg := newRegistry(t)
	layer := static.NewLayer(noise(t, 500_000), types.OCIUncompressedLayer)
	ref := reg.push(t, "noranges:1", imageOf(t, host, layer))
	var cuts atomic.Int32
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digestOf(t, layer)) {
			return false
		}
		r.Header.Del("Range")
		if cuts.Add(1) == 1 {
			w = &cutWriter{ResponseWriter: w, left: 100_000}
		}
		reg.ServeHTTP(w, r)
		return true
	})
	s, _ := openStore(t)
	fetch(t, s, ref)
	if cuts.Load() != 2 {
		t.Errorf("asked %d times, want 2", cuts.Load())
	}
}

func TestFetchRefusesDamage(t *testing.T) {
	reg := newRegistry(t)
	layer := static.NewLayer(noise(t, 100_000), types.OCIUncompressedLayer)
	img := imageOf(t, host, layer)
	ref := reg.push(t, "damaged:1", img)
	conf, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{digestOf(t, layer), conf.String(), digestOf(t, img)} {
		t.Run(part, func(t *testing.T) {
			reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, part) {
					return false
				}
				reg.ServeHTTP(&flipWriter{ResponseWriter: w}, r)
				return true
			})
			s, dir := openStore(t)
			_, _, err := s.Fetch(t.Context(), ref)
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "arrived damaged") || !strings.Contains(err.Error(), part) {
				t.Errorf("Fetch() = %v, want it refused", err)
			}
			for _, folder := range []string{"trees", "layers"} {
				if list, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(list) > 0 {
					t.Errorf("%s has %v, %v", folder, list, err)
				}
			}
			// Once the registry is well again, so is the image.
			reg.setMeddle(nil)
			fetch(t, s, ref)
		})
	}
}

// flipWriter changes one bit.
type flipWriter struct {
	http.ResponseWriter
	done bool
}

func (f *flipWriter) Write(p []byte) (int, error) {
	if !f.done && len(p) > 0 {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 1
		f.done = true
	}
	return f.ResponseWriter.Write(p)
}

// heeded is a context that tells when somebody waits for its end.
type heeded struct {
	context.Context
	once sync.Once
	ch   chan struct{}
}

func (h *heeded) Done() <-chan struct{} {
	h.once.Do(func() { close(h.ch) })
	return h.Context.Done()
}

// TestFetchOutlivesItsFirstCaller has two callers wait for the same image, and
// the one that came first give up.
func TestFetchOutlivesItsFirstCaller(t *testing.T) {
	reg := newRegistry(t)
	layer := static.NewLayer(noise(t, 1000), types.OCIUncompressedLayer)
	ref := reg.push(t, "both:1", imageOf(t, host, layer))
	asked, goOn := make(chan struct{}, 1), make(chan struct{})
	reg.setMeddle(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, digestOf(t, layer)) {
			asked <- struct{}{}
			<-goOn
		}
		return false
	})
	s, _ := openStore(t)
	fetching := func(ctx context.Context) <-chan error {
		errs := make(chan error, 1)
		go func() {
			_, release, err := s.Fetch(ctx, ref)
			if err == nil {
				release()
			}
			errs <- err
		}()
		return errs
	}
	ctx, giveUp := context.WithCancel(t.Context())
	first := fetching(ctx)
	<-asked
	waiting := &heeded{Context: t.Context(), ch: make(chan struct{})}
	second := fetching(waiting)
	<-waiting.ch
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first Fetch() = %v", err)
	}
	close(goOn)
	if err := <-second; err != nil {
		t.Errorf("the second Fetch() = %v", err)
	}
	if n := reg.count("/blobs/" + digestOf(t, layer)); n != 2 { // HEAD when it was pushed
		t.Errorf("the layer was asked for %d times", n-1)
	}
}

func TestDockerConfig(t *testing.T) {
	const password = "open sesame"
	img := imageOf(t, host, layerOf(t, tarEntry{name: "x", body: "x"}))
	reg := newRegistry(t)
	reg.push(t, "private:1", img)
	front := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if user, pw, _ := r.BasicAuth(); user != "ali" || pw != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path != "/v2/" { // which the registry behind it would ask a login for
			reg.ServeHTTP(w, r)
		}
	})
	conf := filepath.Join(t.TempDir(), "config.json")
	s, _ := openStore(t, func(c *image.StoreConfig) { c.DockerConfig = conf })
	ref := front + "/private:1"

	_, err := s.Resolve(t.Context(), ref)
	if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), conf) {
		t.Errorf("Resolve() without the file = %v", err)
	}
	for _, tt := range []struct {
		config string
		want   error
	}{
		{`{}`, faas.ErrNotFound},
		{`{"auths":`, faas.ErrInvalid},
		{fmt.Sprintf(`{"auths":{%q:{"username":"ali","password":"wrong"}}}`, front), faas.ErrNotFound},
		{fmt.Sprintf(`{"auths":{%q:{"username":"ali","password":%q}}}`, front, password), nil},
	} {
		if err := os.WriteFile(conf, []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Resolve(t.Context(), ref)
		if !errors.Is(err, tt.want) {
			t.Errorf("Resolve() with %s = %v, want %v", tt.config, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the password is in %q", err)
		}
	}
}
