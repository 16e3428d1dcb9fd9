package discovery

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"iter"
)

// maxEvent bounds one event of a stream, in bytes. A replica has about 400 of
// them, so this is enough for the largest table.
const maxEvent = 8 << 20

// event is one event of a stream of server-sent events.
type event struct {
	id   string // of the last event that had one; nothing here goes by it
	name string
	data []byte // is valid until the next event is read
}

// events reads a stream of server-sent events as the HTML standard (9.2.6)
// defines it, until it ends: with an error that is never nil, for no stream of
// ours ends by itself. What stands after the last empty line is dropped: it is an
// event that was cut.
func events(r io.Reader) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		var (
			e     event
			data  []byte
			begun bool // has data
			lines = lines{from: bufio.NewReader(r)}
		)
		for {
			line, err := lines.next()
			if err == nil && len(data)+len(line) > maxEvent {
				err = errTooLong
			}
			if err != nil {
				yield(event{}, fmt.Errorf("read events: %w", err))
				return
			}
			if len(line) == 0 {
				if e.data = data; begun && !yield(e, nil) {
					return
				}
				e.name, data, begun = "", data[:0], false
				continue
			}
			field, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimPrefix(value, []byte(" "))
			switch string(field) {
			case "event":
				e.name = string(value)
			case "data":
				if begun {
					data = append(data, '\n')
				}
				data, begun = append(data, value...), true
			case "id":
				if bytes.IndexByte(value, 0) < 0 {
					e.id = string(value)
				}
			}
		}
	}
}

var errTooLong = fmt.Errorf("one has more than %d bytes", maxEvent)

// lines reads lines that end with "\n", "\r\n" or "\r", each as soon as its end
// is there.
type lines struct {
	from  *bufio.Reader
	line  []byte
	begun bool // a line has been read
	cr    bool // and it ended with "\r", so that a "\n" belongs to it
}

// next returns the next line without its end. It is valid until the next call.
func (l *lines) next() ([]byte, error) {
	l.line = l.line[:0]
	for {
		if _, err := l.from.Peek(1); err != nil {
			return nil, err
		}
		some, _ := l.from.Peek(l.from.Buffered()) // has no error for what is there
		if l.cr && some[0] == '\n' {
			some = some[:1]
		} else if i := lineEnd(some); i >= 0 {
			l.line = append(l.line, some[:i]...)
			l.from.Discard(i + 1)
			l.cr = some[i] == '\r'
			if !l.begun {
				l.begun = true
				return bytes.TrimPrefix(l.line, []byte("\ufeff")), nil // a byte order mark
			}
			return l.line, nil
		} else {
			l.line = append(l.line, some...)
		}
		l.cr = false
		l.from.Discard(len(some))
		if len(l.line) > maxEvent {
			return nil, errTooLong
		}
	}
}

// lineEnd returns where a line's end begins, or -1.
func lineEnd(b []byte) int {
	i := bytes.IndexByte(b, '\n')
	if i >= 0 {
		b = b[:i]
	}
	if j := bytes.IndexByte(b, '\r'); j >= 0 {
		return j
	}
	return i
}
