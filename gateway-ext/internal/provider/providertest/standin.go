package providertest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/openfaas/faas-provider/auth"
	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/proxy"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// Quirks are what is documented of how a kind of provider answers, where they
// differ.
type Quirks struct {
	Name, Orchestration string
	Header              [2]string // on every answer

	One          bool // there is one replica at most, whatever number is asked for
	MaxReplicas  int  // more are set to this; 0 is no bound
	MaxFunctions int

	Deployed, Updated, Deleted, Scaled int // the status when it went well
	Exists                             int // of POST where there is one of the name
	DeleteMissing, ScaleMissing        int
	Zero                               int  // of scaling to 0; 0 if that can be done
	SwallowsUpdate                     bool // an update that can't be done is answered 200 with nothing
	PullsFirst                         bool // a deployment is answered when the image is there
	Interrupts                         bool // an update stops the old first, whatever it is doing
	AnyTask                            bool // what runs counts as available, whether it answers or not
	HidesAvailable                     bool // the list doesn't say how many are available
	CutsEnv                            bool // what is behind "=" in a variable isn't read back
	NamespaceQuery                     bool // deleting reads the namespace from the query alone
	RefusesLabels                      []string

	SecretKept, SecretExists, SecretMissing int  // 0 exists: it is overwritten
	Namespaces                              bool // there can be others
}

// Faasd is what is documented of faasd CE.
func Faasd() Quirks {
	return Quirks{
		Name: "faasd-ce", Orchestration: "containerd", Header: [2]string{"X-OpenFaaS-EULA", "openfaas-ce"},
		One: true, Deployed: 200, Updated: 200, Deleted: 200, Scaled: 200, Exists: 400, DeleteMissing: 404, ScaleMissing: 404, Zero: 400,
		PullsFirst: true, Interrupts: true, AnyTask: true, HidesAvailable: true, CutsEnv: true,
		SecretKept: 200, SecretMissing: 500, Namespaces: true,
	}
}

// Netes is what is documented of faas-netes CE.
func Netes() Quirks {
	return Quirks{
		Name: "faas-netes-ce", Orchestration: "kubernetes",
		MaxReplicas: 5, MaxFunctions: 15, Deployed: 202, Updated: 202, Deleted: 202, Scaled: 202, Exists: 500, DeleteMissing: 404, ScaleMissing: 500, Zero: 400,
		SwallowsUpdate: true, NamespaceQuery: true,
		RefusesLabels: []string{"com.openfaas.scale.zero", "com.openfaas.scale.zero-duration", "com.openfaas.scale.target", "com.openfaas.scale.type"},
		SecretKept:    202, SecretExists: 409, SecretMissing: 404,
	}
}

// The credentials of every stand-in.
const (
	StandInUser     = "admin"
	StandInPassword = "a password of the stand-in"
)

// StandIn is a provider as its documentation describes it, made of faas-provider's
// own handlers with plain processes beneath them.
type StandIn struct {
	URL string

	q       Quirks
	t       testing.TB
	process *provider.Process
	images  provider.Images
	table   *Table
	server  *httptest.Server
	pulls   atomic.Int64
	spoilt  atomic.Pointer[http.HandlerFunc]

	mu         sync.Mutex // guards below
	revision   uint64
	functions  map[faas.Name]types.FunctionDeployment
	replicas   map[faas.Name]int
	secrets    map[string][]byte // by namespace/name
	namespaces map[string]bool
	calls      map[string]int // by method and path
}

// standInPorts gives each stand-in's processes ports of their own, below those
// that Linux takes for outgoing connections and above those of other tests.
var standInPorts atomic.Uint32

