package api_test

import (
	"bytes"
	"context"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// created is when everything in a fake fleet was.
var created = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fleet is a fleet in memory that starts everything at once.
type fleet struct {
	mu         sync.Mutex // guards below
	functions  map[faas.Name]types.FunctionStatus
	secrets    map[string][]byte // "namespace/name"
	namespaces map[string]types.FunctionNamespace
	lines      []logs.Message
	asked      logs.Request      // the last request for logs
	why        string            // of the last Scale
	fail       error             // returned by whatever can fail
	followed   chan struct{}     // told when a stream has begun to follow
	more       chan logs.Message // what a stream that follows yields then
}

func newFleet() *fleet {
	return &fleet{
		functions:  map[faas.Name]types.FunctionStatus{},
		secrets:    map[string][]byte{},
		namespaces: map[string]types.FunctionNamespace{faas.DefaultNamespace: {Name: faas.DefaultNamespace}},
		followed:   make(chan struct{}, 1),
		more:       make(chan logs.Message),
	}
}

func (f *fleet) declare(d types.FunctionDeployment, exists bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := faas.Name{Function: d.Service, Namespace: d.Namespace}
	_, found := f.functions[name]
	switch {
	case f.fail != nil:
		return f.fail
	case found && !exists:
		return faas.Errorf(faas.ErrConflict, "function %s exists: update it with PUT", name)
	case !found && exists:
		return faas.Errorf(faas.ErrNotFound, "there is no function %s", name)
	}
	f.functions[name] = types.FunctionStatus{
		Name: d.Service, Namespace: d.Namespace, Image: d.Image, EnvProcess: d.EnvProcess, EnvVars: d.EnvVars,
		Secrets: d.Secrets, Labels: d.Labels, Annotations: d.Annotations, Limits: d.Limits, Requests: d.Requests,
		Replicas: 1, AvailableReplicas: 1, CreatedAt: created,
		Usage: &types.FunctionUsage{CPU: 12, TotalMemoryBytes: 7 << 20},
	}
	return nil
}

func (f *fleet) Deploy(_ context.Context, d types.FunctionDeployment) error {
	return f.declare(d, false)
}

func (f *fleet) Update(_ context.Context, d types.FunctionDeployment) error {
	return f.declare(d, true)
}

func (f *fleet) Delete(_ context.Context, n faas.Name) error {
	if _, err := f.Function(n); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.functions, n)
	return f.fail
}

func (f *fleet) Scale(_ context.Context, n faas.Name, replicas int, why string) error {
	s, err := f.Function(n)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Replicas, s.AvailableReplicas = uint64(replicas), uint64(replicas)
	f.why = why
	f.functions[n] = s
	return f.fail
}

func (f *fleet) Functions(namespace string) (list []types.FunctionStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, s := range f.functions {
		if n.Namespace == namespace {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b types.FunctionStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (f *fleet) Function(n faas.Name) (types.FunctionStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.functions[n]
	if !ok {
		return s, faas.Errorf(faas.ErrNotFound, "there is no function %s", n)
	}
	return s, nil
}

func (f *fleet) Secrets(namespace string) (list []types.Secret) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(f.secrets)) {
		if ns, name, _ := strings.Cut(key, "/"); ns == namespace {
			// A fleet must not return the value; the API must not rely on it.
			list = append(list, types.Secret{Name: name, Namespace: ns, RawValue: f.secrets[key]})
		}
	}
	return list
}

func (f *fleet) putSecret(s types.Secret, exists bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := s.Namespace + "/" + s.Name
	_, found := f.secrets[key]
	switch {
	case f.fail != nil:
		return f.fail
	case found && !exists:
		return faas.Errorf(faas.ErrConflict, "secret %s exists", s.Name)
	case !found && exists:
		return faas.Errorf(faas.ErrNotFound, "there is no secret %s", s.Name)
	}
	f.secrets[key] = s.RawValue
	return nil
}

func (f *fleet) CreateSecret(_ context.Context, s types.Secret) error { return f.putSecret(s, false) }
func (f *fleet) UpdateSecret(_ context.Context, s types.Secret) error { return f.putSecret(s, true) }

func (f *fleet) DeleteSecret(_ context.Context, namespace, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.secrets[namespace+"/"+name]; !ok {
		return faas.Errorf(faas.ErrNotFound, "there is no secret %s", name)
	}
	delete(f.secrets, namespace+"/"+name)
	return nil
}

func (f *fleet) Namespaces() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.namespaces))
}

