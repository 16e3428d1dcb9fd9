package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds beyond which something is worth a word, or wrong.
const (
	// Lines of logs are put in order over half a second; a caller's time left and
	// leases don't depend on clocks.
	skewWarn = time.Second
	// TLS certificates of registries and signed tokens are for a time.
	skewFail = time.Minute

	memoryWarn, memoryFail = 96 << 20, 32 << 20 // bytes that replicas could have besides
	diskWarn, diskFail     = 512 << 20, 64 << 20
	diskWarnPart           = 10   // percent of a disk on which there are not some GiB either
	filesWarn              = 4096 // open files: half of them are for clients
	tasksWarn, tasksFail   = 500, 100
	syncWarn               = 250 * time.Millisecond
)

// Judge says of each fact whether it is well, and what to do where it isn't.
func Judge(f Facts) []Finding {
	var j judge
	if len(f.Settings) > 0 {
		j.about = "settings"
		for _, wrong := range f.Settings {
			j.fail("setting", wrong, "correct it where the program's environment is made: the unit's EnvironmentFile, or the shell")
		}
	}
	unasked := f.Unasked != Unasked{}
	if f.Here == nil && unasked {
		j.about = "the gateway"
		j.fail("gateway", f.Unasked.Says, f.Unasked.Do)
	}
	if m := f.Here; m != nil {
		j.about = "this machine"
		if m.Name != "" {
			j.about += " (" + m.Name + ")"
		}
		switch {
		case unasked:
			j.fail("gateway", f.Unasked.Says, f.Unasked.Do)
		case f.Join == nil:
			j.ok("gateway", "none runs here: this is what one would need")
		}
		j.machine(m)
	}
	if f.Gateway != nil {
		j.gateway(f.Gateway)
	}
	if f.Join != nil {
		j.join(f.Join)
	}
	return j.findings
}

// judge collects findings about one thing after the other.
type judge struct {
	about    string
	findings []Finding
}

func (j *judge) add(l Level, check, says, do string) {
	j.findings = append(j.findings, Finding{l, j.about, check, says, do})
}

func (j *judge) ok(check, format string, args ...any) {
	j.add(OK, check, fmt.Sprintf(format, args...), "")
}
func (j *judge) warn(check, says, do string) { j.add(Warn, check, says, do) }
func (j *judge) fail(check, says, do string) { j.add(Fail, check, says, do) }

// level is Fail or Warn if the one or the other is so, else OK.
func level(fail, warn bool) Level {
	switch {
	case fail:
		return Fail
	case warn:
		return Warn
	}
	return OK
}

// machine judges what a machine says of itself.
func (j *judge) machine(m *Machine) {
	j.ports(m)
	j.clock(m)
	j.disk(&m.Disk)
	if m.Memory.All > 0 {
		j.short("memory", level(m.Memory.Free < memoryFail, m.Memory.Free < memoryWarn),
			fmt.Sprintf("%s free of %s for functions", size(m.Memory.Free), size(m.Memory.All)),
			"stop something, run fewer replicas here, or give functions less with limits in stack.yml")
	}
	j.limits(m)
	j.holds(m)
	if m.Password != "" {
		j.warn("password", "the password of the API "+m.Password, "set another with THICKET_PASSWORD_FILE, or none, to have one generated")
	}
	j.certificate(m)
	for i := range m.Reaches {
		j.reach(&m.Reaches[i])
	}
	j.redis(m.Redis)
}

// short adds a finding with something to do only if it isn't well.
func (j *judge) short(check string, l Level, says, do string) {
	if l == OK {
		do = ""
	}
	j.add(l, check, says, do)
}

func (j *judge) ports(m *Machine) {
	for _, p := range m.Ports {
		what := fmt.Sprintf("%s, for %s", p.Addr, p.What)
		switch {
		case p.Error == "":
			j.ok("port", "%s, is free", what)
		case p.Error == taken && p.By != "":
			j.fail("port", fmt.Sprintf("%s, is taken by %s", what, p.By), fmt.Sprintf("stop that, or set %s to another address", p.Setting))
		case p.Error == taken:
			j.fail("port", what+", is taken by another program", fmt.Sprintf("sudo ss -ltnp tells by which; stop that, or set %s to another address", p.Setting))
		default:
			j.fail("port", fmt.Sprintf("%s, can't be listened on: %s", what, p.Error), fmt.Sprintf("set %s to another address (ports below 1024 need root)", p.Setting))
		}
	}
}

