//go:build faults && linux

package faults_test

import (
	"fmt"
	"io"
	"math"
	"sync"
	"testing"
	"text/tabwriter"
)

// The variants of a scenario: what is called.
const (
	guarded  = "policy"       // a function with a policy
	bare     = "unprotected"  // the same without
	stock    = "goresilience" // the same behind the stock chain of v0.2.0
	byAddr   = "addresses"    // its replicas, one after the other, without a gateway
	consumer = "consumer"     // who calls them
)

// lenient is by how much a time may be longer than its bound before that is a
// failure: machines that run this suite are busy with other things.
const lenient = 10

// results are what all scenarios measured.
var results table

// table has a row for each bound, with the worst of all rounds.
type table struct {
	mu   sync.Mutex // guards below
	rows []*row
}

type row struct {
	scenario, variant, what string
	value, bound            float64
	control                 bool // must be beyond the bound
	time                    bool
}

// add notes a value: the worst for what is held to a bound, the best for what
// must break it.
func (tb *table) add(r row) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, o := range tb.rows {
		if o.scenario == r.scenario && o.variant == r.variant && o.what == r.what {
			if r.control {
				o.value = min(o.value, r.value)
			} else {
				o.value = max(o.value, r.value)
			}
			return
		}
	}
	tb.rows = append(tb.rows, &r)
}

func (tb *table) print(w io.Writer) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if len(tb.rows) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nscenario\twhat is called\tworst of all rounds\tbound\tmeasured\t")
	for _, r := range tb.rows {
		verdict := "held"
		switch {
		case r.control && r.value > r.bound:
			verdict = "broken, as expected"
		case r.control:
			verdict = "HELD, which the suite would not notice"
		case r.value > r.bound && r.time && r.value <= r.bound*lenient:
			verdict = "over, within what busy machines are allowed"
		case r.value > r.bound:
			verdict = "BROKEN"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.scenario, r.variant, r.what, number(r.bound), number(r.value), verdict)
	}
	t.Flush()
}

func number(f float64) string {
	if math.Abs(f) >= 100 || f == math.Trunc(f) {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// scenario is one of the suite's.
type scenario struct {
	t    *testing.T
	name string
	last bool // of its rounds
}

// run runs a scenario so often as it is asked for.
func run(t *testing.T, name string, f func(*testing.T, *scenario)) {
	t.Helper()
	for n := range *rounds {
		t.Run(fmt.Sprint("round", n+1), func(t *testing.T) { f(t, &scenario{t, name, n == *rounds-1}) })
	}
}

// count holds a number to its bound.
func (s *scenario) count(variant, what string, value, bound float64) {
	s.t.Helper()
	results.add(row{scenario: s.name, variant: variant, what: what, value: value, bound: bound})
	if value > bound {
		s.t.Errorf("%s, %s: %s: %s, want at most %s", s.name, variant, what, number(value), number(bound))
	}
}

// ms holds a time to its bound, with patience.
func (s *scenario) ms(variant, what string, value, bound float64) {
	s.t.Helper()
	results.add(row{scenario: s.name, variant: variant, what: what + ", ms", value: value, bound: bound, time: true})
	if value > bound*lenient {
		s.t.Errorf("%s, %s: %s: %s ms, want at most %s", s.name, variant, what, number(value), number(bound))
	}
}

// breaks says that what is not protected must be beyond the bound: else the
// suite would not notice if what is protected weren't.
func (s *scenario) breaks(variant, what string, value, bound float64) {
	s.t.Helper()
	results.add(row{scenario: s.name, variant: variant, what: what, value: value, bound: bound, control: true})
	if value <= bound {
		s.t.Errorf("%s, %s: %s: %s, want more than %s: the fault has no effect", s.name, variant, what, number(value), number(bound))
	}
}
