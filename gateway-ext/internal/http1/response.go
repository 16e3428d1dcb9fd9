package http1

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

const (
	// prefixRoom is what is left free before the fields of an answer, for what is
	// known only when its first bytes are sent: status line (at most 47 bytes),
	// Date (37), Content-Type if it is guessed (49), Content-Length (38) or
	// Transfer-Encoding, and Connection (24).
	prefixRoom = 256

	// chunkRoom is what is left free before the data of a chunk, for its size.
	chunkRoom = len("ffffffffffffffff\r\n")

	// maxGathered is how much is gathered: the buffer, but for what frames a
	// chunk in it.
	maxGathered = smallBuffer - 2*chunkRoom
)

// response is the answer of a request as its handler writes it.
//
// It gathers in one buffer what it can, so that an answer which is known as a
// whole leaves in one system call:
//
//	| room for the prefix | fields CRLF | body ... |     the first time
//	| room for a size | data of a chunk ... |            later
//
// What doesn't fit is written from where it is.
type response struct {
	c      *conn
	header http.Header
	values []string // what header's slices point to, if it came from an [Answer]

	mu       sync.Mutex // guards below: a handler may read while it writes
	out      []byte
	start    int             // of what is in out: the prefix goes before it
	data     int             // where the body begins in out
	tail     [chunkRoom]byte // what follows data that isn't in out
	err      error
	status   int // 0 until it is known
	fields   int // how many there were then
	length   int64
	written  int64 // of the body
	bodyless bool
	hasDate  bool
	hasType  bool // or nobody wants it guessed
	trailers bool // some are announced
	chunked  bool
	sent     bool // the head is; framing is decided

	closeAfter bool // the connection ends with the answer
	hijacked   bool
}

// reset forgets the last answer.
func (w *response) reset() {
	header, out := w.header, w.out
	if header == nil || len(header) > 64 {
		header = make(http.Header, 8)
	} else {
		clear(header)
	}
	w.header = header
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out, w.start, w.data, w.err = out[:0], 0, 0, nil
	w.status, w.fields, w.length, w.written = 0, 0, -1, 0
	w.bodyless, w.hasDate, w.hasType, w.trailers, w.chunked, w.sent = false, false, false, false, false, false
	w.closeAfter, w.hijacked = !w.c.head.persistent(), false
}

// release gives the buffer back.
func (w *response) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out != nil {
		w.c.srv.buffers.put(w.out)
		w.out = nil
	}
}

// Header implements [http.ResponseWriter].
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements [http.ResponseWriter].
func (w *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic("http1: WriteHeader with the status " + strconv.Itoa(status)) // as net/http
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *response) writeHeader(status int) {
	switch {
	case w.hijacked || w.status != 0:
		w.c.srv.Logger.Debug("a handler wrote a second head", "method", w.c.head.method, "path", w.c.url.Path, "status", status)
		return
	case status < 200 && status != http.StatusSwitchingProtocols:
		w.inform(status)
		return
	}
	w.status, w.fields = status, len(w.header)
	w.bodyless = w.c.head.method == http.MethodHead || !allowsBody(status)
	if w.out == nil {
		w.out = w.c.srv.buffers.get()
	}
	if cap(w.out) < prefixRoom {
		w.out = make([]byte, 0, smallBuffer)
	}
	b := w.out[:prefixRoom]
	for name, values := range w.header {
		switch name {
		case "Content-Length":
			w.declareLength(values)
			continue
		case "Transfer-Encoding":
			continue
		case "Connection":
			if w.connection(values); status != http.StatusSwitchingProtocols {
				continue
			}
		case "Date":
			w.hasDate = true
		case "Content-Type":
			w.hasType = true
		case "Content-Encoding":
			w.hasType = w.hasType || len(values) > 0 // what is encoded looks like anything
		case "Trailer":
			w.trailers = true
		default:
			if strings.HasPrefix(name, http.TrailerPrefix) {
				w.trailers = true
				continue
			}
		}
		for _, value := range values {
			b = appendField(b, name, value)
		}
	}
	if status == http.StatusNoContent || status == http.StatusSwitchingProtocols {
		w.length = -1 // RFC 9110, section 8.6
	}
	b = append(b, '\r', '\n')
	w.out, w.start, w.data = b, prefixRoom, len(b)
}

