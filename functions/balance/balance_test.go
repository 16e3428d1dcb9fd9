package balance_test

import (
	"fmt"
	"testing"

	"github.com/seed-780dceda/thicket/functions/balance"
)

func ExamplePick() {
	inFlight := []int64{7, 2}
	i := balance.Pick(len(inFlight), func(i int) int64 { return inFlight[i] }, nil)
	fmt.Println(i)
	// Output: 1
}

func TestPick(t *testing.T) {
	for _, tt := range []struct {
		name  string
		loads []int64
		skip  map[int]bool
		want  map[int]bool // each must be picked at some time, and no other
	}{
		{"none", nil, nil, map[int]bool{-1: true}},
		{"one", []int64{5}, nil, map[int]bool{0: true}},
		{"the one is skipped", []int64{5}, map[int]bool{0: true}, map[int]bool{-1: true}},
		{"the less loaded of two", []int64{3, 2}, nil, map[int]bool{1: true}},
		{"equals are equal", []int64{1, 1, 1}, nil, map[int]bool{0: true, 1: true, 2: true}},
		{"never the most loaded of three", []int64{1, 9, 1}, nil, map[int]bool{0: true, 2: true}},
		{"all but one are skipped", []int64{1, 1, 9}, map[int]bool{0: true, 1: true}, map[int]bool{2: true}},
		{"the best of what is not skipped", []int64{0, 4, 3}, map[int]bool{0: true}, map[int]bool{2: true}},
		{"all are skipped", []int64{0, 0}, map[int]bool{0: true, 1: true}, map[int]bool{-1: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := map[int]bool{}
			for range 1000 {
				var skip func(int) bool
				if tt.skip != nil {
					skip = func(i int) bool { return tt.skip[i] }
				}
				i := balance.Pick(len(tt.loads), func(i int) int64 { return tt.loads[i] }, skip)
				if !tt.want[i] {
					t.Fatalf("Pick() = %d, want one of %v", i, tt.want)
				}
				seen[i] = true
			}
			if len(seen) != len(tt.want) {
				t.Errorf("Pick() gave only %v in 1000 picks, want %v", seen, tt.want)
			}
		})
	}
}

func BenchmarkPick(b *testing.B) {
	loads := make([]int64, 16)
	b.ReportAllocs()
	for b.Loop() {
		i := balance.Pick(len(loads), func(i int) int64 { return loads[i] }, nil)
		loads[i]++
	}
}
