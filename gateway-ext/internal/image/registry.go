package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"
)

// RegistryConfig says where a [Registry] keeps its images and who may push.
type RegistryConfig struct {
	// Dir is the folder that belongs to the registry. It is made if absent.
	Dir string

	// MaxBytes bounds what is kept. A push that would exceed it is refused. 0
	// means no bound but the disk's, of which 64 MiB are always left for others.
	MaxBytes int64

	// Grace is how long something stays that nothing refers to: layers come
	// before the manifest that names them, so it must be longer than the
	// longest push. 0 means an hour.
	Grace time.Duration

	// Pulls is how many layers are served at the same time; others wait for their
	// turn. 0 means 8: as many as a NUC's disk and network serve in the time that
	// they would need for them one after the other.
	Pulls int

	// Authorize tells whether the request carries the password, by HTTP's Basic
	// scheme. Whoever it says yes to may push and delete; anybody may pull. It
	// must not be nil.
	Authorize func(*http.Request) bool

	// Keep, if not nil, returns the digests that are in use by functions:
	// those manifests are kept, whether or not a tag points to them.
	Keep func() []string

	// Logger is told of what goes wrong. It must not be nil.
	Logger *slog.Logger
}

// Registry is an OCI registry on this machine's disk. It is an [http.Handler]
// for the path /v2/.
//
// Distribution, the reference implementation, speaks the protocol and keeps the
// files. What is added here is who may push, how much fits, and that what is
// not needed any more goes away while pushes go on.
type Registry struct {
	cfg    RegistryConfig
	app    http.Handler
	images distribution.Namespace // the same files, for the housekeeping
	driver *filesystem.Driver
	root   *os.Root
	tokens *tokens
	turns  *turns

	// gate is held with weight 1 by whatever makes something refer to a layer,
	// and with all of its weight by the collection.
	gate *semaphore.Weighted

	used    atomic.Int64 // about how many bytes are kept; measured anew from time to time
	tidying sync.Mutex   // held while somebody makes room
}

const (
	gateWeight = 1 << 16
	// gateWait is how long a push waits for a collection, which takes less than
	// a second for a thousand images.
	gateWait = time.Minute
	// reserve is what pushes leave of the disk for what the gateway has to
	// remember.
	reserve = 64 << 20
)

