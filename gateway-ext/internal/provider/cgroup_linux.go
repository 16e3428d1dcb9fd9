package provider

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The controllers that hold replicas to something, and what is missing without.
var controllers = []struct{ name, without string }{
	{"memory", "no memory limits: functions can take all memory of this machine"},
	{"cpu", "no CPU limits: functions can take all processors of this machine"},
	{"pids", "no bound on processes: a function can start any number of them"},
}

// cgroups is where the control groups of our replicas are: below one group of our
// own, of each hierarchy (version 1) or of the only one (version 2).
type cgroups struct {
	unified bool
	parents map[string]string // by controller; of version 2 all the same
}

// newCgroups finds or makes the groups above those of the replicas. root is where
// they are mounted, self what /proc/self/cgroup says. It returns nil if replicas
// can't be put into groups at all.
func newCgroups(root, name, self string) (*cgroups, []string) {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return newUnified(root, name, self)
	}
	g := &cgroups{parents: make(map[string]string)}
	var missing []string
	for _, c := range controllers {
		dir, err := makeParent(root, c.name, name, ownGroup(self, c.name))
		if err != nil {
			why := "cgroups may be off: on a Raspberry Pi, add cgroup_enable=" + c.name + " to cmdline.txt"
			if errors.Is(err, syscall.EROFS) {
				why = "as in a container, whose own limits hold for all of them together"
			}
			missing = append(missing, fmt.Sprintf("%s (%v; %s)", c.without, err, why))
			continue
		}
		g.parents[c.name] = dir
	}
	// For measuring only: nothing is missing without.
	if dir, err := makeParent(root, "cpuacct", name, ownGroup(self, "cpuacct")); err == nil {
		g.parents["cpuacct"] = dir
	}
	if len(g.parents) == 0 {
		return nil, missing
	}
	return g, missing
}

// ownGroup is the group this process is in, from /proc/self/cgroup: lines of
// "number:controller,controller:/path", where version 2 names none.
func ownGroup(self, controller string) string {
	for l := range strings.Lines(self) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), ":")
		names, path, _ := strings.Cut(rest, ":")
		if slices.Contains(strings.Split(names, ","), controller) {
			return path
		}
	}
	return "/"
}

// makeParent makes our group in a hierarchy of version 1: below the group we are
// in, whose limits then hold for all of us together, or at its top where our own
// can't be seen (in some containers).
func makeParent(root, controller, name, own string) (dir string, err error) {
	for _, base := range []string{own, "/"} {
		dir = filepath.Join(root, controller, base, name)
		if err = os.Mkdir(dir, 0o755); err == nil || errors.Is(err, os.ErrExist) {
			return dir, nil
		}
	}
	return "", cause(err)
}

// newUnified is newCgroups for version 2. There a group hands controllers down
// only if no process is in it, except at the very top.
func newUnified(root, name, self string) (*cgroups, []string) {
	var best *cgroups
	var missing []string
	for _, base := range []string{ownGroup(self, ""), "/"} {
		dir := filepath.Join(root, base)
		g, lacks, err := unifiedAt(dir, name)
		if err != nil {
			if best == nil {
				missing = []string{fmt.Sprintf("no limits: the control group %s can't be used: %v", dir, err)}
			}
			continue
		}
		if len(lacks) == 0 {
			return g, nil
		}
		if best == nil {
			best, missing = g, lacks
		}
	}
	return best, missing
}

func unifiedAt(base, name string) (*cgroups, []string, error) {
	handDown(base)
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, nil, cause(err)
	}
	handDown(dir)
	g := &cgroups{unified: true, parents: map[string]string{"": dir}}
	given, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return nil, nil, cause(err)
	}
	var missing []string
	for _, c := range controllers {
		if slices.Contains(strings.Fields(string(given)), c.name) {
			g.parents[c.name] = dir
		} else {
			missing = append(missing, fmt.Sprintf("%s (the controller %s is not handed down to %s; with systemd, set Delegate=yes)", c.without, c.name, dir))
		}
	}
	return g, missing, nil
}

