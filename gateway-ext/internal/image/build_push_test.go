package image_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	memory "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// shelf is a registry in memory that wants a password for pushing.
type shelf struct {
	*httptest.Server
	host    string
	uploads atomic.Int64 // layers and configurations that were sent
	status  atomic.Int64 // answer to every push, if not 0
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{}
	inner := memory.New(memory.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		switch {
		case s.status.Load() != 0 && r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.WriteHeader(int(s.status.Load()))
		case !ok:
			w.Header().Set("WWW-Authenticate", `Basic realm="Restricted"`)
			w.WriteHeader(http.StatusUnauthorized)
		case user != "admin" || password != "secret":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			if r.Method == http.MethodPatch {
				s.uploads.Add(1)
			}
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

// made returns an image of two platforms with random content.
func made(t *testing.T, ref string) *image.Built {
	t.Helper()
	index, err := random.Index(50_000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return &image.Built{Function: "hello", Ref: ref, Index: index, Digest: digest}
}

func TestPush(t *testing.T) {
	s := newShelf(t)
	b := made(t, s.host+"/hello:latest")
	var done, total int64
	cfg := image.PushConfig{Own: s.host, Username: "admin", Password: "secret", Progress: func(d, n int64) {
		if d < 0 || d > n {
			t.Errorf("progress %d of %d", d, n)
		}
		done, total = d, n
	}}
	ref, err := image.Push(t.Context(), b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.host + "/hello@" + b.Digest.String(); ref != want {
		t.Errorf("Push() = %q, want %q", ref, want)
	}
	if done != total || total < 4*50_000 {
		t.Errorf("progress ended at %d of %d bytes", done, total)
	}
	at, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(at, remote.WithAuth(&authn.Basic{Username: "admin", Password: "secret"}))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := index.Digest(); err != nil || got != b.Digest {
		t.Errorf("the registry has %v, %v, want %v", got, err, b.Digest)
	}

	sent := s.uploads.Load()
	if _, err := image.Push(t.Context(), b, cfg); err != nil {
		t.Fatal(err)
	}
	if again := s.uploads.Load() - sent; again != 0 || sent == 0 {
		t.Errorf("the first push sent %d layers, the second %d, want some and none", sent, again)
	}
	cfg.Progress, cfg.Ref = nil, s.host+"/other:1"
	if ref, err := image.Push(t.Context(), b, cfg); err != nil || !strings.HasPrefix(ref, s.host+"/other@sha256:") {
		t.Errorf("Push() elsewhere = %q, %v", ref, err)
	}
}

// What is built can be pushed to our registry, pulled from it and run.
func TestPushAndFetch(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("runs what it has built, which is for Linux")
	}
	reg := newRegistry(t)
	cfg := stranger(t)
	cfg.Function.Image = reg.addr + "/hello:latest"
	b := build(t, cfg)
	push := image.PushConfig{Own: reg.addr, Username: "admin", Password: "secret"}
	ref, err := image.Push(t.Context(), b, push)
	if err != nil {
		t.Fatal(err)
	}
	store, _ := openStore(t, func(c *image.StoreConfig) { c.Platform = b.Platforms[0] })
	img, release, err := store.Fetch(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got := ask(t, filepath.Join(img.Root, img.Entrypoint[0]), "/"); got != "hello stranger" {
		t.Errorf("it answers %q", got)
	}

	// A new version sends its program and configuration, not the files around it.
	write(t, cfg.Dir, map[string]string{"hello/name.txt": "again"})
	b = build(t, cfg)
	reg.reset()
	if _, err := image.Push(t.Context(), b, push); err != nil {
		t.Fatal(err)
	}
	if n := reg.count("PUT /v2/hello/blobs/uploads/"); n != 2 {
		t.Errorf("the new version sent %d blobs, want 2", n)
	}
}

// keychain knows one registry's password, and counts who is asked for.
type keychain struct {
	host  string
	asked []string
}

func (k *keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	k.asked = append(k.asked, r.RegistryStr())
	if r.RegistryStr() == k.host {
		return &authn.Basic{Username: "admin", Password: "secret"}, nil
	}
	return authn.Anonymous, nil
}

func TestPushPasswords(t *testing.T) {
	s := newShelf(t)
	b := made(t, s.host+"/hello:latest")
	keys := &keychain{host: s.host}
	if _, err := image.Push(t.Context(), b, image.PushConfig{Own: "127.0.0.1:1", Username: "own", Password: "own", Keychain: keys}); err != nil {
		t.Errorf("with the keychain: %v", err)
	}
	login := "log in with: docker login " + s.host
	for _, tt := range []struct {
		name string
		cfg  image.PushConfig
		want string
	}{
		{"none", image.PushConfig{}, login},
		{"another registry's", image.PushConfig{Own: "127.0.0.1:1", Username: "admin", Password: "secret"}, login},
		{"wrong", image.PushConfig{Own: s.host, Username: "admin", Password: "guess"}, "set THICKET_PASSWORD"},
	} {
		if _, err := image.Push(t.Context(), b, tt.cfg); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Push() = %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestPushErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	if _, err := image.Push(t.Context(), made(t, nobody+"/hello"), image.PushConfig{}); !errors.Is(err, faas.ErrUnavailable) || !strings.Contains(err.Error(), "no registry answers at "+nobody) {
		t.Errorf("Push() to nobody = %v", err)
	}
	if _, err := image.Push(t.Context(), made(t, "Hello World"), image.PushConfig{}); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "write the image like 127.0.0.1:8080/hello:latest") {
		t.Errorf("Push() to nonsense = %v", err)
	}
	s := newShelf(t)
	own := image.PushConfig{Own: s.host, Username: "admin", Password: "secret", Progress: func(int64, int64) {}}
	s.status.Store(http.StatusInsufficientStorage)
	if _, err := image.Push(t.Context(), made(t, s.host+"/hello"), own); !errors.Is(err, faas.ErrNoSpace) {
		t.Errorf("Push() to a full disk = %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("that's enough")
	cancel(enough)
	if _, err := image.Push(ctx, made(t, s.host+"/hello"), own); !errors.Is(err, enough) {
		t.Errorf("Push() = %v, want %v", err, enough)
	}
}

// A name on the list is spoken to without TLS.
func TestPushPlainHTTP(t *testing.T) {
	s := newShelf(t)
	cfg := image.PushConfig{
		Own: "nas.example.com:5000", Username: "admin", Password: "secret",
		PlainHTTP: []string{"nas.example.com:5000"},
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.host)
			},
		},
	}
	b := made(t, "nas.example.com:5000/hello:latest")
	b.Index = single(t)
	b.Digest, _ = b.Index.Digest()
	if _, err := image.Push(t.Context(), b, cfg); err != nil {
		t.Errorf("Push() to one on the list = %v", err)
	}
	cfg.PlainHTTP = nil
	if _, err := image.Push(t.Context(), b, cfg); err == nil {
		t.Error("Push() without TLS to one that is not on the list")
	}
}

// single returns an index of one small image.
func single(t *testing.T) v1.ImageIndex {
	t.Helper()
	index, err := random.Index(1_000, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	return index
}
