package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/redis/go-redis/v9"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
)

// joining is what "gateway-ext token" prints.
var joining = regexp.MustCompile(`(?m)^gateway-ext node --join (\S+) --token (\S+)$`)

// operate runs a command of the program against a gateway.
func (g *thicket) operate(args ...string) string {
	g.t.Helper()
	code, stdout, stderr := run(g.t, ".", []string{"THICKET_PASSWORD=" + testPassword}, append(args, "-g", g.url)...)
	if code != 0 {
		g.t.Fatalf("gateway-ext %v: exit %d\n%s%s", args, code, stdout, stderr)
	}
	return stdout
}

// nodeProcess is a node that runs.
type nodeProcess struct {
	t         testing.TB
	name, dir string
	cmd       *exec.Cmd
	log       bytes.Buffer
}

// node starts a node; args are needed until it has joined.
func node(t testing.TB, name, dir string, args ...string) *nodeProcess {
	t.Helper()
	return nodeBy(t, name, dir, func(args ...string) *exec.Cmd { return exec.Command(program, args...) }, args...)
}

// nodeBy is node with another program, or in another way.
func nodeBy(t testing.TB, name, dir string, command func(args ...string) *exec.Cmd, args ...string) *nodeProcess {
	t.Helper()
	n := &nodeProcess{t: t, name: name, dir: dir}
	n.cmd = command(append([]string{"node", "--listen", "127.0.0.1:0"}, args...)...)
	n.cmd.Env = append(baseEnviron(), "THICKET_DATA="+dir, "THICKET_LOG_FORMAT=json")
	n.cmd.Stderr = &n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("the log of %s:\n%s", name, n.log.String())
		}
	})
	return n
}

// stop ends the node, with its replicas.
func (n *nodeProcess) stop() {
	if n.cmd.ProcessState != nil {
		return
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	hurry := time.AfterFunc(5*time.Second, func() { n.cmd.Process.Signal(syscall.SIGTERM) })
	defer hurry.Stop()
	n.cmd.Wait()
}

// kill is a crash of the node's program, which leaves its replicas running.
func (n *nodeProcess) kill() {
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

// fleetNode is a node as the API shows it.
type fleetNode struct {
	Name, State, Reason string
	Replicas            int
}

// snapshot is all replicas that the gateway knows of.
func (g *thicket) snapshot() (s wire.Snapshot) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+wire.Path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	_, _, body := g.do(req)
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		g.t.Fatalf("%v: %s", err, body)
	}
	return s
}

func (g *thicket) fleet() map[string]fleetNode {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+"/system/nodes", nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	_, _, body := g.do(req)
	var list []fleetNode
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		g.t.Fatalf("%v: %s", err, body)
	}
	all := make(map[string]fleetNode)
	for _, n := range list {
		all[n.Name] = n
	}
	return all
}

