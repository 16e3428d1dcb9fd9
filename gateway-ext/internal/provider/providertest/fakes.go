// Package providertest has the suite that holds every implementation of
// [provider.Provider] to the contract, and what a test of one needs: images
// without a registry ([Images]) and a table of replicas that requests can be
// sent through ([Table]).
package providertest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// Digest is the digest of every image of [Images].
const Digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// ProgramVar names an environment variable with the path of a function that was
// built already, by [Build]: once for many tests, or for a test that runs itself
// as another user, who can't build.
const ProgramVar = "PROVIDERTEST_PROGRAM"

// Build builds the function that the tests run into a folder, and returns the
// path of its program.
func Build(dir string) (path string, err error) {
	path = filepath.Join(dir, "function")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path,
		"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest/function")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the test function: %w\n%s", err, out)
	}
	return path, nil
}

// Run runs a package's tests for its TestMain, after it has built the function
// that they run, once for all. It returns the exit code.
func Run(m *testing.M) int {
	if os.Getenv(ProgramVar) != "" {
		return m.Run()
	}
	code, err := runWithProgram(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

func runWithProgram(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "provider-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	program, err := Build(dir)
	if err != nil {
		return 1, err
	}
	if err := os.Setenv(ProgramVar, program); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// Program returns the path of the function's program: that of [ProgramVar], or
// else one that it builds.
func Program(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(ProgramVar); path != "" {
		return path
	}
	path, err := Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Images is a [provider.Images] without a registry: one image under any name but
// those that Missing lists.
type Images struct {
	Image faas.Image

	// AnyDigest takes images of other digests than [Digest], too.
	AnyDigest bool

	mu      sync.Mutex // guards below
	missing map[string]error
	held    int
	fetched int
}

// NewImages returns images that run the given program.
func NewImages(t testing.TB, program string) *Images {
	t.Helper()
	root := filepath.Join(t.TempDir(), "image")
	for _, dir := range []string{"usr/local/bin", "etc", "home/app", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{"usr/local/bin/function": b, "etc/motd": []byte("hello"), "etc/hosts": []byte("image")} {
		if err := os.WriteFile(filepath.Join(root, path), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/usr/local/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	return &Images{
		Image: faas.Image{
			Root: root, Entrypoint: []string{"/bin/function"}, WorkingDir: "/home/app",
			Env: []string{"PATH=/usr/bin:/usr/local/bin", "from_image=yes", "version=image"},
		},
		missing: make(map[string]error),
	}
}

// Miss makes the images whose name contains part fail with err; nil heals them.
func (i *Images) Miss(part string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.missing[part] = err
}

// Held is how many fetched images have not been released.
func (i *Images) Held() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held
}

// Fetch implements [provider.Images].
func (i *Images) Fetch(ctx context.Context, ref string) (faas.Image, func(), error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetched++
	for part, err := range i.missing {
		if strings.Contains(ref, part) && err != nil {
			return faas.Image{}, nil, err
		}
	}
	if !i.AnyDigest && !strings.HasSuffix(ref, "@"+Digest) {
		return faas.Image{}, nil, fmt.Errorf("%q doesn't end in the digest", ref)
	}
	if err := ctx.Err(); err != nil {
		return faas.Image{}, nil, err
	}
	img := i.Image
	img.Ref = ref
	i.held++
	return img, sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.held--
	}), nil
}

// Table is a [provider.Observer] that requests can be sent through: what stands
// between a provider and its callers, as small as it can be.
type Table struct {
	// Holds has a request wait for a replica where none is ready, as the gateway
	// does. It is not to be changed once there are requests.
	Holds bool

	client http.Client

	mu       sync.Mutex // guards below
	replicas map[string]faas.Replica
	history  map[string][]faas.Replica
	inFlight map[string]int
	changed  chan struct{} // closed by the next change
}

// NewTable returns an empty table.
func NewTable(t testing.TB) *Table {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &Table{
		client:   http.Client{Transport: transport, Timeout: 30 * time.Second},
		replicas: make(map[string]faas.Replica),
		history:  make(map[string][]faas.Replica),
		inFlight: make(map[string]int),
		changed:  make(chan struct{}),
	}
}

// Observe implements [provider.Observer].
func (t *Table) Observe(r faas.Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.history[r.ID] = append(t.history[r.ID], r)
	t.replicas[r.ID] = r
	if r.State == faas.Gone {
		delete(t.replicas, r.ID)
	}
	t.wake()
}

func (t *Table) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// Idle implements [provider.Observer].
func (t *Table) Idle(ctx context.Context, id string) error {
	return t.await(ctx, func() bool { return t.inFlight[id] == 0 })
}

// hold counts n more requests of a replica as in flight.
func (t *Table) hold(id string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inFlight[id] += n
	t.wake()
}

// await waits until cond, which is called with the lock held.
func (t *Table) await(ctx context.Context, cond func() bool) error {
	for {
		t.mu.Lock()
		ok, changed := cond(), t.changed
		t.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Ready lists the replicas of a function that take requests, in no order.
func (t *Table) Ready(name faas.Name) []faas.Replica {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ready(name)
}

func (t *Table) ready(name faas.Name) (ready []faas.Replica) {
	for _, r := range t.replicas {
		if r.Function == name && r.State == faas.Ready {
			ready = append(ready, r)
		}
	}
	return ready
}

// AwaitReady waits until exactly n replicas of the function's revision take
// requests and no other replica of it exists, and returns them.
func (t *Table) AwaitReady(tb testing.TB, name faas.Name, revision uint64, n int) []faas.Replica {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	err := t.await(ctx, func() bool {
		all := 0
		for _, r := range t.replicas {
			if r.Function == name {
				all++
			}
		}
		ready := t.ready(name)
		return len(ready) == n && all == n && !slices.ContainsFunc(ready, func(r faas.Replica) bool { return r.Revision != revision })
	})
	if err != nil {
		tb.Fatalf("%s: %d replicas of revision %d are not ready: %+v", name, n, revision, t.All(name))
	}
	return t.Ready(name)
}

// AwaitGone waits until the replica is gone, and returns its last state.
func (t *Table) AwaitGone(tb testing.TB, id string) faas.Replica {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	var last faas.Replica
	err := t.await(ctx, func() bool {
		h := t.history[id]
		if len(h) > 0 {
			last = h[len(h)-1]
		}
		return last.State == faas.Gone
	})
	if err != nil {
		tb.Fatalf("%s is not gone: %+v", id, last)
	}
	return last
}

// All lists the replicas of a function that are not gone.
func (t *Table) All(name faas.Name) (all []faas.Replica) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.replicas {
		if r.Function == name {
			all = append(all, r)
		}
	}
	return all
}

// History returns every step of every replica of a function that was observed,
// by replica.
func (t *Table) History(name faas.Name) map[string][]faas.Replica {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := make(map[string][]faas.Replica)
	for id, steps := range t.history {
		if steps[0].Function == name {
			h[id] = slices.Clone(steps)
		}
	}
	return h
}

// Do sends a GET request to a ready replica of the function and returns what it
// answers.
func (t *Table) Do(ctx context.Context, name faas.Name, path string) (code int, body string, err error) {
	var r faas.Replica
	take := func() bool {
		ready := t.ready(name)
		if len(ready) == 0 {
			return false
		}
		r = ready[rand.N(len(ready))]
		t.inFlight[r.ID]++
		return true
	}
	if t.Holds {
		held, cancel := context.WithTimeout(ctx, patience)
		err = t.await(held, take)
		cancel()
	} else {
		t.mu.Lock()
		if !take() {
			err = fmt.Errorf("no replica of %s is ready", name)
		}
		t.mu.Unlock()
	}
	if err != nil {
		return 0, "", err
	}
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.inFlight[r.ID]--
		t.wake()
	}()
	return t.DoAt(ctx, r, path)
}

// DoAt is Do for one replica, whatever its state.
func (t *Table) DoAt(ctx context.Context, r faas.Replica, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Addr.String()+r.Path+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = r.Host
	res, err := t.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, string(b), err
}

// Get is Do for a test that must get the answer 200.
func (t *Table) Get(tb testing.TB, name faas.Name, path string) string {
	tb.Helper()
	code, body, err := t.Do(tb.Context(), name, path)
	if err != nil || code != http.StatusOK {
		tb.Fatalf("GET %s of %s: %d %s %v", path, name, code, body, err)
	}
	return body
}

var (
	_ provider.Images   = (*Images)(nil)
	_ provider.Observer = (*Table)(nil)
)