// NewRegistry opens the registry in cfg.Dir. Uploads that an earlier run did not
// finish are removed.
func NewRegistry(cfg RegistryConfig) (*Registry, error) {
	if cfg.Grace <= 0 {
		cfg.Grace = time.Hour
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	// The library logs each request, in a form of its own, through one logger
	// that belongs to the process. What an operator needs of that is logged
	// here.
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.PanicLevel)

	// The library keeps this context for as long as the process lives; nothing
	// runs on it, since the housekeeping is ours.
	ctx := context.Background()
	g := &Registry{
		cfg:    cfg,
		app:    handlers.NewApp(ctx, libraryConfig(dir)),
		driver: filesystem.New(filesystem.DriverParameters{RootDirectory: dir, MaxThreads: 25}),
		root:   root,
		tokens: newTokens(),
		turns:  newTurns(cmp.Or(cfg.Pulls, 8)),
		gate:   semaphore.NewWeighted(gateWeight),
	}
	if g.images, err = storage.NewRegistry(ctx, g.driver, storage.EnableDelete); err != nil {
		root.Close()
		return nil, fmt.Errorf("open registry: %w", err)
	}
	// An upload belongs to the process that it was begun at.
	g.purgeUploads(ctx, time.Now().Add(time.Hour))
	if err := g.measure(); err != nil {
		root.Close()
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return g, nil
}

// Close closes the registry's folder, when no more requests come.
func (g *Registry) Close() error { return g.root.Close() }

func libraryConfig(dir string) *configuration.Configuration {
	c := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem":  {"rootdirectory": dir},
			"delete":      {"enabled": true},
			"redirect":    {"disable": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	c.Catalog.MaxEntries = 1000
	// The gateway may be behind something that speaks TLS for it, or be known
	// by another name than it thinks.
	c.HTTP.RelativeURLs = true
	return c
}

// ServeHTTP implements [http.Handler].
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := parseTarget(r.URL.Path)
	switch {
	case r.URL.Path == tokenPath:
		g.serveToken(w, r)
	case t.kind == targetBase:
		// Clients ask here how to log in, and some of them log in only if they
		// are asked to. So they are, and get a token for pulling if they have
		// no password.
		if !g.tokens.valid(r, mayPull) && !g.authorized(r) {
			g.challenge(w, r, "")
			return
		}
		g.serve(w, r)
	case t.kind != targetUpload && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		if t.kind == targetBlob && g.authorized(r) {
			g.renew(t.repo, t.ref) // somebody who pushes asks what need not be sent
		}
		if t.kind == targetBlob && r.Method == http.MethodGet {
			g.pull(w, r, t)
			return
		}
		g.serve(w, r)
	case !g.authorized(r):
		g.challenge(w, r, t.repo)
	default:
		g.push(w, r, t)
	}
}

// authorized tells whether the request may change anything.
func (g *Registry) authorized(r *http.Request) bool {
	return g.tokens.valid(r, mayPush) || g.cfg.Authorize(r)
}

// serve has the library answer.
func (g *Registry) serve(w http.ResponseWriter, r *http.Request) {
	g.app.ServeHTTP(&answer{ResponseWriter: w, g: g, r: r}, r)
}

// push serves what changes something.
func (g *Registry) push(w http.ResponseWriter, r *http.Request, t target) {
	if t.kind == targetManifest && r.Method == http.MethodPut {
		// A manifest is read before the gate is held, so that a slow client
		// keeps nobody waiting, and is short.
		raw, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
		if err != nil || len(raw) > maxManifest {
			refuse(w, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the manifest didn't arrive whole, or has more than 4 MiB")
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
		r.ContentLength = int64(len(raw))
	}
	if r.ContentLength > 0 {
		if err := g.room(r.Context(), r.ContentLength); err != nil {
			g.full(w, r, t, err)
			return
		}
	}
	release, err := g.enter(r.Context())
	if err != nil {
		w.Header().Set("Retry-After", "10")
		refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the registry is cleaning up: try again in a few seconds")
		return
	}
	if t.kind == targetUpload && r.Method != http.MethodPost {
		// A layer may take long to arrive, and nothing refers to it yet. So it
		// doesn't keep the collection out: it makes sure that a layer of the
		// same digest stays, if there is one.
		g.renew(t.repo, r.URL.Query().Get("digest"))
		release()
		g.receive(w, r, t)
		return
	}
	defer release()
	if t.kind == targetUpload {
		g.renew(r.URL.Query().Get("from"), r.URL.Query().Get("mount"))
	}
	g.used.Add(max(r.ContentLength, 0))
	g.serve(w, r)
}

// receive serves what brings a layer's content, within the bounds.
func (g *Registry) receive(w http.ResponseWriter, r *http.Request, t target) {
	body := &boundedBody{ReadCloser: r.Body, g: g, ctx: r.Context()}
	r.Body = body
	g.app.ServeHTTP(&answer{ResponseWriter: w, g: g, r: r, body: body}, r)
	if body.over != nil {
		g.full(w, r, t, body.over)
	}
}

// enter keeps the collection out until release is called.
func (g *Registry) enter(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, gateWait)
	defer cancel()
	if err := g.gate.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { g.gate.Release(1) }, nil
}

// renew makes a layer young again: somebody is about to refer to it.
func (g *Registry) renew(repo, digest string) {
	h, err := v1.NewHash(digest)
	if err != nil {
		return
	}
	now := time.Now()
	_ = g.root.Chtimes(blobPath(h.Hex), now, now) // there may be none
	if n, err := reference.WithName(repo); err == nil {
		_ = g.root.Chtimes(layerLinkPath(n.Name(), h.Hex), now, now)
	}
}

// statusFull is the answer to a push for which there is no room. 507 would say
// it better, but docker then tries five times, for a minute, and doesn't show the
// sentence; with this one it does, at once.
const statusFull = http.StatusForbidden

// full refuses a push for which there is no room, and removes what has arrived
// of it.
func (g *Registry) full(w http.ResponseWriter, r *http.Request, t target, why error) {
	if t.kind == targetUpload && t.ref != "" {
		if err := g.root.RemoveAll(uploadPath(t.repo, t.ref)); err != nil {
			g.cfg.Logger.Error("a refused upload can't be removed", "repository", t.repo, "err", err)
		}
		if err := g.measure(); err != nil {
			g.cfg.Logger.Error("the registry's size can't be measured", "err", err)
		}
	}
	g.cfg.Logger.Warn("push refused", "repository", t.repo, "err", why)
	w.Header().Set("Connection", "close") // the rest of the body is not read
	refuse(w, statusFull, "DENIED", why.Error())
}

// room returns nil if n more bytes may be kept, else a sentence. When it looks
// full it tidies up first, and looks again.
func (g *Registry) room(ctx context.Context, n int64) error {
	if g.fits(n) == nil {
		return nil
	}
	g.tidying.Lock()
	defer g.tidying.Unlock()
	if g.fits(n) == nil {
		return nil
	}
	if _, err := g.Collect(ctx); err != nil {
		g.cfg.Logger.Error("the registry can't be tidied up", "err", err)
	}
	return g.fits(n)
}

func (g *Registry) fits(n int64) error {
	if g.cfg.MaxBytes > 0 && n > g.cfg.MaxBytes-g.used.Load() {
		return fmt.Errorf("the registry is full: with this push it would hold more than the %d bytes that THICKET_REGISTRY_SIZE allows. Remove tags that are not needed, or allow more", g.cfg.MaxBytes)
	}
	free, err := freeBytes(g.cfg.Dir)
	if err != nil {
		return err
	}
	if n > free-reserve {
		return errors.New("the disk of the registry is full: make room on it and push again")
	}
	return nil
}

// measure finds out how much is kept.
func (g *Registry) measure() error {
	var sum int64
	err := fs.WalkDir(g.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return gone(err)
		}
		fi, err := d.Info()
		if err != nil {
			return gone(err)
		}
		sum += fi.Size()
		return nil
	})
	if err == nil {
		g.used.Store(sum)
	}
	return err
}

