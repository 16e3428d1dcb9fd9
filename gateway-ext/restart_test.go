package main_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// crowd calls a function all the time, in all the ways that clients do, while
// the gateway is replaced.
type crowd struct {
	t       testing.TB
	url     string
	cancel  context.CancelFunc
	clients sync.WaitGroup

	calls atomic.Int64
	cut   atomic.Int64 // idle connections that were closed while a request was on its way
}

// newCrowd lets clients loose on the function probe at an address.
func newCrowd(t testing.TB, host string) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{t: t, url: "http://" + host + "/function/probe", cancel: cancel}
	for i := range 3 {
		fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		kept := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
		c.clients.Go(func() { c.loop(ctx, "fresh", fresh, i == 0) })
		c.clients.Go(func() {
			defer kept.CloseIdleConnections()
			c.loop(ctx, "kept", kept, i == 0)
		})
		c.clients.Go(func() { c.idle(ctx, host) })
		two := &http.Client{Transport: &http.Transport{Protocols: unencryptedHTTP2()}}
		c.clients.Go(func() {
			defer two.CloseIdleConnections()
			c.loop(ctx, "HTTP/2", two, i == 0)
		})
	}
	return c
}

// unencryptedHTTP2 has a client speak HTTP/2 to a server that it knows to.
func unencryptedHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// loop calls without a pause, by GET or POST. None may fail.
func (c *crowd) loop(ctx context.Context, kind string, client *http.Client, get bool) {
	for n := 0; ctx.Err() == nil; n++ {
		method, want, body := http.MethodPost, fmt.Sprint("ping ", n), io.Reader(strings.NewReader(fmt.Sprint("ping ", n)))
		if get {
			method, want, body = http.MethodGet, "hello", nil
		}
		req, err := http.NewRequest(method, c.url+"?sleep=2ms", body)
		if err != nil {
			c.t.Error(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			c.t.Errorf("%s on a %s connection: %v", method, kind, err)
			return
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(got) != want {
			c.t.Errorf("%s on a %s connection = %d %q, %v, want %q", method, kind, resp.StatusCode, got, err, want)
			return
		}
		c.calls.Add(1)
	}
}

// idle calls now and then, on one connection for as long as it lasts. A server
// that goes has to close it at some time, and a request may be on its way just
// then: those are counted. What was answered in part must never be.
func (c *crowd) idle(ctx context.Context, host string) {
	var conn net.Conn
	var r *bufio.Reader
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for ctx.Err() == nil {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", host); err != nil {
				c.t.Errorf("a connection was refused: %v", err)
				return
			}
			r = bufio.NewReader(conn)
		}
		_, err := io.WriteString(conn, "POST /function/probe HTTP/1.1\r\nHost: thicket\r\nContent-Length: 4\r\n\r\nping")
		if err == nil {
			_, err = r.Peek(1)
		}
		if err != nil { // it was closed before it was answered
			c.cut.Add(1)
			conn.Close()
			conn = nil
			continue
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			c.t.Errorf("an answer broke off in its head: %v", err)
			return
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != "ping" {
			c.t.Errorf("POST = %d %q, %v, want ping", resp.StatusCode, body, err)
			return
		}
		c.calls.Add(1)
		if resp.Close {
			conn.Close()
			conn = nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(40 * time.Millisecond)):
		}
	}
}

// goOn waits until calls are answered that were not before.
func (c *crowd) goOn() {
	c.t.Helper()
	before := c.calls.Load()
	eventually(c.t, "calls go on", func() bool { return c.calls.Load() > before+100 || c.t.Failed() })
}

// leave ends all calls.
func (c *crowd) leave() {
	c.cancel()
	c.clients.Wait()
}

// TestRestartInPlace replaces the program under load, by SIGUSR2. The process
// and its socket stay; no call may fail.
func TestRestartInPlace(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	c := newCrowd(t, g.host())
	defer c.leave()
	const restarts = 4
	for n := range int32(restarts) {
		c.goOn()
		if err := g.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is up again", func() bool { return g.starts.Load() == n+2 })
	}
	c.goOn()
	c.leave()
	t.Logf("%d calls during %d restarts, none failed; %d idle connections were closed while a request was on its way", c.calls.Load(), restarts, c.cut.Load())
	if n := len(replicas(t, g.dir)); n != 1 {
		t.Errorf("%d replicas run, want 1", n)
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

// TestRestartWithInheritedSocket restarts the gateway under load as systemd does
// with socket activation: it ends, and another process gets the same socket.
func TestRestartWithInheritedSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	dir := t.TempDir()
	activate := func() *thicket {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, program)
		cmd.ExtraFiles = []*os.File{socket} // descriptor 3
		g := startCommand(t, dir, cmd, "LISTEN_FDS=1", "LISTEN_FDNAMES=thicket.socket")
		if g.host() != l.Addr().String() {
			t.Fatalf("the gateway listens on %s, want %s", g.host(), l.Addr())
		}
		return g
	}
	g := activate()
	g.deploy(g.probe())
	c := newCrowd(t, g.host())
	defer c.leave()
	const restarts = 3
	for range restarts {
		c.goOn()
		if code := g.stop(); code != 0 {
			t.Errorf("exit code = %d, want 0", code)
		}
		g = activate()
	}
	c.goOn()
	c.leave()
	t.Logf("%d calls during %d restarts, none failed; %d idle connections were closed while a request was on its way", c.calls.Load(), restarts, c.cut.Load())
}

