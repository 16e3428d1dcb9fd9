package provider_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// gatewayVar tells the test binary to play a gateway with the given state folder
// until it is killed.
const gatewayVar = "PROVIDER_TEST_GATEWAY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(gatewayVar); dir != "" {
		if err := playGateway(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(providertest.Run(m))
}

// started is a provider that runs.
type started struct {
	*provider.Process
	stop func() error // ends Run and returns what it returned
}

// start returns a running provider, that is stopped when the test ends.
func start(t testing.TB, cfg provider.ProcessConfig) *started {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Node = "here"
	if cfg.FirstPort == 0 { // other packages' tests run at the same time
		cfg.FirstPort, cfg.LastPort = 23000, 25999
	}
	cfg.GatewayURL = "http://127.0.0.1:8080"
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, err := provider.NewProcess(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- p.Run(ctx)
		close(done)
	}()
	s := &started{Process: p}
	s.stop = func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return fmt.Errorf("Run doesn't end")
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return s
}

// bench is what most tests need: a provider, images and a table.
type bench struct {
	testing.TB
	*started
	images *providertest.Images
	table  *providertest.Table
}

func newBench(t testing.TB, cfg provider.ProcessConfig) *bench {
	t.Helper()
	b := &bench{TB: t, images: providertest.NewImages(t, providertest.Program(t)), table: providertest.NewTable(t)}
	cfg.Images, cfg.Observer = b.images, b.table
	b.started = start(t, cfg)
	return b
}

func (b *bench) apply(w provider.Workload) faas.Name {
	b.Helper()
	if err := b.Apply(b.Context(), w); err != nil {
		b.Fatal(err)
	}
	return w.Function.Name()
}

// run applies a workload of one replica and waits for it.
func (b *bench) run(w provider.Workload) (faas.Name, faas.Replica) {
	b.Helper()
	name := b.apply(w)
	return name, b.table.AwaitReady(b, name, w.Function.Revision, 1)[0]
}

func (b *bench) text(name faas.Name) string {
	b.Helper()
	var sb strings.Builder
	for m, err := range b.Logs(b.Context(), logs.Request{Name: name.Function, Tail: -1}) {
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&sb, "%s: %s\n", m.Instance, m.Text)
	}
	return sb.String()
}

func (b *bench) reason(name faas.Name) string {
	s, _ := b.Status(name)
	return s.Reason
}

func TestContract(t *testing.T) {
	providertest.Test(t, func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider {
		return start(t, provider.ProcessConfig{Images: images, Observer: observer})
	})
}

// TestAsNobody runs this package's tests once more as a user without privileges.
func TestAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("all other tests run without privileges already")
	}
	const nobody = 65534
	home, err := os.MkdirTemp("", "provider-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	for to, from := range map[string]string{"tests": os.Args[0], "function": providertest.Program(t)} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, to), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(home, "tests"), "-test.v", "-test.timeout=5m")
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, providertest.ProgramVar + "=" + filepath.Join(home, "function")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as nobody: %v\n%s", err, out)
	}
	for _, want := range []string{"--- PASS: TestContract ", "--- PASS: TestKilledGateway ", "--- PASS: TestStop/grandchildren "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("as nobody there is no %q in\n%s", want, out)
		}
	}
}

