package fleet_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

var (
	simLarge = flag.Bool("fleet-sim", false, "simulate fleets of up to 2,000 nodes, which takes minutes")
	simDoc   = flag.String("doc", "", "write what was simulated into this `file`")
)

// simBound is how long a round of decisions may take, in a fleet of simBoundAt nodes.
const (
	simBound   = 50 * time.Millisecond
	simBoundAt = 1000
)

// TestFleetSim lets fleets of several sizes live through what fleets live through,
// and holds what comes of it to bounds: all that can be placed is, what a round
// allocates grows with the fleet and not with its square. How long rounds take is
// printed; "make fleet-sim" does it for large fleets, and fails if the usual round
// takes too long.
func TestFleetSim(t *testing.T) {
	sizes, day := []int{20, 80}, 120
	if *simLarge {
		sizes, day = []int{100, 300, 1000, 2000}, simDay
	}
	var all [][]simRow     // by scenario, then size
	runtime.LockOSThread() // whose time is measured
	defer runtime.UnlockOSThread()
	for _, n := range sizes {
		began := time.Now()
		for i, row := range newFleetSim(n).scenarios(day) {
			if i == len(all) {
				all = append(all, nil)
			}
			all[i] = append(all[i], row)
		}
		if *simLarge {
			fmt.Printf("%d nodes, %d functions: simulated in %s\n", n, 10*n, time.Since(began).Round(time.Second))
		}
	}
	whole := make([]simRow, len(sizes))
	for _, rows := range all {
		for _, r := range rows {
			impossible := strings.Contains(r.name, "for no node's")
			if (r.left > 0) != impossible && !strings.Contains(r.name, "called at once") && !strings.Contains(r.name, "a day") && !strings.Contains(r.name, "drained") {
				t.Errorf("%d nodes, %s: %d replicas are not ready at the end", r.nodes, r.name, r.left)
			}
			if impossible && r.left == 0 {
				t.Errorf("%d nodes, %s: all replicas found a place", r.nodes, r.name)
			}
			if r.imbalance > 35 {
				t.Errorf("%d nodes, %s: the fullest node is fuller than the average by %.0f %% of its memory", r.nodes, r.name, r.imbalance)
			}
			if *simLarge && r.nodes <= simBoundAt && r.p50 > simBound {
				t.Errorf("%d nodes, %s: a round takes %s, want at most %s", r.nodes, r.name, r.p50, simBound)
			}
		}
		for i, r := range rows {
			whole[i].nodes = r.nodes
			whole[i].bytes += r.bytes
		}
	}
	// Of all together: a round of a small fleet allocates less than is counted at a time.
	if e := exponent(whole, func(r *simRow) float64 { return r.bytes }); e > 1.25 {
		t.Errorf("a round's memory grows with the %.2fth power of the fleet, want the first", e)
	}
	table := simTable(all)
	if *simLarge {
		fmt.Print(table)
	}
	if *simDoc == "" {
		return
	}
	const begin, end = "<!-- make fleet-sim writes from here -->\n", "<!-- to here -->"
	b, err := os.ReadFile(*simDoc)
	must(t, err)
	head, rest, found := strings.Cut(string(b), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no place for the table", *simDoc)
	}
	must(t, os.WriteFile(*simDoc, []byte(head+begin+table+end+tail), 0o644))
}

// simTable is what was simulated, for people.
func simTable(all [][]simRow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Simulated %s on %d cores (%s/%s, %s).\n\n", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	b.WriteString("| what happens | nodes | rounds | ms of a core a round: half | 99 % | longest | KB a round | at most | steps | without a place, at most | placed after | ready after | fullest node |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, rows := range all {
		for _, r := range rows {
			fmt.Fprintf(&b, "| %s | %d | %d | %s | %s | %s | %.0f | %.0f | %d | %d | %s | %s | +%.0f %% |\n", r.name, r.nodes, r.rounds, millis(r.p50), millis(r.p99), millis(r.max),
				r.bytes/1e3, r.most/1e3, r.steps, r.short, after(r.until), after(r.ready), r.imbalance)
		}
	}
	var worst simRow
	b.WriteString("\nHow much more a larger fleet takes: *n* nodes take *n* to the power of so much, 1 is linear.\n\n| what happens | time of a round | memory of a round |\n|---|--:|--:|\n")
	for _, rows := range all {
		fmt.Fprintf(&b, "| %s | %.2f | %.2f |\n", rows[0].name, exponent(rows, func(r *simRow) float64 { return float64(r.mean) }), exponent(rows, func(r *simRow) float64 { return r.bytes }))
		for _, r := range rows {
			if r.nodes <= simBoundAt && r.max > worst.max {
				worst = r
			}
		}
	}
	held := "held"
	if worst.max > simBound {
		held = "not held"
	}
	fmt.Fprintf(&b, "\nThe longest round of all in fleets of up to %d nodes took %s ms (%s; %d nodes); at most %d ms were asked for: **%s**.\n", simBoundAt, millis(worst.max), worst.name, worst.nodes, simBound.Milliseconds(), held)
	return b.String()
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

func after(seconds int) string {
	if seconds < 0 {
		return "never"
	}
	return fmt.Sprintf("%d s", seconds)
}
