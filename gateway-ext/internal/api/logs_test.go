package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func line(text string) logs.Message {
	return logs.Message{Name: "weather", Namespace: "openfaas-fn", Instance: "weather-1", Timestamp: created, Text: text}
}

func TestLogs(t *testing.T) {
	g := newGateway(t)
	g.fleet.lines = []logs.Message{line("one"), line("<two> & more")}
	w := g.ask("GET", "/system/logs?name=weather", "")
	want := `{"name":"weather","namespace":"openfaas-fn","instance":"weather-1","timestamp":"2026-11-22T12:00:00Z","text":"one"}
{"name":"weather","namespace":"openfaas-fn","instance":"weather-1","timestamp":"2026-11-22T12:00:00Z","text":"<two> & more"}
`
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("logs = %d\n%s\nwant\n%s", w.Code, w.Body, want)
	}
	if got := w.Header().Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("Content-Type = %q", got)
	}
}

func TestLogsParameters(t *testing.T) {
	since := time.Date(2026, 11, 22, 11, 0, 0, 0, time.FixedZone("", 3600))
	for _, tt := range []struct {
		query string
		code  int
		body  string        // for errors
		want  logs.Request  // without Since
		since time.Time     // zero: none
		ago   time.Duration // instead of since; 0: none
	}{
		{query: "name=weather", code: 200, want: logs.Request{Name: "weather", Namespace: "openfaas-fn"}, ago: 5 * time.Minute},
		{query: "name=weather.openfaas-fn&namespace=openfaas-fn&follow=0&tail=-1&instance=weather-1", code: 200,
			want: logs.Request{Name: "weather", Namespace: "openfaas-fn", Tail: -1, Instance: "weather-1"}},
		{query: "name=weather&tail=7&follow=false", code: 200, want: logs.Request{Name: "weather", Namespace: "openfaas-fn", Tail: 7}},
		{query: "name=weather&since=" + url.QueryEscape(since.Format(time.RFC3339)), code: 200,
			want: logs.Request{Name: "weather", Namespace: "openfaas-fn"}, since: since},
		{query: "name=weather&since=90s", code: 200, want: logs.Request{Name: "weather", Namespace: "openfaas-fn"}, ago: 90 * time.Second},
		{query: "", code: 422, body: "parameter name: function name is empty"},
		{query: "name=Weather", code: 422, body: "parameter name: function name \"Weather\" is not a DNS label"},
		{query: "name=weather&tail=few", code: 422, body: `parameter tail is "few": write a whole number`},
		{query: "name=weather&follow=maybe", code: 422, body: `parameter follow is "maybe": write true or false`},
		{query: "name=weather&since=yesterday", code: 422, body: `parameter since is "yesterday": write a time as in RFC 3339`},
		{query: "name=weather&since=-5m", code: 422, body: "parameter since"},
		{query: "name=weather&instance=" + strings.Repeat("x", 300), code: 422, body: "parameter instance"},
		{query: "name=nobody", code: 404, body: "there is no function nobody.openfaas-fn"},
		{query: "name=weather&namespace=lab", code: 404, body: "there is no function weather.lab"},
	} {
		t.Run(tt.query, func(t *testing.T) {
			g := newGateway(t)
			before := time.Now()
			w := g.ask("GET", "/system/logs?"+tt.query, "")
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
				t.Fatalf("answer = %d %q, want %d %q", w.Code, w.Body, tt.code, tt.body)
			}
			got := g.fleet.asked
			at := got.Since
			got.Since = nil
			if got != tt.want {
				t.Errorf("asked for %v, want %v", got, tt.want)
			}
			switch {
			case tt.ago != 0:
				if at == nil || at.Before(before.Add(-tt.ago)) || at.After(time.Now().Add(-tt.ago)) {
					t.Errorf("since = %v, want %v ago", at, tt.ago)
				}
			case tt.since.IsZero():
				if at != nil {
					t.Errorf("since = %v, want none", at)
				}
			case at == nil || !at.Equal(tt.since):
				t.Errorf("since = %v, want %v", at, tt.since)
			}
		})
	}
}

