package provider

import (
	"os"
	"strconv"
	"strings"
)

// freeMemory returns how much memory new processes could have, and all that there
// is, as the kernel estimates it.
func freeMemory() (free, total int64, ok bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, false
	}
	return parseMemInfo(string(b))
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
