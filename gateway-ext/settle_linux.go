package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// forgetProgram unmaps the pages of the program's own file. What is needed again
// comes back with the next use, from the kernel's cache, at about a microsecond for
// 16 pages; the rest is the kernel's to give to others, whereas what is mapped it
// gives away last. Only pages that are the file's are let go: what was written
// to would be lost.
func forgetProgram() {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return // it is about some megabytes
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	var start, end uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// "00400000-01e5d000 r-xp 00000000 fe:00 2362 /usr/local/bin/gateway-ext",
		// then what there is of it: "Anonymous:             0 kB".
		line := lines.Text()
		if value, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			if strings.TrimSpace(value) == "0 kB" && end > start {
				// It is advice: whoever doesn't take it changes nothing.
				_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
			}
			start, end = 0, 0
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasSuffix(line, " "+program) || fields[1] != "r-xp" && fields[1] != "r--p" {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, _ = strconv.ParseUint(from, 16, 64)
		end, _ = strconv.ParseUint(to, 16, 64)
	}
}
