//go:build faults && linux

package faults_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
)

// lan is a network of hosts, each a network namespace with an address of its own,
// on a bridge in the namespace of the suite, which is the host of who calls. All of
// it is in namespaces that nobody else sees and that end with the suite.
type lan struct {
	t     *testing.T
	hosts map[string]*host
}

// host is a machine of the network.
type host struct {
	t    *testing.T
	name string
	addr string
	dir  string
	ns   *os.File
	id   string // of its namespace, as /proc has it

	mu  sync.Mutex // guards below
	cmd *exec.Cmd  // of the node that runs
	log bytes.Buffer
}

// network is the first three numbers of the network's addresses.
const network = "10.77.0."

// newLAN makes hosts, the first of which has the address that ends in 1.
func newLAN(t *testing.T, names ...string) *lan {
	t.Helper()
	skip := func(why string) {
		t.Helper()
		fmt.Println("skipped:", why) // which "go test" keeps to itself
		t.Skip(why)
	}
	for _, tool := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(tool + " isn't there (Debian's packages are iproute2 and iptables)")
		}
	}
	if !inside {
		skip("it needs root, for network namespaces of its own")
	}
	// Where ip keeps names of namespaces: ours are seen by us alone.
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	l := &lan{t: t, hosts: map[string]*host{}}
	l.ip("link", "add", "lan", "type", "bridge")
	l.ip("address", "add", network+"100/24", "dev", "lan")
	l.ip("link", "set", "lan", "up")
	for i, name := range names {
		h := &host{t: t, name: name, addr: network + strconv.Itoa(1+i), dir: t.TempDir()}
		l.ip("netns", "add", name)
		l.ip("link", "add", "to-"+name, "type", "veth", "peer", "name", "eth0", "netns", name)
		l.ip("link", "set", "to-"+name, "master", "lan", "up")
		l.ip("-n", name, "address", "add", h.addr+"/24", "dev", "eth0")
		l.ip("-n", name, "link", "set", "eth0", "up")
		l.ip("-n", name, "link", "set", "lo", "up")
		var err error
		if h.ns, err = os.Open(filepath.Join("/run/netns", name)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.ns.Close() })
		var st unix.Stat_t
		if err := unix.Fstat(int(h.ns.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		h.id = fmt.Sprintf("net:[%d]", st.Ino)
		l.hosts[name] = h
	}
	return l
}

func (l *lan) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// start starts a program on the host: a process has the network of the thread
// that started it.
func (h *host) start(cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer own.Close()
			if err = unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err == nil {
				err = cmd.Start()
				if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back == nil {
					runtime.UnlockOSThread() // else the thread ends here
				}
			}
		}
		done <- err
	}()
	return <-done
}

// iptables changes the host's firewall.
func (h *host) iptables(args ...string) {
	h.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", h.name, "iptables"}, args...)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("iptables %s on %s: %v: %s", strings.Join(args, " "), h.name, err, out)
	}
}

// wire is a rule for all that passes the host's cable, in and out.
func (h *host) wire(do string, rule ...string) {
	h.t.Helper()
	h.iptables(append([]string{do, "INPUT", "-i", "eth0"}, rule...)...)
	h.iptables(append([]string{do, "OUTPUT", "-o", "eth0"}, rule...)...)
}

// pids are the processes that run on the host.
func (h *host) pids() (found []int) {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, link := range links {
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if id, err := os.Readlink(link); err == nil && id == h.id { // else it ended meanwhile
			found = append(found, pid)
		}
	}
	return found
}

// signal gives a signal to all that runs on the host, the node first.
func (h *host) signal(sig syscall.Signal) {
	h.t.Helper()
	if cmd := h.running(); cmd != nil {
		_ = cmd.Process.Signal(sig) // it has ended
	}
	for _, pid := range h.pids() {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			h.t.Errorf("signal %v to process %d on %s: %v", sig, pid, h.name, err)
		}
	}
}

// cutPower kills all that runs on the host. Its kernel is ours, and closes their
// connections.
func (h *host) cutPower() {
	h.t.Helper()
	eventually(h.t, "nothing runs on "+h.name, func() bool {
		h.signal(syscall.SIGKILL)
		return len(h.pids()) == 0
	})
	h.wait()
}

func (h *host) running() *exec.Cmd {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cmd
}

// node starts the node on this host; args are needed until it has joined.
func (h *host) node(args ...string) {
	h.t.Helper()
	cmd := exec.Command(program, append([]string{"node"}, args...)...)
	cmd.Env = append(baseEnviron(), "THICKET_DATA="+h.dir, "THICKET_NODE="+h.name, "THICKET_LOG_FORMAT=json")
	cmd.Stderr = h
	if err := h.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cmd = cmd
}

// Write implements [io.Writer], for what the node logs.
func (h *host) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *host) logged() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

// wait waits until the node has ended.
func (h *host) wait() {
	if cmd := h.running(); cmd != nil {
		cmd.Wait()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cmd = nil
}

// stop ends the node with its replicas, in a hurry.
func (h *host) stop() {
	cmd := h.running()
	if cmd == nil {
		return
	}
	cmd.Process.Signal(syscall.SIGTERM)
	hurry := time.AfterFunc(500*time.Millisecond, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer hurry.Stop()
	h.wait()
}

// seenNode is a node as the API shows it.
type seenNode struct {
	Name, State, Reason string
	Replicas            int
}

// ask reads what the gateway's API says at a path. It returns false if it says
// nothing.
func (g *gateway) ask(path string, v any) bool {
	req, err := http.NewRequest(http.MethodGet, g.url+path, nil)
	if err != nil {
		return false
	}
	req.SetBasicAuth("admin", testPassword)
	resp, err := operator.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(v) == nil
}

// operator looks at the gateway, also while it is away: each time anew.
var operator = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// states returns the state of each node.
func (g *gateway) states() map[string]string {
	var list []seenNode
	all := make(map[string]string)
	if g.ask("/system/nodes", &list) {
		for _, n := range list {
			all[n.Name] = n.State
		}
	}
	return all
}

// places returns the replicas that are ready of the functions named, on nodes that
// aren't silent.
func (g *gateway) places(functions ...string) (found []wire.Replica) {
	var s wire.Snapshot
	if !g.ask("/system/discovery", &s) {
		return nil
	}
	for _, r := range s.Replicas {
		for _, f := range functions {
			if r.Function.Function == f && r.State == wire.StateReady && !r.Suspect {
				found = append(found, r)
			}
		}
	}
	return found
}

// command runs a command of the program against the gateway.
func (g *gateway) command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, append(args, "-g", g.url)...)
	cmd.Env = append(baseEnviron(), "THICKET_PASSWORD="+testPassword)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gateway-ext %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
