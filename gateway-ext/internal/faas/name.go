package faas

import (
	"log/slog"
	"strings"
)

// DefaultNamespace is where a function lives that names no namespace. Clients
// of OpenFaaS write it out ("invoke" always asks for NAME.openfaas-fn), so it
// is also accepted as a suffix.
const DefaultNamespace = "openfaas-fn"

// Name is a function's full name.
type Name struct {
	Function  string `json:"name"`
	Namespace string `json:"namespace"`
}

// String returns "function.namespace", as metrics and logs spell it.
func (n Name) String() string { return n.Function + "." + n.Namespace }

// LogValue implements [slog.LogValuer].
func (n Name) LogValue() slog.Value { return slog.StringValue(n.String()) }

// ParseName reads "function" or "function.namespace"; the namespace is what
// stands after the last dot. The error is an [ErrInvalid] that says what a name
// may be.
func ParseName(s string) (Name, error) {
	n := Name{Function: s, Namespace: DefaultNamespace}
	if i := strings.LastIndexByte(s, '.'); i >= 0 {
		n.Function, n.Namespace = s[:i], s[i+1:]
	}
	if err := CheckLabel("function name", n.Function); err != nil {
		return Name{}, err
	}
	if err := CheckLabel("namespace", n.Namespace); err != nil {
		return Name{}, err
	}
	return n, nil
}

// CheckLabel returns nil if s is a DNS label (RFC 1123: 1 to 63 of a-z, 0-9 and
// "-", neither first nor last a "-"), else an [ErrInvalid] that names what is
// wrong with it and calls it what.
func CheckLabel(what, s string) error {
	switch {
	case s == "":
		return Errorf(ErrInvalid, "%s is empty", what)
	case len(s) > 63:
		return Errorf(ErrInvalid, "%s %.70q has %d characters, at most 63 are allowed", what, s, len(s))
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(s)-1) {
			return Errorf(ErrInvalid, "%s %q is not a DNS label: use a-z, 0-9 and \"-\" (not first or last)", what, s)
		}
	}
	return nil
}
