package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// StoreConfig says where images are kept and how they are reached.
type StoreConfig struct {
	// Dir is the folder that belongs to the store. It is made if it is absent.
	// Images are made of hard links, so it must be on one file system.
	Dir string

	// MaxImageBytes bounds one image: its layers as they are sent, and as they
	// are unpacked. 0 means 4 GiB. A larger one is refused before the disk is
	// full of it.
	MaxImageBytes int64

	// Insecure lists the registries ("host" or "host:port") that are spoken to
	// over plain HTTP. All others must speak HTTPS, but those on this machine's
	// loopback, which are always spoken to over plain HTTP.
	Insecure []string

	// DockerConfig is the path of a Docker config.json, which has the
	// credentials for registries. "" looks where Docker and Podman do.
	DockerConfig string

	// Platform is what images must be made for. The zero value is what this
	// machine runs. On 32-bit ARM, images for older variants are taken where
	// there is none for this one.
	Platform v1.Platform

	// Others says whether there are other machines, for which an image may be
	// that has nothing for this one. Nil is never.
	Others func() bool

	// Logger is told of pulls and removals. It must not be nil.
	Logger *slog.Logger

	// Progress, if not nil, is told how many bytes of an image have arrived and
	// how many there are in all. It is called often, by several goroutines, and
	// must not block.
	Progress func(ref string, done, total int64)

	// Dial makes the connections to registries; nil dials their addresses.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Transport carries the requests; nil takes one with sensible timeouts.
	Transport http.RoundTripper
}

// Store keeps images unpacked on disk. Layers are shared between images, and an
// image's tree between all replicas that run it: nobody may write to either. A
// store belongs to one process at a time.
//
// The folder has
//
//	layers/<diff id>/   one layer: its files under numbers, and an index of names
//	trees/<manifest>/   one image: image.json, and rootfs, made of hard links
//	tmp/                what is in the making; emptied by [OpenStore]
//
// and what is in layers and trees is whole, since it got there by a rename.
type Store struct {
	cfg       StoreConfig
	platforms []v1.Platform // accepted, best first
	root      *os.Root
	transport http.RoundTripper
	unpacking chan struct{} // holds a token while a layer is unpacked

	layers shelf[int64]   // by diff id; the value is the sum of the files' sizes
	trees  shelf[*record] // by the manifest's digest
	plans  shelf[*plan]   // by reference, while somebody looks at it

	noting  sync.Mutex         // held while a record is written again
	mu      sync.Mutex         // guards below, and the Refs of records
	digests map[string]*record // by digest, of an index or a manifest
}

// record is what an image's tree is remembered with.
type record struct {
	Manifest string   `json:"manifest"` // hex
	Refs     []string `json:"refs"`     // "repository@sha256:…", as it was asked for
	Platform string   `json:"platform"` // of the store that has it
	// Offer is the digest by which it was pulled, and Platforms what that has
	// something for.
	Offer     string   `json:"offer,omitempty"`
	Platforms []string `json:"platforms,omitempty"`

	Layers []string `json:"layers"` // diff ids, in hex
	Bytes  int64    `json:"bytes"`

	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	User       string   `json:"user,omitempty"`
}

const (
	layersDir = "layers"
	treesDir  = "trees"
	tmpDir    = "tmp"
	rootfs    = "rootfs"
	recordAt  = "image.json"

	partPrefix = "blob-" // of a layer that is on its way
)

