package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

var (
	discoveryKey = []byte("0123456789abcdef0123456789abcdef")
	asking       = faas.Name{Function: "asking", Namespace: "lab"}
)

// told is one call of Discovery.Direct.
type told struct {
	client string
	name   faas.Name
	usage  wire.FunctionUsage
}

// replicas is a table with one replica, and steps that a test adds.
type replicas struct {
	steps chan wire.Snapshot
	told  []told
}

func wireReplica(state string) wire.Replica {
	return wire.Replica{
		ID: "weather-abc", Function: wire.Name{Function: "weather", Namespace: "openfaas-fn"}, Node: "nuc", Zone: "shelf-1",
		Addr: netip.MustParseAddrPort("127.0.0.1:20000"), State: state, Age: 1.5, Weight: 1, Source: "local",
		InFlight: 2, Revision: 7, Since: time.Unix(1700000000, 0).UTC(), LastSeen: time.Unix(1700000001, 0).UTC(),
	}
}

func (f *replicas) snapshot() wire.Snapshot {
	return wire.Snapshot{Version: 3, Replicas: []wire.Replica{wireReplica(wire.StateReady)}}
}

func (f *replicas) watch(ctx context.Context) iter.Seq2[wire.Snapshot, error] {
	return func(yield func(wire.Snapshot, error) bool) {
		if !yield(f.snapshot(), nil) {
			return
		}
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-f.steps:
				if !ok {
					yield(wire.Snapshot{}, faas.Errorf(faas.ErrOverloaded, "too far behind"))
					return
				}
				if !yield(s, nil) {
					return
				}
			}
		}
	}
}

func withDiscovery(f *replicas) func(*api.Config) {
	return func(c *api.Config) {
		c.Discovery = &api.Discovery{
			Snapshot: f.snapshot,
			Watch:    f.watch,
			Key:      discoveryKey,
			Allowed:  func(n faas.Name) bool { return n == asking },
			Direct: func(client string, name faas.Name, u wire.FunctionUsage) error {
				if name.Function == "nobody" {
					return faas.Errorf(faas.ErrNotFound, "there is no function nobody")
				}
				if u.InFlight < 0 {
					return faas.Errorf(faas.ErrInvalid, "it can't be")
				}
				f.told = append(f.told, told{client, name, u})
				return nil
			},
			MaxStreams: 1,
		}
	}
}

func TestDiscoverySnapshot(t *testing.T) {
	g := newGateway(t, withDiscovery(&replicas{}))
	const want = `{"version":3,"replicas":[{"id":"weather-abc","function":{"name":"weather","namespace":"openfaas-fn"},"node":"nuc","zone":"shelf-1",` +
		`"addr":"127.0.0.1:20000","state":"ready","age":1.5,"weight":1,"revision":7,"inFlight":2,"source":"local",` +
		`"since":"2023-11-14T22:13:20Z","lastSeen":"2023-11-14T22:13:21Z"}]}` + "\n"
	w := g.ask("GET", "/system/discovery", "")
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("GET = %d %s, want %s", w.Code, w.Body, want)
	}
	if typ := w.Header().Get("Content-Type"); typ != "application/json" {
		t.Errorf("Content-Type = %q", typ)
	}
	if w := newGateway(t).ask("GET", "/system/discovery", ""); w.Code != 404 {
		t.Errorf("without discovery: %d, want 404", w.Code)
	}
	if w := g.ask("HEAD", "/system/discovery/events", ""); w.Code != 200 {
		t.Errorf("HEAD of the stream = %d, want 200 and no stream", w.Code)
	}
}

