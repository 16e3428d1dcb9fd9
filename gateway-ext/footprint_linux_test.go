package main_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var footprintFor = flag.Duration("footprint", time.Minute, "how long BenchmarkFootprint looks, idle and under a light load")

// BenchmarkFootprint measures what a small fleet takes of its machines while little
// happens: a gateway with the weather app, and two nodes with a replica each. It
// tells what is resident of the gateway and of a node's program, without the
// functions, and how much they and all of their processes write to disks in an
// hour, idle and with five calls a second; memory cards die of writes.
func BenchmarkFootprint(b *testing.B) {
	dir := b.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		b.Skipf("%s is no disk: set TMPDIR to a folder on one (%v)", dir, err)
	}
	f := startFleet(b, dir, 2)
	f.deployWeather()
	if err := f.client.ScaleFunction(b.Context(), "weather-producer", "openfaas-fn", 3); err != nil {
		b.Fatal(err)
	}
	f.ready("weather-producer", 3)
	call := func() {
		if code, _, body := f.get("/function/weather-consumer?zip=70569&country=DE"); code != 200 {
			b.Errorf("a call was answered %d %.200s", code, body)
		}
	}
	call()
	b.Run("idle", func(b *testing.B) {
		time.Sleep(90 * time.Second) // what only the start needed is given back meanwhile
		f.footprint(b, func() {})
		b.ReportMetric(float64(memory(b, f.cmd.Process.Pid, "VmRSS"))/1e6, "gateway-resident-MB")
		b.ReportMetric(float64(memory(b, f.cmd.Process.Pid, "RssAnon"))/1e6, "gateway-anonymous-MB")
		b.ReportMetric(float64(memory(b, f.nodes[0].cmd.Process.Pid, "VmRSS"))/1e6, "node-resident-MB")
		b.ReportMetric(float64(memory(b, f.nodes[0].cmd.Process.Pid, "RssAnon"))/1e6, "node-anonymous-MB")
	})
	b.Run("light", func(b *testing.B) {
		f.footprint(b, call)
	})
}

// footprint reports what is written in an hour while each of five times a second
// something is done.
func (f *smallFleet) footprint(b *testing.B, do func()) {
	b.Helper()
	gateway := written(b, f.cmd.Process.Pid)
	var nodes int64
	for _, n := range f.nodes {
		nodes += written(b, n.cmd.Process.Pid)
	}
	began := time.Now()
	for time.Since(began) < *footprintFor {
		do()
		time.Sleep(200 * time.Millisecond)
	}
	hours := time.Since(began).Hours()
	gateway = written(b, f.cmd.Process.Pid) - gateway
	nodes = -nodes
	for _, n := range f.nodes {
		nodes += written(b, n.cmd.Process.Pid)
	}
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(gateway)/hours/1e3, "gateway-written-KB/h")
	b.ReportMetric(float64(nodes)/float64(len(f.nodes))/hours/1e3, "node-written-KB/h")
}

// written is how many bytes a process and all that it has started have written to
// disks. What is in memory still counts, as it will be on the disk.
func written(t testing.TB, pid int) (n int64) {
	t.Helper()
	for _, p := range append(descendants(t, pid), pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, "write_bytes:"); ok {
				bytes, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				n += bytes
			}
		}
	}
	return n
}

// descendants are the processes that a process has started, and those that these
// have.
func descendants(t testing.TB, pid int) (all []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(b)) {
			p, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			all = append(append(all, p), descendants(t, p)...)
		}
	}
	return all
}
