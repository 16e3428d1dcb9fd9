package eureka

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// maxBody is the largest body that is read, also after it was unpacked. An
	// instance with the most metadata has about 10 KB.
	maxBody = 64 << 10

	// minGzip is from how many bytes on an answer is compressed.
	minGzip = 1 << 10
)

// formatVersion is how a version is written.
func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }

// Serve answers one request below /eureka. Its errors are of package faas; who
// calls it has checked the password.
func (r *Registry) Serve(w http.ResponseWriter, req *http.Request) error {
	parts, err := split(req.URL)
	if err != nil {
		return err
	}
	at := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}
	c := &call{r: r, w: w, req: req, view: viewOf(req)}
	what, n := at(0), len(parts)
	switch {
	case what == "apps" && n == 1:
		return c.route(methods{"GET": c.apps})
	case what == "apps" && n == 2 && at(1) == "delta":
		return c.route(methods{"GET": c.delta})
	case what == "apps" && n == 2:
		return c.route(methods{"GET": c.app, "POST": c.register}, at(1))
	case what == "apps" && n == 3:
		return c.route(methods{"GET": c.instance, "PUT": c.heartbeat, "DELETE": c.cancel}, at(1), at(2))
	case what == "apps" && n == 4 && at(3) == "status":
		return c.route(methods{"PUT": c.override, "DELETE": c.restore}, at(1), at(2))
	case what == "apps" && n == 4 && at(3) == "metadata":
		return c.route(methods{"PUT": c.metadata}, at(1), at(2))
	case what == "instances" && n == 2:
		return c.route(methods{"GET": c.instance}, "", at(1))
	case (what == "vips" || what == "svips") && n == 2:
		return c.route(methods{"GET": c.vips}, what, at(1))
	case what == "status" && n == 1, n == 0:
		return c.route(methods{"GET": c.status})
	case what == "serverinfo" && n == 2 && at(1) == "statusoverrides":
		return c.route(methods{"GET": c.overrides})
	case what == "peerreplication", what == "asg":
		return c.text(http.StatusNotImplemented, "this registry has no peers and knows no groups of a cloud: register with it like with any other, and it keeps its own list")
	}
	return faas.Errorf(faas.ErrNotFound, "there is no %.100q in Eureka's interface: apps, instances, vips, svips and status are below /eureka/", req.URL.Path)
}

