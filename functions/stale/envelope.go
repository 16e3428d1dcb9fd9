package stale

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
)

// An answer in the Redis is an envelope:
//
//	0      version, '1'
//	1      codec: '-' as it is, 'g' gzip, 'x' nothing, for what was purged
//	2-14   the answer's age when it was written, in ms; decimal, so that the
//	15-27  script that writes can read it; and how long it lives from then, in ms
//	28-35  when it was written, in unix ms by the writer's clock, which is only
//	       believed if the Redis doesn't say how much of its life is left
//	36-39  what it cost to load, in ms
//	40-47  for how long the answer says that it is fresh, in ms; 0 if it doesn't
//	48     jitter
//	49-50  status
//	51-54  length of the payload as it was
//	       length and bytes of the generation
//	       payload: number of header lines; name and value of each; body
//	last 8 xxhash64 of the key and all of the above
//
// Lengths without a place of their own are uvarints; numbers are big-endian.
const (
	version   = '1'
	codecRaw  = '-'
	codecGzip = 'g'
	codecGone = 'x'

	headLen = 28 // what the script reads
	fixed   = 55

	// compressAbove is the payload's size from which compressing pays: below it
	// the network's packet is the same.
	compressAbove = 1 << 10
)

// envelope is an item as the Redis has it.
type envelope struct {
	entry   Entry
	gone    bool
	age     time.Duration // when it was written
	life    time.Duration // from then
	written time.Time
	delta   time.Duration
	jitter  int8
	gen     string
}

// errCorrupt is wrapped by what decode fails with.
var errCorrupt = errors.New("the value is no cached answer")

func millis(d time.Duration) int64 { return max(d, 0).Milliseconds() }

// encode returns the envelope's bytes. It writes with z, whose state doesn't
// matter.
func (e *envelope) encode(key Key, z *gzip.Writer) []byte {
	payload := e.entry.appendPayload(make([]byte, 0, e.entry.size()+64))
	codec, length := byte(codecRaw), len(payload)
	switch {
	case e.gone:
		codec, payload, length = codecGone, nil, 0
	case length > compressAbove:
		var b bytes.Buffer
		z.Reset(&b)
		if _, err := z.Write(payload); err == nil && z.Close() == nil && b.Len() < length {
			codec, payload = codecGzip, b.Bytes()
		}
	}
	b := make([]byte, 0, fixed+len(e.gen)+len(payload)+16)
	b = append(b, version, codec)
	b = fmt.Appendf(b, "%013d%013d", millis(min(e.age, maxLife)), millis(min(e.life, maxLife)))
	b = binary.BigEndian.AppendUint64(b, uint64(max(e.written.UnixMilli(), 0)))
	b = binary.BigEndian.AppendUint32(b, uint32(millis(min(e.delta, time.Hour))))
	b = binary.BigEndian.AppendUint64(b, uint64(millis(min(e.entry.Fresh, maxLife))))
	b = append(b, byte(e.jitter))
	b = binary.BigEndian.AppendUint16(b, uint16(e.entry.Status))
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	b = appendString(b, e.gen)
	b = append(b, payload...)
	return binary.BigEndian.AppendUint64(b, checksum(key, b))
}

