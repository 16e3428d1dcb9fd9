package openfaas

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	logLimit = 20 * time.Second // that a provider may take to tell what there is
	logLines = 10_000           // that are taken of it
)

// Logs implements [provider.Provider]. Lines are of "NODE/INSTANCE": the provider's
// own word for the replica, a pod's name or a process's number. This isn't done by
// go-sdk, which can't ask for one instance and prints each request.
func (c *Client) Logs(ctx context.Context, q logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		if q.Namespace == "" {
			q.Namespace = faas.DefaultNamespace
		}
		name := faas.Name{Function: q.Name, Namespace: q.Namespace}
		known := func() (is, can bool) {
			c.mu.Lock()
			defer c.mu.Unlock()
			f := c.functions[name]
			return f != nil && (f.wished || !f.leaving), c.caps.Logs
		}
		is, can := known()
		if !is {
			yield(logs.Message{}, faas.Errorf(faas.ErrNotFound, "function %s is not on %s", name, c.cfg.Node))
			return
		}
		if !can {
			yield(logs.Message{}, faas.Errorf(faas.ErrInvalid, "node %s shows no logs", c.cfg.Node))
			return
		}
		if node, _, ok := strings.Cut(q.Instance, "/"); q.Instance != "" && (!ok || node != c.cfg.Node) {
			return // that of another node
		}
		var last time.Time
		for {
			n, err := c.read(ctx, q, &last, yield)
			if err == errEnough || ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(logs.Message{}, err)
				return
			}
			if !q.Follow {
				return
			}
			// A provider ends a stream after a while.
			if n > 0 || q.Since == nil {
				since := last
				if since.IsZero() {
					since = time.Now().Add(-time.Second)
				}
				q.Since = &since
			}
			q.Tail = -1
			select {
			case <-ctx.Done():
				return
			case <-time.After(c.cfg.Every):
			}
		}
	}
}

// errEnough says that nobody wants to read on.
var errEnough = fmt.Errorf("enough was read")

// read passes on the lines of one answer that are newer than the last.
func (c *Client) read(ctx context.Context, q logs.Request, last *time.Time, yield func(logs.Message, error) bool) (n int, err error) {
	v := url.Values{"name": {q.Name}, "namespace": {q.Namespace}, "follow": {strconv.FormatBool(q.Follow)}}
	if q.Tail != 0 {
		v.Set("tail", strconv.Itoa(q.Tail))
	}
	if q.Since != nil {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	_, instance, _ := strings.Cut(q.Instance, "/")
	if instance != "" {
		v.Set("instance", instance)
	}
	x := new(exchange)
	limit := logLimit
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, exchangeKey{}, x))
	defer cancel(nil)
	timer := time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	res, err := c.line.send(ctx, http.MethodGet, "/system/logs", v, nil)
	if err != nil {
		return 0, c.line.explain(ctx, limit, x, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b := make([]byte, maxTold)
		_, _ = res.Body.Read(b) // what it says, if it does
		if res.StatusCode == http.StatusNotImplemented || res.StatusCode == http.StatusNotFound {
			c.mu.Lock()
			c.caps.Logs = res.StatusCode == http.StatusNotFound && c.caps.Logs
			c.mu.Unlock()
		}
		return 0, c.line.explain(ctx, limit, x, nil)
	}
	if q.Follow {
		timer.Stop()
		if b, ok := res.Body.(*bounded); ok {
			b.left = 1 << 62 // it has no end, and each line a bound
		}
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var m logs.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return n, faas.Errorf(faas.ErrUnavailable, "node %s: its logs can't be read: %s", c.cfg.Node, quote(lines.Bytes()))
		}
		if !m.Timestamp.After(*last) && q.Follow && n == 0 && !last.IsZero() {
			continue // it was told before the stream ended
		}
		if instance != "" && m.Instance != instance {
			continue // a faasd ignores what was asked for
		}
		m.Name, m.Namespace, m.Instance = q.Name, q.Namespace, c.cfg.Node+"/"+m.Instance
		if n++; n > logLines && !q.Follow {
			return n, nil
		}
		*last = m.Timestamp
		if !yield(m, nil) {
			return n, errEnough
		}
	}
	if err := lines.Err(); err != nil && !q.Follow && ctx.Err() == nil {
		return n, faas.Errorf(faas.ErrUnavailable, "node %s: its logs broke off: %w", c.cfg.Node, err)
	}
	return n, nil
}
