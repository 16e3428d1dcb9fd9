package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The contestants, as the tables name them.
const (
	direct        = "direct"
	nginx         = "nginx"
	haproxy       = "haproxy"
	caddy         = "caddy"
	bare          = "httputil"
	thicket       = "thicket"
	thicketPolicy = "thicket+policy"
	thicketAlone  = "thicket-alone"
)

// order is that of the tables and of the first round.
var order = []string{direct, nginx, haproxy, caddy, bare, thicket, thicketPolicy, thicketAlone}

// place is where a contestant stands; who is only tried stands behind the others.
func place(name string) int {
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}

// contestant is something that carries requests to the function.
type contestant struct {
	name     string
	addr     string // host:port
	function string // whose path is asked for
	pid      int    // 0 if it has no process: the direct way
	children bool   // its child processes are part of it
}

// stage is all that runs during the benchmark.
type stage struct {
	dir         string            // temporary
	programs    map[string]string // that were built, by name
	contestants []*contestant
	replicas    []string // addresses of the function

	running []*process // to be ended, the last first
}

// newStage builds and starts everything.
func newStage(ctx context.Context, p plan) (_ *stage, err error) {
	if _, err := exec.LookPath("wrk"); err != nil {
		return nil, errors.New("wrk is missing, which makes the load: apt-get install wrk")
	}
	s := &stage{programs: map[string]string{}}
	// In the system's folder, since an unprivileged worker has to reach it.
	if s.dir, err = os.MkdirTemp("", "thicket-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, err
	}
	if err := s.build(ctx, p.program); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.script(), []byte(wrkScript), 0o600); err != nil {
		return nil, err
	}
	ours, err := s.gateway(ctx)
	if err != nil {
		return nil, err
	}
	if p.wanted(direct) {
		s.contestants = append(s.contestants, &contestant{name: direct, addr: s.replicas[0], function: functionName})
	}
	for _, o := range slices.Concat(others, p.tries) {
		if !p.wanted(o.name) && !slices.ContainsFunc(p.tries, func(t rival) bool { return t.name == o.name }) {
			continue
		}
		if o.name == thicketAlone && p.profile != "" {
			o.command = profiled(p.profile)
		}
		if err := s.other(ctx, o); err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	for _, c := range ours {
		if p.wanted(c.name) {
			s.contestants = append(s.contestants, c)
		}
	}
	slices.SortStableFunc(s.contestants, func(a, b *contestant) int { return place(a.name) - place(b.name) })
	return s, nil
}

// build makes the programs that are ours, as the release makes them.
func (s *stage) build(ctx context.Context, program string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	for name, pkg := range map[string]string{
		"gateway-ext": "./gateway-ext", "function": "./gateway-ext/bench/function", bare: "./gateway-ext/bench/bare", thicketAlone: "./gateway-ext/bench/alone",
	} {
		if name == "gateway-ext" && program != "" {
			s.programs[name] = program
			continue
		}
		s.programs[name] = filepath.Join(s.dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -funcalign=16", "-o", s.programs[name], pkg)
		if name == "gateway-ext" {
			cmd = exec.CommandContext(ctx, ".ci/build", s.programs[name])
		}
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", pkg, err)
		}
	}
	return nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("run this inside of the repository: it builds the programs that it measures")
	}
	return filepath.Dir(mod), nil
}

// rival is a proxy that others have made, or that is started as such.
type rival struct {
	name     string
	program  string // of the system's; empty if it is one that build made
	children bool
	config   string // the name of its configuration, made by write
	write    func(dir string, port int, replicas []string) string
	command  func(program, dir, config string, port int, replicas []string) *exec.Cmd
}

// others are configured alike: as many workers as there are cores, connections
// kept on both sides for as long as they like, the usual headers that tell of the
// client, nothing logged, nothing cached.
var others = []rival{
	{
		name: nginx, program: "nginx", children: true, config: "nginx.conf", write: nginxConfig,
		command: func(program, dir, config string, _ int, _ []string) *exec.Cmd {
			return exec.Command(program, "-p", dir, "-c", config, "-e", "stderr")
		},
	},
	{
		name: haproxy, program: "haproxy", config: "haproxy.cfg", write: haproxyConfig,
		command: func(program, _, config string, _ int, _ []string) *exec.Cmd {
			return exec.Command(program, "-db", "-q", "-f", config)
		},
	},
	{
		name: caddy, program: "caddy", config: "Caddyfile", write: caddyConfig,
		command: func(program, _, config string, _ int, _ []string) *exec.Cmd {
			return exec.Command(program, "run", "--adapter", "caddyfile", "--config", config)
		},
	},
	{name: bare, command: small},
	{name: thicketAlone, command: small},
}

// small starts one of the small programs beside this one.
func small(program, _, _ string, port int, replicas []string) *exec.Cmd {
	return listenAndReplicas(program, nil, port, replicas)
}

// profiled starts thicket-alone so that it writes its profiles into a folder.
func profiled(dir string) func(string, string, string, int, []string) *exec.Cmd {
	return func(program, _, _ string, port int, replicas []string) *exec.Cmd {
		args := []string{"-cpu", filepath.Join(dir, "cpu.pprof"), "-allocs", filepath.Join(dir, "allocs.pprof")}
		return listenAndReplicas(program, args, port, replicas)
	}
}

// listenAndReplicas starts a program that is told by its arguments where to
// listen and where the replicas are.
func listenAndReplicas(program string, args []string, port int, replicas []string) *exec.Cmd {
	return exec.Command(program, slices.Concat(args, []string{fmt.Sprintf("127.0.0.1:%d", port)}, replicas)...)
}

