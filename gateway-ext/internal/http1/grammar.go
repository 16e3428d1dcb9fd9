package http1

import "strconv"

// mayTrail says whether a field may come after the body: none that frames the
// message, routes it, or should have been known before (RFC 9110, section 6.5.1).
func mayTrail(canonical string) bool {
	switch canonical {
	case "Transfer-Encoding", "Content-Length", "Trailer", "Host", "Connection", "Te", "Upgrade",
		"Authorization", "Proxy-Authorization", "Www-Authenticate", "Cookie", "Set-Cookie",
		"Content-Encoding", "Content-Type", "Content-Range", "Expect", "Max-Forwards", "Range", "Cache-Control", "Age":
		return false
	}
	return true
}

// Classes of bytes.
const (
	tokenByte  = 1 << iota // RFC 9110, section 5.6.2
	valueByte              // of a field's value: visible, space, tab, obs-text (5.5)
	targetByte             // of a request's target, with the bytes ≥ 0x80 that browsers send in queries
	hostByte               // RFC 3986, section 3.2.2, and the colon of the port
)

// classes says of which classes a byte is.
var classes = func() (t [256]uint8) {
	const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	set := func(class uint8, bytes string) {
		for i := range len(bytes) {
			t[bytes[i]] |= class
		}
	}
	set(tokenByte, alphanumeric+"!#$%&'*+-.^_`|~")
	set(hostByte, alphanumeric+"-._~%!$&'()*+,;=:[]")
	for c := range len(t) {
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= valueByte
		}
		if c > ' ' && c != 0x7f && c != '#' {
			t[c] |= targetByte
		}
	}
	return t
}()

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isToken(s string) bool { return s != "" && allOf(s, tokenByte) }

// isValue says whether s can be a field's value. It looks at eight bytes at a time
// for one below a space or for DEL, since values are most of a head.
func isValue(s string) bool {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for t := s; len(t) >= 8; t = t[8:] {
		x := uint64(t[0]) | uint64(t[1])<<8 | uint64(t[2])<<16 | uint64(t[3])<<24 |
			uint64(t[4])<<32 | uint64(t[5])<<40 | uint64(t[6])<<48 | uint64(t[7])<<56
		del := x ^ 0x7f*each
		if ((x-' '*each)&^x|(del-each)&^del)&high != 0 {
			return allOf(s, valueByte) // a tab, or none
		}
		s = t[8:]
	}
	return allOf(s, valueByte)
}

// isHost says whether s can be a host with or without a port. An empty one is
// what a URL without authority has.
func isHost(s string) bool { return allOf(s, hostByte) }

func allOf(s string, class uint8) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// badTargetByte returns where the first byte is that can't be in a target, or -1.
func badTargetByte(s string) int {
	for i := range len(s) {
		if classes[s[i]]&targetByte == 0 {
			return i
		}
	}
	return -1
}

// trimOWS cuts spaces and tabs off both ends (RFC 9110, section 5.6.3).
func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// appendField writes a field line. A control character in the value, which would
// break the message, becomes a space; a name that is no token is left out with
// its value.
func appendField(b []byte, name, value string) []byte {
	if !isToken(name) {
		return b
	}
	b = append(b, name...)
	b = append(b, ':', ' ')
	if isValue(value) {
		b = append(b, value...)
	} else {
		for i := range len(value) {
			c := value[i]
			if classes[c]&valueByte == 0 {
				c = ' '
			}
			b = append(b, c)
		}
	}
	return append(b, '\r', '\n')
}

// appendStatusLine writes the first line of an answer in HTTP/1.1, which is
// also what a client of HTTP/1.0 is answered (RFC 9110, section 6.2).
func appendStatusLine(b []byte, status int, reason string) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, reason...)
	return append(b, '\r', '\n')
}