// handDown gives the groups below dir the controllers that dir has, as far as it
// goes: what is missing after is found by looking. If it is only us who are in
// the way, we step aside into a group below.
func handDown(dir string) {
	control := filepath.Join(dir, "cgroup.subtree_control")
	busy := false
	enable := func() {
		for _, c := range controllers {
			if err := writeFile(control, "+"+c.name); errors.Is(err, syscall.EBUSY) {
				busy = true
			}
		}
	}
	if enable(); !busy {
		return
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if self := strconv.Itoa(os.Getpid()); err != nil || strings.TrimSpace(string(procs)) != self {
		return
	}
	aside := filepath.Join(dir, "thicket-gateway")
	if err := os.Mkdir(aside, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return
	}
	if writeFile(filepath.Join(aside, "cgroup.procs"), "0") == nil {
		enable()
	}
}

// writeFile writes to a file of a control group, which must be there: each write
// is an order.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// cgroup is the control group of one replica: a folder in each hierarchy. A nil
// one is none.
type cgroup struct {
	unified bool
	dirs    map[string]string // by controller
}

// create makes a replica's group with its limits.
func (g *cgroups) create(id string, l limits) (*cgroup, error) {
	c := &cgroup{unified: g.unified, dirs: make(map[string]string, len(g.parents))}
	for controller, parent := range g.parents {
		dir := filepath.Join(parent, id)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errors.Join(cause(err), c.remove())
		}
		c.dirs[controller] = dir
	}
	for _, o := range c.orders(l) {
		dir, ok := c.dirs[o.controller]
		if !ok {
			continue // it is missing, and the start has said so
		}
		if err := writeFile(filepath.Join(dir, o.file), o.text); err != nil && !o.optional {
			return nil, errors.Join(fmt.Errorf("set %s to %s: %w", o.file, o.text, cause(err)), c.remove())
		}
	}
	return c, nil
}

// An order is what is written to one file of a group.
type order struct {
	controller, file, text string
	optional               bool // not every kernel has it
}

// cpuPeriod is over which time CPU use is limited: long enough that a limit of a
// hundredth is not all overhead, short enough that a request isn't felt to stop.
const cpuPeriod = 100 * time.Millisecond

// minQuota is the least that the kernel takes for a period.
const minQuota = time.Millisecond

func (c *cgroup) orders(l limits) (orders []order) {
	quota := strconv.FormatInt(max(cpuPeriod*time.Duration(l.cpu)/1000, minQuota).Microseconds(), 10)
	period := strconv.FormatInt(cpuPeriod.Microseconds(), 10)
	memory := strconv.FormatInt(l.memory, 10)
	if l.pids > 0 {
		orders = append(orders, order{"pids", "pids.max", strconv.Itoa(l.pids), false})
	}
	if c.unified {
		if l.memory > 0 {
			orders = append(orders,
				order{"memory", "memory.max", memory, false},
				order{"memory", "memory.swap.max", "0", true},
				order{"memory", "memory.oom.group", "1", true})
		}
		if l.cpu > 0 {
			orders = append(orders, order{"cpu", "cpu.max", quota + " " + period, false})
		}
		return orders
	}
	if l.memory > 0 {
		orders = append(orders,
			order{"memory", "memory.limit_in_bytes", memory, false},
			order{"memory", "memory.memsw.limit_in_bytes", memory, true})
	}
	if l.cpu > 0 {
		orders = append(orders,
			order{"cpu", "cpu.cfs_period_us", period, false},
			order{"cpu", "cpu.cfs_quota_us", quota, false})
	}
	return orders
}

// door is the way into a group for the calling thread and what it starts.
type door []*os.File

// open opens the way in. Version 2 takes a process as it is born, so there it is
// sys that is set.
func (c *cgroup) open(sys *syscall.SysProcAttr) (door, error) {
	if c == nil {
		return nil, nil
	}
	if c.unified {
		f, err := os.Open(c.dirs[""])
		if err != nil {
			return nil, cause(err)
		}
		sys.UseCgroupFD, sys.CgroupFD = true, int(f.Fd())
		return door{f}, nil
	}
	var d door
	for _, dir := range c.dirs {
		f, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			d.close()
			return nil, cause(err)
		}
		d = append(d, f)
	}
	if len(d) == 0 {
		return nil, nil
	}
	return d, nil
}

// enter moves the calling thread into the groups of version 1.
func (d door) enter(unified bool) error {
	if unified {
		return nil
	}
	for _, f := range d {
		if _, err := f.WriteString("0"); err != nil { // the thread that writes
			return cause(err)
		}
	}
	return nil
}

