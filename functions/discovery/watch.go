package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	// silence is after how long without a byte the stream is taken for dead.
	silence = 3 * Heartbeat

	// firstPause and longestPause bound what lies between two attempts to have
	// the stream. A gateway that is restarted is back in a fraction of a second.
	firstPause   = 50 * time.Millisecond
	longestPause = 2 * time.Second

	// refusedPause is for a gateway that answers, and has no stream for us.
	refusedPause = 30 * time.Second

	// tellEvery is how often the usage is told, tellWithin how long that may take.
	tellEvery  = time.Second
	tellWithin = 2 * time.Second
)

// watch follows the stream, and follows it again when it has ended, until ctx
// ends.
func (c *Client) watch(ctx context.Context) {
	t := newTable(c.cfg.Node, c.rule)
	pause, well := firstPause, true
	for {
		before := c.heard.Load()
		err := c.follow(ctx, t)
		if ctx.Err() != nil {
			return
		}
		refused, _ := errors.AsType[*refusedError](err)
		switch {
		case refused != nil:
			pause = refusedPause
			c.cfg.Log.Error("functions can't be called directly", "err", err)
		case c.heard.Load() != before: // it worked for a while
			pause = firstPause
			c.cfg.Log.Warn("the gateway's stream of replicas broke off", "err", err)
		case well:
			c.cfg.Log.Warn("the gateway's stream of replicas can't be had: trying again", "err", err)
		}
		well = refused != nil || c.heard.Load() != before
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, longestPause)
	}
}

// refusedError is a gateway's answer that another attempt won't change soon.
type refusedError struct{ status string }

// Error says what was answered, and what to do.
func (e *refusedError) Error() string {
	return "the gateway answered " + e.status + ": the function needs the annotation thicket.discovery: \"true\", and the gateway a version that knows it"
}

var errSilent = errors.New("it was silent for longer than agreed")

// follow reads the stream until it ends, and keeps the table by it.
func (c *Client) follow(ctx context.Context, t *table) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alive := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer alive.Stop()

	req, err := c.request(ctx, http.MethodGet, c.events, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.control.RoundTrip(req)
	if err != nil {
		return because(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden, resp.StatusCode == http.StatusNotFound:
		return &refusedError{resp.Status}
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the gateway answered %s", resp.Status)
	}
	begun := false // the table is what the gateway says now, and not what it said before
	body := &hearing{resp.Body, func() {
		alive.Reset(silence)
		if begun {
			c.hears()
		}
	}}
	for e, err := range events(body) {
		if err != nil {
			return because(ctx, err)
		}
		if err := t.apply(e, time.Now()); err != nil {
			return err
		}
		c.routes.Store(new(t.routes))
		if !begun {
			begun = true
			c.hears()
			c.cfg.Log.Info("functions are called directly", "replicas", len(t.targets))
		}
	}
	return nil
}

// hears notes that the gateway was heard just now.
func (c *Client) hears() { c.heard.Store(int64(time.Since(c.began))) }

// because adds why the context ended, if it did.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// hearing calls heard whenever something came.
type hearing struct {
	io.Reader
	heard func()
}

// Read implements [io.Reader].
func (h *hearing) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if n > 0 {
		h.heard()
	}
	return n, err
}

// tell tells the gateway of direct calls once a second, and a last time when ctx
// ends.
func (c *Client) tell(ctx context.Context, to string) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		c.tellOnce(context.WithoutCancel(ctx), to)
	}
}

func (c *Client) tellOnce(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, tellWithin)
	defer cancel()
	all := c.ledger.report(c.cfg.Name, time.Now())
	for i, u := range all {
		again, err := c.post(ctx, to, u)
		if err != nil {
			c.cfg.Log.Debug("the gateway doesn't hear of direct calls", "err", err)
		}
		if again {
			c.ledger.restore(all[i:])
			return
		}
	}
}

// post sends one report. Its error is nobody's but the log's; again says whether
// another attempt may end better.
func (c *Client) post(ctx context.Context, to string, u Usage) (again bool, err error) {
	body, err := json.Marshal(u)
	if err != nil {
		return false, err
	}
	req, err := c.request(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.control.RoundTrip(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	if code := resp.StatusCode; code/100 != 2 {
		return code >= 500 || code == http.StatusTooManyRequests, fmt.Errorf("the gateway answered %s", resp.Status)
	}
	return false, nil
}

// request returns a request to the gateway about replicas.
func (c *Client) request(ctx context.Context, method, to string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "thicket-discovery/1")
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	return req, nil
}
