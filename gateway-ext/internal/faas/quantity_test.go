package faas_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestParseMemory(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int64
		err  string
	}{
		{in: "0"},
		{in: "128Mi", want: 128 << 20},
		{in: "1Gi", want: 1 << 30},
		{in: "500M", want: 500_000_000},
		{in: "134217728", want: 134217728},
		{in: "+64Ki", want: 64 << 10},
		{in: "1.5Gi", want: 3 << 29},
		{in: ".5Ki", want: 512},
		{in: "5.", want: 5},
		{in: "1e3", want: 1000},
		{in: "1E3", want: 1000},
		{in: "2E", want: 2e18},
		{in: "1Ei", want: 1 << 60},
		{in: "1e+3", want: 1000},
		{in: "1500e-3", want: 2},
		{in: "128974848000m", want: 128974848},
		{in: "1n", want: 1},
		{in: "1u", want: 1},
		{in: "7k", want: 7000},
		{in: "3T", want: 3e12},
		{in: "3Ti", want: 3 << 40},
		{in: "1P", want: 1e15},
		{in: "1Pi", want: 1 << 50},
		{in: "-0", want: 0},
		{in: "9223372036854775807", want: 1<<63 - 1},
		{in: "9223372036854775808", err: "is more than 9223372036854775807 bytes"},
		{in: "8Ei", err: "is more than"},
		{in: "1e60", err: "is more than"},
		{in: "1e999", err: `ends in "e999"`},
		{in: "", err: "is empty"},
		{in: "Mi", err: "has no number"},
		{in: "-", err: "has no number"},
		{in: ".", err: "has no number"},
		{in: "1.2.3Mi", err: "two decimal points"},
		{in: "-1Mi", err: "is negative"},
		{in: "128MB", err: `ends in "MB", which is no unit of Kubernetes; write for example "128Mi" or "1Gi"`},
		{in: "128 Mi", err: `ends in " Mi"`},
		{in: "128 ", err: `ends in " "`},
		{in: "128mi", err: `ends in "mi"`},
		{in: "1K", err: `ends in "K"`},
		{in: "1e", err: `ends in "e"`},
		{in: "0x10", err: `ends in "x10"`},
		{in: "1/2", err: `ends in "/2"`},
		{in: "1_000", err: `ends in "_000"`},
		{in: strings.Repeat("1", 65), err: "is too long"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := faas.ParseMemory(tt.in)
			check(t, fmt.Sprintf("ParseMemory(%q)", tt.in), got, err, tt.want, tt.err)
		})
	}
}

func TestParseCPU(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int64
		err  string
	}{
		{in: "0"},
		{in: "100m", want: 100},
		{in: "0.5", want: 500},
		{in: "2", want: 2000},
		{in: "1.2345", want: 1235},
		{in: "1u", want: 1},
		{in: "1k", want: 1_000_000},
		{in: "half", err: `has no number; write for example "100m"`},
		{in: "50%", err: `ends in "%"`},
		{in: "-100m", err: "is negative"},
		{in: "9223372036854775807", err: "is more than 9223372036854775807 thousandths of a processor"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := faas.ParseCPU(tt.in)
			check(t, fmt.Sprintf("ParseCPU(%q)", tt.in), got, err, tt.want, tt.err)
		})
	}
}

// check compares a result with what is wanted: a value, or an ErrInvalid with
// part of a sentence.
func check[T comparable](t *testing.T, call string, got T, err error, want T, sentence string) {
	t.Helper()
	switch {
	case sentence == "" && (err != nil || got != want):
		t.Errorf("%s = %v, %v, want %v", call, got, err, want)
	case sentence != "" && (!errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), sentence)):
		t.Errorf("%s = %v, %v, want an ErrInvalid with %q", call, got, err, sentence)
	}
}

func FuzzParseQuantity(f *testing.F) {
	for _, s := range []string{"128Mi", "1e3", "1E", "-.5", "100m", "0.0000000000000000000000001e40", "1e-64", "+", "١"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		bytes, err := faas.ParseMemory(s)
		milli, err2 := faas.ParseCPU(s)
		for _, err := range []error{err, err2} {
			if err != nil && !errors.Is(err, faas.ErrInvalid) {
				t.Errorf("%q: %v is no ErrInvalid", s, err)
			}
		}
		if err != nil && err2 == nil {
			t.Errorf("%q is a share of processors, but not an amount: %v", s, err)
		}
		if bytes < 0 || milli < 0 || err == nil && err2 == nil && milli < bytes {
			t.Errorf("%q = %d bytes, %d thousandths", s, bytes, milli)
		}
		// A plain number means the same again.
		if again, err3 := faas.ParseMemory(fmt.Sprint(bytes)); err == nil && (err3 != nil || again != bytes) {
			t.Errorf("%q = %d, which reads as %d, %v", s, bytes, again, err3)
		}
	})
}
