package provider

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// output reads what one process writes, line by line, into its function's ring.
type output struct {
	ring    *ring
	replica string
	files   []*os.File
	readers sync.WaitGroup

	mu    sync.Mutex // guards below
	last  string     // the last line it wrote to stderr, or else to stdout
	cause string     // the first line of a panic, which says more than the last
}

// readOutput starts to read what the process writes. The readers end when all
// who could write have gone, or at output.finish.
func (r *replica) readOutput(proc *process) *output {
	o := &output{ring: r.f.ring(), replica: r.state.ID, files: []*os.File{proc.stdout, proc.stderr}}
	o.readers.Go(func() { o.read(proc.stdout, false) })
	o.readers.Go(func() { o.read(proc.stderr, true) })
	return o
}

// finish waits for the readers, but no longer than d.
func (o *output) finish(d time.Duration) {
	deadline := time.Now().Add(d)
	for _, f := range o.files {
		// A pipe that somebody still holds open ends here.
		_ = f.SetReadDeadline(deadline)
	}
	o.readers.Wait()
	for _, f := range o.files {
		_ = f.Close()
	}
}

func (o *output) read(r io.Reader, stderr bool) {
	var s splitter
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		s.write(buf[:n], func(text string) { o.add(text, stderr) })
		if err != nil {
			s.flush(func(text string) { o.add(text, stderr) })
			return
		}
	}
}

func (o *output) add(text string, stderr bool) {
	o.ring.add(o.replica, text)
	if strings.TrimSpace(text) == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if stderr || o.last == "" {
		o.last = text
	}
	if stderr && o.cause == "" && (strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ")) {
		o.cause = text
	}
}

// maxWords bounds how much of a line gets into a reason.
const maxWords = 200

// lastWords is the line that best says why the process ended.
func (o *output) lastWords() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.last
	if o.cause != "" {
		s = o.cause
	}
	s = strings.TrimSpace(strings.ToValidUTF8(s, "?"))
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "…"
	}
	return s
}

// splitter cuts a stream into lines of at most maxLine bytes.
type splitter struct{ partial []byte }

func (s *splitter) write(b []byte, emit func(string)) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i >= 0 && len(s.partial)+i <= maxLine {
			s.partial = append(s.partial, b[:i]...)
			b = b[i+1:]
			s.cut(emit)
			continue
		}
		n := len(b)
		if i >= 0 {
			n = i
		}
		n = min(n, maxLine-len(s.partial))
		s.partial = append(s.partial, b[:n]...)
		b = b[n:]
		if len(s.partial) == maxLine && len(b) > 0 && b[0] != '\n' {
			s.cut(emit)
		}
	}
}

// flush emits what has no line end.
func (s *splitter) flush(emit func(string)) {
	if len(s.partial) > 0 {
		s.cut(emit)
	}
}

func (s *splitter) cut(emit func(string)) {
	emit(string(bytes.TrimSuffix(s.partial, []byte{'\r'})))
	if cap(s.partial) > 4<<10 {
		s.partial = nil // a long line is rare: give its memory back
		return
	}
	s.partial = s.partial[:0]
}
