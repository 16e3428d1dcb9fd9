package openfaas

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Bounds of what is taken from a provider, which may be anything.
const (
	maxAnswer = 8 << 20 // one answer, in bytes: a list of 10,000 functions
	maxTold   = 300     // characters of what it says that are repeated
	maxLine   = 1 << 20 // one line of a log
)

// How long a provider may take.
const (
	quick = 10 * time.Second // for what it only has to note
	slow  = 5 * time.Minute  // for a deployment: a faasd pulls the image before it answers
)

// Endpoint is where a provider is, and how it is asked.
type Endpoint struct {
	URL      string // http or https; a path is what its API's paths begin with
	User     string // empty asks without
	Password string
}

// parse checks the endpoint's URL. The error is an [faas.ErrInvalid].
func (e Endpoint) parse() (*url.URL, error) {
	u, err := url.Parse(e.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, faas.Errorf(faas.ErrInvalid, "%.100q is not a provider's URL: write it as http://192.168.1.20:8080", redact(e.URL))
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, faas.Errorf(faas.ErrInvalid, "a provider's URL has no user, password or query: give them apart from it")
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

// Parse reads a URL in which the user and the password may be, for where there is
// room for one word. The error is an [faas.ErrInvalid], and repeats no password.
func (e *Endpoint) Parse(s string) error {
	bare := redact(strings.TrimSpace(s))
	switch u, err := url.Parse(strings.TrimSpace(s)); {
	case strings.Contains(s, "@") && (err != nil || u.User == nil):
		return faas.Errorf(faas.ErrInvalid, "the user and the password before %.100q can't be read: write / as %%2F, @ as %%40, : as %%3A, %% as %%25 in them", bare)
	case err == nil && u.User != nil:
		e.User = u.User.Username()
		e.Password, _ = u.User.Password()
		u.User = nil
		bare = u.String()
	}
	e.URL = bare
	_, err := e.parse()
	return err
}

// redact takes the user and the password out of something that should be a URL.
func redact(s string) string {
	head, rest, ok := strings.Cut(s, "://")
	if !ok {
		head, rest = "", s
	} else {
		head += "://"
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return head + rest
}

// line is the way to one provider's API. All that go-sdk asks goes through its
// RoundTrip, which bounds it, puts it below the provider's path, and remembers
// what came back: go-sdk itself tells most of it only as text.
type line struct {
	base  *url.URL
	user  string
	pass  string
	http  *http.Client
	inner *http.Transport
	sdk   *sdk.Client

	mu    sync.Mutex // guards below
	addr  netip.AddrPort
	local netip.Addr
	skew  time.Duration // of its clock against ours
	dated bool
}

func newLine(e Endpoint) (*line, error) {
	u, err := e.parse()
	if err != nil {
		return nil, err
	}
	l := &line{base: u, user: e.User, pass: e.Password}
	l.inner = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSHandshakeTimeout: 3 * time.Second,
		MaxIdleConns:        8, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
	l.http = &http.Client{Transport: l, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var auth sdk.ClientAuth
	if e.User != "" {
		auth = &sdk.BasicAuth{Username: e.User, Password: e.Password}
	}
	l.sdk = sdk.NewClient(u, auth, l.http)
	return l, nil
}

func (l *line) close() { l.inner.CloseIdleConnections() }

// exchange is what became of a request.
type exchange struct {
	method, path string
	status       int
	location     string
	head         []byte // of the answer's body
	err          error  // why there was no answer
	tooLarge     bool
}

type exchangeKey struct{}

// RoundTrip implements [http.RoundTripper].
func (l *line) RoundTrip(r *http.Request) (*http.Response, error) {
	x, _ := r.Context().Value(exchangeKey{}).(*exchange)
	if x == nil {
		x = new(exchange)
	}
	x.method, x.path = r.Method, r.URL.Path
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		remote, ok1 := i.Conn.RemoteAddr().(*net.TCPAddr)
		local, ok2 := i.Conn.LocalAddr().(*net.TCPAddr)
		if !ok1 || !ok2 {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		at := remote.AddrPort()
		l.addr, l.local = netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), local.AddrPort().Addr().Unmap()
	}}
	r = r.Clone(httptrace.WithClientTrace(r.Context(), trace))
	r.URL.Path = l.base.Path + r.URL.Path
	r.URL.RawPath = ""
	res, err := l.inner.RoundTrip(r)
	if err != nil {
		x.err = err
		return nil, err
	}
	x.status, x.location = res.StatusCode, res.Header.Get("Location")
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		l.mu.Lock()
		// The header has whole seconds, of which half has passed on average.
		l.skew, l.dated = time.Until(at)+500*time.Millisecond, true
		l.mu.Unlock()
	}
	res.Body = &bounded{ReadCloser: res.Body, left: maxAnswer, x: x}
	return res, nil
}

// bounded is a body that ends where it becomes too large.
type bounded struct {
	io.ReadCloser
	left int64
	x    *exchange
}

var errTooLarge = errors.New("the answer is too large")

// Read implements [io.Reader].
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.x.tooLarge = true
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if room := maxTold - len(b.x.head); room > 0 {
		b.x.head = append(b.x.head, p[:min(n, room)]...)
	}
	return n, err
}