// declareLength takes the length that the handler says, if it is one.
func (w *response) declareLength(values []string) {
	if len(values) == 0 {
		return
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil || len(values) > 1 {
		w.c.srv.Logger.Debug("a handler set a Content-Length that is none", "path", w.c.url.Path, "value", values)
		return
	}
	w.length = int64(n)
}

// connection looks whether the handler wants the connection to end.
func (w *response) connection(values []string) {
	for _, value := range values {
		for option := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(trimOWS(option), "close") {
				w.closeAfter = true
			}
		}
	}
}

func allowsBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// inform sends an informational answer at once. HTTP/1.0 has none (RFC 9110,
// section 15.2).
func (w *response) inform(status int) {
	if status == http.StatusContinue {
		w.c.expect.Store(false)
	}
	if w.c.head.minor == 0 || w.err != nil {
		return
	}
	b := appendStatusLine(nil, status, http.StatusText(status))
	for name, values := range w.header {
		switch name {
		case "Content-Length", "Transfer-Encoding", "Connection", "Trailer":
			continue
		}
		for _, value := range values {
			b = appendField(b, name, value)
		}
	}
	w.err = w.c.write(append(b, '\r', '\n'))
}

// sendContinue asks for the body, unless the answer is there already.
func (w *response) sendContinue() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 && w.c.expect.Swap(false) && w.err == nil {
		w.err = w.c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	}
}