func TestLogsBreakOff(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("secret cause"), "the log stream broke off"},
		{faas.Errorf(faas.ErrUnavailable, "node pi-3 is gone"), "the log stream broke off: node pi-3 is gone"},
	} {
		g := newGateway(t)
		g.fleet.lines, g.fleet.fail = []logs.Message{line("one")}, tt.err
		body := g.ask("GET", "/system/logs?name=weather", "").Body
		var m logs.Message
		for d := json.NewDecoder(body); d.More(); {
			must(t, d.Decode(&m))
		}
		if m.Text != tt.want || m.Name != "weather" {
			t.Errorf("the last line is %q, want %q", m.Text, tt.want)
		}
		if !strings.Contains(g.log.String(), tt.err.Error()) {
			t.Errorf("the cause is not logged: %s", g.log)
		}
	}
}

// follow opens a log stream and returns its answer when the first line came.
func follow(t *testing.T, ctx context.Context, url string) (*http.Response, *bufio.Reader) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", url+"/system/logs?name=weather&follow=1&tail=-1", nil)
	must(t, err)
	r.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	body := bufio.NewReader(resp.Body)
	if resp.StatusCode != 200 {
		return resp, body
	}
	first, err := body.ReadString('\n')
	if err != nil || !strings.Contains(first, `"text":"one"`) {
		t.Fatalf("first line = %q, %v", first, err)
	}
	return resp, body
}

// TestFollow reads a line while the stream goes on, past the server's timeouts,
// until the server shuts down.
func TestFollow(t *testing.T) {
	g := newGateway(t)
	g.fleet.lines = []logs.Message{line("one")}
	s := g.serve(t, func(s *http.Server) {
		s.WriteTimeout, s.ReadTimeout = 100*time.Millisecond, 100*time.Millisecond
	})
	_, body := follow(t, t.Context(), s.URL)
	<-g.fleet.followed
	time.Sleep(2 * s.Config.WriteTimeout) // let it pass: nothing may happen by it
	g.fleet.more <- line("two")
	if second, err := body.ReadString('\n'); err != nil || !strings.Contains(second, `"text":"two"`) {
		t.Errorf("past the timeouts: %q, %v", second, err)
	}

	must(t, s.Config.Shutdown(t.Context())) // waits for the stream, which ends
	if rest, err := io.ReadAll(body); err != nil || len(rest) != 0 {
		t.Errorf("after the shutdown: %q, %v, want a clean end", rest, err)
	}
	w := g.ask("GET", "/system/logs?name=weather&follow=1", "")
	if w.Code != 503 || w.Body.String() != "the gateway is stopping" {
		t.Errorf("a stream after the shutdown = %d %q, want 503", w.Code, w.Body)
	}
}

func TestFollowBound(t *testing.T) {
	g := newGateway(t, func(c *api.Config) { c.MaxStreams = 1 })
	g.fleet.lines = []logs.Message{line("one")}
	s := g.serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow(t, ctx, s.URL)
	<-g.fleet.followed
	if resp, body := follow(t, t.Context(), s.URL); resp.StatusCode != 429 {
		t.Errorf("second stream = %d, want 429", resp.StatusCode)
	} else if text, _ := io.ReadAll(body); !strings.Contains(string(text), "1 log streams are open") {
		t.Errorf("second stream: %q", text)
	}
	cancel() // the client goes: its place is free as soon as the server knows
	for {
		resp, _ := follow(t, t.Context(), s.URL)
		if resp.StatusCode == 200 {
			break
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the place of a client that went is never free")
		case <-time.After(time.Millisecond):
		}
	}
	g.Drain()
}

// FuzzLogs asks for logs with any parameters: none ends in a server's error, nor
// asks for what isn't a function.
func FuzzLogs(f *testing.F) {
	f.Add("name=weather&follow=0&tail=1&since=2026-11-22T12:00:00Z&instance=x")
	f.Add("name=weather.lab&namespace=den&tail=&since=1h")
	f.Add("%zz&name=weather;&follow")
	g := newGateway(f)
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil || len(query) > 1000 {
			return
		}
		if values.Has("follow") {
			values.Set("follow", "false")
		}
		switch w := g.ask("GET", "/system/logs?"+values.Encode(), ""); w.Code {
		case 200:
			if asked := g.fleet.asked; asked.Name != "weather" || asked.Namespace != "openfaas-fn" || asked.Follow {
				t.Errorf("%q asked for %v", query, asked)
			}
		case 404, 422:
		default:
			t.Errorf("%q = %d %q", query, w.Code, w.Body)
		}
	})
}
