package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

// These tests run the real program: it is built once, with the race detector if
// the tests have it, and started on a free port with a state folder of its own.

// program is the path of the program under test, built by TestMain.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "thicket-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "gateway-ext")
	shop.dir = filepath.Join(dir, "shop")
	build := exec.Command("../.ci/build", program)
	if raceEnabled {
		build = exec.Command("go", "build", "-race", "-o", program, ".")
	}
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
	} else {
		code = m.Run()
	}
	if shop.gateway != nil {
		shop.gateway.end()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// shop is a gateway that all tests get their functions' images from, so that
// these are built once. It runs no function.
var shop struct {
	once    sync.Once
	dir     string
	gateway *thicket
	err     error
}

// images returns the address of the registry that has the images of the
// weather functions and of the tests' own function.
func images(t testing.TB) string {
	t.Helper()
	shop.once.Do(func() {
		shop.gateway, shop.err = boot(shop.dir)
		if shop.err != nil {
			return
		}
		for _, stack := range []string{"../stack.yml", "testdata/stack.yml"} {
			code, stdout, stderr := run(t, ".", []string{
				"THICKET_REGISTRY=" + shop.gateway.host(), "THICKET_PASSWORD=" + testPassword,
			}, "build", "-f", stack, "--push", "--platforms", runtime.GOOS+"/"+runtime.GOARCH)
			if code != 0 {
				shop.err = fmt.Errorf("gateway-ext build -f %s --push: exit %d\n%s%s", stack, code, stdout, stderr)
				return
			}
		}
	})
	if shop.err != nil {
		t.Fatal(shop.err)
	}
	return shop.gateway.host()
}

// eventually waits for a condition, and fails the test if it doesn't come true.
// A minute is for machines that are busy with other things.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// thicket is a running gateway.
type thicket struct {
	t      testing.TB
	dir    string // state folder
	cmd    *exec.Cmd
	exited chan struct{}
	url    string
	client *sdk.Client
	starts atomic.Int32 // how often it has said that it is up

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

const testPassword = "correct horse battery staple"

// start starts "gateway-ext serve" on the state folder and waits until it is
// up. It is stopped at the end of the test if it still runs then.
func start(t testing.TB, dir string, environ ...string) *thicket {
	t.Helper()
	return startCommand(t, dir, exec.Command(program, "serve"), environ...)
}

// startCommand is start with a command that the program is run by.
func startCommand(t testing.TB, dir string, cmd *exec.Cmd, environ ...string) *thicket {
	t.Helper()
	g, err := bootCommand(dir, cmd, environ...)
	if err != nil {
		t.Fatal(err)
	}
	g.t = t
	t.Cleanup(func() {
		g.end()
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", g.logged())
		}
	})
	return g
}

// boot starts a gateway that its caller has to stop.
func boot(dir string, environ ...string) (*thicket, error) {
	return bootCommand(dir, exec.Command(program, "serve"), environ...)
}

func bootCommand(dir string, cmd *exec.Cmd, environ ...string) (*thicket, error) {
	g := &thicket{dir: dir, exited: make(chan struct{}), cmd: cmd}
	g.cmd.Env = append(baseEnviron(), "THICKET_ADDR=127.0.0.1:0", "THICKET_DATA="+dir, "THICKET_PASSWORD="+testPassword, "THICKET_LOG_FORMAT=json")
	g.cmd.Env = append(g.cmd.Env, environ...)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan string, 1)
	go func() {
		defer close(g.exited)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			g.mu.Lock()
			g.log.Write(lines.Bytes())
			g.log.WriteByte('\n')
			g.mu.Unlock()
			var line struct{ Msg, Addr string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "gateway started" {
				if g.starts.Add(1) == 1 {
					up <- line.Addr
				}
			}
		}
		g.cmd.Wait()
	}()
	select {
	case addr := <-up:
		g.url = "http://" + addr
	case <-g.exited:
		return nil, fmt.Errorf("the gateway ended: %v\n%s", g.cmd.ProcessState, g.logged())
	case <-time.After(time.Minute):
		g.cmd.Process.Kill()
		<-g.exited
		return nil, fmt.Errorf("the gateway isn't up after a minute:\n%s", g.logged())
	}
	u, err := url.Parse(g.url)
	if err != nil {
		return nil, err
	}
	g.client = sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: testPassword}, &http.Client{Timeout: 2 * time.Minute})
	return g, nil
}

// sdkFor is a client of the API at another address than usual.
func sdkFor(t testing.TB, address string, client *http.Client) *sdk.Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: testPassword}, client)
}

// end stops the gateway in a hurry, with its replicas, which a kill would leave
// running.
func (g *thicket) end() {
	for range 2 {
		g.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-g.exited:
			return
		case <-time.After(2 * time.Second):
		}
	}
	select {
	case <-g.exited:
	case <-time.After(30 * time.Second):
		g.cmd.Process.Kill()
		<-g.exited
	}
}

// baseEnviron is this process's environment without settings of the platform,
// which a developer may have set.
func baseEnviron() (environ []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "THICKET_") && !strings.HasPrefix(kv, "WEATHER_") {
			environ = append(environ, kv)
		}
	}
	return environ
}

func (g *thicket) logged() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.String()
}

func (g *thicket) host() string { return strings.TrimPrefix(g.url, "http://") }

// stop asks the gateway to stop, and returns its exit code.
func (g *thicket) stop() int {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	return g.wait()
}

// kill is a power cut for the gateway alone.
func (g *thicket) kill() {
	g.t.Helper()
	g.cmd.Process.Kill()
	g.wait()
}

func (g *thicket) wait() int {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(2 * time.Minute):
		g.t.Fatalf("the gateway doesn't end:\n%s", g.logged())
	}
	return g.cmd.ProcessState.ExitCode()
}

// get asks for a path and returns status, header and body.
func (g *thicket) get(path string) (int, http.Header, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return g.do(req)
}

func (g *thicket) do(req *http.Request) (int, http.Header, string) {
	g.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

// deploy declares a function and waits until it is ready.
func (g *thicket) deploy(d types.FunctionDeployment) {
	g.t.Helper()
	if _, err := g.client.Deploy(g.t.Context(), d); err != nil {
		g.t.Fatal(err)
	}
	g.ready(d.Service, 1)
}

// ready waits until a function has so many replicas that answer.
func (g *thicket) ready(function string, replicas uint64) {
	g.t.Helper()
	var last types.FunctionStatus
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		var err error
		last, err = g.client.GetFunction(g.t.Context(), function, "openfaas-fn")
		if err == nil && last.AvailableReplicas == replicas && last.Replicas == replicas {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	reason := ""
	if last.Annotations != nil {
		reason = (*last.Annotations)["thicket.status"]
	}
	g.t.Fatalf("%s has %d of %d replicas ready after a minute, want %d: %s", function, last.AvailableReplicas, last.Replicas, replicas, reason)
}

// run runs the program to its end.
func run(t testing.TB, dir string, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(baseEnviron(), environ...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}