// NewStandIn starts a stand-in, which runs until the test ends.
func NewStandIn(t testing.TB, q Quirks, images provider.Images) *StandIn {
	t.Helper()
	first := uint16(30000 + standInPorts.Add(1)%26*100)
	s := &StandIn{
		q: q, t: t, images: images, table: NewTable(t),
		functions: make(map[faas.Name]types.FunctionDeployment), replicas: make(map[faas.Name]int),
		secrets: make(map[string][]byte), namespaces: map[string]bool{faas.DefaultNamespace: true}, calls: make(map[string]int),
	}
	var err error
	if s.process, err = provider.NewProcess(provider.ProcessConfig{
		Node: "behind", Dir: t.TempDir(), Images: images, Observer: &hasty{s.table, q.Interrupts},
		Logger: slog.New(slog.DiscardHandler), FirstPort: first, LastPort: first + 99,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.process.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	s.server = httptest.NewServer(s.routes())
	s.URL = s.server.URL
	t.Cleanup(func() {
		s.server.CloseClientConnections()
		s.server.Close()
		cancel()
		s.process.Hurry()
		running.Wait()
	})
	return s
}

// hasty doesn't wait for what is in flight, if the provider doesn't.
type hasty struct {
	*Table
	hasty bool
}

// Idle implements [provider.Observer].
func (h *hasty) Idle(ctx context.Context, id string) error {
	if h.hasty {
		return nil
	}
	return h.Table.Idle(ctx, id)
}

// Spoil has all that is asked answered by h; nil heals it.
func (s *StandIn) Spoil(h http.HandlerFunc) {
	if h == nil {
		s.spoilt.Store(nil)
		return
	}
	s.spoilt.Store(&h)
}

// Pulls is how often an image was fetched for a deployment.
func (s *StandIn) Pulls() int { return int(s.pulls.Load()) }

// Calls is how often something was asked: "POST /system/functions".
func (s *StandIn) Calls(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[what]
}

// Deploy deploys a function past the gateway, as somebody with faas-cli does.
func (s *StandIn) Deploy(d types.FunctionDeployment) {
	s.t.Helper()
	if code, text := s.put(s.t.Context(), d, false); code/100 != 2 {
		s.t.Fatalf("deploy %s at the stand-in: %d %s", d.Service, code, text)
	}
}

// Functions are those that are there, by name.
func (s *StandIn) Functions() map[string]types.FunctionDeployment {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]types.FunctionDeployment)
	for name, d := range s.functions {
		all[name.Function] = d
	}
	return all
}

// Secrets are the names of the secrets that are there.
func (s *StandIn) Secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.secrets))
}

func (s *StandIn) routes() http.Handler {
	r := mux.NewRouter()
	credentials := &auth.BasicAuthCredentials{User: StandInUser, Password: StandInPassword}
	guarded := func(h http.HandlerFunc) http.HandlerFunc { return auth.DecorateWithBasicAuth(h, credentials) }
	r.HandleFunc("/system/functions", guarded(s.list)).Methods(http.MethodGet)
	r.HandleFunc("/system/functions", guarded(s.deploy)).Methods(http.MethodPost, http.MethodPut)
	r.HandleFunc("/system/functions", guarded(s.delete)).Methods(http.MethodDelete)
	r.HandleFunc("/system/function/{name}", guarded(s.get)).Methods(http.MethodGet)
	r.HandleFunc("/system/scale-function/{name}", guarded(s.scale)).Methods(http.MethodPost)
	r.HandleFunc("/system/info", guarded(s.info)).Methods(http.MethodGet)
	r.HandleFunc("/system/secrets", guarded(s.secret))
	// A stream of logs is cut after a while, as by a gateway's write_timeout.
	r.HandleFunc("/system/logs", guarded(logs.NewLogHandlerFunc(s, 2*time.Second))).Methods(http.MethodGet)
	// faas-provider doesn't guard these.
	r.HandleFunc("/system/namespaces", s.listNamespaces).Methods(http.MethodGet)
	r.HandleFunc("/system/namespace/{name:[-a-zA-Z_0-9.]*}", s.namespace)
	call := s.invoke(proxy.NewHandlerFunc(types.FaaSConfig{ReadTimeout: 30 * time.Second}, s, false))
	for _, path := range []string{"/function/{name}", "/function/{name}/", "/function/{name}/{params:.*}"} {
		r.HandleFunc(path, call)
	}
	r.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		if len(s.calls) < 10_000 {
			s.calls[req.Method+" "+req.URL.Path]++
		}
		s.mu.Unlock()
		if h := s.spoilt.Load(); h != nil {
			(*h)(w, req)
			return
		}
		if s.q.Header[0] != "" {
			w.Header().Set(s.q.Header[0], s.q.Header[1])
		}
		r.ServeHTTP(w, req)
	})
}

