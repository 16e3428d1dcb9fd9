package remote_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

var discard = slog.New(slog.DiscardHandler)

// nobody is told of replicas.
type nobody struct{}

func (nobody) Observe(faas.Replica)               {}
func (nobody) Idle(context.Context, string) error { return nil }

// TestStrangeNode: what a node says that isn't one, or is one gone wild, ends its
// stream with a sentence and takes no more than a bound of the gateway.
func TestStrangeNode(t *testing.T) {
	beat := `{"beat":{"version":"` + strings.Repeat("v", 20_000) + `"}}` + "\n"
	for _, tt := range []struct {
		name string
		say  func(line func(string) bool)
		want string
	}{
		{"garbage", func(line func(string) bool) { line("hello, I am a printer\n") }, "can't be read"},
		{"a line without an end", func(line func(string) bool) {
			for line(strings.Repeat("x", 64<<10)) {
			}
		}, "a line of more than 1048576 bytes"},
		{"endless beats", func(line func(string) bool) {
			for line(strings.Repeat(beat, 50)) {
			}
		}, "more than a node has to say"},
		{"a replica without a name", func(line func(string) bool) {
			line(`{"replica":{"function":{"name":"f","namespace":"openfaas-fn"},"state":"ready"}}` + "\n")
		}, "is no replica"},
		{"a function that is none", func(line func(string) bool) { line(`{"status":{"name":{"name":"../f","namespace":"x"}}}` + "\n") }, "not a DNS label"},
		{"endless replicas", func(line func(string) bool) {
			for i := 0; line(fmt.Sprintf(`{"replica":{"id":"f-%d","function":{"name":"f","namespace":"openfaas-fn"},"addr":"127.0.0.1:1","state":"ready"}}`+"\n", i)); i++ {
			}
		}, "can't be read: more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tt.say(func(s string) bool {
					_, err := w.Write([]byte(s))
					return err == nil && r.Context().Err() == nil
				})
			}))
			defer s.Close()
			lost := make(chan error, 1)
			var longest int
			c := remote.NewClient(remote.ClientConfig{
				Node: "pi-1", URL: s.URL, HTTP: s.Client(), Observer: nobody{}, Logger: discard,
				Beat: func(m remote.Machine) { longest = max(longest, len(m.Version)) },
				Lost: func(err error) {
					select {
					case lost <- err:
					default:
					}
				},
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stop := run(t, func(context.Context) error { return c.Run(ctx) })
			err := <-lost
			cancel()
			stop()
			if !errors.Is(err, remote.ErrGarbled) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("its stream ended with %v, want an ErrGarbled with %q", err, tt.want)
			}
			if longest > 64 {
				t.Errorf("of its version %d characters are kept", longest)
			}
		})
	}
}

// FuzzNode has a node say anything: the gateway's end must take it or refuse it.
func FuzzNode(f *testing.F) {
	beat, err := json.Marshal(map[string]any{"beat": machine()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(beat))
	f.Add(`{"synced":true}`)
	f.Add(`{"replica":{"id":"f-1","function":{"name":"f","namespace":"openfaas-fn"},"addr":"127.0.0.1:1","state":"draining"}}`)
	f.Add(`{"status":{"name":{"name":"f","namespace":"openfaas-fn"},"wanted":-1}}`)
	f.Add(`{"removed":null,"beat":{"images":null,"platforms":[""]}}`)
	f.Fuzz(func(t *testing.T, said string) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(said)) }))
		defer s.Close()
		lost := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := remote.NewClient(remote.ClientConfig{
			Node: "pi-1", URL: s.URL, HTTP: s.Client(), Observer: nobody{}, Logger: discard,
			Lost: func(error) {
				select {
				case lost <- struct{}{}:
				default:
				}
			},
		})
		stop := run(t, func(context.Context) error { return c.Run(ctx) })
		<-lost
		cancel()
		stop()
		for name := range c.Wanted() {
			if name.Function == "" {
				t.Errorf("it is believed to run %q", name)
			}
		}
	})
}
