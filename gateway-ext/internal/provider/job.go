package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// secretMount is where functions of OpenFaaS look for their secrets.
const secretMount = "/var/openfaas/secrets"

// Marks in a replica's environment. replicaMark finds it again among all the
// processes of the machine.
const (
	replicaMark = "THICKET_REPLICA"
	nodeMark    = "THICKET_NODE"
)

// DiscoveryVar is the variable by which a function finds where its gateway tells
// of replicas. As a path it is one at the gateway, whose address each node has its
// own for.
const DiscoveryVar = "THICKET_DISCOVERY_URL"

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// A job is all that the machine needs to start one replica.
type job struct {
	id      string
	root    string // the image's tree
	argv    []string
	env     map[string]string
	dir     string // working directory, in the tree
	uid     int    // 0: the gateway's own
	port    uint16
	limits  limits
	secrets string // the folder with the secrets
	mount   string // where the replica sees it, if it has a tree of its own
	tmp     string // a folder of its own, if it has no tree of its own
	hosts   []byte // its /etc/hosts, if it has a tree of its own
	grace   time.Duration
	idle    time.Duration

	cleanUp func()
}

// prepareJob takes what the replica needs: a port, a user, its secrets.
func (p *Process) prepareJob(r *replica) (*job, error) {
	r.f.mu.Lock()
	rev := r.rev
	img := rev.image
	r.f.mu.Unlock()
	if img == nil {
		return nil, errors.New("its image is not on this machine any more")
	}
	j := &job{id: r.state.ID, root: img.Root, limits: rev.limits, dir: cmp.Or(img.WorkingDir, "/")}

	if p.machine.users {
		uid, err := p.owners.uid(r.f.name.String())
		if err != nil {
			return nil, err
		}
		j.uid = uid
	}
	r.f.mu.Lock()
	secrets, err := rev.putSecrets(p, j.uid)
	r.f.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("its secrets can't be written: %w", err)
	}
	j.secrets = secrets

	port, metrics, free, err := p.ports.take()
	if err != nil {
		return nil, err
	}
	j.port = port
	j.cleanUp = free
	if !p.machine.trees {
		j.tmp = p.tmpDir(j.id)
		if err := makeTmp(j.tmp, j.uid); err != nil {
			free()
			return nil, fmt.Errorf("its folder for temporary files: %w", err)
		}
		j.cleanUp = func() {
			free()
			if err := os.RemoveAll(j.tmp); err != nil {
				p.log.Warn("a replica's temporary files stay", "replica", j.id, "err", err)
			}
		}
	}

	fn := &rev.spec
	env := map[string]string{"PATH": defaultPath, "HOME": "/tmp", "TMPDIR": "/tmp"}
	if j.tmp != "" {
		env["HOME"], env["TMPDIR"] = j.tmp, j.tmp
	}
	for _, kv := range img.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	maps.Copy(env, p.cfg.Env)
	if p.cfg.GatewayURL != "" {
		env["gateway_url"], env["OPENFAAS_URL"] = p.cfg.GatewayURL, p.cfg.GatewayURL
	}
	env["listen_host"] = "127.0.0.1"
	maps.Copy(env, fn.EnvVars)
	if path := env[DiscoveryVar]; strings.HasPrefix(path, "/") {
		env[DiscoveryVar] = p.cfg.GatewayURL + path
	}
	if fn.EnvProcess != "" {
		env["fprocess"] = fn.EnvProcess
	}
	j.mount = secretMount
	if m := env["secret_mount_path"]; filepath.IsAbs(m) && filepath.Clean(m) != "/" {
		j.mount = filepath.Clean(m)
	}
	env["secret_mount_path"] = j.mount
	if !p.machine.trees {
		env["secret_mount_path"] = j.secrets
	}
	env["port"], env["PORT"] = strconv.Itoa(int(port)), strconv.Itoa(int(port))
	env["metrics_port"] = strconv.Itoa(int(metrics))
	env["OPENFAAS_NAME"], env["OPENFAAS_NAMESPACE"] = fn.Service, fn.Namespace
	env[replicaMark], env[nodeMark] = j.id, p.cfg.Node
	j.env = env

	j.argv = slices.Concat(img.Entrypoint, img.Cmd)
	if len(j.argv) == 0 {
		j.argv = strings.Fields(env["fprocess"])
	}
	if len(j.argv) == 0 {
		j.cleanUp()
		return nil, fmt.Errorf("image %s says nothing to run: set an ENTRYPOINT in it, or fprocess in the function", fn.Image)
	}
	j.hosts = hostsFile(p.cfg.GatewayURL, func(host string) []netip.Addr { return lookUpHost(p.ctx, host) })
	j.idle, j.grace = patience(env, p.cfg.Grace)
	return j, nil
}

