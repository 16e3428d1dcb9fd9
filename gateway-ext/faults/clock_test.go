//go:build faults && linux

package faults_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The clock of a whole machine is nobody's to set in a test, and a program in Go
// asks the kernel's page for it, where no library can stand between. So for this
// scenario the program is compiled with a package time whose Now adds what a
// file says; the monotonic clock is left alone, as it is when a clock is set.

// clockSource is added to the package time.
const clockSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var clock = func() *int64 {
	name, ok := syscall.Getenv("FAULTS_CLOCK")
	if !ok {
		return nil
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}()

func clockStep() int64 {
	if clock == nil {
		return 0
	}
	return atomic.LoadInt64(clock)
}
`

// withClock compiles the program so that its clock can be set, and returns its
// path. All that is in it is compiled anew the first time; that stays in Go's
// cache for as long as the changed source stays where it is.
func withClock(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../build/_faults") // no package of the module
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	now := []byte("sec, nsec, mono := runtimeNow()\n\tif mono == 0")
	if bytes.Count(source, now) != 1 {
		t.Skip("the package time of this Go is not the one that this test knows how to change")
	}
	source = bytes.Replace(source, now, []byte("sec, nsec, mono := runtimeNow()\n\tsec += clockStep()\n\tif mono == 0"), 1)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(std, "time.go"): filepath.Join(dir, "time.go"),
		filepath.Join(std, "step.go"): filepath.Join(dir, "step.go"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"time.go": source, "step.go": []byte(clockSource), "overlay.json": overlay} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "gateway-ext")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path, "..").CombinedOutput()
	if err != nil {
		t.Fatalf("build the program with a clock: %v\n%s", err, out)
	}
	return path
}

// TestClock (scenario 13): the gateway's clock is set an hour forth and back, and
// five minutes. Then the Redis's is: what that does is that every key has an hour
// less or more to live.
func TestClock(t *testing.T) {
	path := withClock(t)
	run(t, "13 clock steps", func(t *testing.T, s *scenario) {
		file := filepath.Join(t.TempDir(), "clock")
		step := func(d time.Duration) {
			// In place: the gateway has the file in its memory.
			f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := binary.Write(f, binary.NativeEndian, int64(d/time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		step(0)
		r := startRedis(t)
		w := newWorldOf(t, s, path, t.TempDir(), "THICKET_REDIS_URL="+r.url(), "FAULTS_CLOCK="+file, "THICKET_LOG_LEVEL=DEBUG")
		w.deploy(2, []string{consumer}, nil)
		w.deploy(3, []string{function}, policy("thicket.stale.fresh", "200ms"))
		w.warm(function)
		l := (&load{rate: 50, url: w.keys(function)}).begin(1)
		ids := names(w.three(function))
		for _, d := range []time.Duration{time.Hour, -time.Hour, 5 * time.Minute, -5 * time.Minute, 0} {
			time.Sleep(700 * time.Millisecond)
			step(d)
		}
		eventually(t, "the log has another hour", func() bool {
			return strings.Contains(w.logged(), time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:"))
		})
		for _, d := range []time.Duration{time.Hour, -2 * time.Hour} {
			time.Sleep(500 * time.Millisecond)
			r.shift(d)
		}
		time.Sleep(time.Second)
		ss := l.end()
		t.Logf("with a policy: %v", ss)
		s.count(guarded, "failed GETs", ss.bad(), 0)
		s.count(guarded, "transitions of breakers", w.transitions(function), 0)
		s.count(guarded, "greatest age that an answer claims, s", ss.oldest().Seconds(), 3600)
		s.ms(guarded, "longest of all", ss.quantile(1), 1050)
		if now := names(w.three(function)); now != ids {
			t.Errorf("replicas are %s, and were %s: a clock made them go", now, ids)
		}
		w.settle()
	})
}

// names lists replicas.
func names(rs []replica) string {
	var ids []string
	for _, r := range rs {
		ids = append(ids, r.id)
	}
	return strings.Join(ids, " ")
}

// shift gives every key less time to live, or more if d is below 0: what setting
// the clock of the Redis forth does.
func (r *redisServer) shift(d time.Duration) {
	r.t.Helper()
	ctx := r.t.Context()
	keys, err := r.admin.Keys(ctx, "*").Result()
	if err != nil {
		r.t.Fatal(err)
	}
	moved := 0
	for _, key := range keys {
		at, err := r.admin.PExpireTime(ctx, key).Result()
		if err != nil {
			r.t.Fatal(err)
		}
		if at > 0 {
			r.do("PEXPIREAT", key, strconv.FormatInt((at-d).Milliseconds(), 10))
			moved++
		}
	}
	if moved == 0 {
		r.t.Error("the Redis has no key that ends")
	}
}