// gone forgives that something was removed while it was looked at.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// boundedBody is the body of a push. It ends with an error when there is no more
// room.
type boundedBody struct {
	io.ReadCloser
	g       *Registry
	ctx     context.Context
	sofar   int64
	checked int64
	over    error // why there is no room
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	n, err := b.ReadCloser.Read(p)
	b.sofar += int64(n)
	b.g.used.Add(int64(n))
	// The disk is asked every megabyte, which is in time for the reserve.
	if b.sofar-b.checked >= 1<<20 || b.g.cfg.MaxBytes > 0 && b.g.used.Load() > b.g.cfg.MaxBytes {
		b.checked = b.sofar
		if b.over = b.g.room(b.ctx, 0); b.over != nil {
			return 0, b.over
		}
	}
	return n, err
}

// answer passes on what the library answers, unless that is an error of this
// machine: strangers are told that there was one, and the log gets the cause.
type answer struct {
	http.ResponseWriter
	g    *Registry
	r    *http.Request
	body *boundedBody // of a push
	held bool
}

func (a *answer) WriteHeader(code int) {
	switch {
	case a.held:
	case code >= 400 && a.body != nil && a.body.over != nil:
		a.held = true // push says it better
	case code >= 500:
		a.held = true
		a.g.failed(a.ResponseWriter, a.r, code)
	default:
		a.ResponseWriter.WriteHeader(code)
	}
}

func (a *answer) Write(p []byte) (int, error) {
	if a.held {
		if a.body == nil || a.body.over == nil {
			a.g.cfg.Logger.Error("registry request failed", "method", a.r.Method, "path", a.r.URL.Path, "err", strings.TrimSpace(string(p[:min(len(p), 1<<10)])))
		}
		return len(p), nil
	}
	return a.ResponseWriter.Write(p)
}

func (g *Registry) failed(w http.ResponseWriter, r *http.Request, code int) {
	if free, err := freeBytes(g.cfg.Dir); err == nil && free < 1<<20 {
		refuse(w, statusFull, "DENIED", "the disk of the registry is full: make room on it and push again")
		return
	}
	refuse(w, code, "UNKNOWN", "the registry could not do this; its log says why")
}

// refuse answers with an error in the form of the distribution specification.
func refuse(w http.ResponseWriter, status int, code, message string) {
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]problem{"errors": {{code, message}}})
}

// target is what a path below /v2/ means.
type target struct {
	kind      targetKind
	repo, ref string
}

type targetKind int

const (
	targetOther targetKind = iota
	targetBase
	targetManifest
	targetBlob
	targetUpload
)

// parseTarget reads a path. A repository or an upload that isn't spelled as the
// specification demands is none; the library then says what is wrong with it.
func parseTarget(path string) target {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || rest == "" {
		return target{kind: targetBase}
	}
	for _, k := range []struct {
		kind targetKind
		sep  string
	}{{targetUpload, "/blobs/uploads/"}, {targetBlob, "/blobs/"}, {targetManifest, "/manifests/"}} {
		i := strings.LastIndex(rest, k.sep)
		if i < 0 {
			continue
		}
		t := target{kind: k.kind, repo: rest[:i], ref: rest[i+len(k.sep):]}
		if _, err := reference.WithName(t.repo); err != nil {
			t.repo = ""
		}
		if t.repo == "" || strings.ContainsAny(t.ref, "/\\") || strings.HasPrefix(t.ref, ".") {
			t.ref = ""
		}
		return t
	}
	return target{}
}

// The library's layout on disk, as its storage package documents it.
const libraryRoot = "docker/registry/v2/"

func blobPath(hex string) string {
	return libraryRoot + "blobs/sha256/" + hex[:2] + "/" + hex + "/data"
}
func layerLinkPath(repo, hex string) string {
	return libraryRoot + "repositories/" + repo + "/_layers/sha256/" + hex + "/link"
}
func revisionLinkPath(repo, hex string) string {
	return libraryRoot + "repositories/" + repo + "/_manifests/revisions/sha256/" + hex + "/link"
}
func uploadPath(repo, id string) string {
	return libraryRoot + "repositories/" + repo + "/_uploads/" + id
}
