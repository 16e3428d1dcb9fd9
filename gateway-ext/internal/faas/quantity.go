package faas

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// maxQuantity is the longest quantity that is read: far more digits than an
// int64 has, few enough that exact arithmetic on a stranger's text is cheap.
const maxQuantity = 64

// ParseMemory reads an amount of memory as Kubernetes writes it ("128Mi", "1Gi",
// "500M", "1e9", "134217728") and returns bytes, rounded up. The suffixes are
// those of Kubernetes: Ki, Mi, Gi, Ti, Pi, Ei; n, u, m, k, M, G, T, P, E; and a
// decimal exponent. The error is an [ErrInvalid].
func ParseMemory(s string) (bytes int64, err error) {
	return parseQuantity(s, 1, "bytes", `"128Mi" or "1Gi"`)
}

// ParseCPU reads a share of processors as Kubernetes writes it ("100m", "0.5",
// "2") and returns thousandths of one processor, rounded up. The error is an
// [ErrInvalid].
func ParseCPU(s string) (milli int64, err error) {
	return parseQuantity(s, 1000, "thousandths of a processor", `"100m", "0.5" or "2"`)
}

// parseQuantity returns s times scale, rounded up.
func parseQuantity(s string, scale int64, unit, example string) (int64, error) {
	invalid := func(why string) error {
		return Errorf(ErrInvalid, "quantity %.70q %s; write for example %s", s, why, example)
	}
	switch {
	case s == "":
		return 0, invalid("is empty")
	case len(s) > maxQuantity:
		return 0, invalid("is too long")
	}
	number, suffix := splitQuantity(s)
	sign, digits := "", number
	if number != "" && (number[0] == '+' || number[0] == '-') {
		sign, digits = number[:1], number[1:]
	}
	if whole, fraction, _ := strings.Cut(digits, "."); whole == "" && fraction == "" {
		return 0, invalid("has no number")
	} else if strings.Contains(fraction, ".") {
		return 0, invalid("has two decimal points")
	}
	factor, ok := suffixFactor(suffix)
	if !ok {
		return 0, invalid("ends in " + strconv.Quote(suffix) + ", which is no unit of Kubernetes")
	}
	// big.Rat wants a digit on each side of the point; zeros don't change it.
	whole, fraction, _ := strings.Cut(digits, ".")
	v, ok := new(big.Rat).SetString("0" + whole + "." + fraction + "0")
	if !ok {
		return 0, invalid("is not a number")
	}
	v.Mul(v, factor)
	v.Mul(v, new(big.Rat).SetInt64(scale))
	if sign == "-" && v.Sign() != 0 {
		return 0, invalid("is negative")
	}
	up := new(big.Int).Add(v.Num(), new(big.Int).Sub(v.Denom(), big.NewInt(1)))
	up.Quo(up, v.Denom())
	if !up.IsInt64() {
		return 0, invalid("is more than " + strconv.FormatInt(math.MaxInt64, 10) + " " + unit)
	}
	return up.Int64(), nil
}

// splitQuantity cuts s where the sign, the digits and the points end.
func splitQuantity(s string) (number, suffix string) {
	i := 0
	if s[0] == '+' || s[0] == '-' {
		i = 1
	}
	for i < len(s) && ('0' <= s[i] && s[i] <= '9' || s[i] == '.') {
		i++
	}
	return s[:i], s[i:]
}

// suffixFactor returns what a suffix multiplies with, and false if there is no
// such suffix.
func suffixFactor(suffix string) (*big.Rat, bool) {
	const decimal, binary = "num kMGTPE", "KMGTPE" // 10^(3(i-3)), 2^(10(i+1))
	switch {
	case suffix == "":
		return power(10, 0), true
	case len(suffix) == 2 && suffix[1] == 'i':
		if i := strings.IndexByte(binary, suffix[0]); i >= 0 {
			return power(1024, i+1), true
		}
	case len(suffix) == 1 && suffix != " ":
		if i := strings.IndexByte(decimal, suffix[0]); i >= 0 {
			return power(1000, i-3), true
		}
	case suffix[0] == 'e' || suffix[0] == 'E':
		// Larger exponents than these leave the range of int64 in any case,
		// but for numbers written with dozens of zeros.
		e, err := strconv.Atoi(suffix[1:])
		if err == nil && -maxQuantity <= e && e <= maxQuantity {
			return power(10, e), true
		}
	}
	return nil, false
}

// power returns base to the n, which may be negative.
func power(base int64, n int) *big.Rat {
	abs := max(n, -n)
	r := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(abs)), nil))
	if n < 0 {
		r.Inv(r)
	}
	return r
}
