package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	// Node is the node's name, which its replicas get.
	Node string

	// URL is where the node's [Server] is: "https://192.168.1.7:8082".
	URL string

	// HTTP makes the calls. It must know the node from everybody else, and must
	// not have a timeout. Required.
	HTTP *http.Client

	// Observer is told of the replicas. Required.
	Observer provider.Observer

	// Zone is given to the replicas.
	Zone string

	// Beat is called with each beat, and with the first one when the node has
	// told all that it runs: it must be quick. Nil is not told.
	Beat func(Machine)

	// Lost is called when the stream breaks, and when it couldn't be opened. It
	// must be quick. Nil is not told.
	Lost func(error)

	// Patience is how long the node may be silent before the stream is given
	// up: 3 s, three beats.
	Patience time.Duration

	Logger *slog.Logger // required
}

// Client is the gateway's end: the node's provider. Make one with [NewClient];
// it knows nothing before [Client.Run] has heard of the node.
type Client struct {
	cfg  ClientConfig
	base string
	work sync.WaitGroup

	mu       sync.Mutex // guards below
	statuses map[faas.Name]status
	replicas map[string]faas.Replica
	waiting  map[string]context.CancelFunc // of the replicas that drain
	gone     chan struct{}                 // closed when a replica is
	stream   context.Context               // of the stream that is open; nil if none is
}

var _ provider.Provider = (*Client)(nil)

// NewClient returns the gateway's end of a line to a node. It starts nothing.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Patience == 0 {
		cfg.Patience = 3 * Beat
	}
	if cfg.Beat == nil {
		cfg.Beat = func(Machine) {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(error) {}
	}
	return &Client{
		cfg: cfg, base: strings.TrimSuffix(cfg.URL, "/") + "/node/v1/",
		statuses: make(map[faas.Name]status),
		replicas: make(map[string]faas.Replica),
		waiting:  make(map[string]context.CancelFunc),
		gone:     make(chan struct{}),
	}
}

// Run listens to the node until ctx ends. What it knows of the node stays as it
// was when the stream breaks: whether that can still be counted on is decided by
// who reads Beat and Lost.
func (c *Client) Run(ctx context.Context) error {
	defer c.work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const shortest, longest = 100 * time.Millisecond, 2 * time.Second
	pause := shortest
	for {
		began := time.Now()
		err := c.listen(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.cfg.Lost(err)
		c.cfg.Logger.Debug("the stream of a node broke", "node", c.cfg.Node, "err", err)
		if time.Since(began) > longest {
			pause = shortest
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause + rand.N(pause/2)):
		}
		pause = min(2*pause, longest)
	}
}

// errSilent is why a stream is given up, and errBroke that it ended by itself.
var (
	errSilent = errors.New("it was silent for too long")
	errBroke  = errors.New("the line to it broke")
)

// listen reads one stream to its end.
func (c *Client) listen(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(c.cfg.Patience, func() { cancel(errSilent) })
	defer silent.Stop()
	res, err := c.call(ctx, http.MethodGet, "watch", nil)
	if err != nil {
		return cmpCause(ctx, err)
	}
	defer res.Body.Close()
	c.mu.Lock()
	c.stream = ctx
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stream = nil
	}()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	s := stream1{c: c, replicas: make(map[string]bool), functions: make(map[faas.Name]bool)}
	said := allowance{left: maxBurst, at: time.Now()}
	for lines.Scan() {
		if !said.take(len(lines.Bytes()), time.Now()) {
			return fmt.Errorf("%w: more than %d MiB a second, which is more than a node has to say", ErrGarbled, maxRate>>20)
		}
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%w: %w", ErrGarbled, err)
		}
		silent.Reset(c.cfg.Patience)
		if err := s.take(ctx, e); err != nil {
			return err
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("%w: a line of more than %d bytes", ErrGarbled, maxEvent)
	} else if err != nil {
		return cmpCause(ctx, err)
	}
	return io.ErrUnexpectedEOF
}

// allowance is how many bytes a node may say: so many at once, for all that it
// runs, and then so many each second.
type allowance struct {
	left int
	at   time.Time
}

func (a *allowance) take(n int, now time.Time) bool {
	if more := now.Sub(a.at); more > time.Second/10 {
		a.left, a.at = min(a.left+int(more.Seconds()*maxRate), maxBurst), now
	}
	a.left -= n + lineCost
	return a.left >= 0
}

