//go:build faults && linux

// Package faults_test breaks the real program's surroundings while it is called,
// and holds it to what docs/faults.md promises. "make faults" runs it.
//
// Every scenario runs "gateway-ext serve" with three replicas of a function that
// has a policy and three of one that has none, called by two replicas of a
// consumer through the gateway; where it matters, also behind the stock chain of
// goresilience v0.2.0. Load is open-loop: calls begin when they are due, whatever
// became of the ones before, and their latency counts from then. What is counted
// is asserted as it is promised; times are measured and printed, and asserted
// with a factor, since machines are busy with other things.
//
// TestFleet is another story, and has its own page (docs/fleet-proof.md) and
// command, "make fleet": seven hosts, of which six are nodes.
//
// The suite has namespaces of its own for network, mounts and processes, so that
// what it does with ip, iptables and tmpfs concerns nobody, and that nothing is
// left when it ends, however it does. That needs root; without, the scenarios
// that need them are skipped.
//
// It shares nothing with the end-to-end tests in gateway-ext, for those run with
// the race detector, under which no time means anything: this is another program
// that happens to start the same one.
package faults_test

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

var (
	rounds = flag.Int("rounds", 2, "how often each scenario is run; the worst is reported")
	page   = flag.String("doc", "", "the page whose table TestFleet writes, and keeps if it is empty")
)

// insideVariable marks the process that is in namespaces of its own.
const insideVariable = "FAULTS_INSIDE"

// programVariable is the path of a program to hold to the suite in place of the
// one that is built from this source.
const programVariable = "FAULTS_PROGRAM"

// program, shop and inside are set by TestMain, and never after.
var (
	program string                 // the path of the program under test
	shop    func() (string, error) // the image of the function that is broken
	inside  bool                   // in namespaces of our own
)

func TestMain(m *testing.M) {
	flag.Parse()
	redis.SetLogger(silence{})
	if os.Getenv(insideVariable) == "" && os.Geteuid() == 0 {
		os.Exit(enter())
	}
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the fault suite:", err)
	}
	os.Exit(code)
}

// enter runs this program again in namespaces of its own, and returns its exit
// code. If it ends, so does all that it started: it is the first process of its
// namespace, without which the kernel ends the others.
func enter() int {
	dir, err := os.MkdirTemp("", "thicket-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "the fault suite:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	defer removeGroups(dir)
	// Ctrl-C ends the other one too; this one stays to tidy up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1", "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The parent's death signal is the thread's that made the child.
	runtime.LockOSThread()
	err = cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "the fault suite has no namespaces of its own:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// removeGroups removes the control groups of programs whose state is below a folder
// and that can't do it any more. They are called after the folder of the replicas
// (package provider); of those that ended by themselves there are none.
func removeGroups(dir string) {
	folders := func(root string, each func(path, name string)) {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() { // else it has gone meanwhile
				each(path, e.Name())
			}
			return nil
		})
	}
	ours := map[string]bool{}
	folders(dir, func(path, name string) {
		if name == "replicas" {
			sum := sha256.Sum256([]byte(path))
			ours["thicket-"+hex.EncodeToString(sum[:6])] = true
		}
	})
	var groups []string
	folders("/sys/fs/cgroup", func(path, name string) {
		if ours[name] || ours[filepath.Base(filepath.Dir(path))] {
			groups = append(groups, path)
		}
	})
	for _, group := range slices.Backward(groups) { // what is below comes first
		_ = os.Remove(group) // one that somebody is in stays
	}
}

func prepareAndRun(m *testing.M) (code int, err error) {
	code = 1
	if inside = os.Getenv(insideVariable) != ""; inside {
		// Mounts made here must not appear outside.
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return code, fmt.Errorf("make mounts private: %w", err)
		}
		if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return code, fmt.Errorf("show the processes of our own namespace: %w", err)
		}
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			return code, fmt.Errorf("bring up lo: %w: %s", err, out)
		}
	}
	dir, err := os.MkdirTemp("", "thicket-faults-")
	if err != nil {
		return code, err
	}
	defer os.RemoveAll(dir)
	if program = os.Getenv(programVariable); program == "" {
		program = filepath.Join(dir, "gateway-ext")
		build := exec.Command("../../.ci/build", program)
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return code, fmt.Errorf("build the program: %w", err)
		}
	}
	var counter *gateway
	shop = sync.OnceValues(func() (string, error) {
		g, err := boot(filepath.Join(dir, "shop"))
		if err != nil {
			return "", err
		}
		counter = g
		return g.host() + "/victim:latest", buildImages(g.host(), "testdata/stack.yml")
	})
	defer func() {
		if counter != nil {
			counter.end()
		}
	}()
	code = m.Run()
	results.print(os.Stdout)
	return code, nil
}

// buildImages builds the images of a stack file and pushes them to a registry.
func buildImages(registry, stack string) error {
	build := exec.Command(program, "build", "-f", stack, "--push", "--platforms", runtime.GOOS+"/"+runtime.GOARCH)
	build.Env = append(baseEnviron(), "THICKET_REGISTRY="+registry, "THICKET_PASSWORD="+testPassword, "THICKET_INSECURE_REGISTRIES="+registry)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the images of %s: %w\n%s", stack, err, out)
	}
	return nil
}

// victim returns the image of the function that is broken.
func victim(t *testing.T) string {
	t.Helper()
	image, err := shop()
	if err != nil {
		t.Fatal(err)
	}
	return image
}
