package main_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// diagnosis is what the doctor said.
type diagnosis struct {
	t        *testing.T
	code     int
	Findings []struct{ Level, About, Check, Says, Do string }
	Fail     int
}

// diagnose runs "gateway-ext doctor".
func diagnose(t *testing.T, environ []string, args ...string) diagnosis {
	t.Helper()
	d := diagnosis{t: t}
	code, stdout, stderr := run(t, ".", environ, append([]string{"doctor", "--json"}, args...)...)
	d.code = code
	if err := json.Unmarshal([]byte(stdout), &d); err != nil {
		t.Fatalf("gateway-ext doctor %q: exit %d, %v\n%s%s", args, code, err, stdout, stderr)
	}
	if (code == 1) != (d.Fail > 0) || code > 1 {
		t.Errorf("gateway-ext doctor exits with %d when %d things are wrong", code, d.Fail)
	}
	for _, secret := range []string{testPassword, "hidden"} {
		if strings.Contains(stdout+stderr, secret) {
			t.Errorf("gateway-ext doctor tells the secret %q:\n%s%s", secret, stdout, stderr)
		}
	}
	return d
}

// has says whether there is such a finding.
func (d diagnosis) has(level, about, check, says string) bool {
	for _, f := range d.Findings {
		if f.Level == level && strings.Contains(f.About, about) && f.Check == check && strings.Contains(f.Says, says) {
			return true
		}
	}
	return false
}

func (d diagnosis) want(level, about, check, says string) {
	d.t.Helper()
	if !d.has(level, about, check, says) {
		d.t.Errorf("there is no finding %q about %q: %s: %q in:\n%s", level, about, check, says, d)
	}
}

// String lists the findings.
func (d diagnosis) String() string {
	var b strings.Builder
	for _, f := range d.Findings {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t-> %s\n", f.Level, f.About, f.Check, f.Says, f.Do)
	}
	return b.String()
}

