package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
)

var echo = faas.Name{Function: "echo", Namespace: faas.DefaultNamespace}

// world is a gateway in front of replicas that the test makes.
type world struct {
	t     *testing.T
	table *discovery.Table
	proxy *proxy.Proxy
	url   string // of the gateway

	mu     sync.Mutex // guards below
	wanted map[faas.Name]int
	reason string

	declared map[faas.Name]*faas.Function
}

// newWorld starts a gateway that knows the function echo. set changes its settings.
func newWorld(t *testing.T, set func(*world, *proxy.Config)) *world {
	t.Helper()
	w := &world{t: t, table: discovery.New(), wanted: map[faas.Name]int{echo: 1}}
	cfg := proxy.Config{
		Table: w.table,
		Known: w.known,

		Declared: w.running,
		Names:    w.names,
		Logger:   slog.New(slog.DiscardHandler),
		Version:  "1.2.3",
	}
	if set != nil {
		set(w, &cfg)
	}
	var err error
	if w.proxy, err = proxy.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.proxy.Close)
	w.url = front(t, w.proxy.Before(http.NotFoundHandler()))
	return w
}

// front serves as the gateway does, and returns the address.
func front(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http1.Server{Handler: h, Logger: slog.New(slog.DiscardHandler)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func (w *world) known(name faas.Name) (int, string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.wanted[name]
	return n, w.reason, ok
}

func (w *world) names() []faas.Name {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []faas.Name
	for n := range w.wanted {
		all = append(all, n)
	}
	return all
}

func (w *world) want(name faas.Name, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted[name] = n
}

// observe tells the table of a replica.
func (w *world) observe(id, addr string, s faas.State) {
	w.table.Observe(faas.Replica{ID: id, Function: echo, Addr: netip.MustParseAddrPort(addr), State: s})
}

func replicaOf(name faas.Name, id string, revision uint64, s *httptest.Server, state faas.State) faas.Replica {
	return faas.Replica{ID: id, Function: name, Revision: revision, Addr: netip.MustParseAddrPort(s.Listener.Addr().String()), State: state}
}

// serve starts a replica of echo, which is ready, and returns its server.
func (w *world) serve(id string, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	w.observe(id, s.Listener.Addr().String(), faas.Ready)
	return s
}

// dead is an address that refuses connections.
func (w *world) dead() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serveOther starts a replica of another function.
func (w *world) serveOther(name faas.Name, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	w.table.Observe(replicaOf(name, name.Function+"-1", 1, s, faas.Ready))
	return s
}

func (w *world) do(method, path, body string, header ...string) (*http.Response, string) {
	w.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, r)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, string(b)
}

var noRedirects = &http.Client{
	Transport:     &http.Transport{DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// raw sends bytes to the gateway and returns what came back until it closed.
func (w *world) raw(request string) string {
	w.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		w.t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// TestPath holds that functions get path and query as they were sent.
func TestPath(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "got ", r.RequestURI) })
	for _, tt := range []struct{ sent, want string }{
		{"/function/echo", "/"},
		{"/function/echo/", "/"},
		{"/function/echo.openfaas-fn", "/"},
		{"/function/echo.openfaas-fn/a/b", "/a/b"},
		{"/function/ech%6F/a", "/a"},
		{"/function/echo?", "/?"},
		{"/function/echo?a=1&b=2", "/?a=1&b=2"},
		{"/function/echo/a?b=%2F&c=a+b;d=%zz&&=", "/a?b=%2F&c=a+b;d=%zz&&="},
		{"/function/echo/a%2Fb", "/a%2Fb"},
		{"/function/echo/a%2fb", "/a%2fb"},
		{"/function/echo/%2e%2e/x", "/%2e%2e/x"},
		{"/function/echo/../x", "/../x"},
		{"/function/echo/./x/.", "/./x/."},
		{"/function/echo//a//b", "//a//b"},
		{"/function/echo//system/functions", "//system/functions"},
		{"/function/echo/a%20b+c", "/a%20b+c"},
		{"/function/echo/%41", "/%41"},
		{"/function/echo/a:b@c,d;e=f!$&'()*", "/a:b@c,d;e=f!$&'()*"},
		{"/function/echo/ä", "/%C3%A4"},
		{"/function/echo/a%2Fb\"c<d>", "/a%2Fb%22c%3Cd%3E"},
		{"http://elsewhere/function/echo/a%2Fb?c", "/a%2Fb?c"},
	} {
		t.Run(tt.sent, func(t *testing.T) {
			got := w.raw("GET " + tt.sent + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if !strings.HasSuffix(got, "got "+tt.want) {
				t.Errorf("answer = %q, want the function to get %q", got, tt.want)
			}
		})
	}
}

// TestRefusals holds the answers that the platform gives itself.
func TestRefusals(t *testing.T) {
	w := newWorld(t, func(w *world, c *proxy.Config) {
		c.MaxBody = 10
		c.HoldTime = 10 * time.Millisecond
		c.TimeoutSetting = "THE_SETTING"
	})
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/hangup" {
			panic(http.ErrAbortHandler)
		}
	})
	w.want(faas.Name{Function: "weather-producer", Namespace: "openfaas-fn"}, 0)
	w.want(faas.Name{Function: "weather-producer", Namespace: "dev"}, 0)
	w.want(faas.Name{Function: "pending", Namespace: "openfaas-fn"}, 1)
	w.reason = "the image is not there"
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
		text                     string
	}{
		{"no such function", "GET", "/function/nobody", "", 404, `^there is no function nobody.openfaas-fn$`},
		{"mistyped", "GET", "/function/weather-produser/x", "", 404, `did you mean weather-producer or weather-producer.dev\?$`},
		{"wrong namespace", "GET", "/function/echo.prod", "", 404, `did you mean echo\?$`},
		{"not a name", "GET", "/function/Echo", "", 400, `"Echo" is not a DNS label`},
		{"a slash in the name", "GET", "/function/a%2Fb", "", 400, `not a DNS label`},
		{"dots for a name", "GET", "/function/../system/functions", "", 400, `function name is empty|not a DNS label`},
		{"a very long name", "GET", "/function/" + strings.Repeat("a", 5000), "", 400, `at most 63`},
		{"no name", "GET", "/function/", "", 404, `names no function`},
		{"trace", "TRACE", "/function/echo", "", 405, `use one of GET, HEAD`},
		{"own method", "BREW", "/function/echo", "", 405, `use one of GET, HEAD`},
		{"asynchronous", "POST", "/async-function/echo", "x", 501, `call /function/echo.openfaas-fn`},
		{"body over the limit", "POST", "/function/echo", "12345678901", 413, `larger than 10 bytes`},
		{"not ready", "GET", "/function/pending", "", 503, `within 10ms: the image is not there$`},
		{"asleep, and nobody wakes it", "GET", "/function/weather-producer", "", 503, `scaled to 0`},
		{"hangs up", "POST", "/function/echo/hangup", "x", 502, `replica a: it closed the connection`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, text := w.do(tt.method, tt.path, tt.body)
			if res.StatusCode != tt.code {
				t.Errorf("code = %d, want %d", res.StatusCode, tt.code)
			}
			if !regexp.MustCompile(tt.text).MatchString(strings.TrimSuffix(text, "\n")) {
				t.Errorf("text = %q, want a match of %q", text, tt.text)
			}
			if got := res.Header.Get("X-OpenFaaS-Internal"); got != "proxy" {
				t.Errorf("X-OpenFaaS-Internal = %q, want proxy", got)
			}
			if res.Header.Get("X-Call-Id") == "" || res.Header.Get("X-Served-By") != "thicket/1.2.3" {
				t.Errorf("header = %v, want X-Call-Id and X-Served-By", res.Header)
			}
			if got := res.Header.Get("Retry-After"); (got != "") != (tt.code == 503) {
				t.Errorf("Retry-After = %q with %d", got, tt.code)
			}
		})
	}
	if n := w.proxy.Invocations(faas.Name{Function: "nobody", Namespace: "openfaas-fn"}); n != 0 {
		t.Errorf("%v calls are counted of a function that isn't there", n)
	}
}

