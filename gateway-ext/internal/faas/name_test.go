package faas_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestParseName(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct {
		in   string
		want faas.Name
		err  string // part of the sentence; empty: none
	}{
		{in: "weather", want: faas.Name{Function: "weather", Namespace: "openfaas-fn"}},
		{in: "weather.openfaas-fn", want: faas.Name{Function: "weather", Namespace: "openfaas-fn"}},
		{in: "weather.lab", want: faas.Name{Function: "weather", Namespace: "lab"}},
		{in: "1-2-3", want: faas.Name{Function: "1-2-3", Namespace: "openfaas-fn"}},
		{in: long, want: faas.Name{Function: long, Namespace: "openfaas-fn"}},
		{in: "", err: "function name is empty"},
		{in: ".lab", err: "function name is empty"},
		{in: "weather.", err: "namespace is empty"},
		{in: "a.b.c", err: `function name "a.b" is not a DNS label`},
		{in: "Weather", err: `function name "Weather" is not a DNS label: use a-z, 0-9 and "-"`},
		{in: "-weather", err: "not a DNS label"},
		{in: "weather-", err: "not a DNS label"},
		{in: "../etc", err: "not a DNS label"},
		{in: "wetter_karte", err: "not a DNS label"},
		{in: "wetterkärtchen", err: "not a DNS label"},
		{in: long + "a", err: "has 64 characters, at most 63 are allowed"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := faas.ParseName(tt.in)
			if tt.err == "" {
				if err != nil || got != tt.want {
					t.Fatalf("ParseName(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
				}
				return
			}
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("ParseName(%q) = %v, want an ErrInvalid with %q", tt.in, err, tt.err)
			}
		})
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"weather", "weather.openfaas-fn", "a.b.c", ".", "-", "A", "ä", strings.Repeat("x", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := faas.ParseName(s)
		if err != nil {
			if !errors.Is(err, faas.ErrInvalid) {
				t.Errorf("ParseName(%q) = %v, want an ErrInvalid", s, err)
			}
			return
		}
		again, err := faas.ParseName(n.String())
		if err != nil || again != n {
			t.Errorf("ParseName(%q.String()) = %v, %v", s, again, err)
		}
		if strings.ContainsAny(n.Function+n.Namespace, "./\\ \x00") || n.Function == "" || n.Namespace == "" {
			t.Errorf("ParseName(%q) = %v", s, n)
		}
	})
}

func TestCheckSecretName(t *testing.T) {
	for _, good := range []string{"key", "openweathermap-api-key", "tls.crt", "a.b.c", strings.Repeat("a.", 126) + "a"} {
		if err := faas.CheckSecretName(good); err != nil {
			t.Errorf("CheckSecretName(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "../key", "a/b", "a..b", "Key", "a b", "key.", strings.Repeat("a.", 127) + "a"} {
		if err := faas.CheckSecretName(bad); !errors.Is(err, faas.ErrInvalid) {
			t.Errorf("CheckSecretName(%q) = %v, want an ErrInvalid", bad, err)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	cause := errors.New("cause")
	err := faas.Errorf(faas.ErrNoSpace, "store %s: %w", "x", cause)
	if !errors.Is(err, faas.ErrNoSpace) || !errors.Is(err, cause) || errors.Is(err, faas.ErrInvalid) {
		t.Errorf("%v is not what it wraps", err)
	}
	if got, want := err.Error(), "store x: cause"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}

func TestState(t *testing.T) {
	for s, want := range map[faas.State]string{
		faas.Starting: "starting", faas.Ready: "ready", faas.Draining: "draining", faas.Gone: "gone", -1: "unknown", 4: "unknown",
	} {
		if s.String() != want {
			t.Errorf("State(%d).String() = %q, want %q", int(s), s, want)
		}
	}
}
