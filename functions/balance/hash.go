package balance

import "strings"

// FNV-1a of 64 bits: simple, and the same in every process and release.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// hash returns a number for a text, never 0.
func hash(s string) uint64 {
	h := uint64(fnvOffset)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return max(mix(h), 1)
}

// golden is 2^64 divided by the golden ratio: what is added to it again and again
// is spread evenly.
const golden = 0x9e3779b97f4a7c15

// mix spreads what is in a number over all its bits (the finalizer of
// SplitMix64): FNV alone leaves texts that differ in their last letter close
// together.
func mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// unit returns a number in [0,1) of one that has 64 bits of chance.
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// queryHash returns the hash of a query parameter's first value, however it is
// escaped; 0 if there is none, or if it is empty.
func queryHash(raw, name string) uint64 {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		key, value, _ := strings.Cut(pair, "=")
		if !sameText(key, name) {
			continue
		}
		if value == "" {
			return 0
		}
		h := uint64(fnvOffset)
		for i := 0; i < len(value); {
			c, n := unescape(value[i:])
			h = (h ^ uint64(c)) * fnvPrime
			i += n
		}
		return max(mix(h), 1)
	}
	return 0
}

// sameText says whether an escaped text says the same as a plain one.
func sameText(escaped, plain string) bool {
	j := 0
	for i := 0; i < len(escaped); j++ {
		c, n := unescape(escaped[i:])
		if j >= len(plain) || plain[j] != c {
			return false
		}
		i += n
	}
	return j == len(plain)
}

// unescape returns the first byte of a query's text, and how many it is written
// with. What is no escape stands for itself.
func unescape(s string) (c byte, n int) {
	switch {
	case s[0] == '+':
		return ' ', 1
	case s[0] == '%' && len(s) >= 3:
		hi, ok1 := digit(s[1])
		lo, ok2 := digit(s[2])
		if ok1 && ok2 {
			return hi<<4 | lo, 3
		}
	}
	return s[0], 1
}

func digit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
