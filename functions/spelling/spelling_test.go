package spelling_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/functions/spelling"
)

func ExampleNearest() {
	fmt.Println(spelling.Nearest("thicket.timeot", []string{"thicket.attempts", "thicket.timeout"}, 6))
	// Output: thicket.timeout
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		far  int
		want int
	}{
		{"", "", 0, 0},
		{"same", "same", 0, 0},
		{"", "abc", 5, 3},
		{"kitten", "sitting", 9, 3},
		{"flaw", "lawn", 9, 2},
		{"kitten", "sitting", 2, 3},
		{"a", "abcdefgh", 3, 4},
		{"abcd", "wxyz", 1, 2},
		{strings.Repeat("a", 70), strings.Repeat("a", 64), 0, 0},
		{strings.Repeat("a", 1<<20), strings.Repeat("b", 1<<20), 99, 64},
	} {
		for _, flip := range []bool{false, true} {
			a, b := tt.a, tt.b
			if flip {
				a, b = b, a
			}
			if got := spelling.Distance(a, b, tt.far); got != tt.want {
				t.Errorf("Distance(%.20q, %.20q, %d) = %d, want %d", a, b, tt.far, got, tt.want)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		word string
		far  int
		want string
	}{
		{"roundrobin", 3, "round-robin"},
		{"random", 3, "random"},
		{"rand", 3, "random"},
		{"zone", 3, ""},
		{"xxxxxxxxxx", 3, ""},
		{"randon", 1, "random"},
	} {
		if got := spelling.Nearest(tt.word, []string{"round-robin", "random", "randoms"}, tt.far); got != tt.want {
			t.Errorf("Nearest(%q, %d) = %q, want %q", tt.word, tt.far, got, tt.want)
		}
	}
}