// refusal is what a provider answered when it did not do what it was asked.
type refusal struct {
	status int
	text   string // what it said
	err    error  // the sentence
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// statusOf is the status with which a provider refused something, or 0.
func statusOf(err error) int {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.status
	}
	return 0
}

// ask has f ask the provider something by a context that bounds it, and turns
// what came back into a sentence if it isn't what was wanted.
func (l *line) ask(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	x := new(exchange)
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, exchangeKey{}, x), limit)
	defer cancel()
	err := f(ctx)
	if err == nil && x.status/100 == 2 {
		return nil
	}
	return l.explain(ctx, limit, x, err)
}

// explain says what was tried and what came back.
func (l *line) explain(ctx context.Context, limit time.Duration, x *exchange, err error) error {
	tried := x.method + " " + l.base.String() + x.path
	said := quote(x.head)
	switch {
	case x.status == 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return faas.Errorf(faas.ErrUnavailable, "%s: no answer within %s", tried, limit)
	case x.status == 0 && ctx.Err() != nil:
		return context.Cause(ctx)
	case x.status == 0 && x.err != nil:
		return faas.Errorf(faas.ErrUnavailable, "%s: %w", tried, cause(x.err))
	case x.status == 0:
		return faas.Errorf(faas.ErrInvalid, "%s: %w", l.base, err)
	case x.tooLarge:
		return faas.Errorf(faas.ErrUnavailable, "%s was answered with more than %d MiB", tried, maxAnswer>>20)
	case x.status == http.StatusUnauthorized && l.user == "":
		return &refusal{x.status, said, faas.Errorf(faas.ErrForbidden, "%s was answered 401: it asks for a user and a password, and none were given", tried)}
	case x.status == http.StatusUnauthorized, x.status == http.StatusForbidden:
		return &refusal{x.status, said, faas.Errorf(faas.ErrForbidden, "%s was answered %d: it doesn't take the password of the user %s", tried, x.status, l.user)}
	case x.status/100 == 3:
		return &refusal{x.status, said, faas.Errorf(faas.ErrInvalid, "%s was answered %d, which leads to %s: give the URL that it leads to", tried, x.status, quote([]byte(x.location)))}
	case x.status/100 == 2 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return faas.Errorf(faas.ErrUnavailable, "%s: its answer had not ended after %s", tried, limit)
	case x.status/100 == 2:
		return faas.Errorf(faas.ErrUnavailable, "%s was answered with what no OpenFaaS answers: %s", tried, said)
	}
	kind := faas.ErrUnavailable
	switch x.status {
	case http.StatusNotFound:
		kind = faas.ErrNotFound
	case http.StatusConflict:
		kind = faas.ErrConflict
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusNotImplemented, http.StatusMethodNotAllowed:
		kind = faas.ErrInvalid
	}
	return &refusal{x.status, said, faas.Errorf(kind, "%s was answered %d: %s", tried, x.status, said)}
}

// cause is a network's error in few words.
func cause(err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("there is no host %s", dns.Name)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return op.Err
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("it doesn't speak TLS (%s): write http:// if that is meant", record.Msg)
	}
	return err
}

// quote is what a stranger said, short, on a line and printable.
func quote(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return "nothing"
	}
	s := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, string(b[:min(len(b), maxTold)]))
	return strconv.Quote(strings.ToValidUTF8(s, "?"))
}

// do makes a request that go-sdk has no right way for, and reads its answer into
// out if that isn't nil.
func (l *line) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	res, err := l.send(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if out == nil || res.StatusCode/100 != 2 {
		return nil // the status says it all
	}
	return json.Unmarshal(b, out)
}

// send makes a request. The caller closes the answer's body.
func (l *line) send(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: l.base.Scheme, Host: l.base.Host, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if l.user != "" {
		req.SetBasicAuth(l.user, l.pass)
	}
	return l.http.Do(req)
}