// split returns the parts of a path below /eureka or /eureka/v2, unescaped.
func split(u *url.URL) (parts []string, err error) {
	path, _ := strings.CutPrefix(u.EscapedPath(), "/eureka")
	path = strings.Trim(path, "/")
	if path == "v2" {
		path = ""
	}
	path = strings.TrimPrefix(path, "v2/")
	if path == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(path, "/") {
		part, err := url.PathUnescape(part)
		if err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "path %.100q: %w", u.Path, err)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// viewOf returns how a caller sees the registry. One behind a proxy is not on
// this machine, though the proxy may be.
func viewOf(req *http.Request) view {
	ap, err := netip.ParseAddrPort(req.RemoteAddr)
	forwarded := req.Header.Get("Forwarded") != "" || req.Header.Get("X-Forwarded-For") != ""
	return view{
		local:   err == nil && ap.Addr().Unmap().IsLoopback() && !forwarded,
		compact: strings.EqualFold(req.Header.Get("X-Eureka-Accept"), "compact"),
	}
}

// call is one request.
type call struct {
	r    *Registry
	w    http.ResponseWriter
	req  *http.Request
	view view
	args []string // from the path
}

type methods map[string]func() error

// route calls what the request's method asks for.
func (c *call) route(m methods, args ...string) error {
	c.args = args
	method := c.req.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if serve := m[method]; serve != nil {
		return serve()
	}
	var allowed []string
	for name := range m {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	c.w.Header().Set("Allow", strings.Join(allowed, ", "))
	return c.text(http.StatusMethodNotAllowed, "use "+strings.Join(allowed, ", "))
}

// text answers with a sentence.
func (c *call) text(code int, text string) error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(code)
	_, _ = io.WriteString(c.w, text)
	return nil
}

// answer sends what was asked for, as the caller wants it. name is what JSON
// calls it.
func (c *call) answer(code int, name string, v any) error {
	f := formatOf(c.req.Header.Get("Accept"))
	var body bytes.Buffer
	if err := f.write(&body, name, v); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	h := c.w.Header()
	h.Set("Content-Type", f.contentType())
	h.Set("Cache-Control", "no-store")
	h.Add("Vary", "Accept, Accept-Encoding, X-Eureka-Accept")
	if body.Len() >= minGzip && strings.Contains(c.req.Header.Get("Accept-Encoding"), "gzip") {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(body.Bytes()); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		h.Set("Content-Encoding", "gzip")
		body = packed
	}
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	c.w.WriteHeader(code)
	_, _ = c.w.Write(body.Bytes())
	return nil
}

func (c *call) apps() error { return c.answer(http.StatusOK, "applications", c.r.all(c.view, nil)) }

func (c *call) delta() error { return c.answer(http.StatusOK, "applications", c.r.delta(c.view)) }

func (c *call) app() error {
	a := c.r.one(c.view, c.args[0])
	if a == nil {
		return faas.Errorf(faas.ErrNotFound, "there is no application %.100q", c.args[0])
	}
	return c.answer(http.StatusOK, "application", a)
}

func (c *call) instance() error {
	i := c.r.instance(c.view, c.args[0], c.args[1])
	if i == nil {
		return faas.Errorf(faas.ErrNotFound, "there is no instance %.100q", c.args[1])
	}
	return c.answer(http.StatusOK, "instance", named1{i})
}

// vips looks instances up by a virtual address.
func (c *call) vips() error {
	a := c.r.all(c.view, func(i *Instance) bool {
		if c.args[0] == "svips" {
			return named(i.SecureVIP, c.args[1])
		}
		return named(i.VIP, c.args[1])
	})
	if len(a.Apps) == 0 {
		return faas.Errorf(faas.ErrNotFound, "nobody has the virtual address %.100q", c.args[1])
	}
	return c.answer(http.StatusOK, "applications", a)
}

// body reads what was sent, at most maxBody of it.
func (c *call) body() ([]byte, error) {
	var src io.Reader = http.MaxBytesReader(c.w, c.req.Body, maxBody)
	if c.req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "the body isn't compressed with gzip, as its header says: %w", err)
		}
		src = z
	}
	body, err := io.ReadAll(io.LimitReader(src, maxBody+1))
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge, len(body) > maxBody:
		return nil, faas.Errorf(faas.ErrTooLarge, "the body is larger than %d bytes, the most that is read here", maxBody)
	case err != nil:
		return nil, faas.Errorf(faas.ErrInvalid, "the body was cut off: %w", err)
	}
	return body, nil
}

func (c *call) register() error {
	body, err := c.body()
	if err != nil {
		return err
	}
	i, err := readInstance(formatOf(c.req.Header.Get("Content-Type")), body)
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "the body is no instance: %w", err)
	}
	if !strings.EqualFold(strings.TrimSpace(i.App), c.args[0]) {
		return faas.Errorf(faas.ErrInvalid, "field app is %.80q, but the path names %.80q", i.App, c.args[0])
	}
	if err := c.r.Register(i, c.view.local); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *call) heartbeat() error {
	dirty := int64(0)
	if s := c.req.URL.Query().Get("lastDirtyTimestamp"); s != "" {
		var err error
		if dirty, err = strconv.ParseInt(s, 10, 64); err != nil {
			return faas.Errorf(faas.ErrInvalid, "parameter lastDirtyTimestamp is %.40q: write milliseconds since 1970", s)
		}
	}
	return c.done(c.r.Heartbeat(c.args[0], c.args[1], dirty))
}

func (c *call) cancel() error { return c.done(c.r.Cancel(c.args[0], c.args[1])) }

func (c *call) override() error {
	s, err := parseStatus(c.req.URL.Query().Get("value"))
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "parameter value: %w", err)
	}
	return c.done(c.r.Override(c.args[0], c.args[1], s))
}

func (c *call) restore() error {
	var s Status
	if value := c.req.URL.Query().Get("value"); value != "" {
		var err error
		if s, err = parseStatus(value); err != nil {
			return faas.Errorf(faas.ErrInvalid, "parameter value: %w", err)
		}
	}
	return c.done(c.r.Restore(c.args[0], c.args[1], s))
}

func (c *call) metadata() error {
	entries := map[string]string{}
	for key, values := range c.req.URL.Query() {
		if key != "lastDirtyTimestamp" {
			entries[key] = values[0]
		}
	}
	return c.done(c.r.SetMetadata(c.args[0], c.args[1], entries))
}

// done answers a change that has no body: 200.
func (c *call) done(err error) error {
	if err == nil {
		c.w.WriteHeader(http.StatusOK)
	}
	return err
}