func (f *fleet) Namespace(name string) (types.FunctionNamespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ns, ok := f.namespaces[name]
	if !ok {
		return ns, faas.Errorf(faas.ErrNotFound, "there is no namespace %s", name)
	}
	return ns, nil
}

func (f *fleet) putNamespace(ns types.FunctionNamespace, exists bool) error {
	_, err := f.Namespace(ns.Name)
	switch {
	case err == nil && !exists:
		return faas.Errorf(faas.ErrConflict, "namespace %s exists", ns.Name)
	case err != nil && exists:
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.namespaces[ns.Name] = ns
	return nil
}

func (f *fleet) CreateNamespace(_ context.Context, ns types.FunctionNamespace) error {
	return f.putNamespace(ns, false)
}

func (f *fleet) UpdateNamespace(_ context.Context, ns types.FunctionNamespace) error {
	return f.putNamespace(ns, true)
}

func (f *fleet) DeleteNamespace(_ context.Context, name string) error {
	if _, err := f.Namespace(name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.namespaces, name)
	return nil
}

// Logs yields the fleet's lines, then what fails, and when it follows says so on
// f.followed and goes on with f.more.
func (f *fleet) Logs(ctx context.Context, r logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		f.mu.Lock()
		f.asked = r
		lines, fail := f.lines, f.fail
		f.mu.Unlock()
		for _, m := range lines {
			if !yield(m, nil) {
				return
			}
		}
		if fail != nil {
			yield(logs.Message{}, fail)
			return
		}
		if r.Follow {
			f.followed <- struct{}{}
			for {
				select {
				case m := <-f.more:
					if !yield(m, nil) {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

const (
	user     = "admin"
	password = "correct horse"
)

// gateway is an API over a fake fleet.
type gateway struct {
	*api.Handler
	fleet *fleet
	log   *lockedBuffer
	reg   *prometheus.Registry
}

// newGateway returns a gateway with the function "weather" and the secret "key".
func newGateway(t testing.TB, change ...func(*api.Config)) *gateway {
	g := &gateway{fleet: newFleet(), log: &lockedBuffer{}, reg: prometheus.NewRegistry()}
	cfg := api.Config{
		Fleet:      g.fleet,
		Auth:       api.NewAuth(user, password),
		Version:    types.VersionInfo{Release: "1.2.3", SHA: "c0ffee"},
		Registerer: g.reg,
		Logger:     slog.New(slog.NewTextHandler(g.log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	g.Handler = api.New(cfg)
	must(t, g.fleet.Deploy(t.Context(), types.FunctionDeployment{
		Service: "weather", Namespace: faas.DefaultNamespace, Image: "weather:latest",
		Labels: &map[string]string{"com.openfaas.scale.max": "4", "com.openfaas.scale.factor": "50"},
	}))
	must(t, g.fleet.CreateSecret(t.Context(), types.Secret{Name: "key", Namespace: faas.DefaultNamespace, RawValue: []byte("s3cr3t")}))
	return g
}

// ask sends one request with the password and returns the answer.
func (g *gateway) ask(method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.SetBasicAuth(user, password)
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w
}

// serve serves the gateway on loopback.
func (g *gateway) serve(t *testing.T, change ...func(*http.Server)) *httptest.Server {
	s := httptest.NewUnstartedServer(g)
	for _, c := range change {
		c(s.Config)
	}
	s.Config.RegisterOnShutdown(g.Drain)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer is a buffer for logs.
type lockedBuffer struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var (
	_ api.Fleet    = (*fleet)(nil)
	_ http.Handler = (*api.Handler)(nil)
)
