package main_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// What comes from strangers, on both sides of the gateway, sent by hand to the
// real program. What the parts by themselves do with it is tested there.

// raw sends bytes to the gateway and returns all that comes back until it closes
// the connection.
func (g *thicket) raw(request string) string {
	g.t.Helper()
	conn := g.dial()
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		g.t.Logf("the gateway hung up while it was written to: %v", err)
	}
	b, err := io.ReadAll(conn)
	if err != nil && len(b) == 0 {
		g.t.Errorf("no answer to %.60q: %v", request, err)
	}
	return string(b)
}

// dial connects to the gateway, for a minute at most.
func (g *thicket) dial() net.Conn {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.host())
	if err != nil {
		g.t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		g.t.Fatal(err)
	}
	return conn
}

// twice runs a test with a client that speaks HTTP/1.1 and one that speaks HTTP/2.
func twice(t *testing.T, f func(t *testing.T, client *http.Client)) {
	for _, version := range []string{"HTTP1", "HTTP2"} {
		t.Run(version, func(t *testing.T) {
			transport := &http.Transport{DisableCompression: true}
			if version == "HTTP2" {
				transport.Protocols = unencryptedHTTP2()
			}
			defer transport.CloseIdleConnections()
			f(t, &http.Client{Transport: transport})
		})
	}
}

