package provider

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// newMachine finds out what can be done here by doing it once.
func newMachine(cfg *ProcessConfig) *machine {
	m := &machine{name: machineName(cfg.Dir), staging: filepath.Join(cfg.Dir, "root"), tmp: cfg.TmpBytes}
	if os.Geteuid() != 0 {
		m.lack("no user of its own for each function: functions run as the gateway's user and can read one another's files and secrets; start the gateway as root for that")
		m.lack("no tree of its own for each function: functions see the files of this machine, and programs that are not linked statically may not start; start the gateway as root for that")
		m.lack("no limits: memory and CPU limits of functions are not enforced; start the gateway as root for that")
		return m
	}
	if err := onThread(func() error { return tryUser(cfg.FirstUID) }); err != nil {
		m.lack("no user of its own for each function: %v; functions run as root and can do whatever the gateway can", err)
	} else {
		m.users = true
	}
	if err := m.tryTree(); err != nil {
		m.lack("no tree of its own for each function: %v (a container needs CAP_SYS_ADMIN for that); functions see the files and processes of this machine, and programs that are not linked statically may not start", err)
	} else {
		m.trees = true
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		m.lack("no limits: %v", err)
		return m
	}
	groups, missing := newCgroups(cfg.CgroupRoot, m.name, string(self))
	m.groups = groups
	m.missing = append(m.missing, missing...)
	return m
}

func (m *machine) lack(format string, args ...any) {
	m.missing = append(m.missing, fmt.Sprintf(format, args...))
}

// removeLeft removes what is left of control groups of an earlier gateway.
func (m *machine) removeLeft(groups []string) error {
	err := m.groups.removeLeft(m.name, groups)
	if m.groups != nil {
		m.groups.sweep()
	}
	return err
}

// close gives back what the machine gave us.
func (m *machine) close() error {
	if m.groups == nil {
		return nil
	}
	return m.groups.remove()
}

// tryUser says whether a process of ours may become that user.
func tryUser(uid int) error {
	if _, err := unix.SetfsuidRetUid(uid); err != nil {
		return err
	}
	if now, err := unix.SetfsuidRetUid(-1); err != nil || now != uid {
		return errors.New("root may not become another user here")
	}
	return nil
}

// tryTree says whether a tree can be put together and entered here.
func (m *machine) tryTree() error {
	if err := os.MkdirAll(m.staging, 0o700); err != nil {
		return err
	}
	empty := &job{root: m.staging, secrets: m.staging, mount: secretMount}
	return onThread(func() error { return m.enterTree(empty) })
}

// onThread runs fn on a thread of its own, which ends with it: what fn does to
// the thread (its mounts, its privileges, its control groups) is seen by nobody
// else but the processes it starts.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// This is the process's first thread, which can't end and which others
		// see when they look at the process. As long as it is kept here, the
		// next goroutine gets another one.
		done <- onThread(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// start starts the job's process. Everything it is confined by is done to a
// thread first and inherited from it, without a helper program in between: to
// start a binary of the gateway's size once more would cost more time than all
// of this.
func (m *machine) start(j *job) (_ *process, err error) {
	proc := &process{exited: make(chan struct{})}
	if m.groups != nil {
		if proc.group, err = m.groups.create(j.id, j.limits); err != nil {
			return nil, fmt.Errorf("its control group: %w", err)
		}
	}
	stdout, stderr, err := proc.pipes(j.uid)
	if err != nil {
		return nil, errors.Join(err, proc.close())
	}
	defer stdout.Close()
	defer stderr.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, proc.stdout.Close(), proc.stderr.Close(), proc.close())
		}
	}()
	sys := &syscall.SysProcAttr{Setsid: true}
	if m.users {
		sys.Credential = &syscall.Credential{Uid: uint32(j.uid), Gid: uint32(j.uid)}
	}
	// Opened here: from inside its tree there is no way to them.
	door, err := proc.group.open(sys)
	if err != nil {
		return nil, fmt.Errorf("its control group: %w", err)
	}
	defer door.close()
	return proc, onThread(func() error { return m.confineAndLaunch(proc, j, door, stdout, stderr, sys) })
}

