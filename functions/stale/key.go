package stale

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// Key names an answer of a function. Make it with [NewKey] or [KeyFor].
type Key struct {
	function string
	sum      [16]byte
}

// NewKey returns the key of what parts name together. The revision is what
// answers depend on beside the request: the digest of the function's image, so
// that a new one never reads an old one's answers, and who goes back finds them.
func NewKey(function, revision string, parts ...string) Key {
	b := make([]byte, 0, 256)
	add := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	add(revision)
	for _, p := range parts {
		add(p)
	}
	sum := sha256.Sum256(b)
	return Key{function, [16]byte(sum[:16])}
}

// ParseKey returns the key that [Key.String] printed.
func ParseKey(s string) (Key, error) {
	i := strings.LastIndexByte(s, ':')
	k := Key{function: s[:max(i, 0)]}
	if n, err := hex.Decode(k.sum[:], []byte(s[min(len(s), i+1):][:min(32, len(s)-i-1)])); i < 1 || len(s)-i-1 != 32 || err != nil || n != 16 {
		return Key{}, fmt.Errorf("%.100q is no key of a cached answer: write one as the header Cache-Status has it, function:32 hexadecimal digits", s)
	}
	return k, nil
}

// String returns the key as people see it, in Cache-Status and in purges.
func (k Key) String() string { return k.function + ":" + hex.EncodeToString(k.sum[:]) }

// Function returns whose answer it is.
func (k Key) Function() string { return k.function }
