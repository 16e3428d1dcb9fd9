package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// FuzzRequest holds that whatever is accepted, net/http takes for the same
// request, with the same body and the same bytes after it; and that it makes no
// difference in how many pieces it comes.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\r\nGET /a?b HTTP/1.0\r\n\r\n",
		"POST http://y/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-a: b\r\nx-A:c \r\n\r\nabcdef",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\nrest",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:1\r\nConnection: close, x\r\nExpect: 100-continue\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\nHost: x\n\n",
		"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
	} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, raw []byte, piece int) {
		got, err := parseAll(bytes.NewReader(raw))
		pieces, errPieces := parseAll(&slowly{raw, max(1, piece)})
		if (err == nil) != (errPieces == nil) || err == nil && got.String() != pieces.String() {
			t.Fatalf("%q\nat once is %v, %v\nin pieces  %v, %v", raw, got, err, pieces, errPieces)
		}
		if err != nil {
			if p, ok := errors.AsType[*ProtocolError](err); ok && (p.Text == "" || p.Status < 400) {
				t.Fatalf("%q: error %+v", raw, p)
			}
			return
		}
		// An empty line before is all that we skip and it doesn't.
		in := bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\r\n"))))
		want, err := http.ReadRequest(in)
		if err != nil {
			if strings.Contains(err.Error(), "invalid URI") || strings.Contains(err.Error(), "parse ") {
				return // which the server looks at later
			}
			t.Fatalf("%q\nis accepted as %v\nand net/http says %v", raw, got, err)
		}
		theirs := &parsed{
			method: want.Method, target: want.RequestURI, host: want.Host, minor: want.ProtoMinor, header: want.Header,
			close: want.Close, chunked: slices.Equal(want.TransferEncoding, []string{"chunked"}),
		}
		var bodyErr error
		theirs.body, bodyErr = io.ReadAll(want.Body)
		theirs.trailer = want.Trailer
		rest, _ := io.ReadAll(in)
		theirs.rest = rest
		if got.bodyErr == nil && bodyErr != nil {
			t.Fatalf("%q\nthe body is accepted as %q\nand net/http says %v", raw, got.body, bodyErr)
		}
		if got.bodyErr != nil { // we are stricter, and use the connection no more
			got.body, theirs.body, got.rest, theirs.rest, got.trailer, theirs.trailer = nil, nil, nil, nil, nil, nil
		}
		if want.Header.Get("Pragma") != "" {
			delete(theirs.header, "Cache-Control") // which it makes up
			delete(got.header, "Cache-Control")
		}
		for name := range theirs.trailer {
			if !mayTrail(name) {
				delete(theirs.trailer, name) // it lets some pass
			}
		}
		if got.String() != theirs.String() {
			t.Fatalf("%q\nis           %v\nfor net/http %v", raw, got, theirs)
		}
	})
}

// parsed is a request in a form to be compared.
type parsed struct {
	method, target, host string
	minor                int
	header, trailer      http.Header
	close, chunked       bool
	body, rest           []byte
	bodyErr              error
}

// String implements [fmt.Stringer].
func (p *parsed) String() string {
	var b strings.Builder
	for _, h := range []http.Header{p.header, p.trailer} {
		for _, name := range slices.Sorted(maps.Keys(h)) {
			if len(h[name]) > 0 {
				b.WriteString(name + "=" + strings.Join(h[name], "|") + "\n")
			}
		}
		b.WriteString("--\n")
	}
	for _, s := range []string{p.method, p.target, p.host, string(p.body), string(p.rest)} {
		b.WriteString(s + "\n")
	}
	for _, v := range []bool{p.minor > 0, p.close, p.chunked} {
		if v {
			b.WriteString("yes ")
		} else {
			b.WriteString("no ")
		}
	}
	return b.String()
}

// parseAll reads one request, and what is after it.
func parseAll(in io.Reader) (*parsed, error) {
	r := &reader{src: in, buffers: new(buffers)}
	text, err := r.readHead(maxRequestLine)
	if err != nil {
		return nil, err
	}
	h := new(head)
	if err := h.parseRequest(text); err != nil {
		return nil, err
	}
	p := &parsed{method: h.method, target: h.target, host: h.host, minor: h.minor, header: h.header, close: !h.persistent(), chunked: h.chunked}
	var body bodyReader
	switch {
	case h.chunked:
		body.reset(r, byChunks, 0, false)
	case h.length > 0:
		body.reset(r, byLength, h.length, false)
	default:
		body.reset(r, noBody, 0, false)
	}
	p.body, p.bodyErr = io.ReadAll(&body)
	p.trailer = body.trailer
	if p.bodyErr == nil {
		rest, err := io.ReadAll(io.MultiReader(bytes.NewReader(bytes.Clone(r.buf[r.pos:r.end])), in))
		if err != nil {
			return nil, err
		}
		p.rest = rest
	}
	return p, nil
}

// slowly is a reader that gives few bytes at a time.
type slowly struct {
	b     []byte
	piece int
}

// Read implements [io.Reader].
func (s *slowly) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.piece)], s.b)
	s.b = s.b[n:]
	return n, nil
}

// FuzzChunks holds that a body in chunks that is accepted is what net/http reads,
// to the same end, with extensions and without.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"3\r\nabc\r\n0\r\n\r\n", "0a;x=y\r\n0123456789\r\n00\r\nA: b\r\n\r\nrest", "1\na\n0\n\n", "ffffffffffffffff\r\n", "0 0\r\n\r\n"} {
		f.Add([]byte(s), true, 1)
	}
	f.Fuzz(func(t *testing.T, raw []byte, extensions bool, piece int) {
		r := &reader{src: &slowly{raw, max(1, piece)}, buffers: new(buffers)}
		var b bodyReader
		b.reset(r, byChunks, 0, extensions)
		got, err := io.ReadAll(&b)
		if err != nil {
			return
		}
		in := bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(raw)))
		req, err := http.ReadRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(req.Body)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q is %q, and for net/http %q, %v", raw, got, want, err)
		}
		rest, _ := io.ReadAll(io.MultiReader(bytes.NewReader(r.buf[r.pos:r.end]), r.src))
		if theirs, _ := io.ReadAll(in); !bytes.Equal(rest, theirs) {
			t.Fatalf("after %q is %q, and for net/http %q", raw, rest, theirs)
		}
	})
}
