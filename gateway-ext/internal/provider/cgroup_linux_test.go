package provider

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeUnified makes folders and files that look like a hierarchy of version 2 as
// far as reading and writing go.
func fakeUnified(t *testing.T, groups ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, g := range append(groups, "/") {
		dir := filepath.Join(root, g)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{
			"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "", "cgroup.procs": "",
		} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestOwnGroup(t *testing.T) {
	const self = "4:memory:/a\n3:cpu,cpuacct:/b/c\n1:name=systemd:/d\n0::/e/f.service\n"
	for controller, want := range map[string]string{"memory": "/a", "cpu": "/b/c", "cpuacct": "/b/c", "pids": "/", "": "/e/f.service"} {
		if got := ownGroup(self, controller); got != want {
			t.Errorf("ownGroup(%q) = %q, want %q", controller, got, want)
		}
	}
}

func TestUnifiedFiles(t *testing.T) {
	root := fakeUnified(t, "unit", "unit/thicket", "thicket")
	// A file keeps what was written to it last; the kernel, what was added.
	for _, dir := range []string{"unit/thicket", "thicket"} {
		if err := os.Remove(filepath.Join(root, dir, "cgroup.subtree_control")); err != nil {
			t.Fatal(err)
		}
	}
	g, missing := newCgroups(root, "thicket", "0::/unit\n")
	if g != nil || len(missing) != 1 || !strings.HasPrefix(missing[0], "no limits: ") {
		t.Fatalf("without subtree_control: %+v, %q", g, missing)
	}

	for _, dir := range []string{"unit/thicket", "thicket"} {
		if err := os.WriteFile(filepath.Join(root, dir, "cgroup.subtree_control"), []byte("cpu"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	g, missing = newCgroups(root, "thicket", "0::/unit\n")
	if g == nil || !g.unified {
		t.Fatalf("newCgroups() = %+v, %q", g, missing)
	}
}

func TestUnifiedLimits(t *testing.T) {
	root := fakeUnified(t, "unit/thicket")
	parent := filepath.Join(root, "unit/thicket")
	g := &cgroups{unified: true, parents: map[string]string{"": parent, "memory": parent, "cpu": parent, "pids": parent}}
	dir := filepath.Join(parent, "fn-abc")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"memory.max", "memory.swap.max", "cpu.max", "pids.max"} {
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := g.create("fn-abc", limits{memory: 128 << 20, cpu: 250, pids: 100})
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory.max": "134217728", "memory.swap.max": "0", "cpu.max": "25000 100000", "pids.max": "100",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v; want %q", file, b, err, want)
		}
	}
	for file, text := range map[string]string{
		"memory.events": "low 0\noom 3\noom_kill 1\n", "memory.current": "5000000\n",
		"memory.stat": "anon 1\ninactive_file 1000000\nfile 2\n", "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !c.oomKilled() {
		t.Error("an oom_kill isn't seen")
	}
	if s, ok := c.measure(); !ok || s.memory != 4_000_000 || s.cpu != 1500*time.Millisecond {
		t.Errorf("measure() = %+v, %v", s, ok)
	}
	if got := c.folders(); !slices.Equal(got, []string{dir}) {
		t.Errorf("folders() = %q, want %q once", got, dir)
	}
	// A limit that the kernel doesn't take is an error and leaves nothing.
	if err := os.Remove(filepath.Join(dir, "memory.max")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.create("fn-abc", limits{memory: 1}); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("create() without memory.max = %v", err)
	}
}

func TestLeastQuota(t *testing.T) {
	c := &cgroup{unified: true, dirs: map[string]string{"cpu": "x"}}
	for _, o := range c.orders(limits{cpu: 1}) {
		if o.file == "cpu.max" && o.text != "1000 100000" {
			t.Errorf("a thousandth of a CPU asks for %q, which the kernel refuses", o.text)
		}
	}
}
