package provider_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	"golang.org/x/sys/unix"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// needRoot skips what a provider without privileges doesn't promise, and says in
// Missing: TestMissing holds it to that.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// needLimits skips where the kernel gives us no control groups, which Missing says.
func needLimits(t *testing.T, b *bench) {
	t.Helper()
	for _, s := range b.Missing() {
		if strings.HasPrefix(s, "no limits") || strings.HasPrefix(s, "no memory") || strings.HasPrefix(s, "no CPU") {
			t.Skip(s)
		}
	}
}

func TestMissing(t *testing.T) {
	b := newBench(t, provider.ProcessConfig{})
	missing := strings.Join(b.Missing(), "\n")
	for _, s := range b.Missing() {
		t.Log(s)
	}
	if os.Geteuid() == 0 {
		if strings.Contains(missing, "start the gateway as root") {
			t.Errorf("as root it says %q", missing)
		}
		return
	}
	for _, want := range []string{"no user of its own", "no tree of its own", "no limits"} {
		if !strings.Contains(missing, want) {
			t.Errorf("without root it doesn't say %q but %q", want, missing)
		}
	}
}

func TestOwnUser(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	b := newBench(t, provider.ProcessConfig{Dir: dir, FirstUID: 310000, UIDs: 2})
	uids := make(map[string]string)
	for _, name := range []string{"one", "two"} {
		fn, _ := b.run(providertest.Workload(name, 1, 1))
		uid, gid := b.env(fn.Function)["uid"], b.env(fn.Function)["gid"]
		if n, err := strconv.Atoi(uid); err != nil || n < 310000 || n > 310001 || gid != uid {
			t.Errorf("%s runs as user %s, group %s", name, uid, gid)
		}
		uids[name] = uid
	}
	if uids["one"] == uids["two"] {
		t.Errorf("both functions run as user %s", uids["one"])
	}
	third := b.apply(providertest.Workload("three", 1, 1))
	providertest.Await(t, "the third has no user", func() bool { return strings.Contains(b.reason(third), "user ids") })
	if err := b.Remove(t.Context(), b.apply(providertest.Workload("one", 1, 0))); err != nil {
		t.Fatal(err)
	}
	b.table.AwaitReady(t, third, 1, 1)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}

	again := newBench(t, provider.ProcessConfig{Dir: dir, FirstUID: 310000, UIDs: 2})
	again.run(providertest.Workload("two", 1, 1))
	if got := again.env("two")["uid"]; got != uids["two"] {
		t.Errorf("after a restart, two runs as user %s, before as %s", got, uids["two"])
	}
}

func (b *bench) env(function string) map[string]string {
	b.Helper()
	var env map[string]string
	w := providertest.Workload(function, 1, 1)
	if err := json.Unmarshal([]byte(b.table.Get(b, w.Function.Name(), "/env")), &env); err != nil {
		b.Fatal(err)
	}
	return env
}

// TestPrivileges holds a function to having none and to getting none.
func TestPrivileges(t *testing.T) {
	needRoot(t)
	b := newBench(t, provider.ProcessConfig{})
	name, r := b.run(providertest.Workload("humble", 1, 1))
	status := make(map[string]string)
	for line := range strings.Lines(b.table.Get(t, name, "/read?path=/proc/self/status")) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.TrimSpace(v)
	}
	none := "0000000000000000"
	for k, want := range map[string]string{
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Groups": "",
	} {
		if got, ok := status[k]; !ok || got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
	if strings.Contains(strings.Join(b.Missing(), "\n"), "no tree of its own") {
		return
	}
	if _, body, err := b.table.DoAt(t.Context(), r, "/list?path=/proc"); err != nil || strings.Contains("\n"+body, "\n1\n") {
		t.Errorf("it sees the machine's processes: %q, %v", body, err)
	}
}

