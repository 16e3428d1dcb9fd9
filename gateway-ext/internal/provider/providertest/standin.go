package providertest

import (
	"context"
	"errors"
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
