package provider

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestRing(t *testing.T) {
	r := newRing(4, 10_000)
	all := func(line) bool { return true }
	if from, end := r.find(all, 0); from != 0 || end != 0 {
		t.Errorf("an empty ring starts at %d and ends at %d", from, end)
	}
	for i := range 10 {
		r.add("", fmt.Sprint(i))
	}
	read := func(from uint64) (text []string, lost uint64) {
		for {
			lines, l, next, wait := r.next(from, 3)
			lost += l
			for _, l := range lines {
				text = append(text, l.text)
			}
			if wait != nil {
				return text, lost
			}
			from = next
		}
	}
	if text, lost := read(0); !slices.Equal(text, []string{"6", "7", "8", "9"}) || lost != 6 {
		t.Errorf("read %q, lost %d; want the last four, and six lost", text, lost)
	}
	if text, lost := read(8); !slices.Equal(text, []string{"8", "9"}) || lost != 0 {
		t.Errorf("read from 8: %q, lost %d", text, lost)
	}
	if from, end := r.find(all, 3); from != 7 || end != 10 {
		t.Errorf("the last three are %d to %d, want 7 to 10", from, end)
	}
	if from, _ := r.find(func(l line) bool { return l.text == "7" }, 1); from != 7 {
		t.Errorf("the last that is 7 is %d", from)
	}
	if from, end := r.find(func(line) bool { return false }, 1); from != end {
		t.Errorf("nothing is found at %d of %d", from, end)
	}
}

func TestRingBytes(t *testing.T) {
	const bound = 10_000
	r := newRing(1000, bound)
	for i := range 500 {
		r.add("", strings.Repeat("x", i%700))
		if r.bytes > bound {
			t.Fatalf("holds %d bytes, at most %d are allowed", r.bytes, bound)
		}
	}
	r.add("", strings.Repeat("y", 2*bound)) // alone it is over the bound, and still the newest
	if r.count != 1 || len(r.lines[r.head].text) != 2*bound {
		t.Errorf("holds %d lines", r.count)
	}
	if cap(r.lines) > 1000 {
		t.Errorf("has room for %d lines", cap(r.lines))
	}
}

// TestRingOrder holds times to growing, whoever writes.
func TestRingOrder(t *testing.T) {
	r := newRing(10_000, 1<<20)
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 1000 {
				r.add("", "x")
			}
		})
	}
	writers.Wait()
	lines, _, _, _ := r.next(0, 4000)
	if len(lines) != 4000 || !slices.IsSortedFunc(lines, func(a, b line) int { return a.at.Compare(b.at) }) {
		t.Errorf("%d lines are not in the order of their times", len(lines))
	}
}

// TestRingManyReaders has readers of all speeds: none blocks the writer, and each
// sees every line or learns how many it missed.
func TestRingManyReaders(t *testing.T) {
	const lines = 20_000
	r := newRing(100, 1<<20)
	var readers sync.WaitGroup
	for i := range 8 {
		readers.Go(func() {
			var from, seen, missed uint64
			for seen+missed < lines {
				got, lost, next, wait := r.next(from, 1+i*10)
				seen += uint64(len(got))
				missed += lost
				from = next
				if wait != nil && seen+missed < lines {
					<-wait
				}
			}
			if seen+missed != lines {
				t.Errorf("reader %d saw %d and missed %d of %d", i, seen, missed, lines)
			}
		})
	}
	for i := range lines {
		r.add("", fmt.Sprint(i))
	}
	readers.Wait()
}

func TestSplitter(t *testing.T) {
	long := strings.Repeat("a", maxLine)
	for _, c := range []struct {
		name string
		in   []string
		want []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"a", "b"}},
		{"no line end", []string{"a\nb"}, []string{"a", "b"}},
		{"in pieces", []string{"a", "b\nc", "d", "\n"}, []string{"ab", "cd"}},
		{"empty lines", []string{"\n\n"}, []string{"", ""}},
		{"of Windows", []string{"a\r\nb\r\n"}, []string{"a", "b"}},
		{"as long as may be", []string{long + "\n"}, []string{long}},
		{"too long", []string{long + "b\n"}, []string{long, "b"}},
		{"far too long, in pieces", []string{long, long, "b\nc"}, []string{long, long, "b", "c"}},
		{"nothing", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s splitter
			var got []string
			emit := func(text string) { got = append(got, text) }
			for _, in := range c.in {
				s.write([]byte(in), emit)
			}
			s.flush(emit)
			if !slices.Equal(got, c.want) {
				t.Errorf("split into %.60q, want %.60q", got, c.want)
			}
		})
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte(strings.Repeat("x", maxLine+1)+"\n"), 4096)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size < 1 || slices.Contains(b, '\r') {
			return
		}
		var s splitter
		var got []string
		emit := func(text string) { got = append(got, text) }
		for piece := range slices.Chunk(b, size) {
			s.write(piece, emit)
		}
		s.flush(emit)
		for _, l := range got {
			if len(l) > maxLine || strings.Contains(l, "\n") {
				t.Errorf("a line of %d bytes: %.60q", len(l), l)
			}
		}
		// Nothing is lost: what is cut comes in the order it was written.
		want := strings.ReplaceAll(string(b), "\n", "")
		if strings.Join(got, "") != want {
			t.Errorf("%.80q became %.80q", b, got)
		}
	})
}

func BenchmarkRing(b *testing.B) {
	r := newRing(2000, 256<<10)
	text := strings.Repeat("x", 100)
	b.ReportAllocs()
	for b.Loop() {
		r.add("", text)
	}
}
