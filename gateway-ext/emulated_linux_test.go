package main_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/openfaas/faas-provider/types"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
)

// An emulator runs programs of another processor.
type emulator struct {
	arch, arm string // as Go calls them
	program   string // qemu's
	magic     string // how such programs begin, as binfmt_misc wants it
}

// The beginnings are those of the ELF format: its class, the byte order, the kind
// of file (2 and, by the mask below, 3) and the machine.
var emulators = []emulator{
	{"arm64", "", "qemu-aarch64-static", `\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00`},
	{"arm", "7", "qemu-arm-static", `\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00`},
}

const elfMask = `\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`

// foreign returns a command that runs a program, and whatever that starts, of
// other processors: in a user namespace of its own, of which alone the kernel is
// told of the emulators (since Linux 6.7), unless it knows them already.
func foreign(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	if known("qemu-aarch64") && known("qemu-arm") {
		return exec.Command(args[0], args[1:]...)
	}
	var script strings.Builder
	fmt.Fprintf(&script, "set -e; mount -t binfmt_misc none '%s'\n", dir)
	for _, e := range emulators {
		path, err := exec.LookPath(e.program)
		if err != nil {
			t.Skipf("skipped: %s isn't there (Debian's package is qemu-user-static)", e.program)
		}
		// F: the emulator is opened now, and so is there whatever a program's root is.
		fmt.Fprintf(&script, "printf '%%s' ':%s:M::%s:%s:%s:F' > '%s/register'\n", e.program, e.magic, elfMask, path, dir)
	}
	script.WriteString(`exec "$@"`)
	cmd := exec.Command("sh", append([]string{"-c", script.String(), "sh"}, args...)...)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	groups := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	if os.Getuid() == 0 {
		ids[0].Size, groups[0].Size = 1<<20, 1<<20 // those of functions, too
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids, GidMappings: groups, GidMappingsEnableSetgroups: os.Getuid() == 0,
	}
	return cmd
}

// known says whether this machine's kernel was told of an emulator, which it opened
// then.
func known(name string) bool {
	b, err := os.ReadFile("/proc/sys/fs/binfmt_misc/" + name)
	_, flags, _ := strings.Cut(string(b), "flags: ")
	flags, _, _ = strings.Cut(flags, "\n")
	return err == nil && strings.HasPrefix(string(b), "enabled") && strings.Contains(flags, "F")
}

// TestForeignNodes is a fleet of three kinds of processors: a gateway on this
// machine's, and a node each on arm64 and arm v7 under qemu's emulation. One image
// is for all of them.
func TestForeignNodes(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("skipped: it emulates arm on amd64")
	}
	binfmt := t.TempDir()
	if out, err := foreign(t, binfmt, "true").CombinedOutput(); err != nil {
		t.Skipf("skipped: this kernel lets nobody emulate processors for himself: %v %s", err, out)
	}
	programs := make(map[string]string)
	var builds sync.WaitGroup
	for _, e := range emulators {
		program := filepath.Join(t.TempDir(), "gateway-ext")
		programs[e.arch] = program
		builds.Go(func() {
			build := exec.Command("../.ci/build", program)
			build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+e.arch, "GOARM="+e.arm)
			if out, err := build.CombinedOutput(); err != nil {
				t.Errorf("build for %s: %v\n%s", e.arch, err, out)
			}
		})
	}
	g := start(t, t.TempDir(), "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc")
	g.push("linux/amd64,linux/arm64,linux/arm/v7")
	builds.Wait()
	if t.Failed() {
		t.FailNow()
	}

	join := joining.FindStringSubmatch(g.operate("token"))
	if join == nil {
		t.Fatal("gateway-ext token prints no command to join with")
	}
	for arch, path := range programs {
		nodeBy(t, arch, t.TempDir(), func(args ...string) *exec.Cmd {
			return foreign(t, binfmt, append([]string{path}, args...)...)
		}, "--join", join[1], "--token", join[2], "--node-name", arch)
	}
	eventually(t, "both nodes are ready", func() bool {
		f := g.fleet()
		return f["arm64"].State == "ready" && f["arm"].State == "ready"
	})

	three := map[string]string{"com.openfaas.scale.min": "3", "com.openfaas.scale.max": "3"}
	deploy := func(d types.FunctionDeployment) error {
		d.EnvVars = map[string]string{"answer": "hello"}
		_, err := g.client.Deploy(t.Context(), d)
		return err
	}
	if err := deploy(types.FunctionDeployment{Service: "everywhere", Image: g.host() + "/probe:latest", Labels: &three}); err != nil {
		t.Fatal(err)
	}
	g.ready("everywhere", 3)
	arches := g.arches("everywhere", 3)
	for replica, node := range g.nodesOf("everywhere") {
		want := node
		if node == "nuc" {
			want = runtime.GOARCH
		}
		if arches[replica] != want {
			t.Errorf("the replica on %s says that it runs on %q, want %s", node, arches[replica], want)
		}
	}
	if nodes := slices.Sorted(maps.Values(g.nodesOf("everywhere"))); !slices.Equal(nodes, []string{"arm", "arm64", "nuc"}) {
		t.Errorf("replicas are on %v, want one on each node", nodes)
	}

	two := map[string]string{"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "2"}
	if err := deploy(types.FunctionDeployment{Service: "only-arm64", Image: g.host() + "/probe:latest", Labels: &two, Constraints: []string{"arch==arm64"}}); err != nil {
		t.Fatal(err)
	}
	g.ready("only-arm64", 2)
	for replica, arch := range g.arches("only-arm64", 2) {
		if arch != "arm64" {
			t.Errorf("%s runs on %s against its constraint", replica, arch)
		}
	}

	g.push("linux/amd64")
	err := deploy(types.FunctionDeployment{Service: "nowhere", Image: g.host() + "/probe:latest", Constraints: []string{"node!=nuc"}})
	if err == nil {
		t.Fatal("an image for amd64 was taken where only arm may run it")
	}
	for _, reason := range []string{"arm64 not in image", "arm v7 not in image", "nuc"} {
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("the refusal is %q, want it to say %q", err, reason)
		}
	}
}

// push builds the tests' function for platforms, into the gateway's registry.
func (g *thicket) push(platforms string) {
	g.t.Helper()
	code, stdout, stderr := run(g.t, ".", []string{"THICKET_REGISTRY=" + g.host(), "THICKET_PASSWORD=" + testPassword},
		"build", "-f", "testdata/stack.yml", "--push", "--platforms", platforms)
	if code != 0 {
		g.t.Fatalf("build for %s: exit %d\n%s%s", platforms, code, stdout, stderr)
	}
}

// arches asks a function until so many of its replicas have told on what they run.
func (g *thicket) arches(function string, replicas int) map[string]string {
	g.t.Helper()
	all := make(map[string]string)
	eventually(g.t, fmt.Sprintf("%d replicas of %s answer", replicas, function), func() bool {
		code, _, body := g.get("/function/" + function + "?arch")
		if code != http.StatusOK {
			g.t.Fatalf("a call was answered %d %s", code, body)
		}
		arch, replica, _ := strings.Cut(body, " ")
		all[replica] = arch
		return len(all) == replicas
	})
	return all
}

// nodesOf returns the node of each ready replica of a function.
func (g *thicket) nodesOf(function string) map[string]string {
	g.t.Helper()
	all := make(map[string]string)
	for _, r := range g.snapshot().Replicas {
		if r.Function.Function == function && r.State == wire.StateReady {
			all[r.ID] = r.Node
		}
	}
	return all
}
