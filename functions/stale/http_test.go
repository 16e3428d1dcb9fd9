package stale_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func request(method, target string, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestKeyFor(t *testing.T) {
	vary := []string{"Accept", "accept-language"}
	base := request("GET", "/x?b=2&a=1&a=0", "Accept", "text/html")
	want, ok := stale.KeyFor(base, "f", "1", "/x", vary)
	if !ok {
		t.Fatal("a plain GET has no key")
	}
	for name, tt := range map[string]struct {
		r    *http.Request
		same bool
	}{
		"the same":           {request("GET", "/x?b=2&a=1&a=0", "Accept", "text/html"), true},
		"other order":        {request("GET", "/x?a=1&b=2&a=0", "Accept", "text/html"), true},
		"empty parameters":   {request("GET", "/x?&a=1&&b=2&a=0&", "Accept", "text/html"), true},
		"a header not named": {request("GET", "/x?b=2&a=1&a=0", "Accept", "text/html", "X-A", "b"), true},
		"values' order":      {request("GET", "/x?b=2&a=0&a=1", "Accept", "text/html"), false},
		"another value":      {request("GET", "/x?b=2&a=1&a=3", "Accept", "text/html"), false},
		"HEAD":               {request("HEAD", "/x?b=2&a=1&a=0", "Accept", "text/html"), false},
		"another Accept":     {request("GET", "/x?b=2&a=1&a=0", "Accept", "*/*"), false},
		"another language":   {request("GET", "/x?b=2&a=1&a=0", "Accept", "text/html", "Accept-Language", "de"), false},
		"Authorization":      {request("GET", "/x?b=2&a=1&a=0", "Accept", "text/html", "Authorization", "Bearer x"), false},
	} {
		got, ok := stale.KeyFor(tt.r, "f", "1", "/x", vary)
		if !ok || (got == want) != tt.same {
			t.Errorf("%s: key %v, %v; the same as the first: want %v", name, got, ok, tt.same)
		}
	}
	body := httptest.NewRequest("GET", "/x", strings.NewReader("body"))
	for name, r := range map[string]*http.Request{
		"POST": request("POST", "/x"), "PUT": request("PUT", "/x"), "a body": body,
		"a range": request("GET", "/x", "Range", "bytes=0-1"), "an upgrade": request("GET", "/x", "Upgrade", "websocket"),
		"a cookie": request("GET", "/x", "Cookie", "a=b"), "no-store": request("GET", "/x", "Cache-Control", "max-age=0, No-Store"),
	} {
		if key, ok := stale.KeyFor(r, "f", "1", "/x", vary); ok {
			t.Errorf("a request with %s has the key %v", name, key)
		}
	}
	host := request("GET", "http://other/x")
	a, _ := stale.KeyFor(host, "f", "1", "/x", []string{"host"})
	if b, _ := stale.KeyFor(request("GET", "/x"), "f", "1", "/x", []string{"host"}); a == b {
		t.Error("two hosts have one key, although answers are said to vary by it")
	}
	if _, ok := stale.KeyFor(request("GET", "/x", "Cookie", "a=b"), "f", "1", "/x", []string{"cookie"}); !ok {
		t.Error("a cookie that answers are said to vary by keeps them from being cached")
	}
}

func TestStorable(t *testing.T) {
	plain, authorized := request("GET", "/x"), request("GET", "/x", "Authorization", "Bearer x")
	h := func(pairs ...string) http.Header { return request("GET", "/", pairs...).Header }
	for _, tt := range []struct {
		name   string
		r      *http.Request
		status int
		header http.Header
		vary   []string
		want   bool
	}{
		{"plain", plain, 200, h(), nil, true},
		{"203", plain, 203, h(), nil, true},
		{"301", plain, 301, h(), nil, true},
		{"404", plain, 404, h(), nil, true},
		{"410", plain, 410, h(), nil, true},
		{"204", plain, 204, h(), nil, false},
		{"206", plain, 206, h(), nil, false},
		{"302", plain, 302, h(), nil, false},
		{"304", plain, 304, h(), nil, false},
		{"400", plain, 400, h(), nil, false},
		{"500", plain, 500, h(), nil, false},
		{"503", plain, 503, h(), nil, false},
		{"cookie", plain, 200, h("Set-Cookie", "a=b"), nil, false},
		{"authorized", authorized, 200, h(), nil, false},
		{"authorized, public", authorized, 200, h("Cache-Control", "max-age=5, public"), nil, true},
		{"authorized, public, cookie", authorized, 200, h("Cache-Control", "public", "Set-Cookie", "a=b"), nil, false},
		{"no-store", plain, 200, h("Cache-Control", "no-store"), nil, false},
		{"private", plain, 200, h("Cache-Control", "max-age=5", "Cache-Control", "Private"), nil, false},
		{"private with names", plain, 200, h("Cache-Control", `private="X-A"`), nil, false},
		{"no-cache", plain, 200, h("Cache-Control", "no-cache"), nil, false},
		{"max-age=0", plain, 200, h("Cache-Control", "max-age=0"), nil, false},
		{"s-maxage wins", plain, 200, h("Cache-Control", "max-age=0, s-maxage=5"), nil, true},
		{"vary *", plain, 200, h("Vary", "*"), []string{"Accept"}, false},
		{"vary by what is in the key", plain, 200, h("Vary", "accept, Accept-Language"), []string{"Accept-Language", "Accept"}, true},
		{"vary by more", plain, 200, h("Vary", "Accept, X-Tenant"), []string{"Accept"}, false},
		{"could be encoded", plain, 200, h("Vary", "Accept-Encoding"), nil, true},
		{"encoded", plain, 200, h("Content-Encoding", "gzip"), nil, false},
		{"encoded, and in the key", plain, 200, h("Content-Encoding", "gzip", "Vary", "Accept-Encoding"), []string{"accept-encoding"}, true},
	} {
		if err := stale.Storable(tt.r, tt.status, tt.header, tt.vary); (err == nil) != tt.want {
			t.Errorf("%s: Storable() = %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestReadEntry(t *testing.T) {
	answer := func(length int64, body string, header ...string) *http.Response {
		return &http.Response{StatusCode: 200, Header: request("GET", "/", header...).Header, ContentLength: length,
			Body: io.NopCloser(strings.NewReader(body)), Request: request("GET", "/")}
	}
	for _, tt := range []struct {
		name string
		resp *http.Response
		body string
		err  string // "" for none
	}{
		{"known length", answer(5, "hello"), "hello", ""},
		{"unknown length", answer(-1, "hello"), "hello", ""},
		{"just the limit", answer(-1, strings.Repeat("x", 100)), strings.Repeat("x", 100), ""},
		{"truncated", answer(10, "hello"), "", "5 of 10 bytes"},
		{"too large, and says so", answer(101, strings.Repeat("x", 101)), "", "larger"},
		{"too large", answer(-1, strings.Repeat("x", 1000)), strings.Repeat("x", 101), "larger"},
		{"JSON", answer(-1, `{"a":1}`, "Content-Type", "application/json; charset=utf-8"), `{"a":1}`, ""},
		{"broken JSON", answer(-1, `{"a":`, "Content-Type", "application/json"), "", "JSON"},
		{"broken problem", answer(-1, `x`, "Content-Type", "application/problem+json"), "", "JSON"},
		{"JSON lines", answer(-1, "{}\n{}\n", "Content-Type", "application/x-ndjson"), "{}\n{}\n", ""},
		{"packed JSON", answer(-1, "\x1f\x8b", "Content-Type", "application/json", "Content-Encoding", "gzip"), "\x1f\x8b", ""},
	} {
		e, err := stale.ReadEntry(tt.resp, 100)
		if string(e.Body) != tt.body || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: ReadEntry() = %q, %v; want %q, %q", tt.name, e.Body, err, tt.body, tt.err)
		}
		if errors.Is(err, stale.ErrTooLarge) != e.Private {
			t.Errorf("%s: private is %v with %v", tt.name, e.Private, err)
		}
	}

	broken := answer(-1, "")
	broken.Body = io.NopCloser(io.MultiReader(strings.NewReader("half"), &failing{}))
	if e, err := stale.ReadEntry(broken, 100); err == nil {
		t.Errorf("a body that broke off is %q", e.Body)
	}
	head := answer(5, "")
	head.Request.Method = http.MethodHead
	if e, err := stale.ReadEntry(head, 100); err != nil || e.Header.Get("Content-Length") != "5" {
		t.Errorf("HEAD is %+v, %v", e, err)
	}
	e, err := stale.ReadEntry(answer(-1, "", "Age", "7", "Cache-Control", "max-age=60", "Connection", "close, X-Hop", "X-Hop", "1", "X-Kept", "2", "X-Call-Id", "3"), 100)
	if err != nil || e.Age != 7*time.Second || e.Fresh != time.Minute || len(e.Header) != 2 || e.Header.Get("X-Kept") != "2" {
		t.Errorf("headers are %+v, %v", e, err)
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, errors.New("reset") }

// TestServe is what clients see of each way to get an answer.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, stale.Config{})
		defer c.Close()
		key, o := stale.NewKey("f", "1", "a"), &origin{entry: stale.Entry{Status: 200, Header: http.Header{"Etag": {`"1"`}, "Content-Type": {"text/plain"}}}}
		get := func(r *http.Request) *httptest.ResponseRecorder {
			t.Helper()
			result, err := c.Do(t.Context(), key, minute, o.load)
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			if err := result.Serve(w, r, "thicket"); err != nil {
				t.Fatal(err)
			}
			return w
		}
		check := func(w *httptest.ResponseRecorder, code int, body, age, status string) {
			t.Helper()
			h := w.Header()
			if w.Code != code || w.Body.String() != body || h.Get("Age") != age || !strings.HasPrefix(h.Get("Cache-Status"), status) {
				t.Errorf("got %d %q, Age %q, Cache-Status %q; want %d %q, %q, %q…", w.Code, w.Body, h.Get("Age"), h.Get("Cache-Status"), code, body, age, status)
			}
		}
		plain := request("GET", "/")
		w := get(plain)
		check(w, 200, "1", "", "thicket; fwd=miss; stored; ttl=")
		if w.Header().Get("Content-Length") != "1" || w.Header().Get("Content-Type") != "text/plain" {
			t.Errorf("headers are %v", w.Header())
		}
		time.Sleep(5 * time.Second)
		check(get(plain), 200, "1", "5", "thicket; hit; ttl=")
		check(get(request("HEAD", "/")), 200, "", "5", "thicket; hit; ttl=")
		check(get(request("GET", "/", "If-None-Match", `W/"0", W/"1"`)), 304, "", "5", "thicket; hit; ttl=")
		check(get(request("GET", "/", "If-None-Match", `"2"`)), 200, "1", "5", "thicket; hit; ttl=")
		o.fail(errGone)
		time.Sleep(70 * time.Second)
		w = get(plain)
		check(w, 200, "1", "75", "thicket; hit; ttl=-")
		if s := w.Header().Get("Cache-Status"); !strings.HasSuffix(s, `; key="`+key.String()+`"; detail=stale_while_revalidate`) {
			t.Errorf("Cache-Status is %q", s)
		}
		time.Sleep(10 * time.Minute)
		w = get(plain)
		check(w, 200, "1", "675", "thicket; hit; ttl=-")
		if s := w.Header().Get("Cache-Status"); !strings.HasSuffix(s, "; detail=stale_if_error") {
			t.Errorf("Cache-Status is %q", s)
		}
		key = stale.NewKey("f", "1", "b")
		o = &origin{entry: stale.Entry{Private: true}}
		get(plain)
		check(get(plain), 200, "2", "", "thicket; fwd=bypass")
	})
}

// TestHandler is how a proxy uses the package: what may be kept is, what may not
// reaches its caller only.
func TestHandler(t *testing.T) {
	calls := 0
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		switch r.URL.Path {
		case "/cookie":
			w.Header().Set("Set-Cookie", "a="+strconv.Itoa(calls))
		case "/truncated":
			w.Header().Set("Content-Length", "100")
		case "/error":
			w.WriteHeader(500)
		}
		_, _ = io.WriteString(w, strconv.Itoa(calls))
	}))
	defer upstream.Close()
	c := open(t, stale.Config{})
	get := func(path string) (stale.Result, error) {
		t.Helper()
		r := request("GET", path)
		key, ok := stale.KeyFor(r, "f", "1", path, nil)
		if !ok {
			t.Fatalf("GET %s has no key", path)
		}
		return c.Do(t.Context(), key, stale.Times{Fresh: time.Minute, Errors: -1}, func(ctx context.Context) (stale.Entry, error) {
			out, err := http.NewRequestWithContext(ctx, r.Method, upstream.URL+path, nil)
			if err != nil {
				return stale.Entry{}, err
			}
			resp, err := upstream.Client().Do(out)
			if err != nil {
				return stale.Entry{}, err
			}
			defer resp.Body.Close()
			if resp.StatusCode >= 500 {
				return stale.Entry{}, errors.New(resp.Status)
			}
			e, err := stale.ReadEntry(resp, 1000)
			e.Private = stale.Storable(r, resp.StatusCode, resp.Header, nil) != nil
			return e, err
		})
	}
	for _, tt := range []struct {
		path    string
		fails   bool
		sources [2]stale.Source
	}{
		{"/plain", false, [2]stale.Source{stale.Miss, stale.Hit}},
		{"/cookie", false, [2]stale.Source{stale.Miss, stale.Passed}},
		{"/truncated", true, [2]stale.Source{}},
		{"/error", true, [2]stale.Source{}},
	} {
		for i := range 2 {
			r, err := get(tt.path)
			if (err != nil) != tt.fails || err == nil && r.Source != tt.sources[i] {
				t.Errorf("call %d of %s is %v, %v; want %v, failed %v", i+1, tt.path, r.Source, err, tt.sources[i], tt.fails)
			}
		}
	}
}

