package doctor

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clock asks the kernel whether something keeps the clock.
func clock() Clock {
	var t unix.Timex // with no mode set, it only reads
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return Clock{}
	}
	return Clock{
		Known: true, Synchronised: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		Error: time.Duration(t.Maxerror) * time.Microsecond,
	}
}

// tasks is how many processes and threads there may be, and how many more: by
// the control group that this process is in, or the kernel.
func tasks() Room {
	all := number("/proc/sys/kernel/pid_max")
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Room{All: all}
	}
	for line := range strings.Lines(string(self)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		dir := filepath.Join("/sys/fs/cgroup", group)
		if controllers == "pids" {
			dir = filepath.Join("/sys/fs/cgroup/pids", group)
		} else if controllers != "" {
			continue
		}
		if most := number(filepath.Join(dir, "pids.max")); most > 0 && (all == 0 || most < all) {
			return Room{All: most, Free: max(0, most-number(filepath.Join(dir, "pids.current")))}
		}
	}
	procs, _ := os.ReadFile("/proc/loadavg") // "0.00 0.01 0.05 1/123 4567"
	if fields := strings.Fields(string(procs)); len(fields) > 3 {
		_, n, _ := strings.Cut(fields[3], "/")
		if used, err := strconv.ParseInt(n, 10, 64); err == nil {
			return Room{All: all, Free: max(0, all-used)}
		}
	}
	return Room{}
}

// number reads a file that holds one, and is 0 for one that holds none.
func number(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n
}

// groups tells which control groups there are.
func groups() *Groups {
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return &Groups{Version: 2, Controllers: strings.Fields(string(b))}
	}
	g := &Groups{}
	for _, name := range []string{"memory", "cpu", "pids"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", name)); err == nil {
			g.Version, g.Controllers = 1, append(g.Controllers, name)
		}
	}
	return g
}

// measure asks the kernel about the disk that the folder is on.
func (d *Disk) measure() {
	var st unix.Statfs_t
	if unix.Statfs(d.Path, &st) == nil {
		d.Bytes = Room{All: int64(st.Blocks) * int64(st.Bsize), Free: int64(st.Bavail) * int64(st.Bsize)}
		d.Files = Room{All: int64(st.Files), Free: int64(st.Ffree)}
		d.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	path := d.Path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	m := mountOf(string(mounts), path)
	d.System = m.system
	d.InMemory = m.system == "tmpfs" || m.system == "ramfs"
	// …/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2, beside whose "block" is
	// what kind of card it is: there is "MMC" too, soldered in.
	device, err := filepath.EvalSymlinks("/sys/dev/block/" + m.device)
	if card, _, found := strings.Cut(device, "/block/"); err == nil && found {
		kind, _ := os.ReadFile(filepath.Join(card, "type"))
		d.Card = strings.TrimSpace(string(kind)) == "SD"
	}
}

// mount is a line of /proc/self/mountinfo, proc_pid_mountinfo(5).
type mount struct{ point, device, system string }

// mountOf finds the mount that a path is on: the last of those with the longest
// mount point above it.
func mountOf(mounts, path string) (best mount) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(rest) < 1 {
			continue
		}
		point := unescape.Replace(fields[4])
		if above := point == "/" || path == point || strings.HasPrefix(path, point+"/"); above && len(point) >= len(best.point) {
			best = mount{point: point, device: fields[2], system: rest[0]}
		}
	}
	return best
}

// listener finds out who listens on a port, "" if that can't be found out: only
// root sees the files of all.
func listener(ctx context.Context, addr string) string {
	_, p, err := net.SplitHostPort(addr)
	port, err2 := strconv.ParseUint(p, 10, 16)
	if cmp.Or(err, err2) != nil {
		return ""
	}
	var inodes []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if b, err := os.ReadFile(table); err == nil {
			inodes = append(inodes, listening(b, uint16(port))...)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		files, err := os.ReadDir(filepath.Join(proc, "fd"))
		for _, f := range files {
			if ctx.Err() != nil {
				return ""
			}
			link, _ := os.Readlink(filepath.Join(proc, "fd", f.Name()))
			if inode, ok := strings.CutPrefix(link, "socket:["); err == nil && ok && slices.Contains(inodes, strings.TrimSuffix(inode, "]")) {
				name, _ := os.ReadFile(filepath.Join(proc, "comm"))
				return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(proc))
			}
		}
	}
	return ""
}

// listening returns the inodes of the sockets that listen on a port, from
// /proc/net/tcp: "sl local_address rem_address st … inode …", where 0A listens.
func listening(table []byte, port uint16) (inodes []string) {
	want := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], want) {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}