// Write implements [io.Writer].
func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin(len(p)); err != nil {
		return 0, err
	}
	w.written += int64(len(p))
	switch {
	case w.bodyless && w.sent:
		return len(p), nil
	case len(w.out)+len(p) <= maxGathered:
		w.out = append(w.out, p...)
		return len(p), nil
	}
	if err := w.emit(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteString implements [io.StringWriter].
func (w *response) WriteString(s string) (int, error) {
	w.mu.Lock()
	if w.err == nil && w.status != 0 && !w.hijacked && !w.bodyless && w.length < 0 && len(w.out)+len(s) <= maxGathered {
		defer w.mu.Unlock()
		w.written += int64(len(s))
		w.out = append(w.out, s...)
		return len(s), nil
	}
	w.mu.Unlock()
	return w.Write([]byte(s))
}

// begin says whether n more bytes of the body may be written.
func (w *response) begin(n int) error {
	if w.hijacked {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return w.err
	case n > 0 && !allowsBody(w.status):
		return http.ErrBodyNotAllowed
	case w.length >= 0 && w.written+int64(n) > w.length:
		return http.ErrContentLength
	}
	return nil
}

// emit sends what was gathered, then p. last says that nothing more comes.
func (w *response) emit(p []byte, last bool) error {
	if w.err != nil {
		return w.err
	}
	first := !w.sent
	if first {
		w.decide(p, last)
	}
	size := len(w.out) - w.data + len(p)
	switch {
	case w.bodyless:
		if !first {
			return nil
		}
		w.out, p, size = w.out[:w.data], nil, 0
	case !first && size == 0 && !(last && w.chunked):
		return nil
	}
	var tail []byte
	if w.chunked {
		w.frame(size, first)
		tail = w.tail[:0]
		if size > 0 {
			tail = append(tail, '\r', '\n')
		}
		if last {
			tail = append(w.appendTrailers(append(tail, '0', '\r', '\n')), '\r', '\n')
		}
	}
	if len(p) == 0 {
		w.out = append(w.out, tail...)
		w.err = w.c.write(w.out[w.start:])
	} else {
		w.err = w.c.writeAll(w.out[w.start:], p, tail)
	}
	w.start = 0
	if w.chunked {
		w.start = chunkRoom
	}
	w.out, w.data = w.out[:w.start], w.start
	return w.err
}

// frame writes the size of a chunk before its data.
func (w *response) frame(size int, first bool) {
	if size == 0 {
		return
	}
	var room [chunkRoom]byte
	line := append(strconv.AppendUint(room[:0], uint64(size), 16), '\r', '\n')
	if !first {
		w.start = w.data - len(line)
		copy(w.out[w.start:], line)
		return
	}
	// There was no room between the head and the first data.
	w.out = append(w.out, line...)
	copy(w.out[w.data+len(line):], w.out[w.data:len(w.out)-len(line)])
	copy(w.out[w.data:], line)
}

// decide says how the body's end will be known, and writes what of the head
// depends on that. p is what follows the body's bytes in out; last, that they are
// all.
func (w *response) decide(p []byte, last bool) {
	w.sent = true
	all := last && !w.trailers && (w.fields == len(w.header) || !w.lateTrailers())
	declared := w.length >= 0
	switch {
	case declared:
	case w.bodyless:
		if all && w.written > 0 && w.status != http.StatusNotModified {
			w.length = w.written // as for GET
		}
	case all:
		w.length = w.written
	case w.c.head.minor > 0:
		w.chunked = true
	default: // HTTP/1.0 knows no chunks
		w.closeAfter = true
	}
	if w.c.srv.closing.Load() || w.c.expect.Load() {
		w.closeAfter = true
	}

	var room [prefixRoom]byte
	b := appendStatusLine(room[:0], w.status, http.StatusText(w.status))
	if !w.hasDate {
		b = append(b, *w.c.srv.date.Load()...)
	}
	if !w.hasType && allowsBody(w.status) {
		begin := w.out[w.data:]
		if len(begin) == 0 {
			begin = p
		}
		if len(begin) > 0 {
			b = append(b, "Content-Type: "...)
			b = append(b, http.DetectContentType(begin)...)
			b = append(b, '\r', '\n')
		}
	}
	if w.length >= 0 {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, w.length, 10), '\r', '\n')
	} else if w.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case w.status == http.StatusSwitchingProtocols:
	case w.closeAfter:
		b = append(b, "Connection: close\r\n"...)
	case w.c.head.minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	w.start = prefixRoom - len(b)
	copy(w.out[w.start:], b)
}

// endsByClose says whether the client takes the connection's end for the body's.
func (w *response) endsByClose() bool {
	return w.sent && !w.bodyless && !w.chunked && w.length < 0
}

// lateTrailers says whether trailers were set that nobody announced.
func (w *response) lateTrailers() bool {
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// appendTrailers writes the fields after a body in chunks: those that were
// announced, and those whose names begin with [http.TrailerPrefix].
func (w *response) appendTrailers(b []byte) []byte {
	for _, names := range w.header["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(trimOWS(name))
			if !mayTrail(name) {
				continue
			}
			for _, value := range w.header[name] {
				b = appendField(b, name, value)
			}
		}
	}
	if w.trailers || w.fields != len(w.header) {
		for name, values := range w.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && mayTrail(http.CanonicalHeaderKey(name)) {
				for _, value := range values {
					b = appendField(b, name, value)
				}
			}
		}
	}
	return b
}

// finish sends what is left when the handler has returned. It returns false if
// the answer isn't whole.
func (w *response) finish() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	if w.emit(nil, true) != nil {
		return false
	}
	if w.length >= 0 && !w.bodyless && w.written < w.length {
		w.c.srv.Logger.Debug("a handler wrote less than it announced", "path", w.c.url.Path, "written", w.written, "announced", w.length)
		return false
	}
	// Whoever answers next has it: most connections wait, for a replica or for
	// their client.
	w.c.srv.buffers.put(w.out)
	w.out, w.start, w.data, w.err = nil, 0, 0, errOver
	return true
}

// errOver is what a handler gets that writes when it has returned.
var errOver = errors.New("http1: the answer is complete, its handler has returned")
