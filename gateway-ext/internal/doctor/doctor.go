// Package doctor finds out how a machine, and a fleet of them, is, and says what
// to do about it.
//
// It has two halves that know nothing of each other's work. [Look] finds out: it
// asks the kernel, tries addresses and writes one small file, everything at the
// same time and within seconds, changes nothing, and judges nothing. [Judge] is
// pure: facts become findings, each a sentence that says what is and, if that
// isn't well, what to do. Facts travel as JSON, since each machine of a fleet
// looks at itself, and no fact holds a secret.
package doctor

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Level is how bad it is.
type Level int

const (
	OK   Level = iota
	Warn       // it works, and something is in danger or worse than it need be
	Fail       // something doesn't work, or soon won't
)

var levels = [...]string{"ok", "warn", "fail"}

// String returns "ok", "warn" or "fail".
func (l Level) String() string { return levels[l] }

// MarshalText implements [encoding.TextMarshaler].
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is what was found out about one thing.
type Finding struct {
	Level Level  `json:"level"`
	About string `json:"about"`        // whom it is about: "node pi-2"
	Check string `json:"check"`        // what was looked at, in a word: "clock"
	Says  string `json:"says"`         // what is, as a sentence
	Do    string `json:"do,omitempty"` // what to do; empty if all is well
}

// Report is all that was found.
type Report struct {
	Findings []Finding `json:"findings"`
	OK       int       `json:"ok"`
	Warn     int       `json:"warn"`
	Fail     int       `json:"fail"`
}

// NewReport counts findings.
func NewReport(findings []Finding) Report {
	r := Report{Findings: findings}
	for _, f := range findings {
		switch f.Level {
		case OK:
			r.OK++
		case Warn:
			r.Warn++
		default:
			r.Fail++
		}
	}
	return r
}

// Write prints the report for a person: what belongs together under one heading,
// one line for each check and, where there is something to do, one for that.
func (r Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	about := ""
	for i, f := range r.Findings {
		if f.About != about {
			if about = f.About; i > 0 {
				fmt.Fprintln(t)
			}
			// The heading ends the columns of those before it.
			if err := t.Flush(); err != nil {
				return err
			}
			fmt.Fprintln(t, printable(about))
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", f.Level, f.Check, printable(f.Says))
		if f.Do != "" {
			fmt.Fprintf(t, "  \t\t-> %s\n", printable(f.Do))
		}
	}
	fmt.Fprintf(t, "\n%d ok, %d to look at, %d wrong\n", r.OK, r.Warn, r.Fail)
	return t.Flush()
}

// printable keeps what other machines say from moving the cursor, or a column.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