// OpenStore opens the store in cfg.Dir and removes what an earlier run left
// half done.
func OpenStore(cfg StoreConfig) (*Store, error) {
	if cfg.MaxImageBytes <= 0 {
		cfg.MaxImageBytes = 4 << 30
	}
	platforms := HostPlatforms()
	if cfg.Platform.OS != "" {
		platforms = Accepted(cfg.Platform)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = dir
	s := &Store{
		cfg:       cfg,
		platforms: platforms,
		transport: cfg.Transport,
		unpacking: make(chan struct{}, 1),
		plans:     shelf[*plan]{transient: true},
		digests:   map[string]*record{},
	}
	if s.transport == nil {
		s.transport = newTransport(cfg.Dial)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if s.root, err = os.OpenRoot(dir); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.load(); err != nil {
		s.root.Close()
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

func newTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) http.RoundTripper {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       10 * time.Second,
		MaxIdleConnsPerHost:   4,
		ForceAttemptHTTP2:     true,
	}
}

// load finds what is there, and removes what is not whole.
func (s *Store) load() error {
	if err := s.root.RemoveAll(tmpDir); err != nil {
		return err
	}
	// Functions run as users of their own and must get into trees; what is
	// elsewhere is nobody's business.
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{{layersDir, 0o700}, {tmpDir, 0o700}, {treesDir, 0o755}} {
		if err := s.root.Mkdir(d.name, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
	}
	layers, err := fs.ReadDir(s.root.FS(), layersDir)
	if err != nil {
		return err
	}
	for _, d := range layers {
		h, err := readHeader(s.root, layersDir+"/"+d.Name())
		if err != nil {
			s.cfg.Logger.Warn("removing a damaged layer", "layer", d.Name(), "err", err)
			if err := s.discard(layersDir + "/" + d.Name()); err != nil {
				return err
			}
			continue
		}
		s.layers.put(d.Name(), h.Bytes)
	}
	trees, err := fs.ReadDir(s.root.FS(), treesDir)
	if err != nil {
		return err
	}
	for _, d := range trees {
		r, err := s.readRecord(d.Name())
		if err != nil {
			s.cfg.Logger.Warn("removing a damaged image", "manifest", d.Name(), "err", err)
			if err := s.discard(treesDir + "/" + d.Name()); err != nil {
				return err
			}
			continue
		}
		s.trees.put(d.Name(), r)
		s.remember(r)
	}
	return nil
}

func (s *Store) readRecord(key string) (*record, error) {
	raw, err := s.root.ReadFile(treesDir + "/" + key + "/" + recordAt)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, err
	}
	if r.Manifest != key || len(r.Refs) == 0 || r.Platform != platformName(s.platforms[0]) {
		return nil, fmt.Errorf("it is %s for %s", r.Manifest, r.Platform)
	}
	_, err = s.root.Stat(treesDir + "/" + key + "/" + rootfs)
	return r, err
}

// remember makes an image known under the digests it was asked for by.
func (s *Store) remember(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests["sha256:"+r.Manifest] = r
	for _, ref := range r.Refs {
		if _, digest, ok := strings.Cut(ref, "@"); ok {
			s.digests[digest] = r
		}
	}
}

// Close stops pulls and waits for their end. Images that were fetched stay where
// they are.
func (s *Store) Close() error {
	s.plans.close()
	s.trees.close()
	s.layers.close()
	if t, ok := s.transport.(*http.Transport); ok && s.cfg.Transport == nil {
		t.CloseIdleConnections()
	}
	return s.root.Close()
}

// parse reads a reference to an image.
func (s *Store) parse(ref string) (name.Reference, error) {
	r, err := name.ParseReference(ref)
	if err == nil && s.plain(r.Context().RegistryStr()) {
		r, err = name.ParseReference(ref, name.Insecure)
	}
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %q is not a name for an image (%w): write host/name:tag, host/name@sha256:…, or name:tag for one at Docker Hub", ref, err)
	}
	return r, nil
}

// Resolve returns what ref points to now, an index or a manifest, and makes sure
// that there is an image for this platform, if there is no other machine that it
// may be for. It asks the registry, unless ref has a digest and that image is on
// disk.
func (s *Store) Resolve(ctx context.Context, ref string) (faas.Pin, error) {
	r, err := s.parse(ref)
	if err != nil {
		return faas.Pin{}, err
	}
	if d, ok := r.(name.Digest); ok {
		if rec := s.known(d.DigestStr()); rec != nil {
			pin := faas.Pin{Digest: d.DigestStr()}
			if pin.Digest == rec.Offer {
				pin.Platforms = rec.Platforms
			}
			return pin, nil
		}
	}
	p, release, err := s.plan(ctx, ref, r)
	if m, ok := errors.AsType[*misfit](err); ok && s.cfg.Others != nil && s.cfg.Others() {
		return faas.Pin{Digest: m.digest, Platforms: m.platforms}, nil
	}
	if err != nil {
		return faas.Pin{}, err
	}
	release()
	return faas.Pin{Digest: p.digest, Platforms: p.platforms}, nil
}

func (s *Store) known(digest string) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.digests[digest]
}