func TestDiscoveryToken(t *testing.T) {
	good := api.DiscoveryToken(discoveryKey, asking)
	other := api.DiscoveryToken(discoveryKey, faas.Name{Function: "other", Namespace: "lab"})
	name, mac, _ := strings.Cut(good, ".")
	otherName, _, _ := strings.Cut(other, ".")
	for _, tt := range []struct {
		name, method, target, token string
		code                        int
		answer                      string
	}{
		{"snapshot", "GET", "/system/discovery", good, 200, "weather-abc"},
		{"usage", "POST", "/system/discovery/usage", good, 204, ""},
		{"post to the snapshot", "POST", "/system/discovery", good, 405, "use GET, HEAD"},
		{"a function that doesn't ask any more", "GET", "/system/discovery", other, 403, "function other.lab doesn't ask for this any more"},
		{"another's name", "GET", "/system/discovery", otherName + "." + mac, 401, "not made here"},
		{"another key", "GET", "/system/discovery", api.DiscoveryToken([]byte("another"), asking), 401, "not made here"},
		{"name alone", "GET", "/system/discovery", name, 401, "not made here"},
		{"more behind", "GET", "/system/discovery", good + ".x", 401, "not made here"},
		{"empty", "GET", "/system/discovery", "", 401, "not made here"},
		{"no base64", "GET", "/system/discovery", "?.?", 401, "not made here"},
		{"functions", "GET", "/system/functions", good, 401, "invalid credentials"},
		{"deploy", "POST", "/system/functions", good, 401, "invalid credentials"},
		{"near", "GET", "/system/discoveryx", good, 401, "invalid credentials"},
		{"above", "GET", "/system/", good, 401, "invalid credentials"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGateway(t, withDiscovery(&replicas{}))
			r := httptest.NewRequest(tt.method, tt.target, strings.NewReader(`{}`))
			r.Header.Set("Authorization", "Bearer "+tt.token)
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.answer) {
				t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, w.Body, tt.code, tt.answer)
			}
		})
	}
	g := newGateway(t, withDiscovery(&replicas{}))
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest("GET", "/system/discovery", nil))
	if w.Code != 401 || !strings.Contains(w.Header().Get("WWW-Authenticate"), "Basic") {
		t.Errorf("without anything: %d, %q", w.Code, w.Header())
	}
}

func TestDiscoveryUsage(t *testing.T) {
	many := `{"client":"c","seconds":1,"functions":[` + strings.Repeat(`{"function":{"name":"weather"}},`, wire.MaxUsage) + `{"function":{"name":"weather"}}]}`
	for _, tt := range []struct {
		name, body string
		code       int
		answer     string
	}{
		{"nothing", `{"client":"c","seconds":1}`, 204, ""},
		{"negative", `{"client":"c","seconds":-1}`, 400, "field seconds is -1"},
		{"long", `{"client":"c","seconds":1e9}`, 400, "field seconds"},
		{"malformed", `{`, 400, "malformed JSON"},
		{"bad name", `{"client":"c","seconds":1,"functions":[{"function":{"name":"../x"}}]}`, 400, "field functions[0].function: function name"},
		{"many", many, 413, "field functions has 101 entries, at most 100"},
		{"refused", `{"client":"c","seconds":1,"functions":[{"function":{"name":"weather"},"inFlight":-1}]}`, 400, "it can't be"},
		{"gone meanwhile", `{"client":"c","seconds":1,"functions":[{"function":{"name":"nobody"}},{"function":{"name":"weather"}}]}`, 204, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newGateway(t, withDiscovery(&replicas{})).ask("POST", "/system/discovery/usage", tt.body)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.answer) {
				t.Errorf("POST = %d %q, want %d %q", w.Code, w.Body, tt.code, tt.answer)
			}
		})
	}
	f := &replicas{}
	newGateway(t, withDiscovery(f)).ask("POST", "/system/discovery/usage", `{"client":"asking-1","seconds":1,"functions":[
		{"function":{"name":"weather","namespace":"openfaas-fn"},"started":12,"inFlight":1,"busy":2.5,"ended":[{"status":200,"calls":11,"seconds":0.5}]}]}`)
	want := []told{{"asking-1", faas.Name{Function: "weather", Namespace: "openfaas-fn"}, wire.FunctionUsage{
		Function: wire.Name{Function: "weather", Namespace: "openfaas-fn"},
		Started:  12, InFlight: 1, Busy: 2.5, Ended: []wire.Ended{{Status: 200, Calls: 11, Seconds: 0.5}},
	}}}
	if !reflect.DeepEqual(f.told, want) {
		t.Errorf("told %+v, want %+v", f.told, want)
	}
}