func FuzzHTTP(f *testing.F) {
	f.Add("a=1&b=%zz", "max-age=1, private=\"x\"", "Accept, *", "gzip", "7")
	f.Fuzz(func(t *testing.T, query, cc, vary, encoding, age string) {
		r := request("GET", "/x", "Cache-Control", cc, "Accept", vary)
		r.URL.RawQuery = query
		a, okA := stale.KeyFor(r, "f", "1", "/x", []string{"Accept"})
		b, okB := stale.KeyFor(r, "f", "1", "/x", []string{"Accept"})
		if a != b || okA != okB {
			t.Errorf("a request has the keys %v and %v", a, b)
		}
		h := request("GET", "/", "Cache-Control", cc, "Vary", vary, "Content-Encoding", encoding, "Age", age).Header
		if err := stale.Storable(r, 200, h, nil); err == nil && strings.Contains(vary, "*") {
			t.Errorf("an answer that varies by %q is kept", vary)
		}
		e, err := stale.ReadEntry(&http.Response{StatusCode: 200, Header: h, ContentLength: -1, Body: io.NopCloser(strings.NewReader(query))}, 1<<20)
		if err == nil && (e.Age < 0 || e.Fresh < 0) {
			t.Errorf("times are %v and %v", e.Age, e.Fresh)
		}
	})
}
