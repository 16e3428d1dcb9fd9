package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// memory is what a contestant's processes hold, in bytes. What several of them
// share counts for each: it is little.
type memory struct {
	resident  int64 // pages in memory, those of the program's file included
	anonymous int64 // those that are nobody else's: heap and stacks
}

// most returns the larger of two, each part for itself.
func (m memory) most(o memory) memory {
	return memory{max(m.resident, o.resident), max(m.anonymous, o.anonymous)}
}

// pids are the contestant's processes.
func (c *contestant) pids() ([]string, error) {
	if c.pid == 0 {
		return nil, nil
	}
	pid := strconv.Itoa(c.pid)
	all := []string{pid}
	if c.children {
		b, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
		if err != nil {
			return nil, err
		}
		all = append(all, strings.Fields(string(b))...)
	}
	return all, nil
}

// cpu returns the CPU time that the contestant has used: the sum of what the
// scheduler counts for each thread, in nanoseconds, since the ticks in
// /proc/PID/stat are too long for a measurement of a second. A thread that ends
// takes its count along; those of the contestants stay.
func (c *contestant) cpu() (time.Duration, error) {
	pids, err := c.pids()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range pids {
		threads, err := filepath.Glob(filepath.Join("/proc", pid, "task/*/schedstat"))
		if err != nil {
			return 0, err
		}
		if len(threads) == 0 {
			return 0, fmt.Errorf("process %s of %s is gone, or this is no Linux", pid, c.name)
		}
		for _, t := range threads {
			b, err := os.ReadFile(t)
			if err != nil {
				continue // it ended just then
			}
			first, _, _ := strings.Cut(string(b), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", t, err)
			}
			sum += time.Duration(ns)
		}
	}
	return sum, nil
}

// memory returns what the contestant holds now.
func (c *contestant) memory() (memory, error) {
	pids, err := c.pids()
	if err != nil {
		return memory{}, err
	}
	var m memory
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
		if err != nil {
			return memory{}, err
		}
		for line := range strings.Lines(string(b)) {
			var field *int64
			switch name, _, _ := strings.Cut(line, ":"); name {
			case "Rss":
				field = &m.resident
			case "Anonymous":
				field = &m.anonymous
			default:
				continue
			}
			kb, err := strconv.ParseInt(strings.Fields(line)[1], 10, 64)
			if err != nil {
				return memory{}, fmt.Errorf("smaps_rollup of %s: %w", c.name, err)
			}
			*field += kb << 10
		}
	}
	return m, nil
}

// machine describes what this runs on.
func machine(ctx context.Context) string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" || strings.TrimSpace(name) == "Model" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, _ := exec.CommandContext(ctx, "uname", "-sr").Output()
	return fmt.Sprintf("%d cores of %s, %s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)))
}
