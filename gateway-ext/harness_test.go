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
	"strings"
	"sync"
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
	args := []string{"build", "-o", program}
	if raceEnabled {
		args = append(args, "-race")
	} else {
		args = append(args, "-trimpath", "-ldflags=-s -w")
	}
	build := exec.Command("go", append(args, ".")...)
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
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

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

const testPassword = "correct horse battery staple"

// start starts "gateway-ext serve" on the state folder and waits until it is
// up. It is killed at the end of the test if it still runs then.
func start(t testing.TB, dir string, environ ...string) *thicket {
	t.Helper()
	g := &thicket{t: t, dir: dir, exited: make(chan struct{})}
	g.cmd = exec.Command(program, "serve")
	g.cmd.Env = append(baseEnviron(), "THICKET_ADDR=127.0.0.1:0", "THICKET_DATA="+dir, "THICKET_PASSWORD="+testPassword, "THICKET_LOG_FORMAT=json")
	g.cmd.Env = append(g.cmd.Env, environ...)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := make(chan string, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			g.mu.Lock()
			g.log.Write(lines.Bytes())
			g.log.WriteByte('\n')
			g.mu.Unlock()
			var line struct{ Msg, Addr string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "gateway started" {
				up <- line.Addr
			}
		}
	})
	go func() {
		reading.Wait()
		g.cmd.Wait()
		close(g.exited)
	}()
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		<-g.exited
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", g.logged())
		}
	})
	select {
	case addr := <-up:
		g.url = "http://" + addr
	case <-g.exited:
		t.Fatalf("the gateway ended: %v\n%s", g.cmd.ProcessState, g.logged())
	case <-time.After(time.Minute):
		t.Fatalf("the gateway isn't up after a minute:\n%s", g.logged())
	}
	u, err := url.Parse(g.url)
	if err != nil {
		t.Fatal(err)
	}
	g.client = sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: testPassword}, &http.Client{Timeout: 2 * time.Minute})
	return g
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

// buildWeather builds both weather functions and pushes them to the gateway.
func (g *thicket) buildWeather() {
	g.t.Helper()
	code, stdout, stderr := run(g.t, "..", []string{
		"THICKET_REGISTRY=" + g.host(), "THICKET_PASSWORD=" + testPassword,
	}, "build", "-f", "stack.yml", "--push", "--platforms", hostPlatform())
	if code != 0 {
		g.t.Fatalf("gateway-ext build --push: exit %d\n%s%s", code, stdout, stderr)
	}
}