// TestTree holds a function to its image's files and to what is its own.
func TestTree(t *testing.T) {
	needRoot(t)
	secret := filepath.Join(t.TempDir(), "of-the-machine")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, provider.ProcessConfig{})
	name, _ := b.run(providertest.Workload("fenced", 1, 1))
	read := func(path string) (int, string) {
		code, body, err := b.table.Do(t.Context(), name, "/read?path="+url.QueryEscape(path))
		if err != nil {
			t.Fatal(err)
		}
		return code, body
	}
	for path, want := range map[string]string{"/etc/motd": "hello", "/usr/local/bin/../../../etc/motd": "hello"} {
		if code, body := read(path); code != http.StatusOK || body != want {
			t.Errorf("%s reads %d %q, want %q", path, code, body, want)
		}
	}
	hosts := "127.0.0.1 gateway gateway.openfaas gateway.openfaas.svc.cluster.local\n"
	if _, body := read("/etc/hosts"); !strings.Contains(body, hosts) {
		t.Errorf("/etc/hosts is %q and has no %q", body, hosts)
	}
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		if code, body := read("/etc/resolv.conf"); code != http.StatusOK {
			t.Errorf("/etc/resolv.conf: %s", body)
		}
	}
	for _, path := range []string{secret, "/etc/shadow", "/root", "/sys/kernel", "/proc/1/environ"} {
		if code, body := read(path); code == http.StatusOK {
			t.Errorf("it reads %s: %q", path, body)
		}
	}
	for path, may := range map[string]bool{
		"/tmp/mine": true, "/dev/shm/mine": true, "/dev/null": true, "/dev/stdout": true,
		"/mine": false, "/etc/mine": false, "/usr/local/bin/function": false, "/home/app/mine": false,
		"/var/openfaas/secrets/mine": false, "/etc/hosts": false, "/dev/mine": false,
	} {
		code, body, err := b.table.Do(t.Context(), name, "/write?path="+path)
		if err != nil || (code == http.StatusOK) != may {
			t.Errorf("write %s: %d %s %v, want it allowed: %v", path, code, body, err, may)
		}
	}
	if dir := b.env("fenced")["dir"]; dir != "/home/app" {
		t.Errorf("it works in %s, want /home/app", dir)
	}
	b.table.Get(t, name, "/list?path=/tmp")
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), b.images.Image.Root) {
		t.Errorf("the machine sees a function's mounts: %v\n%s", err, mounts)
	}
}