// environ is the environment as the kernel takes it, in a steady order.
func (j *job) environ() []string {
	env := make([]string, 0, len(j.env))
	for _, k := range slices.Sorted(maps.Keys(j.env)) {
		env = append(env, k+"="+j.env[k])
	}
	return env
}

// patience derives from the function's own timeouts how long to wait for what is
// in flight, and how long for the process to end after SIGTERM. A watchdog
// reports itself unhealthy for its healthcheck_interval (write_timeout if that
// isn't set) before it starts to drain, which takes up to write_timeout more.
func patience(env map[string]string, defaultGrace time.Duration) (idle, grace time.Duration) {
	read, write, exec := timeout(env["read_timeout"]), timeout(env["write_timeout"]), timeout(env["exec_timeout"])
	longest := max(read, write, exec)
	if longest == 0 {
		return defaultIdle, defaultGrace
	}
	pause := write
	if d := timeout(env["healthcheck_interval"]); d > 0 {
		pause = d
	}
	return longest + margin, longest + pause + margin
}

const (
	// defaultIdle is how long a call may take that nothing else bounds: the
	// gateway of OpenFaaS cuts it there.
	defaultIdle = 60 * time.Second

	// margin is what a process may need beyond the timeouts it keeps.
	margin = 2 * time.Second
)

// timeout reads a duration as OpenFaaS's watchdogs do: "30s", or "30" seconds.
func timeout(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return max(0, min(time.Duration(n), 24*3600)*time.Second)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0
	}
	return max(0, min(d, 24*time.Hour))
}

// makeTmp makes a folder that only its user can look into.
func makeTmp(dir string, uid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if uid == 0 {
		return nil
	}
	return os.Chown(dir, uid, uid)
}

// gatewayNames are the names under which functions in the wild call the gateway.
const gatewayNames = "gateway gateway.openfaas gateway.openfaas.svc.cluster.local"

// hostsFile is a replica's /etc/hosts: the machine's own, below the names of the
// gateway.
func hostsFile(gatewayURL string, lookUp func(host string) []netip.Addr) []byte {
	b := []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost\n" + gatewayHosts(gatewayURL, lookUp))
	own, err := os.ReadFile("/etc/hosts")
	if err != nil || len(own) > 64<<10 {
		return b // a machine without one has nothing to add
	}
	return append(b, own...)
}

// gatewayHosts has a line for each of the gateway's addresses. By which name it is
// set, and where that is, is left to those who know names: it may move.
func gatewayHosts(gatewayURL string, lookUp func(host string) []netip.Addr) string {
	_, host, _ := strings.Cut(gatewayURL, "://")
	host, _, _ = strings.Cut(host, "/")
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	names := strings.Fields(gatewayNames)
	addrs := []netip.Addr{loopback} // as long as there is no gateway
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		addrs[0] = a
	} else if host != "" {
		addrs, names = lookUp(host), slices.DeleteFunc(names, func(n string) bool { return n == host })
	}
	var b strings.Builder
	for _, a := range addrs {
		fmt.Fprintln(&b, a, strings.Join(names, " "))
	}
	return b.String()
}

// lookUpHost asks whom this machine asks for names, not for long. It knows none
// if nobody answers.
func lookUpHost(ctx context.Context, host string) []netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs[:min(len(addrs), 4)]
}

// ports gives out the ports of a range in turn, so that one that was given back
// stays unused for as long as possible: a client that still believes in the old
// address finds nobody there, and not somebody else.
type ports struct {
	first, last uint16

	mu   sync.Mutex // guards below
	next uint16
	used map[uint16]bool
}

func newPorts(first, last uint16) *ports {
	return &ports{first: first, last: last, next: first, used: make(map[uint16]bool)}
}

// take returns two ports nobody listens on now, and what gives them back.
func (p *ports) take() (a, b uint16, free func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []uint16
	for range int(p.last-p.first) + 1 {
		port := p.next
		if p.next++; p.next > p.last || p.next == 0 {
			p.next = p.first
		}
		if p.used[port] || !vacant(port) {
			continue
		}
		if found = append(found, port); len(found) == 2 {
			break
		}
	}
	if len(found) < 2 {
		return 0, 0, nil, fmt.Errorf("no free port between %d and %d is left on this machine", p.first, p.last)
	}
	a, b = found[0], found[1]
	p.used[a], p.used[b] = true, true
	return a, b, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.used, a)
		delete(p.used, b)
	}, nil
}

// vacant says whether nobody listens on the port.
func vacant(port uint16) bool {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
