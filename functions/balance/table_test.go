package balance_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
)

var update = flag.Bool("update", false, "write the table of docs/balancing.md anew")

// simRules are the rules as the table has them, with what they need to differ.
var simRules = []setup{
	{rule: "p2c"},
	{rule: "round-robin"},
	{rule: "weighted-response-time"},
	{rule: "least-requests"},
	{rule: "availability-filtering active=4"},
	{rule: "zone-preference", zones: 2},
	{rule: "random"},
	{rule: "consistent-hash header=X"},
}

// table simulates all that docs/balancing.md shows.
var table = sync.OnceValue(func() map[setup]result {
	results := make(map[setup]result)
	for _, s := range simRules {
		for _, n := range []int{3, 7} {
			for _, t := range []trouble{noTrouble, slow, failsFast, justBegan} {
				for _, e := range []balance.Eject{balance.EjectNone, balance.EjectOutliers} {
					if e == balance.EjectOutliers && t != failsFast {
						continue
					}
					s.replicas, s.trouble, s.eject = n, t, e
					results[s] = simulate(s)
				}
			}
		}
	}
	return results
})

// of returns the result of one cell.
func of(s setup, n int, t trouble, e balance.Eject) result {
	s.replicas, s.trouble, s.eject = n, t, e
	return table()[s]
}

// write returns the table as Markdown.
func write() string {
	var b strings.Builder
	for _, n := range []int{3, 7} {
		fmt.Fprintf(&b, "**%d replicas**, %.0f calls a second:\n\n", n, simLoad*float64(n*simWorkers)/(simFixed+simRandom).Seconds())
		b.WriteString("| rule | all well: p50, p99 | one 10 × slower: p50, p99 (its share) | one fails fast: failed calls, with ejection | one just started, cold: p50, p99 (its share) |\n|---|---|---|---|---|\n")
		for _, s := range simRules {
			well, ill, began := of(s, n, noTrouble, balance.EjectNone), of(s, n, slow, balance.EjectNone), of(s, n, justBegan, balance.EjectNone)
			fmt.Fprintf(&b, "| %s | %s, %s | %s, %s (%s) | %s, %s | %s, %s (%s) |\n", s.rule,
				ms(well.p50), ms(well.p99), ms(ill.p50), ms(ill.p99), percent(ill.shares[0]),
				percent(of(s, n, failsFast, balance.EjectNone).failures), percent(of(s, n, failsFast, balance.EjectOutliers).failures),
				ms(began.p50), ms(began.p99), percent(began.shares[0]))
		}
		b.WriteString("\n")
	}
	return strings.TrimSpace(b.String())
}

func ms(d time.Duration) string { return fmt.Sprintf("%d", d.Round(time.Millisecond).Milliseconds()) }
func percent(f float64) string  { return fmt.Sprintf("%.1f %%", 100*f) }

// Between these lines the document has the table.
const (
	tableBegin = "<!-- the table begins; go test ./functions/balance -run TestTable -update writes it -->\n"
	tableEnd   = "\n<!-- the table ends -->"
)

// onlyWithoutRace skips a test of many simulations where they take ten times as
// long. Each is the work of one goroutine, which races with nobody.
func onlyWithoutRace(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is on: make test runs this without it, too")
	}
}

// TestTable holds that the document shows what the rules do.
func TestTable(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other processors round floating-point numbers in another way, and a simulation is chaotic")
	}
	onlyWithoutRace(t)
	path := filepath.Join("..", "..", "docs", "balancing.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), tableBegin)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has not the lines that mark its table", path)
	}
	want := write()
	if *update {
		if err := os.WriteFile(path, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != want {
		t.Errorf("%s has a table that is not what comes out now: run go test ./functions/balance -run TestTable -update, and look at what has changed. It is now:\n%s", path, want)
	}
}