func TestBodyOverTheLimitOfUnknownLength(t *testing.T) {
	w := newWorld(t, func(_ *world, c *proxy.Config) { c.MaxBody = 1 << 20 })
	whole := make(chan bool, 1)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		whole <- err == nil
	})
	req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/function/echo", io.LimitReader(zeros{}, 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("code = %d, want 413", res.StatusCode)
	}
	if <-whole {
		t.Error("the function took a cut body for a whole one")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHeaders(t *testing.T) {
	w := newWorld(t, nil)
	var got *http.Request
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		got = r
		h := rw.Header()
		h.Set("X-Call-Id", "the function's")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("Location", "/elsewhere")
		h.Add("Set-Cookie", "a=1")
		h.Add("Set-Cookie", "b=2")
		rw.WriteHeader(http.StatusFound)
	})
	res, _ := w.do("GET", "/function/echo", "",
		"X-Call-Id", "my-call", "Connection", "X-Secret-Hop, close", "X-Secret-Hop", "1", "Proxy-Authorization", "Basic x",
		"Authorization", "Basic dXNlcjpwdw==", "X-Forwarded-For", "192.0.2.1", "X-Forwarded-Proto", "https",
		"Accept-Encoding", "br", "Te", "trailers", "Upgrade", "")
	for k, want := range map[string]string{
		"X-Call-Id": "my-call", "X-Secret-Hop": "", "Proxy-Authorization": "", "Connection": "",
		"Authorization": "Basic dXNlcjpwdw==", "X-Forwarded-For": "192.0.2.1, 127.0.0.1",
		"X-Forwarded-Proto": "https", "X-Forwarded-Host": strings.TrimPrefix(w.url, "http://"),
		"Accept-Encoding": "br", "X-Served-By": "",
	} {
		if v := strings.Join(got.Header.Values(k), "|"); v != want {
			t.Errorf("the function's %s = %q, want %q", k, v, want)
		}
	}
	if !regexp.MustCompile(`^\d{19}$`).MatchString(got.Header.Get("X-Start-Time")) {
		t.Errorf("X-Start-Time = %q, want nanoseconds", got.Header.Get("X-Start-Time"))
	}
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "/elsewhere" {
		t.Errorf("answer = %d to %q, want the redirect as it is", res.StatusCode, res.Header.Get("Location"))
	}
	if v := res.Header.Values("X-Call-Id"); !slices.Equal(v, []string{"my-call"}) {
		t.Errorf("X-Call-Id = %q, want the call's", v)
	}
	if res.Header.Get("Keep-Alive") != "" || len(res.Header.Values("Set-Cookie")) != 2 {
		t.Errorf("header = %v", res.Header)
	}
	if res.Header.Get("X-Start-Time") != got.Header.Get("X-Start-Time") || res.Header.Get("X-Served-By") != "thicket/1.2.3" {
		t.Errorf("header = %v", res.Header)
	}
}

