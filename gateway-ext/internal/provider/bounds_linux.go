package provider

import (
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// bounds is what the control groups that this process is in leave of the machine:
// in a container that is less than /proc/meminfo says.
type bounds struct{ root, self string }

func ownBounds() bounds {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return bounds{}
	}
	return bounds{"/sys/fs/cgroup", string(self)}
}

// groups are our groups of a controller, from the innermost on: of version 1, and
// of version 2. In a container the innermost may be where all are mounted.
func (b bounds) groups(controller string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, top := range []struct{ dir, own string }{
			{filepath.Join(b.root, controller), ownGroup(b.self, controller)},
			{b.root, ownGroup(b.self, "")},
		} {
			for own := filepath.Join("/", top.own); b.root != ""; own = filepath.Dir(own) {
				if !yield(filepath.Join(top.dir, own)) {
					return
				}
				if own == "/" {
					break
				}
			}
		}
	}
}

// memory returns the tightest limit, and what is left of it; what the kernel can
// drop from its cache counts as free. false is none.
func (b bounds) memory() (free, total int64, ok bool) {
	for dir := range b.groups("memory") {
		for _, f := range []struct{ limit, used, cache string }{
			{"memory.max", "memory.current", "inactive_file"},
			{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
		} {
			limit, isLimit := number(filepath.Join(dir, f.limit))
			used, isUsed := number(filepath.Join(dir, f.used))
			if !isLimit || !isUsed || limit >= 1<<60 { // version 1 says "none" by a very large one
				continue
			}
			stat, _ := os.ReadFile(filepath.Join(dir, "memory.stat")) // without, none of it is cache
			for line := range strings.Lines(string(stat)) {
				if key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key == f.cache {
					n, _ := strconv.ParseInt(value, 10, 64) // the kernel's
					used -= n
				}
			}
			if left := max(0, limit-max(0, used)); !ok || left < free {
				free, total, ok = left, limit, true
			}
		}
	}
	return free, total, ok
}

// cpu returns the tightest quota in thousandths of a processor, 0 if there is none.
func (b bounds) cpu() (milli int64) {
	for dir := range b.groups("cpu") {
		quota, isQuota := number(filepath.Join(dir, "cpu.cfs_quota_us"))
		period, isPeriod := number(filepath.Join(dir, "cpu.cfs_period_us"))
		if both, err := os.ReadFile(filepath.Join(dir, "cpu.max")); err == nil {
			q, p, _ := strings.Cut(strings.TrimSpace(string(both)), " ")
			var err1, err2 error
			quota, err1 = strconv.ParseInt(q, 10, 64) // or "max"
			period, err2 = strconv.ParseInt(p, 10, 64)
			isQuota, isPeriod = err1 == nil, err2 == nil
		}
		if !isQuota || !isPeriod || quota <= 0 || period <= 0 {
			continue
		}
		if m := 1000 * quota / period; milli == 0 || m < milli {
			milli = m
		}
	}
	return milli
}

// number reads a file with one number in it.
func number(path string) (int64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}