// ask makes a request and returns the answer with its body.
func ask(t *testing.T, client *http.Client, method, url string, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestBadInput(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_MAX_BODY=1Ki", "THICKET_HOLD_TIME=300ms")
	g.deploy(g.probe())
	if _, err := g.client.Deploy(t.Context(), types.FunctionDeployment{Service: "never", Image: g.host() + "/never:latest"}); err != nil {
		t.Fatal(err)
	}
	const end = "Host: x\r\nConnection: close\r\n\r\n"
	long := strings.Repeat("a", 70<<10)
	for _, tt := range []struct {
		name, request string
		status        string
		want          []string
	}{
		{"a long address", "GET /function/probe/" + long + " HTTP/1.1\r\n" + end, "414", nil},
		{"a long query", "GET /function/probe?" + long + " HTTP/1.1\r\n" + end, "414", nil},
		{"a long header", "GET /function/probe HTTP/1.1\r\nX-Long: " + long + "\r\n" + end, "431", nil},
		{"many headers", "GET /function/probe HTTP/1.1\r\n" + strings.Repeat("X-Many: a\r\n", 7000) + end, "431", nil},
		{"a body of a declared length over the limit", "POST /function/probe HTTP/1.1\r\nContent-Length: 1025\r\n" + end + long[:1025], "413", []string{"1024 bytes", "THICKET_MAX_BODY"}},
		{"a body in chunks over the limit", "POST /function/probe HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + end + "401\r\n" + long[:0x401] + "\r\n0\r\n\r\n", "413", []string{"1024 bytes", "THICKET_MAX_BODY"}},
		{"a body at the limit", "POST /function/probe?count HTTP/1.1\r\nContent-Length: 1024\r\n" + end + long[:1024], "200", []string{"1024 bytes, <nil>"}},
		{"an unknown function", "GET /function/prode HTTP/1.1\r\n" + end, "404", []string{"prode", "did you mean probe?"}},
		{"a function that can't start", "GET /function/never HTTP/1.1\r\n" + end, "503", []string{"\r\nRetry-After: ", "never", "had no ready replica within 300ms", g.host()}},
		{"another method", "BREW /function/probe HTTP/1.1\r\n" + end, "405", []string{"BREW", "\r\nAllow: GET, "}},

		{"two lengths", "POST /function/probe HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n" + end + "abcd", "400", nil},
		{"a length and chunks", "POST /function/probe HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n" + end + "0\r\n\r\n", "400", nil},
		{"an unknown coding", "POST /function/probe HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n" + end + "0\r\n\r\n", "501", nil},
		{"a coding that looks like chunked", "POST /function/probe HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n" + end + "0\r\n\r\n", "400", nil},
		{"a length that is none", "POST /function/probe HTTP/1.1\r\nContent-Length: +4\r\n" + end + "abcd", "400", nil},
		{"a bare line feed", "GET /function/probe HTTP/1.1\r\nX-A: b\nX-C: d\r\n" + end, "400", nil},
		{"a folded line", "GET /function/probe HTTP/1.1\r\nX-A: b\r\n c\r\n" + end, "400", nil},
		{"a space before the colon", "GET /function/probe HTTP/1.1\r\nContent-Length : 4\r\n" + end, "400", nil},
		{"no host", "GET /function/probe HTTP/1.1\r\nConnection: close\r\n\r\n", "400", nil},
		{"two hosts", "GET /function/probe HTTP/1.1\r\nHost: y\r\n" + end, "400", nil},
		{"another version", "GET /function/probe HTTP/3.0\r\n" + end, "505", nil},
		{"no HTTP at all", "\x00\x01\x02\x03\r\n\r\n", "400", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer := g.raw(tt.request)
			if !strings.HasPrefix(answer, "HTTP/1.1 "+tt.status+" ") {
				t.Errorf("the answer begins %.40q, want status %s", answer, tt.status)
			}
			for _, want := range tt.want {
				if !strings.Contains(answer, want) {
					t.Errorf("the answer is %q, want %q in it", answer, want)
				}
			}
			if n := strings.Count("\n"+answer, "\nHTTP/1.1 "); n != 1 {
				t.Errorf("there are %d answers, want 1: %q", n, answer)
			}
		})
	}
	// With extensions, and a chunk's size that other parsers read differently.
	for _, size := range []string{"4;x=\n", "0x4", "4 ", "-4", "\t4", "", "4;\r\r", "10000000000000004"} {
		answer := g.raw("POST /function/probe HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + end + size + "\r\nabcd\r\n0\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 4") {
			t.Errorf("chunk size %q: the answer begins %.60q, want a status of 400 or 413", size, answer)
		}
	}
	twice(t, func(t *testing.T, client *http.Client) {
		resp, text := ask(t, client, http.MethodPost, g.url+"/function/probe", strings.NewReader(long))
		if resp.StatusCode != 413 || !strings.Contains(text, "THICKET_MAX_BODY") {
			t.Errorf("a long body = %d %q, want 413", resp.StatusCode, text)
		}
		resp, text = ask(t, client, http.MethodPost, g.url+"/function/probe", struct{ io.Reader }{strings.NewReader(long)})
		if resp.StatusCode != 413 || !strings.Contains(text, "THICKET_MAX_BODY") {
			t.Errorf("a long body of unknown length = %d %q, want 413", resp.StatusCode, text)
		}
	})
	g.want("/function/probe", 200, "hello")
}

// endless has the function go on with the same byte.
const endless = "…"

// TestGarbage has a replica answer with what is no HTTP: the caller gets a 502
// that says what is wrong and nothing of the garbage.
func TestGarbage(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	for _, tt := range []struct{ name, answer string }{
		{"nothing", ""},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n"},
		{"half a status line", "HTTP/1.1 2"},
		{"no status", "HTTP/1.1 OK\r\n\r\n"},
		{"a status that is none", "HTTP/1.1 42 Garbage\r\n\r\n"},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Type: text/garbage\r\n"},
		{"a line that is no field", "HTTP/1.1 200 OK\r\ngarbage\r\n\r\n"},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\ngarbage"},
		{"a length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\ngarbage"},
		{"an endless head", "HTTP/1.1 200 OK\r\nX-Garbage: " + endless},
		{"an answer to nobody's wish to switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: garbage\r\n\r\n"},
		{"another version", "HTTP/2.0 200 OK\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, method := range []string{"GET", "POST"} {
				answer := g.raw(method + " /function/probe?raw=" + url.QueryEscape(tt.answer) + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				if !strings.HasPrefix(answer, "HTTP/1.1 502 ") || !strings.Contains(answer, "function probe.openfaas-fn ") || !strings.Contains(answer, ": replica probe-") {
					t.Errorf("%s: the answer is %q, want a 502 that says which replica of which function it was", method, answer)
				}
				if strings.Contains(answer, "text/garbage") || strings.Contains(answer, "X-Garbage") {
					t.Errorf("%s: there is garbage in %q", method, answer)
				}
			}
		})
	}
	twice(t, func(t *testing.T, client *http.Client) {
		// What breaks off can only be shown as that.
		for _, raw := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\ncut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\ngarbage"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/function/probe?raw="+url.QueryEscape(raw), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				continue
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == 200 {
				t.Errorf("of %q the client gets %q as if that were all", raw, b)
			}
		}
		resp, text := ask(t, client, http.MethodGet, g.url+"/function/probe?raw=garbage", nil)
		if resp.StatusCode != 502 {
			t.Errorf("garbage = %d %q, want 502", resp.StatusCode, text)
		}
	})
}

