package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress tells a person how long work is going. On a terminal the line of
// what is being done is rewritten in place; elsewhere each step that is done
// is a plain line, and how far a step is isn't shown.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex // guards below, and keeps lines whole
	shown bool       // a line is shown that the next one replaces
	last  time.Time  // of the last update
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w)}
}

// line writes a line that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// update shows a line until the next one, on a terminal. Of updates that come
// faster than an eye can follow some aren't shown.
func (p *progress) update(format string, args ...any) {
	if !p.terminal {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown && time.Since(p.last) < 50*time.Millisecond {
		return
	}
	p.last = time.Now()
	p.erase()
	text := fmt.Sprintf(format, args...)
	if width, _, err := term.GetSize(int(p.w.(*os.File).Fd())); err == nil && width > 1 {
		// A line that wraps can't be erased.
		if runes := []rune(text); len(runes) >= width {
			text = string(runes[:width-1])
		}
	}
	fmt.Fprint(p.w, text)
	p.shown = true
}

// begin tells of a step that begins: on a terminal until the next one,
// elsewhere for good.
func (p *progress) begin(format string, args ...any) {
	if p.terminal {
		p.update(format, args...)
	} else {
		p.line(format, args...)
	}
}

// clear takes away what update shows.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// erase goes to the line's beginning and erases it (ECMA-48 EL).
func (p *progress) erase() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[2K")
		p.shown = false
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
