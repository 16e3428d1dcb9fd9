package api

import (
	"net/http"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func (h *Handler) listNamespaces(w http.ResponseWriter, r *http.Request) error {
	return encode(w, orEmpty(h.cfg.Fleet.Namespaces()))
}

func (h *Handler) namespace(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := faas.CheckLabel("namespace", name); err != nil {
		return err
	}
	ns, err := h.cfg.Fleet.Namespace(name)
	if err != nil {
		return err
	}
	return encode(w, ns)
}

func (h *Handler) createNamespace(w http.ResponseWriter, r *http.Request) error {
	ns, err := h.namespaceBody(w, r)
	if err != nil {
		return err
	}
	if err := h.cfg.Fleet.CreateNamespace(r.Context(), ns); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *Handler) updateNamespace(w http.ResponseWriter, r *http.Request) error {
	ns, err := h.namespaceBody(w, r)
	if err != nil {
		return err
	}
	return accepted(w, h.cfg.Fleet.UpdateNamespace(r.Context(), ns))
}

// deleteNamespace does without the body that clients send: the path says it.
func (h *Handler) deleteNamespace(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if err := faas.CheckLabel("namespace", name); err != nil {
		return err
	}
	return accepted(w, h.cfg.Fleet.DeleteNamespace(r.Context(), name))
}

// namespaceBody reads a namespace; the path may name it too.
func (h *Handler) namespaceBody(w http.ResponseWriter, r *http.Request) (types.FunctionNamespace, error) {
	var ns types.FunctionNamespace
	if err := h.decode(w, r, &ns); err != nil {
		return ns, err
	}
	path := r.PathValue("name")
	if ns.Name == "" {
		ns.Name = path
	}
	if path != "" && path != ns.Name {
		return ns, faas.Errorf(faas.ErrInvalid, "field name is %.70q, but the path names %.70q: write the same in both", ns.Name, path)
	}
	return ns, faas.CheckNamespace(ns)
}