// says waits until a function has written a line.
func (g *thicket) says(function, line string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	lines, err := g.client.GetLogs(ctx, function, "openfaas-fn", true, -1, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for l := range lines {
		if strings.Contains(l.Text, line) {
			return
		}
	}
	g.t.Fatalf("%s never said %q", function, line)
}

// TestClientLeaves holds that a function learns at once that nobody waits for its
// answer. It says so in its log.
func TestClientLeaves(t *testing.T) {
	twice(t, func(t *testing.T, client *http.Client) {
		g := start(t, t.TempDir())
		g.deploy(g.probe())
		for _, path := range []string{"wait", "events"} {
			ctx, leave := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url+"/function/probe?"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			left := make(chan struct{})
			begun := make(chan struct{})
			go func() {
				defer close(left)
				resp, err := client.Do(req)
				close(begun)
				if err != nil {
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}()
			if path == "wait" {
				g.says("probe", "waiting")
			} else {
				<-begun
			}
			leave()
			<-left
		}
		g.says("probe", "the caller has left")
		g.says("probe", "nobody listens to the events")
	})
}

func TestStreams(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	address := g.url + "/function/probe"

	t.Run("upgrade", func(t *testing.T) {
		conn := g.dial()
		defer conn.Close()
		// The first words come with the request, before it is agreed.
		io.WriteString(conn, "GET /function/probe?upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\nfirst\n")
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("the answer is %+v, %v, want 101 to websocket", resp, err)
		}
		for n := range 100 {
			want := "first\n"
			if n > 0 {
				want = fmt.Sprintf("word %d\n", n)
				io.WriteString(conn, want)
			}
			if got, err := r.ReadString('\n'); got != want || err != nil {
				t.Fatalf("back comes %q, %v, want %q", got, err, want)
			}
		}
		conn.(*net.TCPConn).CloseWrite()
		if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
			t.Errorf("after the end comes %q, %v", rest, err)
		}
	})

	t.Run("continue", func(t *testing.T) {
		conn := g.dial()
		defer conn.Close()
		io.WriteString(conn, "POST /function/probe HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
		r := bufio.NewReader(conn)
		if line, err := r.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") {
			t.Fatalf("first comes %q, %v, want 100", line, err)
		}
		if line, _ := r.ReadString('\n'); line != "\r\n" {
			t.Fatalf("then comes %q, want an empty line", line)
		}
		io.WriteString(conn, "ping")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "ping" {
			t.Errorf("the answer is %d %q, %v, want ping", resp.StatusCode, b, err)
		}
	})

	t.Run("HEAD", func(t *testing.T) {
		answer := g.raw("HEAD /function/probe HTTP/1.1\r\nHost: x\r\n\r\nHEAD /function/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if strings.Count(answer, "HTTP/1.1 200 OK\r\n") != 2 || strings.Contains(answer, "hello") || !strings.HasSuffix(answer, "\r\n\r\n") {
			t.Errorf("two HEADs give %q, want two heads", answer)
		}
	})

	twice(t, func(t *testing.T, client *http.Client) {
		t.Run("HEAD", func(t *testing.T) {
			resp, text := ask(t, client, http.MethodHead, address, nil)
			if resp.StatusCode != 200 || text != "" || resp.ContentLength != 5 {
				t.Errorf("HEAD = %d, %d bytes, %q, want 200 and the length of hello", resp.StatusCode, resp.ContentLength, text)
			}
		})
		t.Run("events", func(t *testing.T) {
			// Those to come wait until somebody takes them, so the first few can
			// only be here if each is passed on by itself.
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"?events", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			r := bufio.NewReader(resp.Body)
			for n := range 5 {
				line, err := r.ReadString('\n')
				if want := fmt.Sprintf("data: %d\n", n); line != want || err != nil {
					t.Fatalf("event %q, %v, want %q", line, err, want)
				}
				r.ReadString('\n')
			}
		})
		t.Run("trailers", func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address+"?count", struct{ io.Reader }{strings.NewReader("ping")})
			if err != nil {
				t.Fatal(err)
			}
			req.Trailer = http.Header{"X-Sum": {"17"}}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); string(b) != `4 bytes, <nil>, trailer "17"` || err != nil {
				t.Errorf("the function got %q, %v, want 4 bytes and the trailer", b, err)
			}

			req, err = http.NewRequestWithContext(t.Context(), http.MethodGet, address+"?zeros=10", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("TE", "trailers")
			if resp, err = client.Do(req); err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); len(b) != 10 || err != nil || resp.Trailer.Get("X-Sum") != "0" {
				t.Errorf("the client got %d bytes, %v, and %v, want 10 and the trailer", len(b), err, resp.Trailer)
			}
		})
		t.Run("much", func(t *testing.T) {
			const much = 100 << 20
			before := g.resident()
			_, text := ask(t, client, http.MethodPost, address+"?count", io.LimitReader(zeros{}, much))
			if want := strconv.Itoa(much) + " bytes, <nil>"; !strings.HasPrefix(text, want) {
				t.Errorf("the function got %q, want %q", text, want)
			}
			resp, err := client.Get(address + "?zeros=" + strconv.Itoa(much))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); n != much || err != nil {
				t.Errorf("the client got %d bytes, %v, want %d", n, err, much)
			}
			// With the race detector memory costs several times as much.
			if grown := g.resident() - before; grown > 50<<20 {
				t.Errorf("the gateway has grown by %d MB while %d MB passed each way", grown>>20, much>>20)
			} else {
				t.Logf("the gateway has grown by %.1f MB while %d MB passed each way", float64(grown)/(1<<20), much>>20)
			}
		})
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// resident is the most memory that the gateway has had, in bytes.
func (g *thicket) resident() int64 {
	g.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		g.t.Skip("there is no /proc here:", err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	g.t.Fatal("/proc has no VmHWM")
	return 0
}