func TestStop(t *testing.T) {
	t.Run("derives its grace from the timeouts", func(t *testing.T) {
		b := newBench(t, provider.ProcessConfig{Grace: 200 * time.Millisecond})
		name, r := b.run(providertest.Workload("stubborn", 1, 1, "ignore_term", "yes"))
		b.apply(providertest.Workload("stubborn", 1, 0, "ignore_term", "yes"))
		b.table.AwaitGone(t, r.ID)
		if got := b.text(name); !strings.Contains(got, r.ID+": killed: it did not end within 200ms after SIGTERM") {
			t.Errorf("the logs don't say that it was killed:\n%s", got)
		}
	})
	t.Run("grandchildren", func(t *testing.T) {
		b := newBench(t, provider.ProcessConfig{})
		name, r := b.run(providertest.Workload("parent", 1, 1))
		pids := []int{
			b.spawned(name, "/spawn"),
			b.spawned(name, "/spawn?session=own"),
		}
		for _, pid := range pids {
			if !alive(pid) {
				t.Fatalf("grandchild %d doesn't live", pid)
			}
		}
		b.apply(providertest.Workload("parent", 1, 0))
		b.table.AwaitGone(t, r.ID)
		for _, pid := range pids {
			providertest.Await(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
		}
	})
	t.Run("grandchildren of what crashes", func(t *testing.T) {
		b := newBench(t, provider.ProcessConfig{})
		name, r := b.run(providertest.Workload("parent", 1, 1))
		pid := b.spawned(name, "/spawn?session=own")
		_, _, _ = b.table.Do(t.Context(), name, "/exit?code=1")
		b.table.AwaitGone(t, r.ID)
		providertest.Await(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
	})
	t.Run("of everything", func(t *testing.T) {
		dir := t.TempDir()
		b := newBench(t, provider.ProcessConfig{Dir: dir})
		name := b.apply(providertest.Workload("many", 1, 3))
		b.table.AwaitReady(t, name, 1, 3)
		if err := b.stop(); err != nil {
			t.Fatalf("Run() = %v", err)
		}
		if left := b.table.All(name); len(left) > 0 {
			t.Errorf("after Run there are %+v", left)
		}
		if n := b.images.Held(); n != 0 {
			t.Errorf("after Run %d images are held", n)
		}
		if err := b.Apply(t.Context(), providertest.Workload("late", 1, 1)); err == nil {
			t.Error("a stopped provider takes a function")
		}
		entries, err := os.ReadDir(filepath.Join(dir, "replicas"))
		if err != nil || len(entries) > 0 {
			t.Errorf("after Run there are records: %v, %v", entries, err)
		}
	})
	t.Run("in a hurry", func(t *testing.T) {
		b := newBench(t, provider.ProcessConfig{Grace: time.Hour})
		_, r := b.run(providertest.Workload("stubborn", 1, 1, "ignore_term", "yes"))
		b.Hurry()
		if err := b.stop(); err != nil {
			t.Fatalf("Run() = %v", err)
		}
		b.table.AwaitGone(t, r.ID)
	})
}

// spawned has the function start a grandchild and returns its process, as this
// side sees it.
func (b *bench) spawned(name faas.Name, path string) int {
	b.Helper()
	pid, err := strconv.Atoi(b.table.Get(b, name, path))
	if err != nil {
		b.Fatal(err)
	}
	return pid
}

// alive says whether there is such a process that hasn't ended.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !os.IsNotExist(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestStartTimeout(t *testing.T) {
	b := newBench(t, provider.ProcessConfig{StartTimeout: 300 * time.Millisecond})
	deaf := b.apply(providertest.Workload("deaf", 1, 1, "behave", "deaf"))
	unready := b.apply(providertest.Workload("unready", 1, 1, "behave", "unready"))
	providertest.Await(t, "the reason names the port", func() bool {
		return strings.Contains(b.reason(deaf), "not ready within 300ms: nothing listens on port ") &&
			strings.Contains(b.reason(deaf), "environment variable port")
	})
	providertest.Await(t, "the reason names the answer", func() bool {
		return strings.Contains(b.reason(unready), "not ready within 300ms: GET /_/ready answers 503")
	})
}

func TestReadyWithoutPaths(t *testing.T) {
	b := newBench(t, provider.ProcessConfig{})
	b.run(providertest.Workload("plain", 1, 1, "behave", "plain"))
}

func TestPortTaken(t *testing.T) {
	// The range has room for two replicas: somebody else is on its first port.
	const room = 5
	first, taken := portRange(t, room)
	defer taken.Close()
	b := newBench(t, provider.ProcessConfig{FirstPort: first, LastPort: first + room - 1})
	name := b.apply(providertest.Workload("ports", 1, 3))
	providertest.Await(t, "the reason says that the ports are used up", func() bool {
		return strings.Contains(b.reason(name), "no free port between")
	})
	providertest.Await(t, "the two others are ready", func() bool { return len(b.table.Ready(name)) == 2 })
}

// TestSlowReader has a reader sleep while a function talks: it learns how much it
// missed, and nobody waits for it.
func TestSlowReader(t *testing.T) {
	b := newBench(t, provider.ProcessConfig{LogLines: 50})
	name, r := b.run(providertest.Workload("talkative", 1, 1))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, goOn, done := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	go func() {
		n := 0
		var lost string
		for m, err := range b.Logs(ctx, logs.Request{Name: name.Function, Tail: -1, Follow: true}) {
			if err != nil {
				t.Errorf("Logs() = %v", err)
				break
			}
			if n++; n == 1 {
				close(first)
				<-goOn
			}
			if strings.Contains(m.Text, "lines lost") {
				lost = m.Text
			}
			if m.Text == "word 999" {
				break
			}
		}
		done <- lost
	}()
	<-first
	if _, _, err := b.table.DoAt(t.Context(), r, "/log?lines=1000&text=word"); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "all is written", func() bool { return strings.Contains(b.text(name), "word 999\n") })
	close(goOn)
	if lost := <-done; lost != "950 lines lost: they were written faster than this reader took them" {
		t.Errorf("the reader is told %q", lost)
	}
}