func TestDoctorAlone(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"THICKET_DATA=" + dir, "THICKET_ADDR=127.0.0.1:0"}
	d := diagnose(t, environ)
	d.want("ok", "this machine", "gateway", "none runs here")
	d.want("ok", "this machine", "port", "127.0.0.1:0")

	// Somebody else's server is at the gateway's port.
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	at := strings.TrimPrefix(other.URL, "http://")
	d = diagnose(t, append(environ, "THICKET_ADDR="+at))
	said := "another program" // who may not be told but root
	if runtime.GOOS == "linux" {
		said = fmt.Sprintf("(process %d)", os.Getpid())
	}
	d.want("fail", "this machine", "port", "is taken by")
	d.want("fail", "this machine", "port", said)
	diagnose(t, environ, "-g", at).want("fail", "the gateway", "gateway", "is no gateway of Thicket")
	diagnose(t, environ, "-g", "127.0.0.1:1").want("fail", "the gateway", "gateway", "refuses connections")

	d = diagnose(t, append(environ, "THICKET_REDIS_URL=redis://:hidden@127.0.0.1:1/0", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector.invalid:4318"))
	d.want("fail", "this machine", "network", "the Redis at 127.0.0.1:1 (THICKET_REDIS_URL): refuses connections")
	d.want("fail", "this machine", "dns", "collector.invalid")
	diagnose(t, append(environ, "THICKET_ADRR=:80")).want("fail", "settings", "setting", "THICKET_ADRR")

	code, _, stderr := run(t, ".", environ, "doctor", "--join", "http://127.0.0.1:8090")
	if code != 1 || !strings.Contains(stderr, "https://host:8090") {
		t.Errorf("--join with http exits %d and says %q, want how to write it", code, stderr)
	}
	code, _, stderr = run(t, ".", environ, "doctor", "--join", "https://127.0.0.1:8090", "-g", "x")
	if code != 1 || !strings.Contains(stderr, "one of them") {
		t.Errorf("--join with --gateway exits %d and says %q", code, stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("the doctor has left %v in the state folder, %v", left, err)
	}
}

// TestDoctorFleet has the doctor look at a fleet that is well, and then at what
// can be wrong with one.
func TestDoctorFleet(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc", "THICKET_INSECURE_REGISTRIES=127.0.0.1:1")
	environ := []string{"THICKET_DATA=" + t.TempDir(), "THICKET_PASSWORD=" + testPassword}
	join := joining.FindStringSubmatch(g.operate("token"))
	full := fullDisk(t)
	node(t, "pi-1", t.TempDir(), "--join", join[1], "--token", join[2], "--node-name", "pi-1")
	strange := join1(t, join[1], join[2])
	eventually(t, "the nodes are ready", func() bool {
		f := g.fleet()
		return f["pi-1"].State == "ready" && f["strange"].State == "ready"
	})

	diagnose(t, environ[:1], "-g", g.url).want("fail", "the gateway", "gateway", "password isn't known")
	diagnose(t, []string{environ[0], "THICKET_PASSWORD=wrong"}, "-g", g.url).want("fail", "the gateway", "gateway", "doesn't take this password")

	d := diagnose(t, environ, "-g", g.url)
	d.want("ok", "the gateway at "+g.url, "nodes", join[1])
	d.want("ok", "node nuc (the gateway's machine)", "node", "is ready")
	d.want("ok", "node pi-1", "network", "the gateway's registry at "+g.host()+" answers")
	d.want("ok", "node pi-1", "clock", "agrees with the gateway's")
	d.want("ok", "node pi-1", "version", "")
	d.want("fail", "node nuc", "network", "the registry at 127.0.0.1:1: refuses connections")
	d.want("fail", "node pi-1", "network", "the registry at 127.0.0.1:1: refuses connections")
	d.want("ok", "functions", "functions", "none is deployed")
	// The other one has a clock of its own, and another network.
	d.want("fail", "node strange", "clock", "1h0m0s ahead of the gateway's")
	d.want("fail", "node strange", "network", "the gateway's registry at 127.0.0.1:9: refuses connections")
	d.want("warn", "node strange", "version", "it is v0.0.1")

	code, stdout, stderr := run(t, ".", environ, "doctor", "-g", g.url)
	if code != 1 || !strings.Contains(stdout, "\nnode pi-1\n  ok ") || !strings.Contains(stderr, "things are wrong") {
		t.Errorf("for people it exits with %d and says:\n%s%s", code, stdout, stderr)
	}

	// An image for arm alone: one node can run it, and then none.
	code, stdout, stderr = run(t, ".", []string{"THICKET_REGISTRY=" + g.host(), "THICKET_PASSWORD=" + testPassword},
		"build", "-f", "testdata/stack.yml", "--push", "--platforms", "linux/arm/v7")
	if code != 0 {
		t.Fatalf("build: exit %d\n%s%s", code, stdout, stderr)
	}
	if _, err := g.client.Deploy(t.Context(), types.FunctionDeployment{Service: "probe", Image: g.host() + "/probe:latest"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image is pinned", func() bool {
		return diagnose(t, environ, "-g", g.url).has("warn", "functions", "platforms", "strange only can run probe.openfaas-fn (for linux/arm/v7)")
	})
	strange()
	g.operate("nodes", "remove", "strange")
	diagnose(t, environ, "-g", g.url).want("fail", "functions", "platforms", "no node can run probe.openfaas-fn (for linux/arm/v7)")

	// A node whose disk is full.
	if full != "" {
		node(t, "pi-2", full, "--join", join[1], "--token", join[2], "--node-name", "pi-2")
		eventually(t, "it has joined", func() bool { return g.fleet()["pi-2"].State == "ready" })
		fill(t, full)
		diagnose(t, environ, "-g", g.url).want("fail", "node pi-2", "disk", "no space left")
	}
}

// TestDoctorWell is a fleet in which nothing is wrong.
func TestDoctorWell(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc")
	join := joining.FindStringSubmatch(g.operate("token"))
	dir := t.TempDir()

	// Before it joins, at the right address and at wrong ones.
	environ := []string{"THICKET_DATA=" + dir, "THICKET_ADDR=127.0.0.1:0"}
	d := diagnose(t, environ, "--join", join[1], "--listen", "127.0.0.1:0")
	if d.Fail > 0 {
		t.Errorf("of a machine that can join it says:\n%s", d)
	}
	d.want("ok", "the gateway to join", "join", "is a gateway of Thicket")
	d.want("ok", "the gateway to join", "clock", "agrees")
	d.want("ok", "the gateway to join", "network", g.host())
	d.want("ok", "the gateway to join", "address", "announces 127.0.0.1")
	d.want("ok", "this machine", "port", "127.0.0.1:0, for calls of the gateway, is free")
	diagnose(t, environ, "--join", "https://"+g.host()).want("fail", "the gateway to join", "join", "speaks no TLS")
	stranger := httptest.NewUnstartedServer(http.NotFoundHandler())
	stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	stranger.StartTLS()
	defer stranger.Close()
	diagnose(t, environ, "--join", stranger.URL).want("fail", "the gateway to join", "join", "is no gateway of Thicket")
	diagnose(t, environ, "--join", "https://127.0.0.1:1").want("fail", "the gateway to join", "join", "refuses connections")
	diagnose(t, environ, "--join", "https://nobody.invalid:8090").want("fail", "the gateway to join", "join", "it")

	node(t, "pi-1", dir, "--join", join[1], "--token", join[2], "--node-name", "pi-1")
	eventually(t, "the node is ready", func() bool { return g.fleet()["pi-1"].State == "ready" })
	// On the node it looks at the way to the gateway by itself.
	diagnose(t, environ).want("ok", "its gateway", "join", "this machine is its node pi-1")

	d = diagnose(t, []string{"THICKET_PASSWORD=" + testPassword}, "-g", g.url)
	for _, f := range d.Findings {
		// A machine of the CI has its own clock, disk, control groups and rights.
		if f.Level != "ok" && !slices.Contains([]string{"clock", "disk", "isolation", "cgroups", "sync", "memory", "files", "processes", "state"}, f.Check) || f.Level == "fail" && f.Check != "disk" {
			t.Errorf("of a fleet that is well it says: %s about %s: %s: %s", f.Level, f.About, f.Check, f.Says)
		}
	}
}

// A gateway whose clock is an hour behind.
func TestDoctorJoinClock(t *testing.T) {
	authority, err := nodes.NewAuthority(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", authority.Server())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"functions":"http://127.0.0.1:9","seen":"198.51.100.7","time":%q}`, time.Now().Add(-time.Hour).Format(time.RFC3339Nano))
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) }) // until it is closed
	defer serving.Wait()
	defer s.Close()
	d := diagnose(t, []string{"THICKET_DATA=" + t.TempDir()}, "--join", "https://"+l.Addr().String(), "--listen", "127.0.0.1:0")
	d.want("fail", "the gateway to join", "clock", "this machine's clock is 1h0m0s ahead of the gateway's")
	d.want("fail", "the gateway to join", "network", "127.0.0.1:9: refuses connections")
	d.want("warn", "the gateway to join", "address", "but the gateway sees it at 198.51.100.7")
}

