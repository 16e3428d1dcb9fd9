//go:build faults && linux

package faults_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// patience is by how much a time of the fleet may be longer than its bound before
// that is a failure.
const patience = 4

// proof is what a story found out, step by step.
type proof struct {
	t     *testing.T
	began time.Time
	steps []*step
}

// step is a part of the story.
type step struct {
	p     *proof
	name  string
	facts []fact
	calls samples // while it went on
	away  int     // of them could not be answered, since the gateway was away
}

// fact is a line of the table.
type fact struct{ what, bound, measured string }

func (p *proof) step(name string) *step {
	s := &step{p: p, name: name}
	p.steps = append(p.steps, s)
	fmt.Printf("%5.1fs  %s\n", time.Since(p.began).Seconds(), name)
	return s
}

func (s *step) say(what, bound, measured string) {
	s.facts = append(s.facts, fact{what, bound, measured})
	line := fmt.Sprintf("            %s: %s", what, measured)
	if bound != "" {
		line += " (" + bound + ")"
	}
	fmt.Println(line)
}

// within holds a time to its bound, with patience; no bound is 0.
func (s *step) within(what string, took, bound time.Duration) {
	s.p.t.Helper()
	limit := ""
	if bound > 0 {
		limit = "≤ " + seconds(bound)
	}
	s.say(what, limit, seconds(took))
	if bound > 0 && took > patience*bound {
		s.p.t.Errorf("%s: %s: %s, want %s", s.name, what, seconds(took), limit)
	}
}

// exactly holds a number to what it must be.
func (s *step) exactly(what string, n, want int) {
	s.p.t.Helper()
	s.say(what, fmt.Sprint(want), fmt.Sprint(n))
	if n != want {
		s.p.t.Errorf("%s: %s: %d, want %d", s.name, what, n, want)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// answered holds the calls of the step to what is promised: none fails. Those
// that could not be answered since the gateway was away are counted apart.
func (s *step) answered(calls samples, away int) {
	s.p.t.Helper()
	s.calls, s.away = calls, away
	line := fmt.Sprintf("            calls: %d, failed: %.0f", len(calls), calls.bad())
	if away > 0 {
		line += fmt.Sprintf(", not answered since the gateway was away: %d", away)
	}
	fmt.Printf("%s; p50 %.0f ms, p99 %.0f ms, longest %.0f ms\n", line, calls.quantile(0.5), calls.quantile(0.99), calls.quantile(1))
	if calls.bad() > 0 {
		s.p.t.Errorf("%s: failed calls: %v", s.name, calls)
	}
}

// table is what the page has.
func (p *proof) table() string {
	var b strings.Builder
	b.WriteString("| scenario | what is measured | bound | measured | calls | failed | p50 | p99 | longest |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range p.steps {
		for i, f := range s.facts {
			name, rest := s.name, " | | | | |"
			if i > 0 {
				name = ""
			} else if len(s.calls) > 0 {
				calls := fmt.Sprint(len(s.calls))
				if s.away > 0 {
					calls += fmt.Sprintf(" and %d while it was away", s.away)
				}
				rest = fmt.Sprintf(" %s | **%.0f** | %.0f ms | %.0f ms | %.0f ms |", calls, s.calls.bad(), s.calls.quantile(0.5), s.calls.quantile(0.99), s.calls.quantile(1))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |%s\n", name, f.what, f.bound, f.measured, rest)
		}
	}
	return b.String()
}

var tableInPage = regexp.MustCompile(`(?s)(<!-- the table begins[^>]*-->\n).*(<!-- the table ends -->)`)

// write puts the table into a page.
func (p *proof) write(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !tableInPage.Match(page) {
		return fmt.Errorf("%s has no place for the table", path)
	}
	page = tableInPage.ReplaceAllFunc(page, func(old []byte) []byte {
		m := tableInPage.FindSubmatch(old)
		return []byte(string(m[1]) + p.table() + string(m[2]))
	})
	return os.WriteFile(path, page, 0o644)
}