// choose returns a replica that the provider believes can be called.
func (s *StandIn) choose(name faas.Name) (faas.Replica, bool) {
	var all []faas.Replica
	for _, r := range s.table.All(name) {
		if r.State == faas.Ready || s.q.AnyTask && r.State == faas.Starting && r.Addr.IsValid() {
			all = append(all, r)
		}
	}
	if len(all) == 0 {
		return faas.Replica{}, false
	}
	return all[rand.N(len(all))], true
}

// invoke chooses a replica, and counts what is in flight.
func (s *StandIn) invoke(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		vars := mux.Vars(r)
		name, err := faas.ParseName(vars["name"])
		if err == nil {
			if to, ok := s.choose(name); ok {
				s.table.hold(to.ID, 1)
				defer s.table.hold(to.ID, -1)
				r = mux.SetURLVars(r, map[string]string{"name": to.Addr.String(), "params": vars["params"]})
			}
		}
		next(w, r)
	}
}

// Resolve implements [proxy.BaseURLResolver], of an address that invoke has chosen.
func (s *StandIn) Resolve(name string) (url.URL, error) {
	if !strings.Contains(name, ":") {
		return url.URL{}, errors.New("no endpoints")
	}
	return url.URL{Scheme: "http", Host: name}, nil
}

func (s *StandIn) status(name faas.Name, d types.FunctionDeployment, alone bool) types.FunctionStatus {
	st := types.FunctionStatus{
		Name: d.Service, Namespace: d.Namespace, Image: d.Image, EnvProcess: d.EnvProcess, EnvVars: maps.Clone(d.EnvVars),
		Secrets: d.Secrets, Labels: d.Labels, Annotations: d.Annotations, Limits: d.Limits, Requests: d.Requests,
		Replicas: uint64(s.replicas[name]), CreatedAt: time.Now(),
	}
	for _, r := range s.table.All(name) {
		if r.State == faas.Ready || s.q.AnyTask && r.State == faas.Starting {
			st.AvailableReplicas++
		}
	}
	if s.q.One {
		st.AvailableReplicas = min(st.AvailableReplicas, 1)
		st.Replicas = st.AvailableReplicas
	}
	if s.q.HidesAvailable && !alone {
		st.AvailableReplicas = 0
	}
	if s.q.CutsEnv {
		for k, v := range st.EnvVars {
			st.EnvVars[k], _, _ = strings.Cut(v, "=")
		}
	}
	return st
}