func nginxConfig(dir string, port int, replicas []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[2]s/nginx-body;
  proxy_temp_path %[2]s/nginx-proxy;
  fastcgi_temp_path %[2]s/nginx-fastcgi;
  uwsgi_temp_path %[2]s/nginx-uwsgi;
  scgi_temp_path %[2]s/nginx-scgi;
  keepalive_requests 100000000;
  upstream replicas {
`, runtime.NumCPU(), dir)
	for _, r := range replicas {
		fmt.Fprintf(&b, "    server %s;\n", r)
	}
	fmt.Fprintf(&b, `    keepalive 512;
    keepalive_requests 100000000;
  }
  server {
    listen 127.0.0.1:%d;
    location / {
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
  }
}
`, port)
	return b.String()
}

func haproxyConfig(_ string, port int, replicas []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
  nbthread %d
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  http-reuse always
  option forwardfor
frontend calls
  bind 127.0.0.1:%d
  http-request set-header X-Forwarded-Host %%[req.hdr(host)]
  http-request set-header X-Forwarded-Proto http
  default_backend replicas
backend replicas
  balance roundrobin
`, runtime.NumCPU(), port)
	for i, r := range replicas {
		fmt.Fprintf(&b, "  server replica%d %s\n", i, r)
	}
	return b.String()
}

func caddyConfig(_ string, port int, replicas []string) string {
	return fmt.Sprintf(`{
	admin off
	auto_https off
	log {
		level ERROR
	}
}
http://:%d {
	bind 127.0.0.1
	reverse_proxy %s {
		lb_policy round_robin
		transport http {
			keepalive_idle_conns_per_host 1024
		}
	}
}
`, port, strings.Join(replicas, " "))
}

// other starts a rival, unless it isn't installed.
func (s *stage) other(ctx context.Context, o rival) error {
	program := s.programs[o.name]
	if o.program != "" {
		var err error
		if program, err = lookPath(o.program); err != nil {
			progress("%s is not installed, and left out", o.name)
			return nil
		}
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	config := ""
	if o.write != nil {
		config = filepath.Join(s.dir, o.config)
		if err := os.WriteFile(config, []byte(o.write(s.dir, port, s.replicas)), 0o600); err != nil {
			return err
		}
	}
	cmd := o.command(program, s.dir, config, port, s.replicas)
	// Who keeps state keeps it here.
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir)
	p, err := s.start(cmd, syscall.SIGTERM)
	if err != nil {
		return err
	}
	c := &contestant{name: o.name, addr: fmt.Sprintf("127.0.0.1:%d", port), function: functionName, pid: cmd.Process.Pid, children: o.children}
	s.contestants = append(s.contestants, c)
	return p.answers(ctx, "http://"+c.addr+c.path())
}

// path is what a contestant is asked for. All get the one that the gateway
// needs; the function answers to any.
func (c *contestant) path() string { return "/function/" + c.function }

// process is a program that was started.
type process struct {
	cmd    *exec.Cmd
	signal os.Signal // that asks it to end
	stderr bytes.Buffer
	done   chan struct{} // closed when it has ended
}

// start starts a program that close will end.
func (s *stage) start(cmd *exec.Cmd, signal os.Signal) (*process, error) {
	p := &process{cmd: cmd, signal: signal, done: make(chan struct{})}
	cmd.Stderr = &p.stderr // of no interest, unless it fails
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.running = append(s.running, p)
	go func() { // until it has ended; close waits for that
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p, nil
}

// answers waits until the program answers at an address with 200.
func (p *process) answers(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		code, err := status(ctx, client, url)
		if code == http.StatusOK {
			return nil
		}
		last = fmt.Errorf("GET %s: status %d, %w", url, code, err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return fmt.Errorf("%s ended: %v\n%s", p.cmd.Path, p.cmd.ProcessState, p.stderr.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s doesn't answer after 30 s: %w", p.cmd.Path, last)
}

func status(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// end asks the process to end, and sees to it.
func (p *process) end() {
	for _, sig := range []os.Signal{p.signal, p.signal, os.Kill} {
		_ = p.cmd.Process.Signal(sig) // it may have ended
		select {
		case <-p.done:
			return
		case <-time.After(5 * time.Second):
		}
	}
	<-p.done
}

// close ends all that was started, and removes all that was written.
func (s *stage) close() error {
	for i := len(s.running) - 1; i >= 0; i-- {
		s.running[i].end()
	}
	return os.RemoveAll(s.dir)
}

// lookPath finds a program that Debian keeps where only root looks.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// freePort finds a port that is free now. That it still is in a moment is
// likely and not certain; who finds it taken ends with an error.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// versions tells which programs were compared.
func (s *stage) versions(ctx context.Context) []string {
	var all []string
	for _, v := range [][]string{{nginx, "-v"}, {haproxy, "-v"}, {caddy, "version"}, {"wrk", "-v"}, {"go", "version"}} {
		path, err := lookPath(v[0])
		if err != nil {
			continue
		}
		// wrk ends with an error after it has told.
		out, _ := exec.CommandContext(ctx, path, v[1:]...).CombinedOutput()
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		line = strings.TrimPrefix(line, "nginx version: ")
		line, _, _ = strings.Cut(line, " Copyright")
		line, _, _ = strings.Cut(line, " - https")
		if v[0] == caddy && !strings.HasPrefix(line, "v") {
			line = "Caddy " + line
		}
		all = append(all, line)
	}
	return all
}
