package discovery_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/discovery"
)

func TestEvents(t *testing.T) {
	for _, test := range []struct {
		name, stream string
		want         []discovery.Event
	}{
		{"one", "id: 7\nevent: replica\ndata: {}\n\n", []discovery.Event{{"7", "replica", "{}"}}},
		{"without spaces", "id:7\nevent:replica\ndata:{}\n\n", []discovery.Event{{"7", "replica", "{}"}}},
		{"lines with CRLF", "id: 7\r\ndata: a\r\n\r\n", []discovery.Event{{"7", "", "a"}}},
		{"lines with CR", "id: 7\rdata: a\r\rdata: b\r\r", []discovery.Event{{"7", "", "a"}, {"7", "", "b"}}},
		{"data of two lines", "data: a\ndata:  b\ndata\n\n", []discovery.Event{{"", "", "a\n b\n"}}},
		{"the id stays, the name doesn't", "id: 7\nevent: x\ndata: a\n\ndata: b\n\n", []discovery.Event{{"7", "x", "a"}, {"7", "", "b"}}},
		{"comments and what is not known", ": hello\nretry: 100\nwhat: ever\ndata: a\n\n:\n\n", []discovery.Event{{"", "", "a"}}},
		{"a name alone is no event", "event: x\n\ndata: a\n\n", []discovery.Event{{"", "", "a"}}},
		{"an id with a zero is none", "id: 7\x00\ndata: a\n\n", []discovery.Event{{"", "", "a"}}},
		{"a byte order mark", "\ufeffdata: a\n\n", []discovery.Event{{"", "", "a"}}},
		{"cut", "data: a\n\ndata: b\n", []discovery.Event{{"", "", "a"}}},
		{"cut in a line", "data: a\n\ndata: b", []discovery.Event{{"", "", "a"}}},
		{"nothing", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(test.stream), iotest.OneByteReader(strings.NewReader(test.stream))} {
				var got []discovery.Event
				var end error
				for e, err := range discovery.Events(r) {
					if end = err; err == nil {
						got = append(got, e)
					}
				}
				if !slices.Equal(got, test.want) || !errors.Is(end, io.EOF) {
					t.Errorf("%q: %q, %v, want %q", test.stream, got, end, test.want)
				}
			}
		})
	}
}

// endless gives the same bytes for ever.
type endless string

func (e endless) Read(p []byte) (int, error) { return copy(p, e), nil }

func TestEventsAreBounded(t *testing.T) {
	for name, r := range map[string]io.Reader{
		"a line":     io.MultiReader(strings.NewReader("data: "), endless("xxxxxxxxxxxxxxxx")),
		"many lines": endless("data: " + strings.Repeat("x", 1000) + "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range discovery.Events(r) {
				if err == nil || !strings.Contains(err.Error(), "more than") {
					t.Errorf("event without an end: %v, want that it is too large", err)
				}
			}
		})
	}
}

func FuzzEvents(f *testing.F) {
	f.Add("id: 7\nevent: replica\ndata: {}\n\n")
	f.Add("\ufeffdata: a\r\rdata: b\r\n\r\n: \n\n")
	f.Add("data\n\nid\n\nevent\x00: \ndata:x\n\n")
	f.Fuzz(func(t *testing.T, stream string) {
		var whole, bytes []discovery.Event
		for e, err := range discovery.Events(strings.NewReader(stream)) {
			if err == nil {
				whole = append(whole, e)
			}
			if strings.ContainsAny(e.ID+e.Name, "\r\n") || strings.Contains(e.Data, "\r") {
				t.Fatalf("a line's end in %q", e)
			}
		}
		for e, err := range discovery.Events(iotest.OneByteReader(strings.NewReader(stream))) {
			if err == nil {
				bytes = append(bytes, e)
			}
		}
		if !slices.Equal(whole, bytes) {
			t.Fatalf("at once %q, byte by byte %q", whole, bytes)
		}
	})
}

// Whatever comes over the stream, calls are answered, and the client is well when
// what comes makes sense again.
func TestStrangeEvents(t *testing.T) {
	for _, strange := range []string{
		"event: replica\ndata: {\n\n",
		"event: snapshot\ndata: []\n\n",
		"event: replica\ndata: {\"addr\":\"somewhere\"}\n\n",
		"event: replica\ndata: {\"id\":\"x\",\"function\":{\"name\":\"producer\",\"namespace\":\"openfaas-fn\"},\"state\":\"ready\",\"age\":-1e300}\n\n",
		"event: replica\ndata: {}\n\n",
		"event: weather\ndata: sunny\n\n",
	} {
		t.Run(fmt.Sprintf("%.30q", strange), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(newWorld(t))
				g.replica(1)
				c := open(t, g, func(cfg *discovery.Config) { cfg.Log = slog.New(slog.DiscardHandler) })
				g.mu.Lock()
				for s := range g.streams {
					s <- strange
				}
				g.mu.Unlock()
				synctest.Wait()
				wantText(t, c, "producer-1")
				one := g.replica(2)
				g.become(one, discovery.StateReady)
				time.Sleep(time.Second) // the stream is followed anew if need be
				seen := map[string]bool{}
				for range 100 {
					_, text := get(t, c, address)
					seen[text] = true
				}
				if !seen["producer-2"] {
					t.Errorf("100 calls went to %v: what came after the strange event isn't known", seen)
				}
			})
		})
	}
}

func FuzzClient(f *testing.F) {
	f.Add("snapshot", `{"replicas":[{"id":"a","function":{"name":"producer","namespace":"openfaas-fn"},"addr":"127.0.0.1:1001","state":"ready","age":1}]}`)
	f.Add("replica", `{"id":"a","function":{"name":"producer","namespace":"openfaas-fn"},"addr":"[::1]:1001","state":"gone"}`)
	f.Fuzz(func(t *testing.T, name, data string) {
		if strings.ContainsAny(name+data, "\r\n") {
			t.Skip()
		}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			g := newGateway(w)
			c := open(t, g, func(cfg *discovery.Config) { cfg.Log = slog.New(slog.DiscardHandler) })
			g.mu.Lock()
			for s := range g.streams {
				s <- "event: " + name + "\ndata: " + data + "\n\n"
			}
			g.mu.Unlock()
			synctest.Wait()
			r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
			if err != nil {
				t.Fatal(err)
			}
			// No replica listens: it is the gateway that answers, whatever was told.
			if code, text, err := do(c, r); err != nil || code != 200 || text != throughGateway {
				t.Fatalf("GET = %d %q, %v, want what comes through the gateway", code, text, err)
			}
		})
	})
}
