//go:build faults && linux

package faults_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
)

const testPassword = "correct horse battery staple"

// gateway is a running "gateway-ext serve".
type gateway struct {
	dir    string
	cmd    *exec.Cmd
	exited chan struct{}
	url    string
	client *sdk.Client
	starts atomic.Int32 // how often it has said that it is up

	mu  sync.Mutex // guards below
	log bytes.Buffer
}

// boot starts a gateway that its caller has to end.
func boot(dir string, environ ...string) (*gateway, error) { return bootOf(program, dir, environ...) }

// bootOf is the same for another program.
func bootOf(program, dir string, environ ...string) (*gateway, error) {
	return bootOn((*exec.Cmd).Start, program, dir, environ...)
}

// bootOn is the same where start starts it.
func bootOn(start func(*exec.Cmd) error, program, dir string, environ ...string) (*gateway, error) {
	g := &gateway{dir: dir, exited: make(chan struct{})}
	g.cmd = exec.Command(program, "serve")
	g.cmd.Env = append(baseEnviron(), "THICKET_ADDR=127.0.0.1:0", "THICKET_DATA="+dir, "THICKET_PASSWORD="+testPassword, "THICKET_LOG_FORMAT=json")
	g.cmd.Env = append(g.cmd.Env, environ...)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := start(g.cmd); err != nil {
		return nil, err
	}
	up := make(chan string, 1)
	go func() { // ends with the process, which end waits for
		defer close(g.exited)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			g.mu.Lock()
			g.log.Write(lines.Bytes())
			g.log.WriteByte('\n')
			g.mu.Unlock()
			var line struct{ Msg, Addr string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "gateway started" && g.starts.Add(1) == 1 {
				up <- line.Addr
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
		g.end()
		return nil, fmt.Errorf("the gateway isn't up after a minute:\n%s", g.logged())
	}
	u, err := url.Parse(g.url)
	if err != nil {
		return nil, err
	}
	g.client = sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: testPassword}, &http.Client{Timeout: time.Minute})
	return g, nil
}

// end stops the gateway in a hurry, with its replicas.
func (g *gateway) end() {
	for range 2 {
		g.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-g.exited:
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
	select {
	case <-g.exited:
	case <-time.After(20 * time.Second):
		g.cmd.Process.Kill()
		<-g.exited
	}
}

// baseEnviron is this process's environment without settings of the platform.
func baseEnviron() (environ []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "THICKET_") && !strings.HasPrefix(kv, "FAULTS_") {
			environ = append(environ, kv)
		}
	}
	return environ
}

func (g *gateway) logged() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.String()
}

func (g *gateway) host() string { return strings.TrimPrefix(g.url, "http://") }

// metric sums the samples of a metric whose line has all the parts.
func (g *gateway) metric(t testing.TB, name string, parts ...string) float64 {
	t.Helper()
	resp, err := http.Get(g.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for line := range strings.SplitSeq(string(text), "\n") {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest != "" && rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		if slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(rest, p) }) {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		sum += value
	}
	return sum
}

// events is how often something happened to a function's calls or breakers.
func (g *gateway) events(t testing.TB, function, event string) float64 {
	t.Helper()
	return g.metric(t, "thicket_resilience_events_total", `target="`+function+`.openfaas-fn"`, `event="`+event+`"`)
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// resident returns the gateway's resident memory in MiB.
func (g *gateway) resident(t testing.TB) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := residentLine.FindSubmatch(status)
	if m == nil {
		t.Fatal("no VmRSS")
	}
	kb, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}

// world is a gateway, its functions, and the means to break them.
type world struct {
	*gateway
	t       *testing.T
	s       *scenario
	control *control
	before  float64 // goroutines of the gateway before anything was called
}

// newWorld starts a gateway. When the test ends it is checked for what must hold
// in every scenario: it is the same process, and what it held it gave back.
func newWorld(t *testing.T, s *scenario, environ ...string) *world {
	t.Helper()
	return newWorldOf(t, s, program, t.TempDir(), environ...)
}

// newWorldOf is the same for another program, on a folder that is there.
func newWorldOf(t *testing.T, s *scenario, program, dir string, environ ...string) *world {
	t.Helper()
	g, err := bootOf(program, dir, environ...)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{gateway: g, t: t, s: s, control: newControl(t)}
	t.Cleanup(func() {
		g.end()
		if t.Failed() {
			log := strings.Split(g.logged(), "\n")
			t.Logf("the end of the gateway's log:\n%s", strings.Join(log[max(0, len(log)-40):], "\n"))
		}
	})
	return w
}

// settle checks what must hold after every scenario.
func (w *world) settle() {
	t := w.t
	t.Helper()
	select {
	case <-w.exited:
		t.Fatalf("the gateway ended: %v", w.cmd.ProcessState)
	default:
	}
	w.s.count(guarded, "resident memory of the gateway, MiB", w.resident(t), 96)
	if !w.s.last {
		return // the next takes time, and what leaks leaks every time
	}
	// Idle connections are no leak: the gateway's own last 4 s, ours are closed.
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(30 * time.Second)
	grown := w.metric(t, "go_goroutines") - w.before
	for grown > 5 && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		grown = w.metric(t, "go_goroutines") - w.before
	}
	w.s.count(guarded, "goroutines more than before, after at most 30 s", max(0, grown), 5)
}