// whileHeard returns a context that ends when the node is not heard of any more:
// one that is frozen, or behind a cut cable, would keep its caller for ever.
func (c *Client) whileHeard(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	stream := c.stream
	c.mu.Unlock()
	if stream == nil {
		timer := time.AfterFunc(c.cfg.Patience, func() { cancel(errSilent) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	}
	stop := context.AfterFunc(stream, func() {
		if cause := context.Cause(stream); cause != context.Canceled {
			cancel(cause)
			return
		}
		cancel(errBroke)
	})
	return ctx, func() { stop(); cancel(nil) }
}

// cmpCause is why ctx ended, if it did, else err.
func cmpCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// stream1 is one stream: until it is synced, it notes what the node still has.
type stream1 struct {
	c         *Client
	synced    bool
	replicas  map[string]bool
	functions map[faas.Name]bool
}

// take takes what the node says. The error is an [ErrGarbled].
func (s *stream1) take(ctx context.Context, e event) error {
	c := s.c
	switch {
	case e.Replica != nil:
		if _, err := faas.ParseName(e.Replica.Function.String()); err != nil || len(e.Replica.ID) == 0 || len(e.Replica.ID) > maxID {
			return fmt.Errorf("%w: %.80q is no replica of %.80q", ErrGarbled, e.Replica.ID, e.Replica.Function)
		}
		if c.holds() >= maxRuns {
			return fmt.Errorf("%w: more than %d replicas and functions", ErrGarbled, maxRuns)
		}
		s.replicas[e.Replica.ID] = true
		c.observe(ctx, *e.Replica)
	case e.Status != nil:
		if _, err := faas.ParseName(e.Status.Name.String()); err != nil {
			return fmt.Errorf("%w: %w", ErrGarbled, err)
		}
		if c.holds() >= maxRuns {
			return fmt.Errorf("%w: more than %d replicas and functions", ErrGarbled, maxRuns)
		}
		s.functions[e.Status.Name] = true
		c.mu.Lock()
		c.statuses[e.Status.Name] = *e.Status
		c.mu.Unlock()
	case e.Removed != nil:
		c.mu.Lock()
		delete(c.statuses, *e.Removed)
		c.mu.Unlock()
	case e.Synced:
		s.synced = true
		c.mu.Lock()
		var lost []faas.Replica
		for id, r := range c.replicas {
			if !s.replicas[id] {
				lost = append(lost, r)
			}
		}
		for name := range c.statuses {
			if !s.functions[name] {
				delete(c.statuses, name)
			}
		}
		c.mu.Unlock()
		for _, r := range lost {
			r.State, r.Since, r.Reason = faas.Gone, time.Now(), "it ended while its node was not heard of"
			c.observe(ctx, r)
		}
		clear(s.replicas)
		clear(s.functions)
	case e.Beat != nil:
		c.cfg.Beat(e.Beat.bounded())
	}
	return nil
}

// holds returns how much is known of the node.
func (c *Client) holds() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.replicas) + len(c.statuses)
}

// observe takes note of a replica's step, tells of it, and of one that drains
// tells the node when it is idle.
func (c *Client) observe(ctx context.Context, r faas.Replica) {
	r.Node, r.Zone = c.cfg.Node, c.cfg.Zone
	c.mu.Lock()
	before, known := c.replicas[r.ID]
	switch {
	case known && r.State < before.State:
		c.mu.Unlock()
		return
	case r.State == faas.Gone:
		delete(c.replicas, r.ID)
		if stop := c.waiting[r.ID]; stop != nil {
			stop()
			delete(c.waiting, r.ID)
		}
	default:
		c.replicas[r.ID] = r
	}
	var idle context.Context
	if r.State == faas.Draining {
		if stop := c.waiting[r.ID]; stop != nil {
			stop() // that of a stream that broke
		}
		idle, c.waiting[r.ID] = context.WithCancel(ctx)
	}
	c.mu.Unlock()
	c.cfg.Observer.Observe(r)
	if r.State == faas.Gone {
		c.mu.Lock()
		close(c.gone)
		c.gone = make(chan struct{})
		c.mu.Unlock()
	}
	if idle != nil {
		c.work.Go(func() { c.tellIdle(idle, r.ID) })
	}
}

func (c *Client) tellIdle(ctx context.Context, id string) {
	if c.cfg.Observer.Idle(ctx, id) != nil {
		return // it is gone, or the next stream begins anew
	}
	res, err := c.call(ctx, http.MethodPost, "replicas/"+url.PathEscape(id)+"/idle", nil)
	if err != nil {
		return // the stream breaks as well, and the next begins anew
	}
	res.Body.Close()
}

// call makes a request of the node. The caller closes the answer's body.
func (c *Client) call(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.cfg.HTTP.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // it says where, which is known
		}
		return nil, faas.Errorf(faas.ErrUnavailable, "node %s can't be reached: %w", c.cfg.Node, cmpCause(ctx, err))
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return res, nil
}