func TestCallID(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.Header.Get("X-Call-Id")) })
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for _, tt := range []struct {
		name, id string
		kept     bool
	}{
		{"none", "", false},
		{"any word", "abc-123/x:y", true},
		{"a space", "a b", false},
		{"too long", strings.Repeat("a", 129), false},
		{"as long as can be", strings.Repeat("a", 128), true},
		{"not ASCII", "caf\u00e9", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, got := w.do("GET", "/function/echo", "", "X-Call-Id", tt.id)
			if got != res.Header.Get("X-Call-Id") {
				t.Errorf("the function got %q and the client %q", got, res.Header.Get("X-Call-Id"))
			}
			if tt.kept && got != tt.id || !tt.kept && !uuid.MatchString(got) {
				t.Errorf("X-Call-Id = %q for %q", got, tt.id)
			}
		})
	}
}

func TestMethods(t *testing.T) {
	w := newWorld(t, nil)
	w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		rw.Header().Set("X-Got", r.Method+" "+string(b))
		rw.Header().Set("Content-Length", "4")
		io.WriteString(rw, "body")
	})
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		res, body := w.do(m, "/function/echo", "in")
		want := "body"
		if m == "HEAD" {
			want = ""
		}
		if res.StatusCode != 200 || res.Header.Get("X-Got") != m+" in" || body != want || res.ContentLength != 4 {
			t.Errorf("%s: %d %q %q, length %d", m, res.StatusCode, res.Header.Get("X-Got"), body, res.ContentLength)
		}
	}
}

