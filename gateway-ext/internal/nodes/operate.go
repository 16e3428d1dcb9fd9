package nodes

import (
	"fmt"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Operate returns what operators can ask of the nodes, and tell them: for the
// API, behind the password.
func (n *Nodes) Operate() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /system/nodes":           n.serveList,
		"POST /system/nodes":          n.serveAdd,
		"GET /system/nodes/{name}":    n.serveNode,
		"PATCH /system/nodes/{name}":  n.serveUpdate,
		"DELETE /system/nodes/{name}": n.serveDismiss,

		"POST /system/nodes/{name}/adopt": n.serveAdopt,

		"GET /system/placement/{name}": n.serveExplain,

		"GET /system/tokens":         n.serveTokens,
		"POST /system/tokens":        n.serveNewToken,
		"DELETE /system/tokens/{id}": n.serveRevoke,
	}
}

func (n *Nodes) serveList(w http.ResponseWriter, _ *http.Request) error {
	return faas.WriteJSON(w, n.List())
}

func (n *Nodes) serveNode(w http.ResponseWriter, r *http.Request) error {
	s, err := n.Node(r.PathValue("name"))
	if err != nil {
		return err
	}
	return faas.WriteJSON(w, s)
}

func (n *Nodes) serveUpdate(w http.ResponseWriter, r *http.Request) error {
	var c Change
	if err := faas.ReadJSON(r.Body, maxJoin, &c); err != nil {
		return err
	}
	if err := n.Update(r.Context(), r.PathValue("name"), c); err != nil {
		return err
	}
	return n.serveNode(w, r)
}

func (n *Nodes) serveDismiss(w http.ResponseWriter, r *http.Request) error {
	if err := n.Dismiss(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n *Nodes) serveExplain(w http.ResponseWriter, r *http.Request) error {
	name, err := faas.ParseName(r.PathValue("name"))
	if err != nil {
		return err
	}
	e, err := n.Explain(name)
	if err != nil {
		return err
	}
	return faas.WriteJSON(w, map[string]any{"function": name.String(), "says": e.String(), "nodes": e})
}

func (n *Nodes) serveTokens(w http.ResponseWriter, _ *http.Request) error {
	return faas.WriteJSON(w, n.Tokens())
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Note string `json:"note,omitempty"`
	For  string `json:"for,omitempty"` // "24h"; empty is a day, "0" until it is revoked
}

// NewTokenAnswer is the answer: the only time that the token's text is told.
type NewTokenAnswer struct {
	Token
	Text    string `json:"text"`
	Command string `json:"command"` // with which a machine joins
}

func (n *Nodes) serveNewToken(w http.ResponseWriter, r *http.Request) error {
	var q TokenRequest
	if r.ContentLength != 0 { // no body is a token with nothing said
		if err := faas.ReadJSON(r.Body, maxJoin, &q); err != nil {
			return err
		}
	}
	life := 24 * time.Hour
	if q.For != "" {
		var err error
		if life, err = time.ParseDuration(q.For); err != nil || life < 0 {
			return faas.Errorf(faas.ErrInvalid, "%.40q is no time that a token can be good for: write 1h, 24h, or 0 for until it is revoked", q.For)
		}
	}
	t, text, err := n.NewToken(r.Context(), q.Note, life)
	if err != nil {
		return err
	}
	t.Hash = nil
	return faas.WriteJSON(w, NewTokenAnswer{t, text, fmt.Sprintf("gateway-ext node --join %s --token %s", n.cfg.JoinURL(r.Host), text)})
}

func (n *Nodes) serveRevoke(w http.ResponseWriter, r *http.Request) error {
	if err := n.Revoke(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
