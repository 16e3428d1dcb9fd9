package discovery

import (
	"fmt"
	"hash/crc32"
)

// The rules, for their tests: they are pure, and all of them is in what they
// are given and what they return.

type (
	Holder  = holder
	Verdict = verdict
)

var (
	Decide    = decide
	ParseFile = parseFile
)

// Marked returns what a file with this body holds.
func Marked(body []byte) []byte {
	return append(fmt.Appendf(nil, fileMark, crc32.Checksum(body, castagnoli)), body...)
}
