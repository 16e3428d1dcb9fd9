package nodes

import (
	"context"
	"encoding/json"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Examine has a node look at itself: what it is asked and what it tells are JSON
// of who gave [AgentConfig.Examine].
func (n *Nodes) Examine(ctx context.Context, name string, question json.RawMessage) (json.RawMessage, error) {
	n.mu.Lock()
	d, err := n.node(name)
	if err != nil {
		n.mu.Unlock()
		return nil, err
	}
	p := d.p
	n.mu.Unlock()
	if e, ok := p.(interface {
		Examine(context.Context, json.RawMessage) (json.RawMessage, error)
	}); ok {
		return e.Examine(ctx, question)
	}
	return nil, faas.Errorf(faas.ErrNotFound, "node %s can't examine itself", name)
}

// examine answers the gateway.
func (a *Agent) examine(ctx context.Context, question json.RawMessage) (json.RawMessage, error) {
	if a.cfg.Examine == nil {
		return nil, faas.Errorf(faas.ErrNotFound, "this node doesn't examine itself")
	}
	return a.cfg.Examine(ctx, a.identity.Functions, question)
}
