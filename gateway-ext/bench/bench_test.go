package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// TestRun measures for a moment, to see that the whole thing works: everything
// is started, called, counted, and ended.
func TestRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("CPU time and memory are counted from Linux's /proc")
	}
	if _, err := exec.LookPath("wrk"); err != nil {
		t.Skip("wrk is missing: apt-get install wrk")
	}
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	if err := os.Chmod(os.Getenv("TMPDIR"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-only", "direct,httputil,thicket", "-connections", "2", "-rounds", "1", "-rate", "100", "-doc", page}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if strings.Contains(text, "old") || !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "\nafter\n") {
		t.Errorf("the page was not kept but for its part:\n%s", text)
	}
	// A row for each in the tables of GET and POST, and in the one of latencies.
	for _, c := range []string{direct, bare, thicket} {
		rows := 0
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "| "+c+" |") {
				rows++
				if !strings.HasSuffix(line, " 0 |\n") {
					t.Errorf("errors: %s", line)
				}
			}
		}
		if rows != 3 {
			t.Errorf("%s has %d rows, want 3:\n%s", c, rows, text)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "thicket-bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestArguments(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-connections 0", `-connections: "0" is not a number of connections`},
		{"-connections 1,", `-connections: "" is not a number of connections`},
		{"-only nginx,apache", `there is no contestant "apache": they are direct, nginx, `},
		{"-rounds 0", "-rounds and -seconds are at least 1"},
	} {
		if err := run(t.Context(), strings.Fields(tt.args)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("bench %s: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// TestMarkdown compares the tables of made up measurements with those in
// testdata.
func TestMarkdown(t *testing.T) {
	r := &results{
		plan:        plan{connections: []int{1, 256}, methods: []string{"GET"}, rounds: 3, seconds: 1, rate: 100},
		machine:     "1 core of Test, Linux 1",
		versions:    []string{"nginx/1", "go2"},
		contestants: []string{direct, nginx, thicket},
		idle:        []memory{{}, {5e6, 1e6}, {20e6, 8e6}},
		numbers:     []number{{"gateway-ext Idle", "40.1 resident-MB"}},
		took:        62 * time.Second,
		when:        time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC),
	}
	ms := time.Millisecond
	for round, drift := range []float64{1, 2, 0.5} { // of the machine's speed
		for _, n := range r.plan.connections {
			add := func(name string, rate float64, p50, cpu time.Duration, m memory) {
				r.samples = append(r.samples, sample{contestant: name, method: "GET", connections: n, round: round,
					rate: rate * drift, p50: time.Duration(float64(p50) / drift), p99: 9 * ms, cpu: time.Duration(float64(cpu) / drift), errors: round / 2, memory: m})
			}
			add(direct, 1000, ms, 0, memory{})
			add(nginx, 500, 2*ms, 300*ms, memory{6e6, 2e6})
			// Better with one connection than with many.
			add(thicket, 400/float64(1+n/256), 2*ms+ms/5, 450*ms*time.Duration(1+n/256), memory{24e6, 11e6})
		}
	}
	r.paced = []latency{{contestant: thicket, p50: 120 * time.Microsecond, p99: ms, p999: 3 * ms}}

	got, golden := r.markdown(), filepath.Join("testdata", "tables.md")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(got)) {
		t.Errorf("the tables are not those of %s (-update writes it):\n%s", golden, got)
	}
}

func TestParseNumbers(t *testing.T) {
	const out = `goos: linux
pkg: github.com/seed-780dceda/thicket/gateway-ext
BenchmarkIdle-2   	       1	         0.15 %core	        38.6 resident-MB	       0 B/op	       0 allocs/op
PASS
pkg: github.com/seed-780dceda/thicket/functions/resilience
BenchmarkGoodCall/ours-2 	 1000	 1100 ns/op	 6 allocs/op
--- BENCH: BenchmarkGoodCall
ok  	github.com/seed-780dceda/thicket/functions/resilience	1.2s
`
	want := []number{
		{"gateway-ext Idle", "0.15 %core, 38.6 resident-MB"},
		{"functions/resilience GoodCall/ours", "1100 ns/op, 6 allocs/op"},
	}
	if got := parseNumbers(out); !reflect.DeepEqual(got, want) {
		t.Errorf("parseNumbers() = %q, want %q", got, want)
	}
}
