package http1

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// ProtocolError says what is wrong with a message, in a sentence for whoever
// made it.
type ProtocolError struct {
	// Status is the answer to a request that is like this. For what is wrong
	// with an answer it is 502.
	Status int
	Text   string
}

// Error implements error.
func (e *ProtocolError) Error() string { return e.Text }

// malformed returns the error for a message that breaks the grammar.
func malformed(format string, args ...any) *ProtocolError {
	return &ProtocolError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// maxFields is how many fields a head or a trailer section may have. Other
// servers stop at 100; each costs about 60 bytes besides its text.
const maxFields = 256

// head is the head of a message: its start line, its fields, and what these say
// of the body and of the connection. It is used for one message after the other:
// parsing clears what was there, and its maps and slices with it. All strings are
// parts of the text that was parsed, so they may be kept.
type head struct {
	method, target string // of a request
	status         int    // of an answer
	reason         string
	minor          int // HTTP/1.minor: 0 or 1

	// header has the fields under their canonical names. As with net/http, Host
	// and Transfer-Encoding aren't among them, nor is Trailer if the body is
	// chunked. Content-Length is.
	header http.Header
	values []string // what the slices in header point to

	host    string // of a request
	hosts   int    // how many Host fields there were
	chunked bool   // the body comes in chunks
	length  int64  // of the body as declared; -1 if it is not
	trailer []string

	close, keepAlive, upgrade bool   // what Connection says
	expect                    string // Expect, in lower case

	codings []string // each value of Transfer-Encoding
}

// reset forgets the last message. A map or slice that one large message made
// large isn't kept for small ones.
func (h *head) reset() {
	header, values := h.header, h.values
	if header == nil || len(header) > 64 {
		header = make(http.Header, 8)
	} else {
		clear(header)
	}
	clear(values)
	*h = head{header: header, values: values[:0], length: -1, trailer: h.trailer[:0], codings: h.codings[:0]}
}

// parseRequest reads the head of a request, see [reader.readHead] for what text
// is. It accepts what RFC 9112 has clients send, and nothing that only some
// recipients understand in the same way.
func (h *head) parseRequest(text string) error {
	h.reset()
	line, fields, ok := strings.Cut(text, "\r\n")
	if !ok {
		return malformed("the request line has no end")
	}
	// RFC 9112, section 3: method SP request-target SP HTTP-version.
	method, rest, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	switch {
	case !ok1 || !ok2 || target == "" || strings.IndexByte(version, ' ') >= 0:
		return malformed("the request line is not a method, a target and a version with one space between them")
	case !isToken(method):
		return malformed("the request's method is not a token")
	}
	if h.minor, ok = parseVersion(version); !ok {
		return badVersion(version)
	}
	if c := badTargetByte(target); c >= 0 {
		return malformed("the request's target has the byte 0x%02x in it: it must be percent-encoded", target[c])
	}
	h.method, h.target = method, target
	if err := h.parseFields(fields); err != nil {
		return err
	}
	return h.checkRequest()
}

// checkRequest looks at what fields say together: framing (RFC 9112, section
// 6.3), the host (3.2) and the form of the target.
func (h *head) checkRequest() error {
	switch {
	case h.hosts > 1:
		return malformed("the request has %d Host fields", h.hosts)
	case h.hosts == 0 && h.minor > 0:
		return malformed("the request has no Host field")
	case !isHost(h.host):
		return malformed("the request's Host is not a name or address and a port")
	}
	switch {
	case len(h.codings) > 0 && h.length >= 0:
		return malformed("the request has Content-Length and Transfer-Encoding")
	case len(h.codings) > 0 && h.minor == 0:
		return malformed("a request in HTTP/1.0 can't have Transfer-Encoding")
	case len(h.codings) > 1:
		return malformed("the request has several Transfer-Encoding fields")
	case len(h.codings) == 1:
		switch coding := h.codings[0]; {
		case strings.EqualFold(coding, "chunked"):
			h.chunked = true
		case isChunkedLast(coding):
			return &ProtocolError{http.StatusNotImplemented, "no transfer coding but chunked is understood"}
		default:
			return malformed("the last coding in Transfer-Encoding is not chunked, so the body has no end")
		}
	}
	if h.target[0] == '/' {
		return h.checkTrailer()
	}
	switch {
	case h.method == http.MethodConnect:
		return malformed("CONNECT is not served: this is no forward proxy")
	case h.target == "*":
		if h.method != http.MethodOptions {
			return malformed("only OPTIONS may have the target *")
		}
	default: // absolute-form; its host wins over the field (RFC 9112, section 3.2.2)
		scheme, rest, _ := strings.Cut(h.target, "://")
		if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return malformed("the request's target is neither a path nor a URL with http or https")
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if end == 0 || !isHost(rest[:end]) {
			return malformed("the host in the request's target is not a name or address and a port")
		}
		h.host = rest[:end]
	}
	return h.checkTrailer()
}

// checkTrailer takes the Trailer field off the header of a message in chunks,
// whose names are in h.trailer.
func (h *head) checkTrailer() error {
	if !h.chunked {
		h.trailer = h.trailer[:0]
		return nil
	}
	for _, name := range h.trailer {
		if !mayTrail(name) {
			return malformed("Trailer announces %s, which can't come after the body", name)
		}
	}
	delete(h.header, "Trailer")
	return nil
}

// parseResponse reads the head of an answer. bodyless says that it has no body
// whatever its fields say: it answers HEAD, or its status is 1xx, 204 or 304
// (the parser sees to the last three by itself).
//
// What is wrong with it is a [ProtocolError] with status 502. An answer may say
// its length twice if it says the same, and may leave out the space after the
// status: that is understood alike by everybody.
func (h *head) parseResponse(text string, bodyless bool) error {
	h.reset()
	err := h.parseAnswer(text, bodyless)
	if err, ok := err.(*ProtocolError); ok {
		err.Status = http.StatusBadGateway
		return err
	}
	return err
}

func (h *head) parseAnswer(text string, bodyless bool) error {
	line, fields, ok := strings.Cut(text, "\r\n")
	if !ok {
		return malformed("the status line has no end")
	}
	version, rest, _ := strings.Cut(line, " ")
	if h.minor, ok = parseVersion(version); !ok {
		return malformed("the answer is not HTTP/1.0 or HTTP/1.1: it begins with %.20q", line)
	}
	code, reason, _ := strings.Cut(rest, " ")
	if len(code) != 3 || code[0] < '1' || code[0] > '9' || !isDigit(code[1]) || !isDigit(code[2]) {
		return malformed("the answer's status %.20q is not a number of three digits", code)
	}
	if !isValue(reason) {
		return malformed("the answer's reason has a control character in it")
	}
	h.status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	h.reason = reason
	if err := h.parseFields(fields); err != nil {
		return err
	}
	switch {
	case h.status < 200 || h.status == http.StatusNoContent:
		// RFC 9112, section 6.1 and RFC 9110, section 8.6: a server must not
		// send either field with these; a recipient ignores them (6.3).
		if h.length >= 0 {
			delete(h.header, "Content-Length")
		}
		h.length = 0
	case bodyless || h.status == http.StatusNotModified:
		// The fields tell of the answer that GET would get.
	case len(h.codings) > 0 && h.length >= 0:
		return malformed("the answer has Content-Length and Transfer-Encoding")
	case len(h.codings) > 1 || len(h.codings) == 1 && !strings.EqualFold(h.codings[0], "chunked"):
		return malformed("no transfer coding but a single chunked is understood")
	case len(h.codings) == 1 && h.minor == 0:
		return malformed("an answer in HTTP/1.0 can't have Transfer-Encoding")
	case len(h.codings) == 1:
		h.chunked = true
	}
	return h.checkTrailer()
}

// parseFields reads field lines (RFC 9112, section 5), each with its CRLF.
func (h *head) parseFields(text string) error {
	answer := h.status != 0
	for n := 0; text != ""; n++ {
		end := strings.Index(text, "\r\n")
		if end < 0 {
			return malformed("a field line has no end")
		}
		line := text[:end]
		text = text[end+2:]
		if n == maxFields {
			return &ProtocolError{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("there are more than %d fields", maxFields)}
		}
		name, value, err := parseField(line)
		if err != nil {
			return err
		}
		switch name {
		case "Host":
			if !answer {
				h.host = value
				h.hosts++
				continue
			}
		case "Transfer-Encoding":
			h.codings = append(h.codings, value)
			continue
		case "Content-Length":
			length, err := h.parseLength(value, answer)
			if err != nil {
				return err
			}
			if h.length >= 0 {
				if !answer || h.length != length {
					return malformed("there are several Content-Length fields")
				}
				continue // said twice
			}
			h.length = length
			if answer {
				value, _, _ = strings.Cut(value, ",")
				value = strings.TrimRight(value, " \t")
			}
		case "Connection":
			if err := h.parseConnection(value); err != nil {
				return err
			}
		case "Expect":
			h.expect = strings.ToLower(value)
		case "Trailer":
			for name := range strings.SplitSeq(value, ",") {
				name = trimOWS(name)
				if name == "" {
					continue
				}
				if !isToken(name) || len(h.trailer) == maxFields {
					return malformed("Trailer is not a list of field names")
				}
				h.trailer = append(h.trailer, textproto.CanonicalMIMEHeaderKey(name))
			}
		}
		h.add(name, value)
	}
	return nil
}

// add puts a field into the header. Its slice has room for no second value, so
// that appending one moves it and overwrites no other's.
func (h *head) add(name, value string) {
	if before, ok := h.header[name]; ok {
		h.header[name] = append(before, value)
		return
	}
	h.values = append(h.values, value)
	n := len(h.values)
	h.header[name] = h.values[n-1 : n : n]
}

// parseLength reads Content-Length: digits, and nothing else (RFC 9110, 8.6).
// In an answer they may be repeated.
func (h *head) parseLength(value string, answer bool) (int64, error) {
	if answer && strings.IndexByte(value, ',') > 0 {
		first, rest, _ := strings.Cut(value, ",")
		value = trimOWS(first)
		for again := range strings.SplitSeq(rest, ",") {
			if trimOWS(again) != value {
				return 0, malformed("Content-Length says several lengths")
			}
		}
	}
	for i := range len(value) {
		if !isDigit(value[i]) {
			return 0, malformed("Content-Length is not a number")
		}
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, malformed("Content-Length is not a number that a body can have")
	}
	return n, nil
}

// parseConnection reads connection options (RFC 9110, section 7.6.1).
func (h *head) parseConnection(value string) error {
	for value != "" {
		var option string
		option, value, _ = strings.Cut(value, ",")
		switch option = trimOWS(option); {
		case option == "":
		case !isToken(option):
			return malformed("Connection is not a list of options")
		case strings.EqualFold(option, "close"):
			h.close = true
		case strings.EqualFold(option, "keep-alive"):
			h.keepAlive = true
		case strings.EqualFold(option, "upgrade"):
			h.upgrade = true
		}
	}
	return nil
}

// persistent says whether the sender leaves the connection open after the
// message (RFC 9112, section 9.3).
func (h *head) persistent() bool {
	return !h.close && (h.minor > 0 || h.keepAlive)
}

// parseField reads a field line without its CRLF. The name is canonical.
func parseField(line string) (name, value string, err error) {
	upper, canonical := true, true
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		if c == ':' {
			break
		}
		if classes[c]&tokenByte == 0 {
			return "", "", badField(line)
		}
		if upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			canonical = false
		}
		upper = c == '-'
	}
	if i == 0 || i == len(line) {
		return "", "", badField(line)
	}
	name = line[:i]
	if !canonical {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	value = trimOWS(line[i+1:])
	if !isValue(value) {
		return "", "", malformed("field %.60s has a control character in its value", name)
	}
	return name, value, nil
}

