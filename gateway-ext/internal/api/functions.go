package api

import (
	"net/http"
	"strings"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func (h *Handler) listFunctions(w http.ResponseWriter, r *http.Request) error {
	namespace, err := namespaceOf(r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	list := h.cfg.Fleet.Functions(namespace)
	for i := range list {
		h.count(&list[i])
	}
	return encode(w, orEmpty(list))
}

func (h *Handler) function(w http.ResponseWriter, r *http.Request) error {
	name, err := nameOf(r.PathValue("name"), r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	status, err := h.cfg.Fleet.Function(name)
	if err != nil {
		return err
	}
	h.count(&status)
	if r.URL.Query().Get("usage") != "1" {
		status.Usage = nil
	}
	return encode(w, status)
}

// count fills in how often a function was called.
func (h *Handler) count(s *types.FunctionStatus) {
	if h.cfg.Invocations != nil {
		s.InvocationCount = h.cfg.Invocations(faas.Name{Function: s.Name, Namespace: s.Namespace})
	}
}

func (h *Handler) deploy(w http.ResponseWriter, r *http.Request) error {
	d, err := h.deployment(w, r)
	if err != nil {
		return err
	}
	return accepted(w, h.cfg.Fleet.Deploy(r.Context(), d))
}

func (h *Handler) update(w http.ResponseWriter, r *http.Request) error {
	d, err := h.deployment(w, r)
	if err != nil {
		return err
	}
	return accepted(w, h.cfg.Fleet.Update(r.Context(), d))
}

func (h *Handler) deployment(w http.ResponseWriter, r *http.Request) (types.FunctionDeployment, error) {
	var d types.FunctionDeployment
	if err := h.decode(w, r, &d); err != nil {
		return d, err
	}
	return faas.Check(d)
}

func (h *Handler) deleteFunction(w http.ResponseWriter, r *http.Request) error {
	var d types.DeleteFunctionRequest
	if err := h.decode(w, r, &d); err != nil {
		return err
	}
	if d.FunctionName == "" {
		return faas.Errorf(faas.ErrInvalid, "field functionName is missing")
	}
	name, err := nameOf(d.FunctionName, d.Namespace, r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	return accepted(w, h.cfg.Fleet.Delete(r.Context(), name))
}

func (h *Handler) scale(w http.ResponseWriter, r *http.Request) error {
	// As types.ScaleServiceRequest, but a missing count is not 0.
	var s struct {
		ServiceName string  `json:"serviceName"`
		Namespace   string  `json:"namespace"`
		Replicas    *uint64 `json:"replicas"`
	}
	if err := h.decode(w, r, &s); err != nil {
		return err
	}
	name, err := nameOf(r.PathValue("name"), s.Namespace, r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	switch {
	case s.ServiceName != "" && s.ServiceName != name.Function && s.ServiceName != name.String():
		return faas.Errorf(faas.ErrInvalid, "field serviceName is %.130q, but the path names %q: write the same in both", s.ServiceName, name.Function)
	case s.Replicas == nil:
		return faas.Errorf(faas.ErrInvalid, "field replicas is missing: write how many replicas there should be, 0 for none")
	case *s.Replicas > faas.MaxReplicas:
		return faas.Errorf(faas.ErrInvalid, "field replicas is %d: at most %d are allowed", *s.Replicas, faas.MaxReplicas)
	}
	return accepted(w, h.cfg.Fleet.Scale(r.Context(), name, int(*s.Replicas), "set by hand"))
}

// accepted answers 202 if err is nil.
func accepted(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusAccepted)
	}
	return err
}

// nameOf returns a function's full name. Clients write the namespace behind a
// dot, in the body or in the query, and often in several places: they must not
// contradict each other.
func nameOf(function string, namespaces ...string) (faas.Name, error) {
	for _, ns := range namespaces {
		if ns == "" || strings.HasSuffix(function, "."+ns) {
			continue
		}
		if strings.Contains(function, ".") {
			return faas.Name{}, faas.Errorf(faas.ErrInvalid, "%.130q names another namespace than %.70q: write one of them", function, ns)
		}
		function += "." + ns
	}
	return faas.ParseName(function)
}

// namespaceOf returns the first namespace that is given, else the default.
func namespaceOf(namespaces ...string) (string, error) {
	for _, ns := range namespaces {
		if ns != "" {
			return ns, faas.CheckLabel("namespace", ns)
		}
	}
	return faas.DefaultNamespace, nil
}
