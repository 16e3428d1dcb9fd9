package stale_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func TestEnvelope(t *testing.T) {
	key := stale.NewKey("f", "1", "a")
	long := bytes.Repeat([]byte("weather "), 4000)
	for name, e := range map[string]stale.Entry{
		"empty":  {},
		"value":  {Body: []byte("x")},
		"answer": {Status: 404, Header: http.Header{"Content-Type": {"text/plain"}, "X-A": {"", "2"}}, Body: []byte("none"), Fresh: 3 * time.Second},
		"long":   {Status: 200, Body: long},
	} {
		b := stale.Encode(key, e, 3*time.Second, time.Minute)
		got, err := stale.Decode(key, b, 256<<10)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Age != 3*time.Second || got.Life != time.Minute || got.Entry.Status != e.Status || got.Entry.Fresh != e.Fresh ||
			!bytes.Equal(got.Entry.Body, e.Body) || !maps.EqualFunc(got.Entry.Header, e.Header, slices.Equal) {
			t.Errorf("%s: got %+v, want %+v", name, got, e)
		}
	}
	if b := stale.Encode(key, stale.Entry{Body: long}, 0, time.Minute); len(b) > len(long)/10 {
		t.Errorf("%d bytes became %d: they are not compressed", len(long), len(b))
	}
	if b := stale.Encode(key, stale.Entry{Body: long[:1000]}, 0, time.Minute); len(b) < 1000 {
		t.Errorf("1000 bytes became %d: so few aren't worth it", len(b))
	}
	// The limit's largest entries pass, and larger ones don't.
	limit := stale.Entry{Header: http.Header{"A": {strings.Repeat("b", 1000)}}, Body: make([]byte, 8<<10)}
	b := stale.Encode(key, limit, 0, time.Minute)
	if _, err := stale.Decode(key, b, stale.Size(limit)); err != nil {
		t.Errorf("an entry of just the limit: %v", err)
	}
	if _, err := stale.Decode(key, b, stale.Size(limit)-1); err == nil {
		t.Error("an entry above the limit was read")
	}
}

// TestEnvelopeBroken is that a flipped bit, a missing end and another key are
// found.
func TestEnvelopeBroken(t *testing.T) {
	key := stale.NewKey("f", "1", "a")
	whole := stale.Encode(key, stale.Entry{Status: 200, Header: http.Header{"A": {"b"}}, Body: bytes.Repeat([]byte("weather "), 300)}, 0, time.Minute)
	for bit := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := stale.Decode(key, b, 256<<10); err == nil {
			t.Errorf("bit %d is flipped, and nobody noticed", bit)
		}
	}
	for n := range whole {
		if _, err := stale.Decode(key, whole[:n], 256<<10); err == nil {
			t.Errorf("only %d of %d bytes are there, and nobody noticed", n, len(whole))
		}
	}
	if _, err := stale.Decode(stale.NewKey("f", "1", "b"), whole, 256<<10); err == nil {
		t.Error("a value was read under another key")
	}
}

// TestEnvelopeBomb is that a few bytes with a right checksum can't unpack to
// many.
func TestEnvelopeBomb(t *testing.T) {
	key := stale.NewKey("f", "1", "a")
	var bomb bytes.Buffer
	z, _ := gzip.NewWriterLevel(&bomb, gzip.BestSpeed)
	for range 1 << 7 {
		_, _ = z.Write(make([]byte, 64<<10)) // a buffer takes all
	}
	_ = z.Close()
	for _, claim := range []uint32{1 << 10, 500 << 10, 64 << 20, 1<<32 - 1} {
		b := stale.Encode(key, stale.Entry{}, 0, time.Minute)
		b = b[:len(b)-9] // without payload and checksum
		b[1] = 'g'
		binary.BigEndian.PutUint32(b[51:], claim)
		b = stale.Seal(key, append(b, bomb.Bytes()...))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := stale.Decode(key, b, 256<<10); err == nil {
			t.Error("a bomb was read")
		}
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if allocated > 2<<20 {
			t.Errorf("a bomb that says it has %d bytes takes %d", claim, allocated)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	key := stale.NewKey("f", "1", "a")
	for _, e := range []stale.Entry{{}, {Status: 200, Header: http.Header{"A": {"b", "c"}}, Body: []byte("x")}, {Body: bytes.Repeat([]byte("a"), 2000)}} {
		b := stale.Encode(key, e, time.Second, time.Minute)
		f.Add(b[:len(b)-8])
	}
	const limit = 16 << 10
	f.Fuzz(func(t *testing.T, b []byte) {
		// Most of what the fuzzer writes has no right checksum; it is to see what
		// is behind it, too.
		if _, err := stale.Decode(key, b, limit); err == nil && len(b) < 64 {
			t.Errorf("%d bytes are an envelope", len(b))
		}
		got, err := stale.Decode(key, stale.Seal(key, b), limit)
		if err != nil {
			return
		}
		if n := stale.Size(got.Entry); n > limit {
			t.Errorf("an entry of %d bytes was read, at most %d are allowed", n, limit)
		}
		if got.Age < 0 || got.Life < 0 || got.Age > 7*24*time.Hour || got.Life > 7*24*time.Hour || got.Entry.Fresh < 0 {
			t.Errorf("times are %+v", got)
		}
		if got.Gone {
			return
		}
		again, err := stale.Decode(key, stale.Encode(key, got.Entry, got.Age, got.Life), limit)
		if err != nil {
			t.Fatalf("what was read can't be written and read: %v", err)
		}
		if !bytes.Equal(again.Entry.Body, got.Entry.Body) || !maps.EqualFunc(again.Entry.Header, got.Entry.Header, slices.Equal) ||
			again.Age != got.Age || again.Life != got.Life {
			t.Errorf("what was read is %+v, and written and read again %+v", got, again)
		}
	})
}