// TestSmuggling holds that what two servers could read in two ways is one
// request to a function, or none.
func TestSmuggling(t *testing.T) {
	const inner = "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n" // 32 bytes
	for _, tt := range []struct{ name, request string }{
		{"both lengths", "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n" + inner},
		{"two lengths", "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 32\r\n\r\n" + inner},
		{"a signed length", "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length: +32\r\n\r\n" + inner},
		{"a strange coding", "POST /function/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner},
		{"coding twice", "POST /function/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner},
		{"space before the colon", "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length : 33\r\n\r\n" + inner},
		{"line end in the path", "GET /function/echo/a%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		{"bare line end in a value", "GET /function/echo HTTP/1.1\r\nHost: x\r\nX: a\rContent-Length: 32\r\nConnection: close\r\n\r\n"},
		{"length is a hop", "POST /function/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\nConnection: close, Content-Length\r\n\r\n" + inner},
		{"upgrade with a body", "POST /function/echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nContent-Length: 32\r\n\r\n" + inner},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			var mu sync.Mutex
			var seen []string
			w.serve("a", func(rw http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				io.Copy(io.Discard, r.Body)
				seen = append(seen, r.RequestURI)
			})
			answer := w.raw(tt.request)
			mu.Lock()
			defer mu.Unlock()
			if len(seen) > 1 || slices.Contains(seen, "/admin") {
				t.Errorf("the function got %q", seen)
			}
			if n := strings.Count(answer, "HTTP/1.1 200"); n > 1 {
				t.Errorf("%d good answers to one request: %q", n, answer)
			}
		})
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a%2Fb", "//", "/../%2e", "/\"%2F", "/%", "/a#b?c", "/\xff", "?a;b=%zz"} {
		f.Add(s)
	}
	table := discovery.New()
	p, err := proxy.New(proxy.Config{
		Table: table, Logger: slog.New(slog.DiscardHandler),
		Known: func(faas.Name) (int, string, bool) { return 1, "", true },
	})
	if err != nil {
		f.Fatal(err)
	}
	gateway := httptest.NewServer(p)
	f.Cleanup(gateway.Close)
	function := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Path", fmt.Sprintf("%q", r.URL.Path))
		w.Header().Set("X-Query", fmt.Sprintf("%q", r.URL.RawQuery))
	}))
	f.Cleanup(function.Close)
	table.Observe(faas.Replica{ID: "a", Function: echo, State: faas.Ready, Addr: netip.MustParseAddrPort(function.Listener.Addr().String())})

	f.Fuzz(func(t *testing.T, path string) {
		// What the server makes of it is what the function's server must too.
		line := "GET /function/echo/" + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
		want, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line)))
		if err != nil || strings.ContainsAny(path, "\r\n") || !strings.HasPrefix(want.URL.Path, "/function/echo/") {
			t.Skip()
		}
		conn, err := net.Dial("tcp", gateway.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, line)
		res, err := http.ReadResponse(bufio.NewReader(conn), want)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			var b bytes.Buffer
			b.ReadFrom(res.Body)
			t.Skipf("refused: %d %s", res.StatusCode, b.String())
		}
		if got, want := res.Header.Get("X-Path"), fmt.Sprintf("%q", strings.TrimPrefix(want.URL.Path, "/function/echo")); got != want {
			t.Errorf("path = %s, want %s", got, want)
		}
		if got, want := res.Header.Get("X-Query"), fmt.Sprintf("%q", want.URL.RawQuery); got != want {
			t.Errorf("query = %s, want %s", got, want)
		}
	})
}

func TestNewNeeds(t *testing.T) {
	for _, cfg := range []proxy.Config{
		{},
		{Table: discovery.New()},
		{Table: discovery.New(), Known: func(faas.Name) (int, string, bool) { return 0, "", false }},
	} {
		if _, err := proxy.New(cfg); err == nil {
			t.Errorf("New(%+v) = nil error", cfg)
		}
	}
}

// eventually waits for a condition that nothing signals.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not so after 10 s: %s", what)
		}
	}
}