func (j *judge) clock(m *Machine) {
	const do = "sudo timedatectl set-ntp true, or install chrony or systemd-timesyncd: a Pi forgets the time when it has no power"
	switch {
	case m.Time.Year() < 2025:
		j.fail("clock", fmt.Sprintf("it says %s, which is long over", m.Time.Format(time.DateTime)), do)
	case !m.Clock.Known:
		j.ok("clock", "this system doesn't tell whether anything keeps it")
	case !m.Clock.Synchronised:
		j.warn("clock", "nothing keeps it (no NTP)", do)
	default:
		j.ok("clock", "kept by NTP, at most %s off", round(m.Clock.Error))
	}
}

func (j *judge) disk(d *Disk) {
	where := d.Path
	if d.System != "" {
		where += ", " + d.System
	}
	if d.Card {
		where += " on an SD card"
	}
	switch {
	case d.ReadOnly:
		j.fail("disk", where+", can only be read", "sudo mount -o remount,rw it; a file system that turned read-only by itself is broken, or its card is: dmesg says")
	case d.Error != "":
		do := "start it as a user that may, or set THICKET_DATA to a folder that can be written to"
		if d.Bytes.All > 0 && d.Bytes.Free == 0 || strings.Contains(d.Error, "no space") {
			do = "make room: journalctl --vacuum-size=50M, apt-get clean, remove what nobody needs"
		}
		j.fail("disk", fmt.Sprintf("%s, can't be written to: %s", where, d.Error), do)
	case d.Bytes.All > 0:
		part := 100 * float64(d.Bytes.Free) / float64(d.Bytes.All)
		l := level(d.Bytes.Free < diskFail, d.Bytes.Free < diskWarn || part < diskWarnPart && d.Bytes.Free < 10*diskWarn)
		says := fmt.Sprintf("%s free of %s at %s", size(d.Bytes.Free), size(d.Bytes.All), where)
		do := "images and logs need room: remove what nobody needs, or set THICKET_DATA to another disk"
		if d.Card {
			do += "; a card that is nearly full wears out sooner"
		}
		j.short("disk", l, says, do)
		if d.Files.All > 0 {
			part := 100 * float64(d.Files.Free) / float64(d.Files.All)
			if l := level(part < 1, part < 5); l != OK {
				j.add(l, "disk", fmt.Sprintf("%d of %d inodes free at %s: there may be bytes left, but no more files", d.Files.Free, d.Files.All, where), "remove folders with many small files")
			}
		}
	}
	if d.InMemory {
		j.warn("state", fmt.Sprintf("%s is in memory: what is declared is forgotten when this machine restarts", d.Path), "set THICKET_DATA to a folder on a disk")
	}
	if d.Sync > 0 {
		j.short("sync", level(false, d.Sync > syncWarn), fmt.Sprintf("%s until something small is on the disk", round(d.Sync)),
			"each deploy takes that long: a worn card, or a busy disk; look for better ones")
	}
	switch {
	case d.Made && d.Mode&0o022 != 0 && !d.InMemory:
		j.fail("state", fmt.Sprintf("others on this machine may write into %s (mode %04o)", d.Path, d.Mode), "chmod go-w "+d.Path)
	case d.Open != "":
		j.fail("state", fmt.Sprintf("others on this machine can read %s, which is secret", d.Open), "chmod go-rwx "+d.Open)
	case d.Made:
		j.ok("state", "nobody else can read what is secret in %s", d.Path)
	case d.Error == "":
		j.ok("state", "is made on the first start, in %s", d.Path)
	}
}

func (j *judge) limits(m *Machine) {
	if m.Files > 0 {
		j.short("files", level(m.Files < 256, m.Files < filesWarn), fmt.Sprintf("%d may be open", m.Files),
			"each call needs up to two: LimitNOFILE=65536 in the unit, or ulimit -n")
	}
	if m.Tasks.All > 0 {
		j.short("processes", level(m.Tasks.Free < tasksFail, m.Tasks.Free < tasksWarn), fmt.Sprintf("room for %d more of %d", m.Tasks.Free, m.Tasks.All),
			"TasksMax=infinity in the unit, or sysctl kernel.pid_max")
	}
}

