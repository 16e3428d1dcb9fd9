package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
)

// framing says how the end of a body is known (RFC 9112, section 6.3).
type framing int

const (
	noBody     framing = iota
	byLength           // after so many bytes
	byChunks           // after the chunk without bytes, and the trailer section
	untilClose         // with the connection; only answers
)

// bodyReader reads the body of one message after the other. It takes no byte
// beyond its body's end off the connection's reader.
type bodyReader struct {
	r       *reader
	framing framing
	left    int64 // bytes to come, of the body or of the chunk
	err     error // what Read returns from now on; io.EOF once the body is complete

	// A body in chunks.
	state      chunkState
	extensions bool // they are allowed, and ignored
	extended   int  // bytes of them
	fields     int  // of the trailer section, so far
	trailed    int  // bytes of them

	// trailer takes the fields that come after a body in chunks, but those that
	// may not. Nil if there are none. It is complete when Read returns io.EOF.
	trailer http.Header
}

type chunkState int

const (
	chunkSize  chunkState = iota // a line with the size comes
	chunkData                    // left bytes of the chunk come
	chunkEnd                     // the CRLF after them comes
	chunkTrail                   // fields come, then the empty line
)

// maxExtensions bounds the extensions of all chunks of an answer, in bytes.
const maxExtensions = 16 << 10

// reset has the reader read a body of that framing; length matters only for
// byLength. extensions says that extensions of chunks are passed over, as may be
// done with answers; without, they are refused.
func (b *bodyReader) reset(r *reader, f framing, length int64, extensions bool) {
	*b = bodyReader{r: r, framing: f, left: length, extensions: extensions}
	switch {
	case f == noBody, f == byLength && length == 0:
		b.err = io.EOF
	case f == byChunks:
		b.left = 0
	}
}

// complete says whether the body was read to its end, so that another message may
// follow.
func (b *bodyReader) complete() bool { return b.err == io.EOF && b.framing != untilClose }

// Read implements [io.Reader]. It returns io.EOF together with the body's last
// bytes when it can tell without waiting. A connection that ends in the middle is
// io.ErrUnexpectedEOF; chunks that are none are a [ProtocolError].
func (b *bodyReader) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.framing == byChunks {
		n, err = b.readChunks(p)
	} else {
		n, err = b.readSome(p)
		if err == nil && b.framing == byLength && b.left == 0 {
			err = io.EOF
		}
	}
	b.err = err
	return n, err
}

