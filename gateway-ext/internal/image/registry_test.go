package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// newServer serves f on loopback and returns its host and port.
func newServer(t testing.TB, f http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func (reg *registry) tag(t testing.TB, ref string) name.Tag {
	t.Helper()
	tag, err := name.NewTag(reg.addr + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	return tag
}

// do sends a request with the password and returns the status and the body.
func (reg *registry) do(t testing.TB, method, target string, body io.Reader) (*http.Response, string) {
	t.Helper()
	if strings.HasPrefix(target, "/") {
		target = reg.url + target
	}
	r, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("admin", "secret")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// location resolves where an upload goes on.
func (reg *registry) location(t testing.TB, resp *http.Response) *url.URL {
	t.Helper()
	u, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// age makes everything in the registry as old as d.
func (reg *registry) age(t testing.TB, d time.Duration) {
	t.Helper()
	then := time.Now().Add(-d)
	err := filepath.WalkDir(reg.dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(p, then, then))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (reg *registry) collect(t testing.TB) int64 {
	t.Helper()
	n, err := reg.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// has tells whether an image can be pulled whole.
func (reg *registry) has(t testing.TB, ref string) bool {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		return false
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			return false
		}
		_, err = io.Copy(io.Discard, rc)
		if rc.Close(); err != nil {
			return false
		}
	}
	return true
}

func TestPushNeedsThePassword(t *testing.T) {
	reg := newRegistry(t)
	img := imageOf(t, host, layerOf(t, tarEntry{name: "x"}))
	tag := reg.tag(t, "a/b:1")
	strangers := map[string]authn.Authenticator{
		"nobody":         authn.Anonymous,
		"wrong password": &authn.Basic{Username: "admin", Password: "guess"},
		"made-up token":  authn.FromConfig(authn.AuthConfig{RegistryToken: "push.99999999999.AAAA"}),
	}
	for who, auth := range strangers {
		if err := remote.Write(tag, img, remote.WithAuth(auth)); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") {
			t.Errorf("%s: push = %v, want it refused", who, err)
		}
	}
	if err := remote.Write(tag, img, admin); err != nil {
		t.Fatal(err)
	}
	if !reg.has(t, tag.Name()) { // anybody may pull
		t.Error("an anonymous pull doesn't get it")
	}
	for who, auth := range strangers {
		if err := remote.Delete(tag.Context().Digest(digestOf(t, img)), remote.WithAuth(auth)); err == nil {
			t.Errorf("%s may delete", who)
		}
	}
	if !reg.has(t, tag.Name()) {
		t.Error("it is gone after refused deletions")
	}
	if err := remote.Delete(tag.Context().Digest(digestOf(t, img)), admin); err != nil || reg.has(t, tag.Name()) {
		t.Errorf("Delete() with the password = %v", err)
	}
}

func TestTokens(t *testing.T) {
	reg := newRegistry(t)
	for _, tt := range []struct {
		name, method, path, user, auth string
		want                           int
		challenge                      string
	}{
		{name: "ping", method: "GET", path: "/v2/", want: 401, challenge: `Bearer realm="` + reg.url + `/v2/token",service="thicket"`},
		{name: "ping with the password", method: "GET", path: "/v2/", user: "secret", want: 200},
		{name: "token for nobody", method: "GET", path: "/v2/token?service=thicket", want: 200},
		{name: "token for the password", method: "GET", path: "/v2/token", user: "secret", want: 200},
		{name: "token for a wrong password", method: "GET", path: "/v2/token", user: "guess", want: 401, challenge: `Basic realm="Restricted"`},
		{name: "token by POST", method: "POST", path: "/v2/token", want: 405},
		{name: "push", method: "POST", path: "/v2/x/y/blobs/uploads/", want: 401, challenge: `,scope="repository:x/y:pull,push"`},
		{name: "manifest", method: "PUT", path: "/v2/x/manifests/1", want: 401, challenge: "Bearer"},
		{name: "delete", method: "DELETE", path: "/v2/x/manifests/1", want: 401, challenge: "Bearer"},
		{name: "upload's state", method: "GET", path: "/v2/x/blobs/uploads/some", want: 401, challenge: "Bearer"},
		{name: "made-up token", method: "POST", path: "/v2/x/blobs/uploads/", auth: "Bearer push.99999999999.AAAA", want: 401, challenge: "Bearer"},
		{name: "no token", method: "POST", path: "/v2/x/blobs/uploads/", auth: "Bearer", want: 401, challenge: "Bearer"},
		{name: "a bad name", method: "POST", path: "/v2/X/../../y/blobs/uploads/", want: 401, challenge: "Bearer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tt.method, reg.url+tt.path, nil)
			if tt.user != "" {
				r.SetBasicAuth("admin", tt.user)
			}
			if tt.auth != "" {
				r.Header.Set("Authorization", tt.auth)
			}
			w := httptest.NewRecorder()
			reg.ServeHTTP(w, r)
			if w.Code != tt.want || !strings.Contains(w.Header().Get("WWW-Authenticate"), tt.challenge) {
				t.Errorf("%d with the challenge %q, want %d with %q", w.Code, w.Header().Get("WWW-Authenticate"), tt.want, tt.challenge)
			}
			if w.Code >= 400 && !strings.Contains(w.Body.String(), `"errors":[{"code":"`) {
				t.Errorf("the body is %q", w.Body)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	var keep atomic.Pointer[[]string]
	keep.Store(new([]string{}))
	reg := newRegistry(t, func(c *image.RegistryConfig) {
		c.Keep = func() []string { return *keep.Load() }
	})
	layer := func(s string) v1.Layer { return layerOf(t, tarEntry{name: s, body: s}) }
	shared := layer("shared")
	old := reg.push(t, "app:1", imageOf(t, host, shared, layer("old")))
	inUse := reg.push(t, "app:1", imageOf(t, host, shared, layer("in use")))
	tagged := reg.push(t, "app:1", imageOf(t, host, shared, layer("tagged")))
	elsewhere := reg.push(t, "other/app:1", imageOf(t, host, shared))
	index := reg.push(t, "many:1", indexOf(t, map[string]v1.Image{"linux/arm64": imageOf(t, host, layer("arm64")), "linux/amd64": imageOf(t, host, layer("amd64"))}))
	all := []string{old, inUse, tagged, elsewhere, index}
	keep.Store(new([]string{strings.SplitN(inUse, "@", 2)[1]}))

	check := func(when string, gone ...string) {
		t.Helper()
		for _, ref := range all {
			want := true
			for _, g := range gone {
				want = want && g != ref
			}
			if got := reg.has(t, ref); got != want {
				t.Errorf("%s: is %s there? %v, want %v", when, ref, got, want)
			}
		}
	}
	check("before")
	if n := reg.collect(t); n != 0 {
		t.Errorf("Collect() of what is young freed %d bytes", n)
	}
	check("young")
	reg.age(t, 2*time.Hour)
	if n := reg.collect(t); n == 0 {
		t.Error("Collect() freed nothing")
	}
	check("old", old)
	if n := reg.collect(t); n != 0 {
		t.Errorf("the second Collect() freed %d bytes", n)
	}

	keep.Store(new([]string{}))
	for _, ref := range []string{"many:1", "other/app:1"} {
		if err := remote.Delete(reg.tag(t, ref), admin); err != nil {
			t.Fatal(err)
		}
	}
	reg.age(t, 2*time.Hour)
	reg.collect(t)
	check("after the tags were deleted", old, inUse, elsewhere, index)
}

// TestCollectSparesAPush collects between all steps of a push that relies on a
// layer which is as old as can be, and which nothing refers to.
func TestCollectSparesAPush(t *testing.T) {
	reg := newRegistry(t)
	shared := layerOf(t, tarEntry{name: "x", body: "shared"})
	gone := reg.push(t, "a:1", imageOf(t, host, shared))
	if err := remote.Delete(reg.tag(t, "a:1"), admin); err != nil {
		t.Fatal(err)
	}
	reg.age(t, 2*time.Hour)
	var told, steps atomic.Int32
	reg.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		reg.ServeHTTP(w, r)
		if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, digestOf(t, shared)) {
			told.Add(1) // from here on the pusher counts on it
		}
		if told.Load() == 0 {
			return true
		}
		steps.Add(1)
		if _, err := reg.Collect(r.Context()); err != nil {
			t.Errorf("Collect() after %s %s = %v", r.Method, r.URL.Path, err)
		}
		return true
	})
	ref := reg.push(t, "a:2", imageOf(t, host, shared, layerOf(t, tarEntry{name: "y", body: "new"})))
	reg.setMeddle(nil)
	if !reg.has(t, ref) {
		t.Error("the image that was pushed is not whole")
	}
	if told.Load() == 0 || steps.Load() < 3 {
		t.Errorf("the push asked %d times for the layer and collected %d times", told.Load(), steps.Load())
	}
	if reg.has(t, gone) {
		t.Error("nothing was collected meanwhile")
	}
}

// TestCollectWhilePushing has many pushes and collections at the same time.
func TestCollectWhilePushing(t *testing.T) {
	reg := newRegistry(t)
	ctx, stop := context.WithCancel(t.Context())
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			if _, err := reg.Collect(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("Collect() = %v", err)
			}
		}
	})
	var wg sync.WaitGroup
	refs := make([]string, 6)
	for i := range refs {
		img := imageOf(t, host, layerOf(t, tarEntry{name: "x", body: "shared"}), layerOf(t, tarEntry{name: "y", body: fmt.Sprint(i)}))
		tag := reg.tag(t, fmt.Sprintf("app%d:1", i))
		refs[i] = tag.Name()
		wg.Go(func() {
			if err := remote.Write(tag, img, admin); err != nil {
				t.Errorf("push = %v", err)
			}
		})
	}
	wg.Wait()
	stop()
	collecting.Wait()
	for _, ref := range refs {
		if !reg.has(t, ref) {
			t.Errorf("%s is not whole", ref)
		}
	}
}