// TestSecretsOfOthers has one function try to read another's secrets.
func TestSecretsOfOthers(t *testing.T) {
	needRoot(t)
	b := newBench(t, provider.ProcessConfig{})
	w := providertest.Workload("owner", 1, 1)
	w.Secrets = map[string][]byte{"key": []byte("of the owner")}
	owner, _ := b.run(w)
	thief, _ := b.run(providertest.Workload("thief", 1, 1))
	if got := b.table.Get(t, owner, "/read?path=/var/openfaas/secrets/key"); got != "of the owner" {
		t.Fatalf("the owner reads %q", got)
	}
	pid := b.table.Get(t, owner, "/pid")
	for _, path := range []string{
		"/var/openfaas/secrets/key",
		"/proc/" + pid + "/root" + "/var/openfaas/secrets/key",
		"/proc/" + pid + "/cwd",
		"/proc/" + pid + "/environ",
		"/proc/" + pid + "/cmdline",
	} {
		if code, body, err := b.table.Do(t.Context(), thief, "/read?path="+path); err != nil || code == http.StatusOK {
			t.Errorf("the thief reads %s: %q, %v", path, body, err)
		}
	}
	// On the machine, the files belong to the owner alone and are not on a disk.
	found := 0
	matches, err := filepath.Glob("/dev/shm/thicket-*/*/key")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range matches {
		b, err := os.ReadFile(path)
		if err != nil || string(b) != "of the owner" {
			continue
		}
		found++
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o400 {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
	}
	if found != 1 {
		t.Errorf("found %d files with the secret in memory, want 1", found)
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	b := newBench(t, provider.ProcessConfig{PIDs: 64})
	needLimits(t, b)

	t.Run("memory", func(t *testing.T) {
		w := providertest.Workload("hungry", 1, 1)
		w.Function.Limits = &types.FunctionResources{Memory: "48Mi"}
		name, r := b.run(w)
		b.table.Get(t, name, "/alloc?mib=8")
		if _, body, err := b.table.Do(t.Context(), name, "/alloc?mib=200"); err == nil {
			t.Errorf("it got 200 MiB: %s", body)
		}
		gone := b.table.AwaitGone(t, r.ID)
		if !strings.Contains(gone.Reason, "killed: over its memory limit of 48Mi") {
			t.Errorf("it is gone because %q", gone.Reason)
		}
		b.table.AwaitReady(t, name, 1, 1)
	})
	t.Run("cpu", func(t *testing.T) {
		w := providertest.Workload("busy", 1, 1)
		w.Function.Limits = &types.FunctionResources{CPU: "100m"}
		name, r := b.run(w)
		if got := fileOf(t, r.ID, "cpu", "cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "10000") {
			t.Errorf("its quota is %q, want 10000 of 100000", got)
		}
		if _, err := time.ParseDuration(b.table.Get(t, name, "/burn?for=300ms")); err != nil {
			t.Error(err)
		}
		stat := fileOf(t, r.ID, "cpu", "cpu.stat", "cpu.stat")
		_, throttled, _ := strings.Cut(stat, "nr_throttled ")
		throttled, _, _ = strings.Cut(throttled, "\n")
		if n, err := strconv.Atoi(throttled); err != nil || n == 0 {
			t.Errorf("it burnt a whole processor for 300ms and was never held back:\n%s", stat)
		}
	})
	t.Run("processes", func(t *testing.T) {
		_, r := b.run(providertest.Workload("forking", 1, 1))
		if got := fileOf(t, r.ID, "pids", "pids.max", "pids.max"); got != "64" {
			t.Errorf("it may have %s processes, want 64", got)
		}
	})
	t.Run("usage", func(t *testing.T) {
		name, _ := b.run(providertest.Workload("measured", 1, 1))
		b.table.Get(t, name, "/alloc?mib=32")
		b.table.Get(t, name, "/burn?for=50ms")
		s, _ := b.Status(name)
		if s.Usage == nil || s.Usage.TotalMemoryBytes < 16<<20 || s.Usage.CPU <= 0 {
			t.Errorf("usage is %+v", s.Usage)
		}
		if len(s.Used) != 1 || s.Used[0].Replica != s.Replicas[0].ID || s.Used[0].CPU < 20*time.Millisecond || s.Used[0].Memory < 16<<20 {
			t.Errorf("its replica used %+v", s.Used)
		}
	})
}

// fileOf reads a file of the replica's control group, of version 1 or 2.
func fileOf(t *testing.T, replica, controller, v1, v2 string) string {
	t.Helper()
	for _, file := range []string{filepath.Join(controller, "*", replica, v1), filepath.Join(controller, "*", "*", replica, v1),
		filepath.Join(controller, "*", "*", "*", replica, v1), filepath.Join("*", replica, v2), filepath.Join("*", "*", "*", replica, v2)} {
		matches, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", file))
		if err != nil {
			t.Fatal(err)
		}
		if len(matches) == 0 {
			continue
		}
		b, err := os.ReadFile(matches[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	t.Fatalf("no control group of %s for %s", replica, controller)
	return ""
}

// TestUsageWithoutLimits measures what /proc says where there are no groups.
func TestUsageWithoutLimits(t *testing.T) {
	b := newBench(t, provider.ProcessConfig{CgroupRoot: filepath.Join(t.TempDir(), "none")})
	name, _ := b.run(providertest.Workload("measured", 1, 1))
	b.table.Get(t, name, "/alloc?mib=32")
	b.table.Get(t, name, "/burn?for=100ms")
	s, _ := b.Status(name)
	if s.Usage == nil || s.Usage.TotalMemoryBytes < 16<<20 || s.Usage.CPU <= 0 {
		t.Errorf("usage is %+v", s.Usage)
	}
	if len(s.Used) != 1 || s.Used[0].Replica != s.Replicas[0].ID || s.Used[0].CPU < 50*time.Millisecond || s.Used[0].Memory < 16<<20 {
		t.Errorf("its replica used %+v", s.Used)
	}
	if os.Geteuid() == 0 && !strings.Contains(fmt.Sprint(b.Missing()), "no memory limits") {
		t.Errorf("without groups nothing is said to be missing: %q", b.Missing())
	}
}

// TestUnified runs a function in a hierarchy of version 2, wherever the machine
// has one.
func TestUnified(t *testing.T) {
	needRoot(t)
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			root = dir
		}
	}
	if root == "" {
		t.Skip("this machine has no control groups of version 2")
	}
	b := newBench(t, provider.ProcessConfig{CgroupRoot: root})
	for _, s := range b.Missing() {
		t.Log(s)
	}
	name, r := b.run(providertest.Workload("grouped", 1, 1))
	pid := b.spawned(name, "/spawn?session=own")
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(groups), "/"+r.ID+"\n") {
		t.Errorf("the grandchild of %s is in %s, %v", r.ID, groups, err)
	}
	b.apply(providertest.Workload("grouped", 1, 0))
	b.table.AwaitGone(t, r.ID)
	providertest.Await(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(root, "thicket-*", r.ID))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestInContainer runs tests once more as a root that may not mount, which is what
// root in a container is: functions have users of their own, but no trees.
func TestInContainer(t *testing.T) {
	needRoot(t)
	cmd := exec.Command(os.Args[0], "-test.v", "-test.timeout=5m",
		"-test.run=^(TestContract|TestStop|TestKilledGateway|TestOwnUser|TestPrivileges|TestMissing)$")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread has lost a capability: it ends here
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			started <- err
			return
		}
		started <- cmd.Start()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("without CAP_SYS_ADMIN: %v\n%s", err, out.String())
	}
	for _, want := range []string{"no tree of its own for each function", "--- PASS: TestContract ", "--- PASS: TestOwnUser ", "--- PASS: TestKilledGateway "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("without CAP_SYS_ADMIN there is no %q in\n%s", want, out.String())
		}
	}
}
