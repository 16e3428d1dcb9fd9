package http1_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestRefused sends what is no request, or may be taken for another one.
func TestRefused(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: x\r\n"
	for _, tt := range []struct {
		rfc    string // section of RFC 9112, if no other is named
		raw    string
		status int
		want   string
	}{
		// Lines.
		{"2.2 bare LF", "GET / HTTP/1.1\nHost: x\n\n", 400, "LF without CR"},
		{"2.2 bare LF after a field", "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", 400, "LF without CR"},
		{"2.2 bare LF at the end", "GET / HTTP/1.1\r\nHost: x\r\n\n", 400, "LF without CR"},
		{"2.2 bare CR", "GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400, "control character"},
		{"2.2 bare CR in the line", "GET / HTTP/1.1\rX: y\r\nHost: x\r\n\r\n", 400, "one space"},
		{"2.2 two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "empty line"},
		{"2.2 space before the first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400, "second line"},
		// The request line.
		{"3 no version", "GET /\r\nHost: x\r\n\r\n", 400, "one space"},
		{"3 two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "one space"},
		{"3 tab", "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "one space"},
		{"3 space after", "GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400, "one space"},
		{"3 space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "one space"},
		{"3.1 method", "G(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "method"},
		{"2.3 version", "GET / HTTP/1.1x\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"},
		{"2.3 version in lower case", "GET / http/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"},
		{"2.3 HTTP/1.10", "GET / HTTP/1.10\r\nHost: x\r\n\r\n", 400, "HTTP/1.1"},
		{"2.3 HTTP/2", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "HTTP/2.0"},
		{"2.3 HTTP/0.9", "GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505, "HTTP/0.9"},
		{"3.2 control character", "GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "0x01"},
		{"3.2 NUL", "GET /a\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "0x00"},
		{"3.2 fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "0x23"},
		{"3.2 escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "escape"},
		{"3.2 relative", "GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "neither a path nor a URL"},
		{"3.2.2 scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "neither a path nor a URL"},
		{"3.2.2 no host", "GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "host"},
		{"3.2.2 user", "GET http://u:p@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "host"},
		{"3.2.3 CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 400, "CONNECT"},
		{"3.2.4 asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "OPTIONS"},
		{"3 too long", "GET /" + strings.Repeat("a", 8<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414, "8192"},
		{"3 too long, and no end", "GET /" + strings.Repeat("a", 9<<10), 414, "8192"},
		// Host.
		{"3.2 no Host", "GET / HTTP/1.1\r\n\r\n", 400, "no Host"},
		{"3.2 two Hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400, "2 Host"},
		{"3.2 Host", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400, "Host"},
		{"3.2 Hosts in one", "GET / HTTP/1.1\r\nHost: x, y\r\n\r\n", 400, "Host"},
		{"3.2 Host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "Host"},
		// Fields.
		{"5 no colon", "GET / HTTP/1.1\r\nHost: x\r\nX\r\n\r\n", 400, "no colon"},
		{"5 no name", "GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400, "no name"},
		{"5.1 space before the colon", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 0\r\n\r\n", 400, "colon"},
		{"5.1 tab before the colon", "GET / HTTP/1.1\r\nHost: x\r\nX\t: 0\r\n\r\n", 400, "colon"},
		{"5.1 space in the name", "GET / HTTP/1.1\r\nHost: x\r\nX Y: 0\r\n\r\n", 400, "token"},
		{"5.1 name", "GET / HTTP/1.1\r\nHost: x\r\nX@: 0\r\n\r\n", 400, "token"},
		{"5.1 NUL in the name", "GET / HTTP/1.1\r\nHost: x\r\nX\x00: 0\r\n\r\n", 400, "token"},
		{"5.1 name beyond ASCII", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length\xa0: 0\r\n\r\n", 400, "token"},
		{"5.5 of 9110 NUL in the value", "GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400, "control"},
		{"5.5 of 9110 vertical tab", "GET / HTTP/1.1\r\nHost: x\r\nX: \x0ba\r\n\r\n", 400, "control"},
		{"5.2 obs-fold", "GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400, "second line"},
		{"5.2 obs-fold with tab", "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n", 400, "second line"},
		{"5 of 6585 too large", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", 431, "65536"},
		{"5 of 6585 too many", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 256) + "\r\n", 431, "256"},
		{"7.6.1 of 9110 Connection", "GET / HTTP/1.1\r\nHost: x\r\nConnection: a b\r\n\r\n", 400, "Connection"},
		{"10.1.1 of 9110 Expect", post + "Content-Length: 1\r\nExpect: tea\r\n\r\n", 417, "100-continue"},
		// The body's length.
		{"6.3 two lengths", post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "several Content-Length"},
		{"6.3 the same twice", post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400, "several Content-Length"},
		{"6.3 the same in a list", post + "Content-Length: 1, 1\r\n\r\na", 400, "not a number"},
		{"6.3 length and chunks", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Content-Length and Transfer-Encoding"},
		{"6.3 chunks and length", post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "Content-Length and Transfer-Encoding"},
		{"8.6 of 9110 sign", post + "Content-Length: +1\r\n\r\na", 400, "not a number"},
		{"8.6 of 9110 minus", post + "Content-Length: -1\r\n\r\na", 400, "not a number"},
		{"8.6 of 9110 hexadecimal", post + "Content-Length: 0x1\r\n\r\na", 400, "not a number"},
		{"8.6 of 9110 empty", post + "Content-Length:\r\n\r\n", 400, "not a number"},
		{"8.6 of 9110 space inside", post + "Content-Length: 1 1\r\n\r\na", 400, "not a number"},
		{"8.6 of 9110 too large", post + "Content-Length: 9223372036854775808\r\n\r\n", 400, "not a number"},
		{"8.6 of 9110 other digits", post + "Content-Length: ١\r\n\r\n", 400, "not a number"},
		{"6.1 chunked is not last", post + "Transfer-Encoding: chunked, gzip\r\n\r\n", 400, "no end"},
		{"6.1 chunked twice", post + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, "no end"},
		{"6.1 two fields", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "several"},
		{"6.1 two fields, one other", post + "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "several"},
		{"6.1 identity", post + "Transfer-Encoding: identity\r\n\r\n", 400, "no end"},
		{"6.1 empty", post + "Transfer-Encoding:\r\n\r\n", 400, "no end"},
		{"6.1 near chunked", post + "Transfer-Encoding: xchunked\r\n\r\n", 400, "no end"},
		{"6.1 quoted", post + "Transfer-Encoding: \"chunked\"\r\n\r\n", 400, "no end"},
		{"6.1 with a parameter", post + "Transfer-Encoding: chunked;q=1\r\n\r\n", 400, "no end"},
		{"6.1 empty element", post + "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 400, "no end"},
		{"6.1 vertical tab", post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "control"},
		{"6.1 another coding", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "coding"},
		{"6.1 in HTTP/1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0"},
		{"6.5.1 of 9110 Trailer", post + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\n\r\n", 400, "Content-Length"},
		{"6.6.2 of 9110 Trailer", post + "Transfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n0\r\n\r\n", 400, "Trailer"},
	} {
		t.Run(tt.rfc, func(t *testing.T) {
			w := onTCP(t, func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") }, nil)
			c := w.dial()
			c.sendAside(tt.raw + get("/smuggled"))
			res, body := c.answer("GET")
			if res.StatusCode != tt.status || !strings.Contains(body, tt.want) || !res.Close || !strings.HasSuffix(body, "\n") {
				t.Errorf("answer = %d %q, close %t, want %d with %q and close", res.StatusCode, body, res.Close, tt.status, tt.want)
			}
			c.ended()
		})
	}
}

// TestRefusedChunks sends bodies that are no chunks: reading them is an error, and
// nothing after them is a request.
func TestRefusedChunks(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tt := range []struct {
		rfc, chunks, want string
	}{
		{"7.1.1 extension", "1;a=b\r\na\r\n0\r\n\r\n", "extensions"},
		{"7.1.1 extension of the last", "1\r\na\r\n0;a\r\n\r\n", "extensions"},
		{"7.1.1 semicolon", "1;\r\na\r\n0\r\n\r\n", "extensions"},
		{"7.1.1 space", "1 \r\na\r\n0\r\n\r\n", "extensions"},
		{"7.1.1 LF in an extension", "1;\na\r\na\r\n0\r\n\r\n", "LF without CR"},
		{"7.1 0x", "0x1\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 plus", "+1\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 minus", "-1\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 space before", " 1\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 underscore", "1_0\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 nothing", "\r\na\r\n0\r\n\r\n", "hexadecimal"},
		{"7.1 no number", "z\r\n", "hexadecimal"},
		{"7.1 overflow", "8000000000000000\r\na\r\n0\r\n\r\n", "digits"},
		{"7.1 wraps around", "10000000000000001\r\na\r\n0\r\n\r\n", "digits"},
		{"7.1 many zeros", strings.Repeat("0", 17) + "1\r\na\r\n0\r\n\r\n", "digits"},
		{"7.1 longer than it says", "1\r\nab\r\n0\r\n\r\n", "longer"},
		{"7.1 much longer than it says", "1\r\nabcdefghij\r\n0\r\n\r\n", "longer"},
		{"7.1 bare LF", "1\na\r\n0\r\n\r\n", "LF without CR"},
		{"7.1 bare LF after data", "1\r\na\n0\r\n\r\n", "LF without CR"},
		{"7.1 bare CR", "1\r\na\r\n0\r\r\n\r\n", "CR without LF"},
		{"7.1.2 trailer with obs-fold", "0\r\nX: a\r\n b\r\n\r\n", "second line"},
		{"7.1.2 trailer with space before the colon", "0\r\nX : a\r\n\r\n", "colon"},
		{"7.1.2 trailer with bare LF", "0\r\nX: a\n\r\n", "LF without CR"},
		{"7.1.2 trailer is too large", "0\r\nX: " + strings.Repeat("a", 8<<10) + "\r\n\r\n", "long"},
		{"7.1.2 trailer has too many", "0\r\n" + strings.Repeat("X: a\r\n", 257) + "\r\n", "256"},
		{"6.3 no trailer", "0\r\nGET / HTTP/1.1\r\n\r\n", "no colon"},
	} {
		t.Run(tt.rfc, func(t *testing.T) {
			calls := 0
			w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				if _, err := io.ReadAll(r.Body); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("reading the body = %v, want an error with %q", err, tt.want)
				}
				w.WriteHeader(http.StatusBadRequest)
			}, nil)
			c := w.dial()
			c.sendAside(head + tt.chunks + get("/smuggled"))
			if res, _ := c.answer("POST"); res.StatusCode != http.StatusBadRequest || !res.Close {
				t.Errorf("answer = %d, close %t, want 400 and close", res.StatusCode, res.Close)
			}
			c.ended()
			if calls != 1 {
				t.Errorf("%d calls, want 1", calls)
			}
		})
	}
}

// TestAccepted sends what looks odd and is right.
func TestAccepted(t *testing.T) {
	for _, tt := range []struct {
		rfc, raw, want string
	}{
		{"2.2 an empty line before", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET x /a "},
		{"3 any method", "BREW /a HTTP/1.1\r\nHost: x\r\n\r\n", "BREW x /a "},
		{"3.2 nothing as Host", "GET /a HTTP/1.1\r\nHost:\r\n\r\n", "GET  /a "},
		{"3.2 port and IPv6", "GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET [::1]:80 /a "},
		{"3.2.1 raw bytes in the query", "GET /a?\xc3\xa4=\"{}| HTTP/1.1\r\nHost: x\r\n\r\n", "GET x /a?\xc3\xa4=\"{}| "},
		{"3.2.1 two slashes", "GET //a//b/../c HTTP/1.1\r\nHost: x\r\n\r\n", "GET x //a//b/../c "},
		{"3.2.1 empty query", "GET /a? HTTP/1.1\r\nHost: x\r\n\r\n", "GET x /a? "},
		{"3.2.2 absolute form", "GET http://y:1/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET y:1 http://y:1/a "},
		{"5.1 no space, and much", "POST /a HTTP/1.1\r\nhost:x\r\nCONTENT-LENGTH: \t 1 \t\r\n\r\nb", "POST x /a b"},
		{"6.3 zero", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 000\r\n\r\n", "POST x /a "},
		{"6.1 any case", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\nA\r\n0123456789\r\n00\r\n\r\n", "POST x /a 0123456789"},
		{"6.3 GET with a body", "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb", "GET x /a b"},
		{"3 the longest line", "GET /" + strings.Repeat("a", 8192-len("GET / HTTP/1.1")) + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET x /" + strings.Repeat("a", 8192-len("GET / HTTP/1.1")) + " "},
	} {
		t.Run(tt.rfc, func(t *testing.T) {
			w := onTCP(t, echo, nil)
			c := w.dial()
			c.send(tt.raw + get("/next"))
			for _, want := range []string{tt.want, "GET x /next "} {
				if res, got := c.answer("GET"); got != want || res.Close {
					t.Errorf("answer = %d %q, close %t, want %q", res.StatusCode, got, res.Close, want)
				}
			}
		})
	}
}

// TestOptionsOfTheServer asks what the server can, not the handler (RFC 9110,
// section 9.3.7).
func TestOptionsOfTheServer(t *testing.T) {
	w := onTCP(t, func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") }, nil)
	c := w.dial()
	for range 2 {
		c.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
		if res, body := c.answer("OPTIONS"); res.StatusCode != 200 || body != "" {
			t.Errorf("answer = %d %q, want 200", res.StatusCode, body)
		}
	}
}

// TestHTTP10 talks as clients did before 1997, and some still do.
func TestHTTP10(t *testing.T) {
	w := onTCP(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints) // of which HTTP/1.0 knows nothing
		fmt.Fprintf(w, "%s %t", r.Proto, r.Close)
		if r.URL.Path == "/stream" {
			http.NewResponseController(w).Flush()
			io.WriteString(w, " and more")
		}
	}, nil)
	for _, tt := range []struct {
		path, fields, want string
		kept               bool
	}{
		{"/", "", "HTTP/1.0 true", false},
		{"/", "Host: x\r\n", "HTTP/1.0 true", false},
		{"/", "Connection: keep-alive\r\n", "HTTP/1.0 false", true},
		{"/stream", "", "HTTP/1.0 true and more", false},
		{"/stream", "Connection: keep-alive\r\n", "HTTP/1.0 false and more", false},
	} {
		c := w.dial()
		c.send("GET " + tt.path + " HTTP/1.0\r\n" + tt.fields + "\r\n")
		res, body := c.answer("GET")
		if res.StatusCode != 200 || res.Proto != "HTTP/1.1" || body != tt.want || len(res.TransferEncoding) > 0 || res.Close == tt.kept {
			t.Errorf("%s %q: answer = %s %d %q, close %t, want %q", tt.path, tt.fields, res.Proto, res.StatusCode, body, res.Close, tt.want)
		}
		if tt.kept {
			c.send("GET / HTTP/1.0\r\n\r\n")
			c.answer("GET")
		}
		c.ended()
	}
}