// confineAndLaunch does to the calling thread what the process is to inherit, and
// starts it.
func (m *machine) confineAndLaunch(p *process, j *job, door door, stdout, stderr *os.File, sys *syscall.SysProcAttr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid it new privileges: %w", err)
	}
	root := j.root
	if m.trees {
		root = "/"
		if err := m.enterTree(j); err != nil {
			return err
		}
	}
	if m.users {
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	if err := door.enter(sys.UseCgroupFD); err != nil {
		return fmt.Errorf("put it into its control group: %w", err)
	}
	return p.launch(j, root, stdout, stderr, sys)
}

// close gives back what a process held that is gone, or never was.
func (p *process) close() error {
	if p.group == nil {
		return nil
	}
	return p.group.remove()
}

// dropCapabilities takes from the thread what could be handed down to a program
// in spite of its user: the bounding and the ambient set.
func dropCapabilities() error {
	for c := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // the kernel knows no more of them
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && err != unix.EINVAL {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	return nil
}

// awaitExit blocks until the process has ended, and leaves it to be reaped.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// processStart is when a process started, as the kernel counts it, or "" if there
// is none or it has ended and was not reaped yet.
func processStart(pid int) string {
	fields := processStat(pid)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19] // starttime is field 22, proc_pid_stat(5)
}

// processStat returns what stands in /proc/PID/stat from its third field, the
// state, on.
func processStat(pid int) []string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	// The second field is the program's name, which may contain anything.
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// killMarked kills every process that has one of the marks in its environment,
// and returns whose it found. It looks again until there is none: what it kills
// may just have started another.
func killMarked(ids map[string]bool) (found []string) {
	for range 10 {
		again := false
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return found
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			if id := processMark(pid); ids[id] && processStart(pid) != "" && killHeld(pid, id) {
				again = true
				found = append(found, id)
			}
		}
		if !again {
			break
		}
	}
	return found
}

// killHeld kills a process by a handle that can't come to mean another one.
func killHeld(pid int, id string) bool {
	proc, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer proc.Release()
	return processMark(pid) == id && proc.Kill() == nil
}

func processMark(pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	for kv := range bytes.SplitSeq(b, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, []byte(replicaMark+"=")); ok {
			return string(v)
		}
	}
	return ""
}

// memoryFolder is where a folder that lives in memory can be made.
func (m *machine) memoryFolder(string) []string {
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || int64(fs.Type) != unix.TMPFS_MAGIC {
		return nil
	}
	return []string{filepath.Join("/dev/shm", m.name+"-"+strconv.Itoa(os.Geteuid()))}
}

// lockFolder makes sure that no other provider uses the folder. The lock ends
// with the process, however that ends.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("provider for processes: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("provider for processes: %s is in use by another gateway", dir), f.Close())
	}
	return f, nil
}

// measure says what a process and what it started use.
func (m *machine) measure(p *process) (sample, bool) {
	if p.group != nil {
		if s, ok := p.group.measure(); ok {
			return s, true
		}
	}
	var s sample
	return s, addProcess(&s, p.pid, 0)
}

// clockTick is the unit in which /proc counts CPU time: 1/100 s on every
// architecture Linux runs on.
const clockTick = time.Second / 100

// addProcess adds a process and its children, as far as they can be seen.
func addProcess(s *sample, pid, depth int) bool {
	fields := processStat(pid)
	if len(fields) < 22 || depth > 8 {
		return false
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	pages, err3 := strconv.ParseInt(fields[21], 10, 64)
	if cmp.Or(err1, err2, err3) != nil {
		return false
	}
	s.cpu += time.Duration(user+system) * clockTick
	s.memory += pages * int64(os.Getpagesize())
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	if err != nil {
		return true
	}
	for _, file := range tasks {
		children, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(children)) {
			if child, err := strconv.Atoi(field); err == nil {
				addProcess(s, child, depth+1)
			}
		}
	}
	return true
}