func (s *StandIn) list(w http.ResponseWriter, r *http.Request) {
	ns := cmp.Or(r.URL.Query().Get("namespace"), faas.DefaultNamespace)
	if !s.q.Namespaces && ns != faas.DefaultNamespace {
		http.Error(w, "namespace not allowed", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []types.FunctionStatus{}
	for name, d := range s.functions {
		if name.Namespace == ns {
			all = append(all, s.status(name, d, false))
		}
	}
	encode(w, http.StatusOK, all)
}

func (s *StandIn) get(w http.ResponseWriter, r *http.Request) {
	name := faas.Name{Function: mux.Vars(r)["name"], Namespace: cmp.Or(r.URL.Query().Get("namespace"), faas.DefaultNamespace)}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.functions[name]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	encode(w, http.StatusOK, s.status(name, d, true))
}

func (s *StandIn) deploy(w http.ResponseWriter, r *http.Request) {
	var d types.FunctionDeployment
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&d); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	code, text := s.put(r.Context(), d, r.Method == http.MethodPut)
	if code/100 != 2 {
		http.Error(w, text, code)
		return
	}
	w.WriteHeader(code)
}

func (s *StandIn) put(ctx context.Context, d types.FunctionDeployment, update bool) (code int, text string) {
	d.Namespace = cmp.Or(d.Namespace, faas.DefaultNamespace)
	name := faas.Name{Function: d.Service, Namespace: d.Namespace}
	fail := func(code int, format string, args ...any) (int, string) {
		if update && s.q.SwallowsUpdate && code != http.StatusNotFound {
			return http.StatusOK, ""
		}
		return code, fmt.Sprintf(format, args...)
	}
	s.mu.Lock()
	_, there := s.functions[name]
	full := s.q.MaxFunctions > 0 && len(s.functions) >= s.q.MaxFunctions
	known := s.namespaces[d.Namespace]
	s.mu.Unlock()
	switch {
	case update && !there:
		return fail(http.StatusNotFound, "%s not found", d.Service)
	case !update && there:
		return fail(s.q.Exists, "unable to create %s: it exists", d.Service)
	case !known:
		return fail(http.StatusBadRequest, "no namespace %s", d.Namespace)
	case !there && full:
		return fail(http.StatusBadRequest, "the limit of %d functions is reached", s.q.MaxFunctions)
	}
	for _, label := range s.q.RefusesLabels {
		if d.Labels != nil && (*d.Labels)[label] != "" {
			return fail(http.StatusBadRequest, "the label %s is not supported", label)
		}
	}
	image, digest, ok := strings.Cut(d.Image, "@")
	if !ok {
		digest = Digest
	}
	if s.q.PullsFirst {
		s.pulls.Add(1)
		_, release, err := s.images.Fetch(ctx, image+"@"+digest)
		if err != nil {
			return fail(http.StatusInternalServerError, "unable to pull image %s: %s", d.Image, err)
		}
		release()
	}
	if update && s.q.Interrupts {
		_ = s.process.Remove(ctx, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.functions[name] = d
	s.replicas[name] = max(s.replicas[name], 1)
	if err := s.apply(ctx, name, s.revision); err != nil {
		return fail(http.StatusBadRequest, "%s", err)
	}
	if update {
		return s.q.Updated, ""
	}
	return s.q.Deployed, ""
}

// apply has the processes run what is declared. s.mu is held.
func (s *StandIn) apply(ctx context.Context, name faas.Name, revision uint64) error {
	d := s.functions[name]
	image, digest, ok := strings.Cut(d.Image, "@")
	if !ok {
		digest = Digest
	}
	d.Image = image
	w := provider.Workload{Function: faas.Function{FunctionDeployment: d, Digest: digest, Revision: revision, Replicas: s.replicas[name]}, Secrets: make(map[string][]byte)}
	if s.q.One {
		d.Limits = nil // of memory it is kept, and not here
	}
	for _, secret := range d.Secrets {
		value, ok := s.secrets[name.Namespace+"/"+secret]
		if !ok {
			return fmt.Errorf("secret %s is not there", secret)
		}
		w.Secrets[secret] = value
	}
	return s.process.Apply(context.WithoutCancel(ctx), w)
}

func (s *StandIn) delete(w http.ResponseWriter, r *http.Request) {
	var d types.DeleteFunctionRequest
	_ = json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&d) // an empty name is not there
	ns := d.Namespace
	if s.q.NamespaceQuery {
		ns = r.URL.Query().Get("namespace")
	}
	name := faas.Name{Function: d.FunctionName, Namespace: cmp.Or(ns, faas.DefaultNamespace)}
	s.mu.Lock()
	_, there := s.functions[name]
	delete(s.functions, name)
	delete(s.replicas, name)
	s.mu.Unlock()
	if !there {
		w.WriteHeader(s.q.DeleteMissing)
		return
	}
	_ = s.process.Remove(r.Context(), name)
	w.WriteHeader(s.q.Deleted)
}

func (s *StandIn) scale(w http.ResponseWriter, r *http.Request) {
	var q types.ScaleServiceRequest
	_ = json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&q)
	name := faas.Name{Function: q.ServiceName, Namespace: cmp.Or(q.Namespace, faas.DefaultNamespace)}
	if s.q.NamespaceQuery {
		name = faas.Name{Function: mux.Vars(r)["name"], Namespace: cmp.Or(r.URL.Query().Get("namespace"), faas.DefaultNamespace)}
	}
	n := int(q.Replicas)
	if n == 0 && s.q.Zero != 0 {
		http.Error(w, "replicas cannot be set to 0", s.q.Zero)
		return
	}
	if s.q.MaxReplicas > 0 {
		n = min(n, s.q.MaxReplicas)
	}
	if s.q.One {
		n = min(n, 1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.functions[name]; !there {
		http.Error(w, "unable to scale", s.q.ScaleMissing)
		return
	}
	s.replicas[name] = n
	st, _ := s.process.Status(name)
	if err := s.apply(r.Context(), name, st.Revision); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(s.q.Scaled)
}

func (s *StandIn) info(w http.ResponseWriter, _ *http.Request) {
	encode(w, http.StatusOK, map[string]any{
		"provider": types.ProviderInfo{Name: s.q.Name, Orchestration: s.q.Orchestration, Version: &types.VersionInfo{Release: "0.1.2"}},
		"version":  types.VersionInfo{Release: "0.27.12"}, "arch": "x86_64",
	})
}

func (s *StandIn) secret(w http.ResponseWriter, r *http.Request) {
	var q types.Secret
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(io.LimitReader(r.Body, 2<<20)).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	ns := cmp.Or(q.Namespace, r.URL.Query().Get("namespace"), faas.DefaultNamespace)
	if r.Method == http.MethodDelete && !s.q.NamespaceQuery {
		ns = cmp.Or(r.URL.Query().Get("namespace"), faas.DefaultNamespace)
	}
	key := ns + "/" + q.Name
	s.mu.Lock()
	defer s.mu.Unlock()
	_, there := s.secrets[key]
	switch r.Method {
	case http.MethodGet:
		all := []types.Secret{}
		for k := range s.secrets {
			namespace, name, _ := strings.Cut(k, "/")
			all = append(all, types.Secret{Name: name, Namespace: namespace})
		}
		encode(w, http.StatusOK, all)
		return
	case http.MethodPost, http.MethodPut:
		if r.Method == http.MethodPost && there && s.q.SecretExists != 0 {
			w.WriteHeader(s.q.SecretExists)
			return
		}
		if r.Method == http.MethodPut && !there && s.q.SecretExists != 0 {
			w.WriteHeader(s.q.SecretMissing)
			return
		}
		value := q.RawValue
		if len(value) == 0 {
			value = []byte(q.Value)
		}
		s.secrets[key] = value
		for name, d := range s.functions {
			if name.Namespace == ns && slices.Contains(d.Secrets, q.Name) {
				st, _ := s.process.Status(name)
				_ = s.apply(r.Context(), name, st.Revision) // the file is another now
			}
		}
	case http.MethodDelete:
		if !there {
			w.WriteHeader(s.q.SecretMissing)
			return
		}
		delete(s.secrets, key)
	}
	w.WriteHeader(s.q.SecretKept)
}

func (s *StandIn) listNamespaces(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	encode(w, http.StatusOK, slices.Sorted(maps.Keys(s.namespaces)))
}

func (s *StandIn) namespace(w http.ResponseWriter, r *http.Request) {
	if !s.q.Namespaces {
		http.Error(w, "Feature not implemented in this version of OpenFaaS", http.StatusNotImplemented)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		name := mux.Vars(r)["name"]
		if !s.namespaces[name] {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		encode(w, http.StatusOK, types.FunctionNamespace{Name: name})
	case http.MethodPost:
		var ns types.FunctionNamespace
		err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&ns)
		switch {
		case err != nil || ns.Labels["openfaas"] != "1":
			w.WriteHeader(http.StatusBadRequest)
		case s.namespaces[ns.Name]:
			w.WriteHeader(http.StatusConflict)
		default:
			s.namespaces[ns.Name] = true
			w.WriteHeader(http.StatusCreated)
		}
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// Query implements [logs.Requester]: lines of what journalctl or Kubernetes has,
// and none of a function that nobody knows.
func (s *StandIn) Query(ctx context.Context, q logs.Request) (<-chan logs.Message, error) {
	ask := q
	ask.Namespace = cmp.Or(q.Namespace, faas.DefaultNamespace)
	if s.q.One {
		ask.Instance = "" // it is ignored
	}
	out := make(chan logs.Message)
	go func() { // ends with ctx, which the handler ends
		defer close(out)
		for m, err := range s.process.Logs(ctx, ask) {
			if err != nil {
				return
			}
			if s.q.One {
				m.Instance = pid(m.Instance)
			}
			select {
			case out <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// pid is a number such as journalctl has, of a replica.
func pid(id string) string {
	h := fnv.New32a()
	h.Write([]byte(id))
	return fmt.Sprint(h.Sum32()%60_000 + 300)
}

func encode(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}
