//go:build !linux

package provider

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// newMachine says what only Linux allows.
func newMachine(cfg *ProcessConfig) *machine {
	return &machine{name: machineName(cfg.Dir), missing: []string{
		"on " + runtime.GOOS + ", functions run as the gateway's user, see this machine's files and can read one another's; " +
			"their memory and CPU limits are not enforced, and what they start in a session of its own outlives them: use Linux for all of that",
	}}
}

func (m *machine) removeLeft([]string) error { return nil }

func (m *machine) close() error { return nil }

// start starts the job's process as it is.
func (m *machine) start(j *job) (_ *process, err error) {
	proc := &process{exited: make(chan struct{})}
	stdout, stderr, err := proc.pipes(0)
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	defer stderr.Close()
	if err := proc.launch(j, j.root, stdout, stderr, &syscall.SysProcAttr{Setsid: true}); err != nil {
		return nil, errors.Join(err, proc.stdout.Close(), proc.stderr.Close())
	}
	return proc, nil
}

func (p *process) close() error { return nil }

// awaitExit can't wait here without reaping.
func awaitExit(int) bool { return false }

// processStart is when a process started, as ps prints it.
func processStart(pid int) string {
	out, err := exec.Command("ps", "-o", "lstart=,stat=", "-p", strconv.Itoa(pid)).Output()
	text := strings.TrimSpace(string(out))
	if i := strings.LastIndexByte(text, ' '); err == nil && i > 0 && !strings.HasPrefix(text[i+1:], "Z") {
		return strings.TrimSpace(text[:i])
	}
	return ""
}

// bootID is empty: the time at which a process started says enough here.
func bootID() string { return "" }

// killMarked finds nobody: other processes' environment can't be read here.
func killMarked(map[string]bool) []string { return nil }

func (m *machine) memoryFolder(string) []string { return nil }

// lockFolder makes sure that no other provider uses the folder. The lock ends
// with the process, however that ends.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("provider for processes: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("provider for processes: %s is in use by another gateway", dir), f.Close())
	}
	return f, nil
}

func (m *machine) measure(*process) (sample, bool) { return sample{}, false }

// cgroups and cgroup are of Linux; here there is never one.
type (
	cgroups struct{}
	cgroup  struct{}
)

func (c *cgroup) kill()             {}
func (c *cgroup) oomKilled() bool   { return false }
func (c *cgroup) folders() []string { return nil }