func TestUnfinishedUploads(t *testing.T) {
	reg := newRegistry(t)
	resp, _ := reg.do(t, "POST", "/v2/app/blobs/uploads/", nil)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
	resp, _ = reg.do(t, "PATCH", reg.location(t, resp).String(), strings.NewReader("half of it"))
	if resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
	uploads := filepath.Join(reg.dir, "docker/registry/v2/repositories/app/_uploads")
	begun := func() int {
		list, err := os.ReadDir(uploads)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	reg.collect(t)
	if begun() != 1 {
		t.Error("an upload that is young was removed")
	}
	list, err := os.ReadDir(uploads)
	if err != nil {
		t.Fatal(err)
	}
	// When it was begun is written in a file.
	yesterday := time.Now().Add(-25 * time.Hour).UTC().Format(time.RFC3339)
	if err := os.WriteFile(filepath.Join(uploads, list[0].Name(), "startedat"), []byte(yesterday), 0o600); err != nil {
		t.Fatal(err)
	}
	reg.collect(t)
	if begun() != 0 {
		t.Error("an upload of yesterday is still there")
	}

	// Whatever a process had begun ends with it.
	if resp, _ := reg.do(t, "POST", "/v2/app/blobs/uploads/", nil); resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
	if begun() != 1 {
		t.Fatal("no upload begun")
	}
	newRegistry(t, func(c *image.RegistryConfig) { c.Dir = reg.dir })
	if begun() != 0 {
		t.Error("an upload of an earlier process is still there")
	}
}

func TestRegistrySize(t *testing.T) {
	const bound = 200_000
	reg := newRegistry(t, func(c *image.RegistryConfig) { c.MaxBytes = bound })
	layer := func(seed byte, n int) v1.Layer {
		return static.NewLayer(tarOf(t, tarEntry{name: "x", body: strings.Repeat(string(rune('a'+seed)), n)}), types.OCIUncompressedLayer)
	}
	first := reg.push(t, "app:1", imageOf(t, host, layer(0, 120_000)))
	err := remote.Write(reg.tag(t, "big:1"), imageOf(t, host, layer(1, 120_000)), admin)
	if err == nil || !strings.Contains(err.Error(), "DENIED") || !strings.Contains(err.Error(), "THICKET_REGISTRY_SIZE") {
		t.Errorf("a push over the bound = %v", err)
	}
	// docker sends a layer without saying how long it is.
	resp, _ := reg.do(t, "POST", "/v2/stream/blobs/uploads/", nil)
	resp, body := reg.do(t, "PATCH", reg.location(t, resp).String(), io.MultiReader(bytes.NewReader(make([]byte, 120_000))))
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "THICKET_REGISTRY_SIZE") {
		t.Errorf("a stream over the bound = %s %s", resp.Status, body)
	}
	if size := sizeOf(t, reg.dir); size > bound {
		t.Errorf("%d bytes are kept, of at most %d", size, bound)
	}
	if list, err := os.ReadDir(filepath.Join(reg.dir, "docker/registry/v2/repositories/stream/_uploads")); err != nil || len(list) > 0 {
		t.Errorf("left of the refused upload: %v, %v", list, err)
	}
	if !reg.has(t, first) {
		t.Error("what was there is gone")
	}

	// What is not needed any more makes room by itself.
	if err := remote.Delete(reg.tag(t, "app:1"), admin); err != nil {
		t.Fatal(err)
	}
	reg.age(t, 2*time.Hour)
	if ref := reg.push(t, "big:1", imageOf(t, host, layer(1, 120_000))); !reg.has(t, ref) {
		t.Error("it is not whole")
	}
}