// checksum covers the key, so that a value under another's is broken too.
func checksum(key Key, b []byte) uint64 {
	d := xxhash.New()
	_, _ = d.WriteString(key.function) // never fails
	_, _ = d.Write(key.sum[:])
	_, _ = d.Write(b)
	return d.Sum64()
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendPayload appends header and body. The header's names are in order, so
// that equal answers are equal bytes.
func (e *Entry) appendPayload(b []byte) []byte {
	names, lines := make([]string, 0, len(e.Header)), 0
	for name, values := range e.Header {
		names = append(names, name)
		lines += len(values)
	}
	slices.Sort(names)
	b = binary.AppendUvarint(b, uint64(lines))
	for _, name := range names {
		for _, value := range e.Header[name] {
			b = appendString(appendString(b, name), value)
		}
	}
	return append(b, e.Body...)
}

// decode reads an envelope of the key whose entry is at most limit bytes. The
// error wraps errCorrupt.
func decode(key Key, b []byte, limit int) (*envelope, error) {
	corrupt := func(what string) (*envelope, error) { return nil, fmt.Errorf("%w: %s", errCorrupt, what) }
	if len(b) < fixed+9 {
		return corrupt("too short")
	}
	if b[0] != version {
		return corrupt("another version")
	}
	b, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	if checksum(key, b) != sum {
		return corrupt("wrong checksum")
	}
	age, errAge := strconv.ParseUint(string(b[2:15]), 10, 63)
	life, errLife := strconv.ParseUint(string(b[15:28]), 10, 63)
	if errAge != nil || errLife != nil || age > uint64(maxLife.Milliseconds()) || life > uint64(maxLife.Milliseconds()) {
		return corrupt("no times")
	}
	own := binary.BigEndian.Uint64(b[40:48])
	stored := binary.BigEndian.Uint64(b[28:36])
	if own > uint64(maxLife.Milliseconds()) || stored > 1<<53 {
		return corrupt("no times")
	}
	e := &envelope{
		age:     time.Duration(age) * time.Millisecond,
		life:    time.Duration(life) * time.Millisecond,
		written: time.UnixMilli(int64(stored)),
		delta:   min(time.Duration(binary.BigEndian.Uint32(b[36:40]))*time.Millisecond, time.Hour),
		jitter:  max(min(int8(b[48]), 100), -100),
		entry: Entry{
			Status: int(binary.BigEndian.Uint16(b[49:51])),
			Fresh:  time.Duration(own) * time.Millisecond,
		},
	}
	codec, length := b[1], uint64(binary.BigEndian.Uint32(b[51:55]))
	gen, b, ok := cutString(b[fixed:])
	if !ok || len(gen) > 64 {
		return corrupt("no generation")
	}
	e.gen = gen
	if length > uint64(payloadLimit(limit)) {
		return corrupt("too large")
	}
	switch codec {
	case codecGone:
		e.gone = true
		return e, nil
	case codecRaw:
		b = slices.Clone(b) // not the connection's buffer
	case codecGzip:
		// What it unpacks to is bounded by what the envelope says, which is bounded.
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return corrupt("not gzip")
		}
		var out bytes.Buffer
		out.Grow(int(length) + bytes.MinRead)
		if _, err := io.Copy(&out, io.LimitReader(z, int64(length)+1)); err != nil {
			return corrupt("broken gzip")
		}
		b = out.Bytes()
	default:
		return corrupt("another codec")
	}
	if uint64(len(b)) != length {
		return corrupt("another length")
	}
	if e.entry.Header, e.entry.Body, ok = cutHeader(b); !ok {
		return corrupt("no header")
	}
	if e.entry.size() > limit {
		return corrupt("too large")
	}
	return e, nil
}

// payloadLimit is the most that an entry of at most limit bytes has as payload.
// Lengths take at most a few bytes more than the 4 for each line that
// [Entry.size] counts.
func payloadLimit(limit int) int { return 2*limit + 1<<10 }

// envelopeLimit is the most that its envelope has.
func envelopeLimit(limit int) int { return payloadLimit(limit) + 1<<10 }

// cutHeader reads the header in front of a body.
func cutHeader(b []byte) (h http.Header, body []byte, ok bool) {
	n, k := binary.Uvarint(b)
	// A line has at least two bytes of lengths.
	if k <= 0 || n > uint64(len(b)-k)/2 {
		return nil, nil, false
	}
	b = b[k:]
	for range n {
		var name, value string
		if name, b, ok = cutString(b); !ok {
			return nil, nil, false
		}
		if value, b, ok = cutString(b); !ok {
			return nil, nil, false
		}
		if h == nil {
			h = make(http.Header)
		}
		h[name] = append(h[name], value)
	}
	return h, b, true
}

// cutString reads a string in front of the rest.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return "", nil, false
	}
	return string(b[k : k+int(n)]), b[k+int(n):], true
}
