package image_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// served counts what a registry serves of its layers.
type served struct {
	mu        sync.Mutex
	bytes     int64
	now, most int // layers at the same time: what is small has no need of a turn
}

// servedWriter is one answer: it counts from its first byte until it is over.
type servedWriter struct {
	http.ResponseWriter
	s     *served
	begun bool
}

func (w *servedWriter) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	if !w.begun && len(p) > 8<<10 {
		w.begun = true
		w.s.now++
		w.s.most = max(w.s.most, w.s.now)
	}
	w.s.bytes += int64(len(p))
	w.s.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

// TestTenNodes pull one image at the same time, and then another one that shares
// its larger layer: the registry serves two layers at a time, each node gets each
// layer once, and all of them get the images.
func TestTenNodes(t *testing.T) {
	const nodes, turns = 10, 2
	reg := newRegistry(t, func(c *image.RegistryConfig) { c.Pulls = turns })
	base := static.NewLayer(noise(t, 2<<20), types.OCIUncompressedLayer)
	first := imageOf(t, host, base, layerOf(t, tarEntry{name: "one", body: strings.Repeat("1", 100<<10)}))
	second := imageOf(t, host, base, layerOf(t, tarEntry{name: "two", body: strings.Repeat("2", 100<<10)}))
	one, two := reg.push(t, "one:1", first), reg.push(t, "two:1", second)
	var s served
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		a := &servedWriter{ResponseWriter: w, s: &s}
		reg.ServeHTTP(a, r)
		if s.mu.Lock(); a.begun {
			s.now--
		}
		s.mu.Unlock()
		return true
	})
	size := func(img v1.Image, layers ...int) int64 {
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		all, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		n := int64(len(config))
		for _, i := range layers {
			bytes, err := all[i].Size()
			if err != nil {
				t.Fatal(err)
			}
			n += bytes
		}
		return n
	}

	stores := make([]*image.Store, nodes)
	for i := range stores {
		stores[i], _ = openStore(t)
	}
	for _, tt := range []struct {
		ref, file string
		want      int64
	}{{one, "one", nodes * size(first, 0, 1)}, {two, "two", nodes * size(second, 1)}} {
		s.mu.Lock()
		s.bytes, s.most = 0, 0
		s.mu.Unlock()
		var all sync.WaitGroup
		for _, store := range stores {
			all.Go(func() {
				img, release, err := store.Fetch(t.Context(), tt.ref)
				if err != nil {
					t.Errorf("Fetch(%s) = %v", tt.ref, err)
					return
				}
				defer release()
				if got := content(t, img.Root, tt.file); len(got) != 100<<10 {
					t.Errorf("%s has %d bytes", tt.file, len(got))
				}
			})
		}
		all.Wait()
		if s.bytes != tt.want {
			t.Errorf("%d nodes were given %d bytes of %s, want %d: each layer once", nodes, s.bytes, tt.file, tt.want)
		}
		if s.most > turns {
			t.Errorf("%d layers of %s were served at the same time, want %d at most", s.most, tt.file, turns)
		}
		t.Logf("%s: %d bytes for %d nodes, at most %d answers at a time", tt.file, s.bytes, nodes, s.most)
	}
	for _, store := range stores {
		for _, ref := range []string{one, two} {
			_, digest, _ := strings.Cut(ref, "@")
			if !store.Has(digest) || !slices.Contains(store.Digests(), digest) {
				t.Errorf("a store doesn't know that it has %s", ref)
			}
		}
	}
}

// TestTurns: who reads slowly keeps others waiting only up to a bound, and they
// are told when to come again.
func TestTurns(t *testing.T) {
	reg := newRegistry(t, func(c *image.RegistryConfig) { c.Pulls = 1 })
	layer := static.NewLayer(noise(t, 1<<20), types.OCIUncompressedLayer)
	reg.push(t, "f:1", imageOf(t, host, layer))
	h, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	path := reg.url + "/v2/f/blobs/" + h.String()
	held := make(chan struct{})
	began := make(chan struct{}, 1)
	var first atomic.Bool
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		reg.ServeHTTP(holdWriter{w, func() {
			if first.CompareAndSwap(false, true) {
				began <- struct{}{}
				<-held
			}
		}}, r)
		return true
	})
	get := func() *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Error(err)
			return nil
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return nil
		}
		return res
	}
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		if res := get(); res != nil {
			res.Body.Close()
		}
	})
	<-began
	// One is served, 32 wait, and the others are told at once; with the first one
	// gone all that waited are served.
	const callers = 40
	codes := make(chan int, callers)
	for range callers {
		all.Go(func() {
			res := get()
			if res == nil {
				return
			}
			defer res.Body.Close()
			if res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") == "" {
				t.Error("it isn't said when to come again")
			}
			codes <- res.StatusCode
		})
	}
	for range callers - 32 {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Errorf("beyond the queue it was answered %d, want 429", code)
		}
	}
	close(held)
	for range 32 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("who waited was answered %d, want 200", code)
		}
	}
}

// holdWriter calls hold before each write.
type holdWriter struct {
	http.ResponseWriter
	hold func()
}

func (w holdWriter) Write(p []byte) (int, error) {
	w.hold()
	return w.ResponseWriter.Write(p)
}

// TestBusyRegistry: a registry that says when to come again is asked then, and as
// often as it says so.
func TestBusyRegistry(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "f:1", imageOf(t, host, layerOf(t, tarEntry{name: "a", body: "b"})))
	var mu sync.Mutex
	var asked []time.Time
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Accept") != "" || len(asked) >= 2 {
			return false
		}
		if reg.count("/blobs/") == 1 {
			return false // the configuration
		}
		asked = append(asked, time.Now())
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	reg.reset()
	s, _ := openStore(t)
	fetch(t, s, ref)
	if len(asked) != 2 {
		t.Fatalf("it said that it is busy %d times, want 2", len(asked))
	}
	if d := asked[1].Sub(asked[0]); d < time.Second {
		t.Errorf("it was asked again after %v, want a second at least", d)
	}
}
