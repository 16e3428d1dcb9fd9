package api

import (
	"net/http"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxSecret is the largest secret in bytes. Encrypted and in base64 it fits a
// message of the store.
const maxSecret = 512 << 10

func (h *Handler) listSecrets(w http.ResponseWriter, r *http.Request) error {
	namespace, err := namespaceOf(r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	list := h.cfg.Fleet.Secrets(namespace)
	for i, s := range list { // whatever the fleet says, values never leave
		list[i] = types.Secret{Name: s.Name, Namespace: s.Namespace}
	}
	return encode(w, orEmpty(list))
}

func (h *Handler) createSecret(w http.ResponseWriter, r *http.Request) error {
	s, err := h.secret(w, r)
	if err != nil {
		return err
	}
	if err := h.cfg.Fleet.CreateSecret(r.Context(), s); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h *Handler) updateSecret(w http.ResponseWriter, r *http.Request) error {
	s, err := h.secret(w, r)
	if err != nil {
		return err
	}
	return h.cfg.Fleet.UpdateSecret(r.Context(), s)
}

// secret reads a secret with its value, which it returns in RawValue.
func (h *Handler) secret(w http.ResponseWriter, r *http.Request) (types.Secret, error) {
	s, err := h.secretName(w, r)
	if err != nil {
		return s, err
	}
	if len(s.RawValue) == 0 {
		s.RawValue = []byte(s.Value)
	}
	s.Value = ""
	switch {
	case len(s.RawValue) == 0:
		return s, faas.Errorf(faas.ErrInvalid, "secret %s has no value: write it into field value, or in base64 into rawValue", s.Name)
	case len(s.RawValue) > maxSecret:
		return s, faas.Errorf(faas.ErrTooLarge, "secret %s has %d bytes, at most %d are allowed", s.Name, len(s.RawValue), maxSecret)
	}
	return s, nil
}

// secretName reads a secret, and checks its name and namespace.
func (h *Handler) secretName(w http.ResponseWriter, r *http.Request) (s types.Secret, err error) {
	if err := h.decode(w, r, &s); err != nil {
		return s, err
	}
	if s.Name == "" {
		return s, faas.Errorf(faas.ErrInvalid, "field name is missing")
	}
	if err := faas.CheckSecretName(s.Name); err != nil {
		return s, err
	}
	s.Namespace, err = namespaceOf(s.Namespace, r.URL.Query().Get("namespace"))
	return s, err
}

// deleteSecret answers 200: "faas-cli secret remove" takes 204 for a failure.
func (h *Handler) deleteSecret(w http.ResponseWriter, r *http.Request) error {
	s, err := h.secretName(w, r)
	if err != nil {
		return err
	}
	return h.cfg.Fleet.DeleteSecret(r.Context(), s.Namespace, s.Name)
}
