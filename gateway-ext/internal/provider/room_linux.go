package provider

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// freeMemory returns how much memory new processes could have, and all that there
// is, as the kernel estimates it; in a container, what that may take of it.
func freeMemory() (free, total int64, ok bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, false
	}
	free, total, ok = parseMemInfo(string(b))
	if left, limit, bound := ownBounds().memory(); ok && bound {
		free, total = min(free, left), min(total, limit)
	}
	return free, total, ok
}

// CPU returns how many thousandths of a processor there are for this process and
// those that it starts.
func CPU() int64 {
	all := 1000 * int64(runtime.NumCPU())
	if quota := ownBounds().cpu(); quota > 0 {
		return min(all, quota)
	}
	return all
}

func parseMemInfo(text string) (free, total int64, ok bool) {
	found := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		var into *int64
		switch key {
		case "MemTotal":
			into = &total
		case "MemAvailable":
			into = &free
		default:
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, 0, false
		}
		*into = kb << 10
		if found++; found == 2 {
			return free, total, true
		}
	}
	return 0, 0, false
}
