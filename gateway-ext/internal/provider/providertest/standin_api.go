package providertest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

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