// streamed is what a client reads of an event stream, line by line.
func streamed(t *testing.T, g http.Handler, ctx context.Context, target string, header ...string) (lines chan string, code int) {
	t.Helper()
	r := httptest.NewRequestWithContext(ctx, "GET", target, nil)
	r.SetBasicAuth(user, password)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := &pipeWriter{header: http.Header{}, begun: make(chan struct{}), lines: make(chan string, 100)}
	go func() {
		defer close(w.lines)
		g.ServeHTTP(w, r)
		w.WriteHeader(200)
	}()
	<-w.begun
	return w.lines, w.code
}

// pipeWriter hands what is written on as lines.
type pipeWriter struct {
	header http.Header
	code   int
	begun  chan struct{}
	lines  chan string
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) Flush()              {}
func (w *pipeWriter) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
		close(w.begun)
	}
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(200)
	for s := bufio.NewScanner(strings.NewReader(string(p))); s.Scan(); {
		if s.Text() != "" {
			w.lines <- s.Text()
		}
	}
	return len(p), nil
}

func TestDiscoveryEvents(t *testing.T) {
	for _, tt := range []struct {
		target string
		header []string
	}{
		{"/system/discovery/events", nil},
		{"/system/discovery", []string{"Accept", "text/event-stream"}},
		{"/system/discovery/events", []string{"Last-Event-ID", "3"}},
	} {
		t.Run(tt.target, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &replicas{steps: make(chan wire.Snapshot)}
				g := newGateway(t, withDiscovery(f))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				lines, code := streamed(t, g, ctx, tt.target, tt.header...)
				if code != 200 {
					t.Fatalf("code = %d", code)
				}
				expect := func(want ...string) {
					t.Helper()
					for _, want := range want {
						if got := <-lines; got != want {
							t.Fatalf("line %q, want %q", got, want)
						}
					}
				}
				text := func(v any) string {
					b, err := json.Marshal(v)
					must(t, err)
					return "data: " + string(b)
				}
				expect("id: 3", "event: snapshot", text(f.snapshot()))

				// While nothing happens there is a sign of life.
				begun := time.Now()
				expect(":", ":")
				if got := time.Since(begun); got != 2*wire.Heartbeat {
					t.Errorf("two comments after %v, want %v", got, 2*wire.Heartbeat)
				}
				draining, gone := wireReplica(wire.StateDraining), wireReplica(wire.StateGone)
				f.steps <- wire.Snapshot{Version: 5, Replicas: []wire.Replica{draining, gone}}
				expect("id: 5", "event: replica", text(draining), "id: 5", "event: replica", text(gone))

				// One more than may be open, and then the first ends.
				if w := g.ask("GET", "/system/discovery/events", ""); w.Code != 429 || !strings.Contains(w.Body.String(), "1 streams of replicas are open") {
					t.Errorf("a second stream: %d %s", w.Code, w.Body)
				}
				g.Drain()
				for range lines {
				}
			})
		})
	}
}

// TestDiscoveryBehind ends the stream of who can't follow.
func TestDiscoveryBehind(t *testing.T) {
	f := &replicas{steps: make(chan wire.Snapshot)}
	lines, _ := streamed(t, newGateway(t, withDiscovery(f)), t.Context(), "/system/discovery/events")
	close(f.steps)
	n := 0
	for range lines {
		n++
	}
	if n != 3 {
		t.Errorf("%d lines before the stream ended, want those of the snapshot", n)
	}
}

func ExampleDiscoveryToken() {
	key := []byte("32 bytes that nobody else knows.")
	fmt.Println(api.DiscoveryToken(key, faas.Name{Function: "weather", Namespace: "openfaas-fn"}))
	// Output: d2VhdGhlci5vcGVuZmFhcy1mbg.tGisvgRysU1eZXnQT-Ma6I6oakcQnOx-uH2ncmDTWo0
}