// portRange finds a few free ports in a row, and listens on the first.
func portRange(t *testing.T, n uint16) (first uint16, taken net.Listener) {
	t.Helper()
next:
	for first = 31000; first < 32000; first += n {
		for port := first + n - 1; port >= first; port-- {
			l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue next
			}
			if port == first {
				return first, l
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0, nil
}

// TestKilledGateway kills a gateway and holds the next one to finding everything.
func TestKilledGateway(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), gatewayVar+"="+dir, providertest.ProgramVar+"="+providertest.Program(t))
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for s := bufio.NewScanner(stdout); s.Scan(); {
		if s.Text() == "ready" {
			break
		}
		pid, err := strconv.Atoi(s.Text())
		if err != nil {
			t.Errorf("the gateway says %q", s.Text())
			continue
		}
		pids = append(pids, pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as it should be
	if len(pids) != 4 {
		t.Fatalf("the gateway had processes %v, want 4", pids)
	}
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d didn't outlive its gateway: nothing is left to be found", pid)
		}
	}
	b := newBench(t, provider.ProcessConfig{Dir: dir})
	for _, pid := range pids {
		providertest.Await(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
	}
	b.run(providertest.Workload("left", 1, 1))
}

// playGateway runs two functions, each with a grandchild in a session of its own,
// prints their processes, and waits to be killed.
func playGateway(dir string) error {
	t := &standIn{ctx: context.Background(), dir: dir + "-gateway"}
	images := providertest.NewImages(t, os.Getenv(providertest.ProgramVar))
	table := providertest.NewTable(t)
	p, err := provider.NewProcess(provider.ProcessConfig{
		Node: "here", Dir: dir, Images: images, Observer: table, FirstPort: 23000, LastPort: 25999,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	go p.Run(t.ctx)
	for _, f := range []string{"left", "over"} {
		w := providertest.Workload(f, 1, 1)
		w.Secrets = map[string][]byte{"key": []byte("value")}
		if err := p.Apply(t.ctx, w); err != nil {
			return err
		}
		table.AwaitReady(t, w.Function.Name(), 1, 1)
		fmt.Println(table.Get(t, w.Function.Name(), "/spawn?session=own"))
		fmt.Println(table.Get(t, w.Function.Name(), "/pid"))
	}
	fmt.Println("ready")
	wait := make(chan os.Signal, 1)
	signal.Notify(wait, syscall.SIGTERM)
	<-wait
	return nil
}

// standIn is a testing.TB outside of a test: the process it is in gets killed.
type standIn struct {
	testing.TB
	ctx context.Context
	dir string
}

func (s *standIn) Helper()                  {}
func (s *standIn) Cleanup(func())           {}
func (s *standIn) Context() context.Context { return s.ctx }
func (s *standIn) Output() io.Writer        { return os.Stderr }
func (s *standIn) TempDir() string          { _ = os.MkdirAll(s.dir, 0o755); return s.dir }
func (s *standIn) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (s *standIn) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// TestReusedPID holds a restart to leaving strangers alone: a record whose process
// has ended, and whose number belongs to somebody else.
func TestReusedPID(t *testing.T) {
	dir := t.TempDir()
	stranger := exec.Command(providertest.Program(t), "idle")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	})
	if err := os.Mkdir(filepath.Join(dir, "replicas"), 0o700); err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Skip("only Linux has boot IDs")
	}
	rec := fmt.Sprintf(`{"replica":"old-abc","pid":%d,"started":"1","boot":%q}`, stranger.Process.Pid, strings.TrimSpace(string(boot)))
	if err := os.WriteFile(filepath.Join(dir, "replicas", "old-abc.json"), []byte(rec), 0o600); err != nil {
		t.Fatal(err)
	}
	newBench(t, provider.ProcessConfig{Dir: dir})
	if !alive(stranger.Process.Pid) {
		t.Error("a stranger was killed for having the number of an old replica")
	}
	if left, err := os.ReadDir(filepath.Join(dir, "replicas")); err != nil || len(left) > 0 {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

func TestSecondProvider(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, provider.ProcessConfig{Dir: dir})
	_, err := provider.NewProcess(provider.ProcessConfig{
		Node: "here", Dir: dir, Images: b.images, Observer: b.table, Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "in use by another gateway") {
		t.Errorf("NewProcess on a folder that is in use = %v", err)
	}
}