func sizeOf(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				n += fi.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the registry is just clearing it away
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRegistryRefusesDamage(t *testing.T) {
	reg := newRegistry(t)
	sum := sha256.Sum256([]byte("something"))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	resp, _ := reg.do(t, "POST", "/v2/app/blobs/uploads/", nil)
	u := reg.location(t, resp)
	q := u.Query()
	q.Set("digest", digest)
	u.RawQuery = q.Encode()
	if resp, body := reg.do(t, "PUT", u.String(), strings.NewReader("something else")); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("a wrong digest = %s %s", resp.Status, body)
	}
	if resp, _ := reg.do(t, "GET", "/v2/app/blobs/"+digest, nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("it is there: %s", resp.Status)
	}
	if resp, _ := reg.do(t, "PUT", "/v2/app/manifests/1", strings.NewReader(strings.Repeat(" ", 5<<20))); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a manifest of 5 MiB = %s", resp.Status)
	}
}

func TestRegistryHidesItsDisk(t *testing.T) {
	// What is wrong with the disk is for the log, not for strangers.
	reg := newRegistry(t, func(c *image.RegistryConfig) { c.Logger = discard })
	ref := reg.push(t, "app:1", imageOf(t, host, layerOf(t, tarEntry{name: "x"})))
	link := filepath.Join(reg.dir, "docker/registry/v2/repositories/app/_manifests/tags/1/current/link")
	if err := errors.Join(os.Remove(link), os.Mkdir(link, 0o700)); err != nil {
		t.Fatal(err)
	}
	resp, body := reg.do(t, "GET", "/v2/app/manifests/1", nil)
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(body, "its log says why") || strings.Contains(body, "current/link") {
		t.Errorf("a broken file = %s %s", resp.Status, body)
	}
	if !reg.has(t, ref) {
		t.Error("by its digest it can't be pulled either")
	}
}

func TestRunEnds(t *testing.T) {
	reg := newRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- reg.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
}