// holds judges what functions can be held to.
func (j *judge) holds(m *Machine) {
	for _, missing := range m.Missing {
		says, do, _ := strings.Cut(missing, "; ")
		j.warn("isolation", says, do)
	}
	g := m.Groups
	switch {
	case len(m.Missing) > 0:
	case g == nil && strings.HasPrefix(m.Platform, "linux/"): // it runs functions, and lacks nothing
		j.ok("isolation", "users, trees and limits of functions are kept")
	case g == nil:
		j.warn("isolation", "functions run as the program's user, with no limits", "run them on Linux, as root, for that")
	default:
		var lacks []string
		for _, c := range []string{"memory", "cpu", "pids"} {
			if !slices.Contains(g.Controllers, c) {
				lacks = append(lacks, c)
			}
		}
		switch {
		case g.Version == 0:
			j.warn("cgroups", "there are none: functions would have no limits", "on a Raspberry Pi, add cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot; in a container, mount them")
		case len(lacks) > 0:
			j.warn("cgroups", fmt.Sprintf("version %d, without %s: functions would not be held to that", g.Version, strings.Join(lacks, ", ")),
				"on a Raspberry Pi, add cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot")
		default:
			j.ok("cgroups", "version %d, with memory, cpu and pids", g.Version)
		}
		if !m.Root {
			j.warn("isolation", "this user isn't root: functions would run as this user, without limits, and see this machine's files", "start the program as root")
		}
	}
}

func (j *judge) certificate(m *Machine) {
	if m.Expires.IsZero() {
		return
	}
	left := m.Expires.Sub(m.Time)
	says := fmt.Sprintf("is valid until %s", m.Expires.Format(time.DateOnly))
	if left <= 0 {
		says = fmt.Sprintf("was valid until %s: clients don't believe it", m.Expires.Format(time.DateOnly))
	}
	j.short("certificate", level(left <= 0, left < 14*24*time.Hour), says, "renew it: the gateway reads THICKET_TLS_CERT again when it changes")
}

func (j *judge) reach(r *Reach) {
	named := ""
	if r.Setting != "" {
		named = " (" + r.Setting + ")"
	}
	fix := "start it, open the way to it (a firewall?)"
	if r.Setting != "" {
		fix += ", or correct " + r.Setting
	}
	switch {
	case r.Name != "":
		do := "correct the name"
		if r.Setting != "" {
			do = "correct " + r.Setting
		}
		j.fail("dns", fmt.Sprintf("%s, the host of %s%s: %s", r.Name, r.What, named, r.Error), do+", or this machine's name servers (/etc/resolv.conf), or add it to /etc/hosts")
	case r.Error != "":
		j.fail("network", fmt.Sprintf("%s at %s%s: %s", r.What, r.Addr, named, r.Error), fix)
	default:
		j.ok("network", "%s at %s answers, after %s", r.What, r.Addr, round(r.Took))
	}
}

func (j *judge) redis(r *Redis) {
	switch {
	case r == nil:
	case r.Memory == 0:
		j.warn("redis", fmt.Sprintf("version %s may use all memory of its machine", r.Version), "set maxmemory 96mb and maxmemory-policy allkeys-lru in its redis.conf: deploy/redis has one")
	case r.Policy == "noeviction":
		j.warn("redis", fmt.Sprintf("version %s takes nothing new once its %s are full (noeviction)", r.Version, size(r.Memory)), "set maxmemory-policy allkeys-lru in its redis.conf: deploy/redis has one")
	default:
		j.ok("redis", "version %s keeps %s (%s)", cmp.Or(r.Version, "?"), size(r.Memory), r.Policy)
	}
}

// size writes an amount as people read it.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.0f GiB", float64(n)/(1<<30))
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// round leaves of a time what a person wants to know.
func round(d time.Duration) time.Duration {
	for unit := time.Second; unit > time.Microsecond; unit /= 10 {
		if d >= 10*unit || d <= -10*unit {
			return d.Round(unit)
		}
	}
	return d.Round(time.Microsecond)
}