func (d door) close() {
	for _, f := range d {
		_ = f.Close()
	}
}

// folders are the group's folders, each once.
func (c *cgroup) folders() []string {
	if c == nil {
		return nil
	}
	var dirs []string
	for _, dir := range c.dirs {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// kill kills every process in the group.
func (c *cgroup) kill() {
	for _, dir := range c.folders() {
		emptyGroup(dir)
	}
}

// emptyGroup kills until nobody is in the group: who is killed may have started
// another just before.
func emptyGroup(dir string) {
	for range 100 {
		pids := processes(dir)
		if len(pids) == 0 {
			return
		}
		if writeFile(filepath.Join(dir, "cgroup.kill"), "1") != nil { // Linux 5.14, version 2
			for _, pid := range pids {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		// What is killed leaves the group on its own time: there is nothing to
		// wait on that both versions have.
		time.Sleep(time.Millisecond)
	}
}

// processes lists who is in a group. Our own process never is: only threads of
// it that are about to start another.
func processes(dir string) (pids []int) {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if pid, err := strconv.Atoi(s.Text()); err == nil && pid > 1 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// remove removes the group. The kernel lets go of who was in it a moment after
// they have ended.
func (c *cgroup) remove() error { return removeGroups(c.folders()) }

// removeGroups removes groups, and kills who is still in them.
func removeGroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		var err error
		for range 100 {
			if err = os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				err = nil
				break
			}
			emptyGroup(dir)
			time.Sleep(time.Millisecond)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep removes the groups below our own, which nobody needs any more, and whoever
// is in them.
func (g *cgroups) sweep() {
	for _, parent := range g.parents {
		entries, err := os.ReadDir(parent)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				_ = removeGroups([]string{filepath.Join(parent, e.Name())}) // found again by the next sweep
			}
		}
	}
}

// remove removes our own groups, with all below.
func (g *cgroups) remove() error {
	g.sweep()
	var errs []error
	for _, parent := range g.parents {
		if err := os.Remove(parent); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeLeft removes the groups of replicas that an earlier gateway left behind,
// and those above them if this one has others.
func (g *cgroups) removeLeft(name string, dirs []string) error {
	err := removeGroups(dirs)
	for _, dir := range dirs {
		parent := filepath.Dir(dir)
		ours := g != nil && slices.Contains(slices.Collect(maps.Values(g.parents)), parent)
		if filepath.Base(parent) == name && !ours {
			_ = os.Remove(parent) // it may have more below it, whose turn comes
		}
	}
	return err
}

// oomKilled says whether the kernel killed somebody in the group for memory.
func (c *cgroup) oomKilled() bool {
	if c == nil || c.dirs["memory"] == "" {
		return false
	}
	file := "memory.oom_control"
	if c.unified {
		file = "memory.events"
	}
	return c.number("memory", file, "oom_kill") > 0
}

// measure says what the group uses.
func (c *cgroup) measure() (s sample, ok bool) {
	if c.dirs["memory"] == "" {
		return s, false
	}
	cached := "total_inactive_file"
	usage := "memory.usage_in_bytes"
	if c.unified {
		cached, usage = "inactive_file", "memory.current"
		s.cpu = time.Duration(c.number("", "cpu.stat", "usage_usec")) * time.Microsecond
	} else {
		if c.dirs["cpuacct"] == "" {
			return s, false
		}
		s.cpu = time.Duration(c.number("cpuacct", "cpuacct.usage", ""))
	}
	// What the kernel could give back at once is not what a function needs.
	s.memory = max(0, c.number("memory", usage, "")-c.number("memory", "memory.stat", cached))
	return s, s.memory > 0
}

// number reads a number from a file of the group: the one behind key, or the only
// one. It is 0 if there is none.
func (c *cgroup) number(controller, file, key string) int64 {
	b, err := os.ReadFile(filepath.Join(c.dirs[controller], file))
	if err != nil {
		return 0
	}
	text := string(b)
	if key != "" {
		_, rest, found := strings.Cut("\n"+text, "\n"+key+" ")
		if !found {
			return 0
		}
		text = rest
	}
	text, _, _ = strings.Cut(text, "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