// where returns the address at which the provider was reached, and this
// machine's own on the way there.
func (l *line) where() (addr netip.AddrPort, local netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr, l.local
}

// clock is the time by the provider's clock.
func (l *line) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dated {
		return time.Now()
	}
	return time.Now().Add(l.skew)
}

// list returns the functions of a namespace; "" is the provider's own default.
func (l *line) list(ctx context.Context, limit time.Duration, namespace string) (list []types.FunctionStatus, err error) {
	err = l.ask(ctx, limit, func(ctx context.Context) (err error) {
		list, err = l.sdk.GetFunctions(ctx, namespace)
		return err
	})
	for i := range list {
		if list[i].Namespace == "" {
			list[i].Namespace = namespace
		}
		if list[i].Namespace == "" {
			list[i].Namespace = faas.DefaultNamespace
		}
	}
	return list, err
}

// get returns one function: a faasd says only here how many replicas answer.
func (l *line) get(ctx context.Context, name faas.Name) (s types.FunctionStatus, err error) {
	err = l.ask(ctx, quick, func(ctx context.Context) (err error) {
		s, err = l.sdk.GetFunction(ctx, name.Function, name.Namespace)
		return err
	})
	return s, err
}

// deploy declares a function: anew, or in the place of one that is there.
func (l *line) deploy(ctx context.Context, d types.FunctionDeployment, there bool) error {
	post := func(ctx context.Context) error { _, err := l.sdk.Deploy(ctx, d); return err }
	put := func(ctx context.Context) error { _, err := l.sdk.Update(ctx, d); return err }
	if !there {
		return l.ask(ctx, slow, post)
	}
	err := l.ask(ctx, slow, put)
	if statusOf(err) == http.StatusNotFound {
		return l.ask(ctx, slow, post)
	}
	return err
}

// remove deletes a function. A faas-netes reads the namespace from the query, a
// faasd from the body. One that isn't there is removed.
func (l *line) remove(ctx context.Context, name faas.Name) error {
	err := l.ask(ctx, slow, func(ctx context.Context) error {
		return l.do(ctx, http.MethodDelete, "/system/functions", url.Values{"namespace": {name.Namespace}},
			types.DeleteFunctionRequest{FunctionName: name.Function, Namespace: name.Namespace}, nil)
	})
	if statusOf(err) == http.StatusNotFound {
		return nil
	}
	return err
}

// scale sets the number of replicas. A faas-netes reads the namespace from the
// query, a faasd all from the body.
func (l *line) scale(ctx context.Context, name faas.Name, n int) error {
	return l.ask(ctx, quick, func(ctx context.Context) error {
		return l.do(ctx, http.MethodPost, "/system/scale-function/"+name.Function, url.Values{"namespace": {name.Namespace}},
			types.ScaleServiceRequest{ServiceName: name.Function, Namespace: name.Namespace, Replicas: uint64(n)}, nil)
	})
}

// putSecret gives a secret its value: 409 says that it is there already, and a
// faasd takes it in any case. This isn't done by go-sdk, which prints the body of
// a request where the environment has FAAS_DEBUG.
func (l *line) putSecret(ctx context.Context, namespace, name string, value []byte) error {
	s := types.Secret{Name: name, Namespace: namespace, Value: string(value), RawValue: value}
	send := func(method string) error {
		return l.ask(ctx, quick, func(ctx context.Context) error {
			return l.do(ctx, method, "/system/secrets", url.Values{"namespace": {namespace}}, s, nil)
		})
	}
	err := send(http.MethodPost)
	if statusOf(err) == http.StatusConflict {
		err = send(http.MethodPut)
	}
	return withoutText(err, value)
}

// withoutText keeps a provider that repeats what it was sent from having a secret
// repeated in a log.
func withoutText(err error, value []byte) error {
	if err == nil || len(value) == 0 || !strings.Contains(err.Error(), string(value)) {
		return err
	}
	return &refusal{statusOf(err), "", faas.Errorf(faas.ErrUnavailable, "a secret was refused (%d), and the value is in what was said", statusOf(err))}
}

// dropSecret removes a secret. A faasd reads the namespace from the query, and
// answers 500 for one that isn't there.
func (l *line) dropSecret(ctx context.Context, namespace, name string) error {
	return l.ask(ctx, quick, func(ctx context.Context) error {
		return l.do(ctx, http.MethodDelete, "/system/secrets", url.Values{"namespace": {namespace}}, types.Secret{Name: name, Namespace: namespace}, nil)
	})
}