// Has says whether the image of a digest is on disk.
func (s *Store) Has(digest string) bool { return s.known(digest) != nil }

// Digests returns the digests under which images are on disk, of indexes and of
// manifests, in no order.
func (s *Store) Digests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.digests))
}

func (s *Store) plan(ctx context.Context, image string, ref name.Reference) (*plan, func(), error) {
	return s.plans.take(ctx, ref.Name(), func(ctx context.Context) (*plan, error) {
		return s.look(ctx, image, ref)
	})
}

// Fetch returns the image that ref points to, from disk if it is there, else
// pulled. With a digest in ref nobody is asked for what is on disk. The image
// stays there until release is called, which may be done more than once.
//
// When ctx ends, Fetch returns at once; the pull goes on if somebody else waits
// for the same image, else it stops, and the next one goes on where it stopped.
func (s *Store) Fetch(ctx context.Context, ref string) (img faas.Image, release func(), err error) {
	r, err := s.parse(ref)
	if err != nil {
		return faas.Image{}, nil, err
	}
	if d, ok := r.(name.Digest); ok {
		if rec := s.known(d.DigestStr()); rec != nil {
			rec, release, err := s.trees.take(ctx, rec.Manifest, func(context.Context) (*record, error) { return nil, errGone })
			if err == nil {
				return s.image(r.Context().Name()+"@"+d.DigestStr(), rec, release)
			}
			if !errors.Is(err, errGone) {
				return faas.Image{}, nil, err
			}
		}
	}
	p, done, err := s.plan(ctx, ref, r)
	if err != nil {
		return faas.Image{}, nil, err
	}
	defer done()
	rec, release, err := s.trees.take(ctx, p.key, func(ctx context.Context) (*record, error) {
		return s.build(ctx, ref, p)
	})
	if err != nil {
		return faas.Image{}, nil, err
	}
	return s.image(r.Context().Name()+"@"+p.digest, rec, release)
}

// errGone says that an image was pruned between being found and being taken.
var errGone = errors.New("the image is gone")

// image describes a tree that is held, and notes that ref led to it.
func (s *Store) image(ref string, r *record, release func()) (faas.Image, func(), error) {
	if err := s.note(ref, r); err != nil {
		release()
		return faas.Image{}, nil, s.diskError(ref, err)
	}
	return faas.Image{
		Ref:        ref,
		Root:       filepath.Join(s.cfg.Dir, treesDir, r.Manifest, rootfs),
		Entrypoint: slices.Clone(r.Entrypoint),
		Cmd:        slices.Clone(r.Cmd),
		Env:        slices.Clone(r.Env),
		WorkingDir: r.WorkingDir,
		User:       r.User,
	}, release, nil
}

// maxRefs bounds the names that are remembered for one image. One more than
// that takes the place of the oldest.
const maxRefs = 64

func (s *Store) note(ref string, r *record) error {
	if s.noted(ref, r) {
		return nil
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	if s.noted(ref, r) {
		return nil
	}
	changed := *r // only who holds noting changes Refs
	changed.Refs = append(slices.Clone(r.Refs), ref)
	if n := len(changed.Refs); n > maxRefs {
		changed.Refs = changed.Refs[n-maxRefs:]
	}
	if err := s.writeRecord(treesDir+"/"+r.Manifest, &changed); err != nil {
		return err
	}
	s.mu.Lock()
	r.Refs = changed.Refs
	s.mu.Unlock()
	s.remember(r)
	return nil
}

func (s *Store) noted(ref string, r *record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(r.Refs, ref)
}

// writeRecord writes a record so that after a power cut there is the old one or
// the new one.
func (s *Store) writeRecord(dir string, r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := dir + "/" + recordAt + ".new"
	f, err := s.root.Create(next)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(raw); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return s.root.Rename(next, dir+"/"+recordAt)
}