// TestFleet is a gateway and two nodes on one machine: they join, share the
// replicas of a function, one is killed, comes back, is drained and removed, and
// the gateway is restarted, while the function is asked all the time.
func TestFleet(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc")
	code, stdout, stderr := run(t, ".", []string{"THICKET_REGISTRY=" + g.host(), "THICKET_PASSWORD=" + testPassword},
		"build", "-f", "testdata/stack.yml", "--push", "--platforms", runtime.GOOS+"/"+runtime.GOARCH)
	if code != 0 {
		t.Fatalf("build: exit %d\n%s%s", code, stdout, stderr)
	}

	said := g.operate("token", "--note", "test")
	join := joining.FindStringSubmatch(said)
	if join == nil {
		t.Fatalf("gateway-ext token says %q, want the command to join with", said)
	}
	nodes := make(map[string]*nodeProcess)
	for _, name := range []string{"pi-1", "pi-2"} {
		nodes[name] = node(t, name, t.TempDir(), "--join", join[1], "--token", join[2], "--node-name", name, "--label", "zone="+name)
	}
	eventually(t, "both nodes are ready", func() bool {
		f := g.fleet()
		return f["pi-1"].State == "ready" && f["pi-2"].State == "ready"
	})

	g.deploy3("probe")
	seen := make(map[string]bool)
	eventually(t, "all three replicas answer", func() bool {
		code, _, body := g.get("/function/probe?replica")
		if code != http.StatusOK {
			t.Fatalf("a call was answered %d %s", code, body)
		}
		seen[body] = true
		return len(seen) == 3
	})
	for name, n := range g.fleet() {
		if n.Replicas != 1 {
			t.Errorf("%s has %d of 3 replicas, want 1", name, n.Replicas)
		}
	}
	if why := g.operate("nodes", "why", "probe"); !strings.Contains(why, " free") {
		t.Errorf("gateway-ext nodes why says %q", why)
	}
	g.logsOfAll(seen)

	// On each node a function finds the gateway where that node reaches it.
	urls := g.answers(2, "/function/probe?sleep=50ms&env=THICKET_DISCOVERY_URL")
	if !urls[g.url+"/system/discovery"] {
		t.Errorf("functions find the gateway's discovery at %v, want %s/system/discovery on other nodes", urls, g.url)
	}

	// What a function on one node keeps, those on the others find.
	caches := g.answers(3, "/function/probe?sleep=50ms&env=THICKET_REDIS_URL")
	first := ""
	for at := range caches {
		opt, err := redis.ParseURL(at)
		if err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(opt)
		if first == "" {
			first = at
			err = client.Set(t.Context(), "shared", "by all", time.Minute).Err()
		}
		if got := client.Get(t.Context(), "shared").Val(); err != nil || got != "by all" {
			t.Errorf("at %s the cache has %q, %v, want what was kept at %s", opt.Addr, got, err, first)
		}
		client.Close()
	}

	// Somebody calls all the time.
	done := make(chan struct{})
	var caller sync.WaitGroup
	asked, failed := 0, 0
	caller.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			resp, err := http.Get(g.url + "/function/probe")
			asked++
			switch {
			case err != nil:
				failed++
				t.Logf("a call failed: %v", err)
			default:
				if resp.Body.Close(); resp.StatusCode != http.StatusOK {
					failed++
					t.Logf("a call was answered %s", resp.Status)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	began := time.Now()
	nodes["pi-1"].kill()
	eventually(t, "the lost node is gone", func() bool { return g.fleet()["pi-1"].State == "gone" })
	gone := time.Since(began)
	g.ready("probe", 3)
	t.Logf("a node that was killed was gone after %s, its replica elsewhere after %s", gone.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	nodes["pi-1"] = node(t, "pi-1", nodes["pi-1"].dir)
	eventually(t, "it is back", func() bool { return g.fleet()["pi-1"].State == "ready" })

	g.operate("nodes", "drain", "pi-2")
	eventually(t, "the drained node is empty", func() bool { return g.fleet()["pi-2"].Replicas == 0 })
	g.ready("probe", 3)
	g.operate("nodes", "remove", "pi-2")
	close(done)
	caller.Wait()
	t.Logf("%d calls meanwhile, %d failed", asked, failed)
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d calls failed", failed, asked)
	}
	if _, ok := g.fleet()["pi-2"]; ok {
		t.Error("the node is still there after it was removed")
	}

	// The gateway goes and comes back, and finds what its node runs.
	before := g.fleet()["pi-1"].Replicas
	if code := g.stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	door := strings.TrimPrefix(join[1], "https://")
	g = start(t, dir, "THICKET_NODES_ADDR="+door, "THICKET_NODE=nuc", "THICKET_ADDR="+g.host())
	g.ready("probe", 3)
	if n := g.fleet()["pi-1"]; n.State != "ready" || n.Replicas < before {
		t.Errorf("after the gateway's restart pi-1 is %+v, want it with the %d replicas from before", n, before)
	}

	// A backup makes the same gateway elsewhere.
	file := filepath.Join(t.TempDir(), "backup.tgz")
	g.operate("backup", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup is %v, %v, want a file that only its owner reads", info, err)
	}
	restored := filepath.Join(t.TempDir(), "state")
	if code, stdout, stderr := run(t, ".", []string{"THICKET_DATA=" + restored}, "restore", file); code != 0 {
		t.Fatalf("restore: exit %d\n%s%s", code, stdout, stderr)
	}
	addr := g.host()
	if code := g.stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	g = start(t, restored, "THICKET_NODES_ADDR="+door, "THICKET_NODE=nuc", "THICKET_ADDR="+addr)
	g.ready("probe", 3)
	if code, _, body := g.get("/function/probe"); code != http.StatusOK || body != "hello" {
		t.Errorf("the restored gateway's function answers %d %q", code, body)
	}
}

// deploy3 deploys the tests' function with three replicas, from the gateway's
// own registry.
// answers calls a function until want different answers were seen. Calls at the
// same time go to different replicas, one after the other they go to the fastest.
func (g *thicket) answers(want int, path string) map[string]bool {
	g.t.Helper()
	var mu sync.Mutex
	seen := make(map[string]bool)
	eventually(g.t, fmt.Sprintf("%d different answers to %s", want, path), func() bool {
		var calls sync.WaitGroup
		for range 3 * want {
			calls.Go(func() {
				_, _, answer := g.get(path)
				mu.Lock()
				defer mu.Unlock()
				seen[answer] = true
			})
		}
		calls.Wait()
		return len(seen) == want
	})
	return seen
}

func (g *thicket) deploy3(name string) {
	g.t.Helper()
	if _, err := g.client.Deploy(g.t.Context(), types.FunctionDeployment{
		Service: name, Image: g.host() + "/probe:latest", EnvVars: map[string]string{"answer": "hello"},
		Labels:      &map[string]string{"com.openfaas.scale.min": "3", "com.openfaas.scale.max": "3"},
		Annotations: &map[string]string{"thicket.discovery": "true"},
	}); err != nil {
		g.t.Fatal(err)
	}
	g.ready(name, 3)
}

// logsOfAll sees that the logs tell of each replica, on whichever node it is.
func (g *thicket) logsOfAll(replicas map[string]bool) {
	g.t.Helper()
	for r := range replicas {
		eventually(g.t, "a line of each replica is in the logs", func() bool {
			lines, err := g.client.GetLogs(g.t.Context(), "probe", "openfaas-fn", false, -1, nil)
			if err != nil {
				g.t.Fatal(err)
			}
			found := false
			for m := range lines {
				found = found || m.Instance == r
			}
			return found
		})
	}
}

// TestNodeClosesItsFolder: a volume that all may write to is handed to containers,
// and functions are other users there.
func TestNodeClosesItsFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := run(t, ".", []string{"THICKET_DATA=" + dir}, "node", "--listen", "127.0.0.1:0", "--join", "https://127.0.0.1:1", "--token", "thicket1.a.b")
	if code == 0 {
		t.Errorf("a node with half a token runs: %s", stderr)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its folder is %v, %v, want one that others can't write into", info.Mode(), err)
	}
}