// TestRestartLetsFunctionsFinish restarts the gateway while one function is
// about to call another: both are answered by the gateway that they began with.
func TestRestartLetsFunctionsFinish(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	other := g.probe()
	other.Service, other.EnvVars = "other", g.environment("the other")
	g.deploy(other)
	answer := make(chan string, 1)
	go func() {
		_, _, body := g.get("/function/probe?sleep=1s&call=other")
		answer <- body
	}()
	eventually(t, "the call is in flight", func() bool {
		_, _, metrics := g.get("/metrics")
		return strings.Contains(metrics, `gateway_function_invocation_inflight{function_name="probe.openfaas-fn"} 1`)
	})
	g.cmd.Process.Signal(syscall.SIGUSR2)
	if got := <-answer; got != "the other" {
		t.Errorf("the call in flight got %q, want %q", got, "the other")
	}
	eventually(t, "it is up again", func() bool { return g.starts.Load() == 2 })
	g.want("/function/probe?call=other", 200, "the other")
}

// TestRestartCutsUpgrades restarts the gateway while a WebSocket is open, which
// would last for ever.
func TestRestartCutsUpgrades(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	conn := g.dial()
	defer conn.Close()
	io.WriteString(conn, "GET /function/probe?upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n")
	r := bufio.NewReader(conn)
	for line := ""; line != "hello\n"; {
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	g.cmd.Process.Signal(syscall.SIGUSR2)
	if _, err := r.ReadByte(); err == nil {
		t.Error("something comes that was never sent")
	}
	eventually(t, "it is up again", func() bool { return g.starts.Load() == 2 })
	g.want("/function/probe", 200, "hello")
}

// TestRestartKeepsWhatWorks asks for a restart when the program on the disk
// would not start: the one that runs goes on.
func TestRestartKeepsWhatWorks(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "gateway")
	install := func(content string) {
		t.Helper()
		if err := os.WriteFile(bin+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(bin+".new", bin); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(program, bin); err != nil {
		t.Fatal(err)
	}
	g := startCommand(t, filepath.Join(dir, "data"), exec.Command(bin, "serve"))
	for _, tt := range []struct{ name, program, want string }{
		{"not a program", "half of an upload", "exec format error"},
		{"a program that refuses", "#!/bin/sh\necho THICKET_ADDR: there is no such setting >&2\nexit 1\n", "no such setting"},
	} {
		install(tt.program)
		g.cmd.Process.Signal(syscall.SIGUSR2)
		eventually(t, tt.name+" is refused", func() bool { return strings.Contains(g.logged(), tt.want) })
		if code, _, _ := g.get("/healthz"); code != 200 {
			t.Errorf("%s: health = %d, want 200", tt.name, code)
		}
	}
	// One that says it would start, and then can't be run at all: what was
	// stopped for it is started again.
	install("#!" + filepath.Join(dir, "sometimes") + "\n")
	if err := os.WriteFile(filepath.Join(dir, "sometimes"), []byte("#!/bin/sh\nrm \"$0\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.cmd.Process.Signal(syscall.SIGUSR2)
	eventually(t, "it goes on", func() bool { return g.starts.Load() == 2 })
	if !strings.Contains(g.logged(), "could not take this one's place") {
		t.Errorf("the log doesn't say why it goes on")
	}
	if code, _, _ := g.get("/healthz"); code != 200 {
		t.Errorf("health = %d, want 200", code)
	}

	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, bin); err != nil {
		t.Fatal(err)
	}
	g.cmd.Process.Signal(syscall.SIGUSR2)
	eventually(t, "it is up again", func() bool { return g.starts.Load() == 3 })
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

// TestWrongSockets starts the program with sockets that it can't use.
func TestWrongSockets(t *testing.T) {
	dir := t.TempDir()
	local, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	socket, err := local.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	plain, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, tt := range []struct {
		name string
		file *os.File
		fds  string
		want string
	}{
		{"a Unix socket", socket, "1", "ListenStream="},
		{"a file", plain, "1", "listening socket"},
		{"two", socket, "2", "one ListenStream="},
		{"not a number", socket, "many", "LISTEN_FDS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, program)
			cmd.ExtraFiles = []*os.File{tt.file}
			cmd.Env = append(baseEnviron(), "THICKET_DATA="+t.TempDir(), "THICKET_ADDR=127.0.0.1:0", "LISTEN_FDS="+tt.fds)
			out, err := cmd.CombinedOutput()
			if _, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.Contains(string(out), tt.want) {
				t.Errorf("= %v, %q, want an error with %q", err, out, tt.want)
			}
		})
	}
}
