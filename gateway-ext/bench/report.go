package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// results is all that was measured.
type results struct {
	plan        plan
	machine     string
	versions    []string
	contestants []string // in the order of the tables
	idle        []memory // of each
	samples     []sample
	paced       []latency
	numbers     []number
	when        time.Time
	took        time.Duration
}

// The bounds that we hold ourselves to, as multiples of what nginx gives in the
// same turn.
const (
	mostCPU   = 1.5
	leastRate = 0.75
	mostAdded = 1.3
	mostBytes = 25e6 // resident at 256 connections
)

// The page's part between these lines is ours.
const (
	beginMark = "<!-- make bench writes from here -->"
	endMark   = "<!-- to here -->"
)

// write puts the tables into their place in a page.
func (r *results) write(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := bytes.Cut(page, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no place for the tables: it needs the lines %q and %q", path, beginMark, endMark)
	}
	return os.WriteFile(path, slices.Concat(before, []byte(beginMark+"\n\n"), []byte(r.markdown()), []byte("\n"+endMark), after), 0o644)
}

// markdown is the tables.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured %s on %s, in %s.\n", r.when.UTC().Format("2006-01-02 15:04 UTC"), r.machine, r.took.Round(time.Second))
	fmt.Fprintf(&b, "%s.\n", strings.Join(r.versions, "; "))
	fmt.Fprintf(&b, "%d rounds of %d s for each number; medians.\n", r.plan.rounds, r.plan.seconds)
	r.bounds(&b)
	for _, method := range r.plan.methods {
		for _, n := range r.plan.connections {
			r.table(&b, method, n)
		}
	}
	r.memory(&b)
	r.latencies(&b)
	if len(r.numbers) > 0 {
		b.WriteString("\n### What the Go benchmarks say\n\n| benchmark | value |\n|---|---|\n")
		for _, n := range r.numbers {
			fmt.Fprintf(&b, "| %s | %s |\n", n.name, n.values)
		}
	}
	return b.String()
}

// title tells what is called how.
func title(method string, connections int) string {
	what := "GET"
	if method == "POST" {
		what = "POST of 1 KB"
	}
	if connections == 1 {
		return what + ", 1 connection"
	}
	return fmt.Sprintf("%s, %d connections", what, connections)
}

func (r *results) table(b *strings.Builder, method string, connections int) {
	fmt.Fprintf(b, "\n### %s\n\n", title(method, connections))
	b.WriteString("| | requests/s | of nginx's | p50 | p99 | CPU s per 10,000 | of nginx's | errors |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range r.contestants {
		all := r.of(c, method, connections)
		if len(all) == 0 {
			continue
		}
		errors := 0
		for _, s := range all {
			errors += s.errors
		}
		cpu, ratio := "", ""
		if c != direct {
			cpu = fmt.Sprintf("%.3f", median(all, func(s sample) float64 { return s.cpu.Seconds() }))
			ratio = times(r.ratio(c, method, connections, cpuOf))
		}
		fmt.Fprintf(b, "| %s | %.0f | %s | %s | %s | %s | %s | %d |\n", c,
			median(all, rateOf), times(r.ratio(c, method, connections, rateOf)),
			span(median(all, func(s sample) float64 { return s.p50.Seconds() })),
			span(median(all, func(s sample) float64 { return s.p99.Seconds() })),
			cpu, ratio, errors)
	}
}

func rateOf(s sample) float64 { return s.rate }
func cpuOf(s sample) float64  { return s.cpu.Seconds() }

// of returns a contestant's samples of one kind, by round.
func (r *results) of(contestant, method string, connections int) (all []sample) {
	for _, s := range r.samples {
		if s.contestant == contestant && s.method == method && s.connections == connections {
			all = append(all, s)
		}
	}
	return all
}

// ratio returns the median over the rounds of what a contestant has of nginx's
// value in the same round; 0 if that wasn't measured.
func (r *results) ratio(contestant, method string, connections int, of func(sample) float64) float64 {
	theirs := r.of(nginx, method, connections)
	var ratios []float64
	for i, s := range r.of(contestant, method, connections) {
		if i < len(theirs) && of(theirs[i]) > 0 {
			ratios = append(ratios, of(s)/of(theirs[i]))
		}
	}
	return median(ratios, func(f float64) float64 { return f })
}

// added returns how many times nginx's a contestant's added p50 is over one
// connection: what it takes more than the call without anything in between.
func (r *results) added(contestant, method string) float64 {
	theirs, none := r.of(nginx, method, 1), r.of(direct, method, 1)
	var ratios []float64
	for i, s := range r.of(contestant, method, 1) {
		if i < len(theirs) && i < len(none) && theirs[i].p50 > none[i].p50 {
			ratios = append(ratios, float64(s.p50-none[i].p50)/float64(theirs[i].p50-none[i].p50))
		}
	}
	return median(ratios, func(f float64) float64 { return f })
}