// readSome reads at most left bytes, waiting for one, past the buffer if there is
// nothing in it.
func (b *bodyReader) readSome(p []byte) (n int, err error) {
	if b.framing != untilClose && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	r := b.r
	switch {
	case r.buffered() > 0:
		n = copy(p, r.buf[r.pos:r.end])
		r.pos += n
	case len(p) >= smallBuffer:
		if n, err = r.src.Read(p); n > 0 {
			err = nil // it comes again
		}
	default:
		if err = r.fill(); err == nil {
			n = copy(p, r.buf[r.pos:r.end])
			r.pos += n
		}
	}
	if b.framing != untilClose {
		b.left -= int64(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// readChunks reads data of as many chunks as have come, waiting for the first.
func (b *bodyReader) readChunks(p []byte) (n int, err error) {
	for {
		switch {
		case b.state != chunkData:
			err := b.step(n == 0)
			if err == errMore { // there is something to return first
				return n, nil
			}
			if err != nil {
				return n, err
			}
		case n == len(p):
			return n, nil
		case n > 0 && b.r.buffered() == 0:
			return n, nil
		default:
			m, err := b.readSome(p[n:])
			n += m
			if b.left == 0 {
				b.state = chunkEnd
			}
			if err != nil {
				return n, err
			}
		}
	}
}

// errMore says that more must come, and wait was false.
var errMore = errors.New("more must come")

// step reads what is between two chunks' data, or after the last. At the end it
// returns io.EOF.
func (b *bodyReader) step(wait bool) error {
	switch b.state {
	case chunkEnd:
		line, err := b.line(wait, len("\r\n"))
		switch {
		case err != nil:
			return err
		case len(line) > 0:
			return malformed("a chunk is longer than it says")
		}
		b.state = chunkSize
	case chunkSize:
		line, err := b.line(wait, 32+maxExtensions)
		if err != nil {
			return err
		}
		if b.left, err = b.size(line); err != nil {
			return err
		}
		if b.state = chunkData; b.left == 0 {
			b.state = chunkTrail
		}
	case chunkTrail:
		return b.readTrailer(wait)
	}
	return nil
}

// line returns the next line without its CRLF, which stays good until the next
// read. It has at most limit bytes, with CRLF.
func (b *bodyReader) line(wait bool, limit int) ([]byte, error) {
	r := b.r
	for seen := 0; ; {
		text := r.buf[r.pos:r.end]
		for i := seen; i < len(text); i++ {
			switch c := text[i]; {
			case c == '\n':
				if i == 0 || text[i-1] != '\r' {
					return nil, malformed("a line between chunks ends in LF without CR")
				}
				r.pos += i + 1
				return text[:i-1], nil
			case i > 0 && text[i-1] == '\r':
				return nil, malformed("there is a CR without LF between chunks")
			case i+1 >= limit:
				if b.state == chunkEnd {
					return nil, malformed("a chunk is longer than it says")
				}
				return nil, malformed("a line between chunks is too long")
			}
		}
		seen = len(text)
		if !wait {
			return nil, errMore
		}
		if err := r.fill(); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// size reads the line before a chunk: hexadecimal digits (RFC 9112, section 7.1),
// and extensions if they are allowed.
func (b *bodyReader) size(line []byte) (n int64, err error) {
	i := 0
	for ; i < len(line); i++ {
		var digit int64
		switch c := line[i]; {
		case isDigit(c):
			digit = int64(c - '0')
		case 'a' <= c && c <= 'f':
			digit = int64(c-'a') + 10
		case 'A' <= c && c <= 'F':
			digit = int64(c-'A') + 10
		default:
			digit = -1
		}
		if digit < 0 {
			break
		}
		if i == 16 || n > math.MaxInt64>>4 {
			return 0, malformed("the size of a chunk has too many digits")
		}
		n = n<<4 | digit
	}
	rest := line[i:]
	switch {
	case i == 0:
		return 0, malformed("the size of a chunk is not a hexadecimal number")
	case len(rest) == 0:
		return n, nil
	case !bytes.HasPrefix(bytes.TrimLeft(rest, " \t"), []byte(";")) && len(bytes.TrimLeft(rest, " \t")) > 0:
		return 0, malformed("the size of a chunk is not a hexadecimal number")
	case !b.extensions:
		return 0, malformed("a chunk has extensions, or space after its size")
	case !isValue(string(rest)):
		return 0, malformed("the extensions of a chunk have a control character in them")
	}
	if b.extended += len(rest); b.extended > maxExtensions {
		return 0, malformed("the extensions of the chunks are larger than %d bytes", maxExtensions)
	}
	return n, nil
}

// readTrailer reads the trailer section, and returns io.EOF at its end.
func (b *bodyReader) readTrailer(wait bool) error {
	for {
		line, err := b.line(wait, maxTrailer)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return io.EOF
		}
		b.fields++
		if b.trailed += len(line); b.trailed > maxTrailer || b.fields > maxFields {
			return &ProtocolError{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf(
				"the fields after the body are more than %d, or larger than %d bytes", maxFields, maxTrailer)}
		}
		name, value, err := parseField(string(line))
		if err != nil {
			return err
		}
		if mayTrail(name) {
			if b.trailer == nil {
				b.trailer = make(http.Header)
			}
			b.trailer[name] = append(b.trailer[name], value)
		}
	}
}
