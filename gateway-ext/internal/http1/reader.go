package http1

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
)

const (
	// smallBuffer holds most heads.
	smallBuffer = 4 << 10

	maxRequestLine = 8 << 10  // 414 beyond
	maxHead        = 64 << 10 // 431 beyond; of answers, too
	maxTrailer     = 8 << 10  // of the fields after a body in chunks
)

// buffers are what readers read into while something comes: one for all
// connections of a server or a client.
type buffers struct{ pool sync.Pool }

// get returns a buffer of smallBuffer bytes.
func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[smallBuffer]byte); ok {
		return p[:]
	}
	return new([smallBuffer]byte)[:]
}

// put takes a buffer back, unless it has grown.
func (b *buffers) put(buf []byte) {
	if cap(buf) == smallBuffer {
		b.pool.Put((*[smallBuffer]byte)(buf[:smallBuffer]))
	}
}

// reader reads messages from a connection. It has a buffer while there is
// something in it, or is to come; [reader.release] gives it back.
type reader struct {
	src     io.Reader
	buffers *buffers

	buf      []byte
	pos, end int // buf[pos:end] has come and isn't used yet
}

// buffered returns how many bytes have come that nobody has used.
func (r *reader) buffered() int { return r.end - r.pos }

// release gives the buffer back if nothing is in it.
func (r *reader) release() {
	if r.buf != nil && r.pos == r.end {
		r.buffers.put(r.buf)
		r.buf, r.pos, r.end = nil, 0, 0
	}
}

// room sees to it that there is room in the buffer, which grows if it must.
func (r *reader) room() {
	switch {
	case r.buf == nil:
		r.buf = r.buffers.get()
	case r.pos == r.end:
		if r.pos, r.end = 0, 0; len(r.buf) > smallBuffer {
			r.buf = r.buffers.get()
		}
	case r.end < len(r.buf):
	case r.pos > 0:
		r.end = copy(r.buf, r.buf[r.pos:r.end])
		r.pos = 0
	default:
		large := make([]byte, 2*len(r.buf))
		copy(large, r.buf)
		r.buffers.put(r.buf)
		r.buf = large
	}
}

// fill waits for bytes and adds them to the buffer. It returns nil if there are
// some.
func (r *reader) fill() error {
	r.room()
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// readHead waits for the head of a message and returns it: the start line and
// the fields, each with its CRLF, without the empty line after them.
//
// The error is io.EOF if the connection ended before the first byte, and
// io.ErrUnexpectedEOF if it did so later; a [ProtocolError] if this can't become
// a head; otherwise what reading from the connection gave. It is the text that is
// allocated, and nothing else.
//
// line bounds the start line, and is 0 for answers, which have nothing to say in
// it. An empty line before a request is skipped (RFC 9112, section 2.2).
func (r *reader) readHead(line int) (string, error) {
	skipped := line == 0
	lineEnd, seen := 0, 0 // of buf[pos:]: where the start line ends, how far there are whole lines
	for {
		for {
			text := r.buf[r.pos:r.end]
			i := bytes.IndexByte(text[seen:], '\n')
			if i < 0 {
				break
			}
			i += seen
			switch {
			case i == 0 || text[i-1] != '\r':
				return "", malformed("a line ends in LF without CR")
			case i == 1 && !skipped:
				skipped = true
				r.pos += 2
				continue
			case i == 1:
				return "", malformed("there is an empty line where a message should begin")
			case i == seen+1: // the empty line
				head := string(text[:seen])
				r.pos += i + 1
				return head, nil
			case lineEnd == 0:
				lineEnd = i + 1
			}
			seen = i + 1
			if err := headFits(seen, lineEnd, line); err != nil {
				return "", err
			}
		}
		if err := headFits(r.buffered(), lineEnd, line); err != nil {
			return "", err
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && r.buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

// headFits says whether a head may have n bytes, when its start line has ended
// after lineEnd of them, or has not if that is 0.
func headFits(n, lineEnd, maxLine int) error {
	switch {
	case maxLine > 0 && (lineEnd > maxLine+len("\r\n") || lineEnd == 0 && n > maxLine+len("\r")):
		return &ProtocolError{http.StatusRequestURITooLong, fmt.Sprintf("the request line is longer than %d bytes", maxLine)}
	case n > maxHead:
		return &ProtocolError{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head is larger than %d bytes", maxHead)}
	}
	return nil
}

// push adds a byte that was read elsewhere.
func (r *reader) push(b byte) {
	r.room()
	r.buf[r.end] = b
	r.end++
}