// badField says what is wrong with a field line.
func badField(line string) error {
	name, _, found := strings.Cut(line, ":")
	switch {
	case line != "" && (line[0] == ' ' || line[0] == '\t'):
		return malformed("a field goes on in a second line, which HTTP no longer allows (RFC 9112, section 5.2)")
	case !found:
		return malformed("a field line has no colon: %.60q", line)
	case name == "":
		return malformed("a field has no name")
	case strings.TrimRight(name, " \t") != name:
		return malformed("there is space between the name of field %.60q and its colon", strings.TrimRight(name, " \t"))
	default:
		return malformed("the field name %.60q is not a token", name)
	}
}

// parseVersion returns the minor version of HTTP/1.
func parseVersion(s string) (int, bool) {
	switch s {
	case "HTTP/1.1":
		return 1, true
	case "HTTP/1.0":
		return 0, true
	default:
		return 0, false
	}
}

func badVersion(s string) error {
	if len(s) == len("HTTP/1.1") && strings.HasPrefix(s, "HTTP/") && isDigit(s[5]) && s[6] == '.' && isDigit(s[7]) {
		return &ProtocolError{http.StatusHTTPVersionNotSupported, s + " is not served: HTTP/1.1 is"}
	}
	return malformed("the request line does not end in HTTP/1.1")
}

// isChunkedLast says whether chunked is the last of several codings, which frames
// a body that we can't decode.
func isChunkedLast(codings string) bool {
	rest, last, found := cutLast(codings, ',')
	if !found || !strings.EqualFold(trimOWS(last), "chunked") {
		return false
	}
	for coding := range strings.SplitSeq(rest, ",") {
		name, _, _ := strings.Cut(coding, ";")
		if name = trimOWS(name); !isToken(name) || strings.EqualFold(name, "chunked") {
			return false
		}
	}
	return true
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}
