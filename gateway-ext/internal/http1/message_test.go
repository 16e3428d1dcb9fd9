package http1

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// read parses text as the head of a request.
func read(text string) (*head, error) {
	r := &reader{src: strings.NewReader(text), buffers: new(buffers)}
	line, err := r.readHead(maxRequestLine)
	if err != nil {
		return nil, err
	}
	h := new(head)
	return h, h.parseRequest(line)
}

func TestRequestHead(t *testing.T) {
	h, err := read("POST /a?b HTTP/1.1\r\nhost: x:80\r\nX-A: 1\r\nx-a:\t2 \r\nContent-Length: 5\r\n\r\nbody")
	if err != nil {
		t.Fatal(err)
	}
	if h.method != "POST" || h.target != "/a?b" || h.host != "x:80" || h.length != 5 || strings.Join(h.header["X-A"], "|") != "1|2" {
		t.Errorf("head = %+v", h)
	}
}

func TestChunks(t *testing.T) {
	r := &reader{src: strings.NewReader("3\r\nabc\r\n0a\r\n0123456789\r\n0\r\nX: y\r\n\r\nrest"), buffers: new(buffers)}
	var b bodyReader
	b.reset(r, byChunks, 0, false)
	got, err := io.ReadAll(&b)
	if string(got) != "abc0123456789" || err != nil || b.trailer.Get("X") != "y" || r.buffered() != 4 || !b.complete() {
		t.Errorf("read %q, %v, %v, then %d", got, err, b.trailer, r.buffered())
	}
}

// TestIsValue puts every byte at every place of values of every length.
func TestIsValue(t *testing.T) {
	for n := 1; n <= 17; n++ {
		for at := range n {
			for c := range 256 {
				b := bytes.Repeat([]byte{'a'}, n)
				b[at] = byte(c)
				want := c == '\t' || c >= ' ' && c != 0x7f
				if got := isValue(string(b)); got != want {
					t.Fatalf("isValue(%q) = %v, want %v", b, got, want)
				}
			}
		}
	}
}