// bounds says which of our bounds are held, and by how much or not.
func (r *results) bounds(b *strings.Builder) {
	b.WriteString("\n### What was asked for\n\n| bound | |")
	type column struct {
		method      string
		connections int
	}
	var columns []column
	for _, m := range r.plan.methods {
		for _, n := range r.plan.connections {
			columns = append(columns, column{m, n})
			fmt.Fprintf(b, " %s %d |", m, n)
		}
	}
	b.WriteString(" |\n|---|---|" + strings.Repeat("--:|", len(columns)) + "---|\n")
	line := func(bound, contestant string, value func(column) float64, worse func(v float64) bool, worst func(a, b float64) int) {
		var cells []string
		var seen []float64
		for _, c := range columns {
			v := value(c)
			cells = append(cells, times(v))
			if v > 0 {
				seen = append(seen, v)
			}
		}
		if len(seen) == 0 {
			return
		}
		slices.SortFunc(seen, worst)
		said := "held"
		if bad := slices.IndexFunc(seen, func(v float64) bool { return !worse(v) }); bad != 0 {
			if bad < 0 {
				bad = len(seen)
			}
			said = fmt.Sprintf("**not held** in %d of %d", bad, len(seen))
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s; worst %s |\n", bound, contestant, strings.Join(cells, " | "), said, times(seen[0]))
	}
	high := func(a, b float64) int { return cmp.Compare(b, a) }
	for _, c := range []string{thicket, thicketPolicy, thicketAlone} {
		line(fmt.Sprintf("CPU per request, at most %v of nginx's", mostCPU), c,
			func(at column) float64 { return r.ratio(c, at.method, at.connections, cpuOf) },
			func(v float64) bool { return v > mostCPU }, high)
	}
	for _, c := range []string{thicket, thicketPolicy, thicketAlone} {
		line(fmt.Sprintf("requests/s, at least %v of nginx's", leastRate), c,
			func(at column) float64 { return r.ratio(c, at.method, at.connections, rateOf) },
			func(v float64) bool { return v < leastRate }, cmp.Compare[float64])
	}
	for _, c := range []string{thicket, thicketPolicy, thicketAlone} {
		line(fmt.Sprintf("added p50 over 1 connection, at most %v of nginx's", mostAdded), c,
			func(at column) float64 {
				if at.connections != 1 {
					return 0
				}
				return r.added(c, at.method)
			},
			func(v float64) bool { return v > mostAdded }, high)
	}
}

// memory shows what the contestants keep in memory.
func (r *results) memory(b *strings.Builder) {
	if !slices.Contains(r.plan.connections, memoryConnections) {
		return
	}
	b.WriteString("\n### Memory, in MB\n\n| | resident, idle | of it anonymous | resident at 256 connections | of it anonymous | added |\n|---|--:|--:|--:|--:|--:|\n")
	for i, c := range r.contestants {
		m := r.mostMemory(c)
		if m.resident == 0 {
			continue
		}
		mb := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
		idle := r.idle[i]
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", c, mb(idle.resident), mb(idle.anonymous), mb(m.resident), mb(m.anonymous), mb(m.resident-idle.resident))
	}
	fmt.Fprintf(b, "\nAsked for: at most %.0f MB resident at 256 connections.", mostBytes/1e6)
	for _, c := range []string{thicketAlone, thicket} {
		m := r.mostMemory(c)
		switch {
		case m.resident == 0:
		case m.resident <= mostBytes:
			fmt.Fprintf(b, " `%s`: held, by %.1f MB.", c, (mostBytes-float64(m.resident))/1e6)
		default:
			fmt.Fprintf(b, " `%s`: **not held**, by %.1f MB.", c, (float64(m.resident)-mostBytes)/1e6)
		}
	}
	b.WriteString("\n")
}

// mostMemory returns the most that was seen of a contestant; nothing if it wasn't
// looked at.
func (r *results) mostMemory(contestant string) (m memory) {
	for _, s := range r.samples {
		if s.contestant == contestant {
			m = m.most(s.memory)
		}
	}
	return m
}

// latencies shows what callers see who come at a fixed rate.
func (r *results) latencies(b *strings.Builder) {
	if len(r.paced) == 0 {
		return
	}
	fmt.Fprintf(b, "\n### GET at %d requests a second over %d connections, from when each was due\n\n| | p50 | p99 | p99.9 | errors |\n|---|--:|--:|--:|--:|\n", r.plan.rate, paceConnections)
	for _, c := range r.contestants {
		var all []latency
		errors := 0
		for _, l := range r.paced {
			if l.contestant == c {
				all = append(all, l)
				errors += l.errors
			}
		}
		at := func(of func(latency) time.Duration) string {
			return span(median(all, func(l latency) float64 { return of(l).Seconds() }))
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %d |\n", c, at(func(l latency) time.Duration { return l.p50 }),
			at(func(l latency) time.Duration { return l.p99 }), at(func(l latency) time.Duration { return l.p999 }), errors)
	}
}

// median returns the middle of what is seen of some things; 0 of none.
func median[T any](all []T, of func(T) float64) float64 {
	if len(all) == 0 {
		return 0
	}
	values := make([]float64, len(all))
	for i, v := range all {
		values[i] = of(v)
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// times writes a ratio; nothing for one that there isn't.
func times(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v)
}

// span writes seconds as people do.
func span(seconds float64) string {
	if seconds < 1e-3 {
		return fmt.Sprintf("%.0f µs", seconds*1e6)
	}
	return fmt.Sprintf("%.2f ms", seconds*1e3)
}