// join1 has a node join whose clock is an hour ahead, which runs an old version
// on arm, and which can't reach the gateway's registry. It returns what ends it.
func join1(t *testing.T, url, token string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := nodes.OpenAgent(nodes.AgentConfig{
		Name: "strange", Gateway: url, Token: token, Dir: t.TempDir(), Listener: l, Logger: slog.New(slog.DiscardHandler),
		Machine: func() remote.Machine {
			return remote.Machine{Version: "v0.0.1", Platforms: []string{"linux/arm/v7"}, Memory: 1 << 30, MemoryFree: 1 << 30, CPU: 1000, Time: time.Now().Add(time.Hour)}
		},
		Provider: func(provider.Observer, string, string) (nodes.Runner, error) { return idle{}, nil },
		Examine: func(ctx context.Context, _ string, _ json.RawMessage) (json.RawMessage, error) {
			return json.Marshal(doctor.Look(ctx, doctor.Subject{
				Name: "strange", Data: t.TempDir(), Running: true,
				Targets: []doctor.Target{{What: "the gateway's registry", Addr: "127.0.0.1:9"}},
			}))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the node ended: %v", err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// idle is a provider that takes everything and runs nothing.
type idle struct{}

func (idle) Run(ctx context.Context) error                  { <-ctx.Done(); return nil }
func (idle) Apply(context.Context, provider.Workload) error { return nil }
func (idle) Remove(context.Context, faas.Name) error        { return nil }
func (idle) Status(faas.Name) (provider.Status, bool)       { return provider.Status{}, false }
func (idle) Logs(context.Context, logs.Request) iter.Seq2[logs.Message, error] {
	return func(func(logs.Message, error) bool) {}
}

// fill leaves no room on a small disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := io.CopyN(f, zeros{}, 64<<20); err == nil {
		t.Fatalf("after %d bytes there is still room", n)
	}
}
