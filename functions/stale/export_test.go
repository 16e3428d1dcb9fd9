package stale

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Fake is a Redis without a network, for bubbles. Its clock is time.Now.
type Fake struct {
	mu     sync.Mutex // guards below
	values map[string]fakeValue
	err    error
	writes int
	slow   chan struct{} // if not nil, writes wait until it is closed
}

type fakeValue struct {
	b   []byte
	end time.Time
}

// OpenFake opens a cache over a fake.
func OpenFake(cfg Config, f *Fake) (*Cache, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Memory, cfg.MaxEntry = defaultMemory, defaultMaxEntry
	return open(cfg, f)
}

// Fail makes all that follows fail, until it is called with nil.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// Slow makes writes wait until what it returns is closed.
func (f *Fake) Slow() chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = make(chan struct{})
	return f.slow
}

// Writes is how many answers were accepted.
func (f *Fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

// Flip changes a bit of what is there for the key.
func (f *Fake) Flip(key Key, bit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.values["e"+key.String()].b
	b[bit/8%len(b)] ^= 1 << (bit % 8)
}

// Has says whether there is something for the key.
func (f *Fake) Has(key Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.get("e"+key.String()).b != nil
}

func (f *Fake) get(k string) fakeValue {
	v, ok := f.values[k]
	if !ok || !time.Now().Before(v.end) {
		delete(f.values, k)
		return fakeValue{}
	}
	return v
}

func (f *Fake) set(k string, b []byte, life time.Duration) {
	if f.values == nil {
		f.values = make(map[string]fakeValue)
	}
	f.values[k] = fakeValue{b, time.Now().Add(life)}
}

func (f *Fake) read(_ context.Context, key Key, lease string, life time.Duration) (reading, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return reading{}, f.err
	}
	r := reading{gen: string(f.get("g" + key.function).b), left: -2}
	if v := f.get("e" + key.String()); v.b != nil {
		r.value, r.left = append([]byte(nil), v.b...), time.Until(v.end)
	}
	if lease != "" && f.get("l"+key.String()).b == nil {
		f.set("l"+key.String(), []byte(lease), life)
		r.won = true
	}
	return r, nil
}

func (f *Fake) generation(_ context.Context, function string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.get("g" + function).b), f.err
}

func (f *Fake) write(_ context.Context, key Key, value []byte, life, age time.Duration, gen string) error {
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	if slow != nil {
		<-slow
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || string(f.get("g"+key.function).b) != gen {
		return f.err
	}
	if v := f.get("e" + key.String()); v.b != nil {
		a, _ := strconv.Atoi(string(v.b[2:15]))
		l, _ := strconv.Atoi(string(v.b[15:28]))
		if time.Duration(a+l)*time.Millisecond-time.Until(v.end) < age {
			return nil
		}
	}
	f.writes++
	f.set("e"+key.String(), value, life)
	return nil
}

func (f *Fake) remove(_ context.Context, key Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.values, "e"+key.String())
	return f.err
}

func (f *Fake) release(_ context.Context, key Key, lease string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if string(f.get("l"+key.String()).b) == lease {
		delete(f.values, "l"+key.String())
	}
	return f.err
}

func (f *Fake) purge(_ context.Context, function, gen string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.set("g"+function, []byte(gen), genLife)
	}
	return f.err
}

// publish loses every message, as a network may.
func (f *Fake) publish(context.Context, string) error { return nil }

func (f *Fake) listen(ctx context.Context, _ func(string)) error {
	<-ctx.Done()
	return nil
}

func (f *Fake) ping(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *Fake) close() error { return nil }

// Envelope is what a fuzz test sees of one.
type Envelope struct {
	Entry     Entry
	Gone      bool
	Age, Life time.Duration
}

// Encode returns an envelope's bytes.
func Encode(key Key, e Entry, age, life time.Duration) []byte {
	z := gzip.NewWriter(io.Discard)
	v := envelope{entry: e, age: age, life: life, written: time.UnixMilli(1_700_000_000_000), gen: "abc"}
	return v.encode(key, z)
}

// Decode reads an envelope's bytes.
func Decode(key Key, b []byte, limit int) (Envelope, error) {
	e, err := decode(key, b, limit)
	if err != nil {
		return Envelope{}, err
	}
	return Envelope{e.entry, e.gone, e.age, e.life}, nil
}

// Seal puts the right checksum behind an envelope's bytes.
func Seal(key Key, b []byte) []byte {
	return appendSum(b, checksum(key, b))
}

func appendSum(b []byte, n uint64) []byte { return append(b, binary64(n)...) }

// Size is what an entry counts against a limit.
func Size(e Entry) int { return e.size() }

// StoredHeader is what is kept of a header.
func StoredHeader(h http.Header) http.Header { return storedHeader(h) }