// path is where a function is on the node.
func path(name faas.Name) string {
	return "functions/" + url.PathEscape(name.Namespace) + "/" + url.PathEscape(name.Function)
}

// Apply implements [provider.Provider].
func (c *Client) Apply(ctx context.Context, w provider.Workload) error {
	body, err := json.Marshal(w)
	if err != nil {
		return err
	}
	name := w.Function.Name()
	ctx, done := c.whileHeard(ctx)
	defer done()
	res, err := c.call(ctx, http.MethodPut, path(name), body)
	if err != nil {
		return err
	}
	res.Body.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.statuses[name] // which the stream will tell more of
	s.Name, s.Wanted, s.Revision = name, w.Function.Replicas, max(s.Revision, w.Function.Revision)
	c.statuses[name] = s
	return nil
}

// Remove implements [provider.Provider].
func (c *Client) Remove(ctx context.Context, name faas.Name) error {
	ctx, done := c.whileHeard(ctx)
	defer done()
	res, err := c.call(ctx, http.MethodDelete, path(name), nil)
	if err != nil {
		return err
	}
	res.Body.Close()
	c.mu.Lock()
	delete(c.statuses, name)
	c.mu.Unlock()
	return c.empty(ctx, name)
}

// empty waits until the stream has told that a function has no replicas any
// more, which the node's answer may overtake. If the stream breaks just then,
// the next one tells it.
func (c *Client) empty(ctx context.Context, name faas.Name) error {
	limit := time.NewTimer(c.cfg.Patience)
	defer limit.Stop()
	for {
		c.mu.Lock()
		gone, left := c.gone, false
		for _, r := range c.replicas {
			left = left || r.Function == name
		}
		c.mu.Unlock()
		if !left {
			return nil
		}
		select {
		case <-gone:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Status implements [provider.Provider].
func (c *Client) Status(name faas.Name) (provider.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.statuses[name]
	if !ok {
		return provider.Status{}, false
	}
	st := provider.Status{Revision: s.Revision, Reason: s.Reason, Usage: s.Usage}
	for _, r := range c.replicas {
		if r.Function == name {
			st.Replicas = append(st.Replicas, r)
		}
	}
	slices.SortFunc(st.Replicas, func(a, b faas.Replica) int { return strings.Compare(a.ID, b.ID) })
	return st, true
}

// Wanted returns how many replicas of each function the node was told to run,
// and of which revision.
func (c *Client) Wanted() map[faas.Name]Share {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[faas.Name]Share, len(c.statuses))
	for name, s := range c.statuses {
		all[name] = Share{Revision: s.Revision, Replicas: s.Wanted}
	}
	return all
}

// Share is what a node was told to run of a function.
type Share struct {
	Revision uint64
	Replicas int
}

// Forget has all of the node's replicas observed as gone, when the node is
// counted out. If it is heard of again, those that still run come back.
func (c *Client) Forget(why string) {
	c.mu.Lock()
	var lost []faas.Replica
	for _, r := range c.replicas {
		lost = append(lost, r)
	}
	c.mu.Unlock()
	for _, r := range lost {
		r.State, r.Since, r.Reason = faas.Gone, time.Now(), why
		c.observe(context.Background(), r)
	}
}

// Logs implements [provider.Provider].
func (c *Client) Logs(ctx context.Context, q logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		v := url.Values{"tail": {strconv.Itoa(q.Tail)}, "follow": {strconv.FormatBool(q.Follow)}}
		if q.Instance != "" {
			v.Set("instance", q.Instance)
		}
		if q.Since != nil {
			v.Set("since", q.Since.Format(time.RFC3339Nano))
		}
		namespace := q.Namespace
		if namespace == "" {
			namespace = faas.DefaultNamespace
		}
		res, err := c.call(ctx, http.MethodGet, "logs/"+url.PathEscape(namespace)+"/"+url.PathEscape(q.Name)+"?"+v.Encode(), nil)
		if err != nil {
			yield(logs.Message{}, err)
			return
		}
		defer res.Body.Close()
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(make([]byte, 0, 4096), maxEvent)
		for lines.Scan() {
			var m logs.Message
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				yield(logs.Message{}, fmt.Errorf("node %s: its logs can't be read: %w", c.cfg.Node, err))
				return
			}
			if !yield(m, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil && ctx.Err() == nil {
			yield(logs.Message{}, fmt.Errorf("node %s: its logs broke off: %w", c.cfg.Node, err))
		}
	}
}