// deploy declares functions of the victim's image and waits until they are ready.
func (w *world) deploy(replicas int, names []string, annotations map[string]string) {
	w.t.Helper()
	image := victim(w.t)
	for _, name := range names {
		d := types.FunctionDeployment{
			Service:     name,
			Image:       image,
			EnvVars:     map[string]string{"FAULTS_CONTROL": w.control.url, "FAULTS_NAME": name, "metrics_port": "0", "exec_timeout": "30s", "write_timeout": "30s"},
			Labels:      &map[string]string{"com.openfaas.scale.min": strconv.Itoa(replicas), "com.openfaas.scale.max": strconv.Itoa(replicas)},
			Annotations: new(maps.Clone(annotations)),
		}
		if _, err := w.client.Deploy(w.t.Context(), d); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, name := range names {
		w.ready(name, replicas)
	}
}

func (w *world) ready(name string, replicas int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%s has %d replicas", name, replicas), func() bool {
		f, err := w.client.GetFunction(w.t.Context(), name, "openfaas-fn")
		return err == nil && int(f.AvailableReplicas) == replicas && int(f.Replicas) == replicas
	})
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// replica is a process of a function.
type replica struct {
	pid  int
	id   string
	port string
}

// replicas finds the processes of a function by their environment, which nobody
// but this gateway gave them.
func (w *world) replicas(function string) (found []replica) {
	w.t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range environs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		vars := map[string]string{}
		for kv := range strings.SplitSeq(string(b), "\x00") {
			k, v, _ := strings.Cut(kv, "=")
			vars[k] = v
		}
		if vars["THICKET_REPLICA"] == "" || vars["FAULTS_NAME"] != function || vars["FAULTS_CONTROL"] != w.control.url {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			w.t.Fatal(err)
		}
		found = append(found, replica{pid: pid, id: vars["THICKET_REPLICA"], port: vars["port"]})
	}
	slices.SortFunc(found, func(a, b replica) int { return strings.Compare(a.id, b.id) })
	return found
}

// three returns the replicas of a function, which are three.
func (w *world) three(function string) []replica {
	w.t.Helper()
	var found []replica
	eventually(w.t, function+" has three processes", func() bool {
		found = w.replicas(function)
		return len(found) == 3
	})
	return found
}

func (w *world) signal(sig syscall.Signal, rs ...replica) {
	w.t.Helper()
	for _, r := range rs {
		if err := syscall.Kill(r.pid, sig); err != nil && err != syscall.ESRCH {
			w.t.Errorf("signal %v to %s: %v", sig, r.id, err)
		}
	}
}

// fault is how a replica goes wrong; see the victim.
type fault struct {
	Mode    string
	Share   float64
	Status  int
	Latency time.Duration
}

// direct calls replicas past the gateway. A stopped one must not stop the test.
var direct = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// tell makes replicas go wrong, or right again.
func (w *world) tell(f fault, rs ...replica) {
	w.t.Helper()
	body, err := json.Marshal(f)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rs {
		resp, err := direct.Post("http://127.0.0.1:"+r.port+"/fault", "application/json", bytes.NewReader(body))
		if err != nil {
			w.t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			w.t.Fatalf("tell %s to be %+v: %s", r.id, f, resp.Status)
		}
	}
}

// counts are what a replica has seen.
type counts struct {
	Calls, InFlight, Cancelled int64
}

// seen sums what replicas have seen.
func (w *world) seen(rs ...replica) (sum counts) {
	w.t.Helper()
	for _, r := range rs {
		resp, err := direct.Get("http://127.0.0.1:" + r.port + "/counts")
		if err != nil {
			w.t.Fatal(err)
		}
		var c counts
		err = json.NewDecoder(resp.Body).Decode(&c)
		resp.Body.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		sum.Calls += c.Calls
		sum.InFlight += c.InFlight
		sum.Cancelled += c.Cancelled
	}
	return sum
}

// control tells replicas that start whether to live, and how to go wrong.
type control struct {
	url string

	mu    sync.Mutex // guards below
	dead  map[string]bool
	fault map[string]fault
}

func newControl(t *testing.T) *control {
	c := &control{dead: map[string]bool{}, fault: map[string]fault{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := r.URL.Query().Get("function")
	if c.dead[name] {
		http.Error(w, "die", http.StatusGone)
		return
	}
	json.NewEncoder(w).Encode(c.fault[name])
}

// stayDead decides whether what is started of a function ends at once.
func (c *control) stayDead(dead bool, functions ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range functions {
		c.dead[f] = dead
	}
}

// start decides how what is started of a function goes wrong from its start.
func (c *control) start(f fault, functions ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range functions {
		c.fault[name] = f
	}
}
