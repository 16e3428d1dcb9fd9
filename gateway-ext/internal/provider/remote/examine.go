package remote

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Bounds of an examination: what is asked, what is told, and for how long the
// node looks at itself. The gateway waits a little longer.
const (
	maxQuestion   = 64 << 10
	maxFindings   = 256 << 10
	lookingItself = 6 * time.Second
)

// Examine has the node look at itself, as its [ServerConfig.Examine] does. The
// question and the answer are JSON that this package only carries.
func (c *Client) Examine(ctx context.Context, question json.RawMessage) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, lookingItself+time.Second)
	defer cancel()
	res, err := c.call(ctx, http.MethodPost, "examine", question)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var told json.RawMessage
	return told, decode(res.Body, maxFindings, &told)
}

func (s *Server) examine(w http.ResponseWriter, r *http.Request) error {
	select {
	case s.examining <- struct{}{}:
		defer func() { <-s.examining }()
	case <-r.Context().Done():
		return faas.Errorf(faas.ErrOverloaded, "the node is being examined already")
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookingItself)
	defer cancel()
	var question json.RawMessage
	if err := decode(r.Body, maxQuestion, &question); err != nil {
		return err
	}
	if s.cfg.Examine == nil {
		return faas.Errorf(faas.ErrNotFound, "this node doesn't examine itself")
	}
	told, err := s.cfg.Examine(ctx, question)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(told) // the gateway is gone: nobody to tell
	return nil
}
