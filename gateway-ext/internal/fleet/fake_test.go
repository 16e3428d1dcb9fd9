package fleet_test

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// store is a [fleet.Store] in memory.
type store struct {
	mu   sync.Mutex // guards below
	data map[string][]byte
	err  error // what Put and Delete return, if not nil
	puts int
}

func newStore() *store { return &store{data: make(map[string][]byte)} }

func (s *store) Put(ctx context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmp.Or(ctx.Err(), s.err); err != nil {
		return err
	}
	s.puts++
	s.data[key] = slices.Clone(value)
	return nil
}

func (s *store) Delete(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmp.Or(ctx.Err(), s.err); err != nil {
		return err
	}
	delete(s.data, key)
	return nil
}

func (s *store) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.data[key]; ok {
		return v, nil
	}
	return nil, faas.Errorf(faas.ErrNotFound, "there is no %s", key)
}

func (s *store) Each(_ context.Context, f func(string, []byte) error) error {
	s.mu.Lock()
	all := maps.Clone(s.data)
	s.mu.Unlock()
	for key, value := range all {
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

// fail makes every change fail, or none with nil.
func (s *store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// nodes is a [provider.Provider] whose replicas start at once.
type nodes struct {
	mu       sync.Mutex // guards below
	running  map[faas.Name]provider.Workload
	applied  []provider.Workload
	reason   string
	applyErr error
	draining chan struct{} // if not nil, Remove waits for it to be closed
	lines    []logs.Message
	used     func(replica int) provider.Used // nil: it can't be measured
}

func newNodes() *nodes { return &nodes{running: make(map[faas.Name]provider.Workload)} }

func (n *nodes) Apply(_ context.Context, w provider.Workload) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.applyErr != nil {
		return n.applyErr
	}
	n.running[w.Function.Name()] = w
	n.applied = append(n.applied, w)
	return nil
}

// Remove forgets the function last, so that one applied too early under the
// same name is lost.
func (n *nodes) Remove(ctx context.Context, name faas.Name) error {
	n.mu.Lock()
	draining := n.draining
	n.mu.Unlock()
	var err error
	if draining != nil {
		select {
		case <-draining:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.running, name)
	return err
}

func (n *nodes) Status(name faas.Name) (provider.Status, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, ok := n.running[name]
	if !ok {
		return provider.Status{}, false
	}
	s := provider.Status{Revision: w.Function.Revision, Reason: n.reason}
	if n.reason == "" {
		for i := range w.Function.Replicas {
			s.Replicas = append(s.Replicas, faas.Replica{Function: name, State: faas.Ready})
			if n.used != nil {
				s.Used = append(s.Used, n.used(i))
			}
		}
	}
	return s, true
}

func (n *nodes) Logs(ctx context.Context, r logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		n.mu.Lock()
		_, ok := n.running[faas.Name{Function: r.Name, Namespace: r.Namespace}]
		lines := n.lines
		n.mu.Unlock()
		if !ok {
			yield(logs.Message{}, faas.Errorf(faas.ErrNotFound, "not here"))
			return
		}
		for _, m := range lines {
			if !yield(m, nil) {
				return
			}
		}
		if r.Follow {
			<-ctx.Done()
		}
	}
}

// last returns what the provider was last told to run under a name.
func (n *nodes) last(name string) (provider.Workload, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, ok := n.running[faas.Name{Function: name, Namespace: faas.DefaultNamespace}]
	return w, ok
}

func (n *nodes) tellings() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.applied)
}

// registry is [fleet.Images] in memory.
type registry struct {
	mu      sync.Mutex // guards below
	digests map[string]string
	err     error
	hangs   bool // look-ups end with their context
	lookups int
	hanging int           // look-ups that hang now
	deaf    chan struct{} // if not nil, a look-up answers when it is closed, whatever its context
}

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func newRegistry() *registry { return &registry{digests: map[string]string{"img:1": digest("1")}} }

func (r *registry) set(ref, digest string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ref != "" {
		r.digests[ref] = digest
	}
	r.err, r.hangs = err, false
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookups
}

// hung changes how many look-ups hang, and returns how many do.
func (r *registry) hung(change int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hanging += change
	return r.hanging
}

func (r *registry) Resolve(ctx context.Context, ref string) (faas.Pin, error) {
	r.mu.Lock()
	r.lookups++
	hangs, err, d, deaf := r.hangs, r.err, r.digests[ref], r.deaf
	r.mu.Unlock()
	if deaf != nil {
		<-deaf
	}
	switch {
	case hangs:
		r.hung(1)
		<-ctx.Done()
		r.hung(-1)
		return faas.Pin{}, faas.Errorf(faas.ErrUnavailable, "the registry doesn't answer: %w", ctx.Err())
	case err != nil:
		return faas.Pin{}, err
	case d == "":
		return faas.Pin{}, faas.Errorf(faas.ErrNotFound, "there is no image %s", ref)
	}
	return faas.Pin{Digest: d}, nil
}

// world is a fleet with all that it talks to.
type world struct {
	*fleet.Fleet
	store    *store
	nodes    *nodes
	registry *registry
	stop     func() // ends Run, and waits for it
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

// start opens a fleet over what is in the store, with a provider of its own.
func start(t *testing.T, s *store, r *registry) *world {
	t.Helper()
	w := &world{store: s, nodes: newNodes(), registry: r}
	f, err := fleet.New(t.Context(), fleet.Config{
		Store: s, Provider: w.nodes, Images: r, Key: testKey,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Fleet = f
	w.stop = runFleet(t, f)
	return w
}
