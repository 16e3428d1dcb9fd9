//go:build faults && linux

package faults_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is a real one, of this test's own.
type redisServer struct {
	t       *testing.T
	port    string
	dir     string
	environ []string
	cmd     *exec.Cmd
	admin   *redis.Client
}

// startRedis starts a Redis, or skips the test where there is none.
func startRedis(t *testing.T, environ ...string) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("needs redis-server: apt-get install redis-server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	r := &redisServer{t: t, port: port, dir: t.TempDir(), environ: environ}
	r.start()
	t.Cleanup(func() {
		r.admin.Close()
		r.cmd.Process.Signal(syscall.SIGCONT)
		r.kill()
	})
	return r
}

func (r *redisServer) url() string { return "redis://127.0.0.1:" + r.port }

func (r *redisServer) start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", "--port", r.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", r.dir)
	r.cmd.Env = append(os.Environ(), r.environ...)
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	if r.admin == nil {
		r.admin = redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + r.port})
	}
	eventually(r.t, "redis answers", func() bool { return r.admin.Ping(r.t.Context()).Err() == nil })
}

func (r *redisServer) kill() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
}

// do sends a command of an operator's.
func (r *redisServer) do(args ...any) {
	r.t.Helper()
	if err := r.admin.Do(r.t.Context(), args...).Err(); err != nil {
		r.t.Errorf("redis %v: %v", args, err)
	}
}

// naive is what one writes who believes go-redis's defaults: every request asks
// the Redis first.
func naive(t *testing.T, target string, r *redisServer) string {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + r.port})
	calls := newCaller()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		key := req.URL.Query().Get("key")
		if b, err := client.Get(req.Context(), key).Bytes(); err == nil {
			w.Write(b)
			return
		}
		out, err := http.NewRequestWithContext(req.Context(), http.MethodGet, target+"&"+req.URL.RawQuery, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		resp, err := calls.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		client.Set(req.Context(), key, b, time.Minute)
		w.WriteHeader(resp.StatusCode)
		w.Write(b)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		client.Close()
		calls.CloseIdleConnections()
	})
	return server.URL
}

// TestRedis (scenario 8): the shared cache is dead, frozen, unreachable, full or
// a replica, while every call needs it, for each asks something new.
func TestRedis(t *testing.T) {
	for _, sub := range []struct {
		name       string
		fail, mend func(*redisServer) // of the Redis
		slow       bool               // also for who asks it naively
	}{
		{"kill", (*redisServer).kill, (*redisServer).start, false},
		{"stop", func(r *redisServer) { r.cmd.Process.Signal(syscall.SIGSTOP) }, func(r *redisServer) { r.cmd.Process.Signal(syscall.SIGCONT) }, true},
		{"drop", nil, nil, true},
		{"full", func(r *redisServer) {
			r.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
			r.do("CONFIG", "SET", "maxmemory", "1mb")
		}, func(r *redisServer) { r.do("CONFIG", "SET", "maxmemory", "0") }, false},
		{"readonly", func(r *redisServer) { r.do("REPLICAOF", "127.0.0.1", "1") }, func(r *redisServer) { r.do("REPLICAOF", "NO", "ONE") }, false},
	} {
		t.Run(sub.name, func(t *testing.T) {
			run(t, "8 redis "+sub.name, func(t *testing.T, s *scenario) {
				r := startRedis(t)
				w := newWorld(t, s, "THICKET_REDIS_URL="+r.url())
				w.control.start(fault{Latency: 5 * time.Millisecond}, function, naked)
				w.deploy(2, []string{consumer}, nil)
				w.deploy(3, []string{function}, policy("thicket.stale.fresh", "10s"))
				w.deploy(3, []string{naked}, none())
				w.warm(function)
				front := naive(t, w.behind(naked), r)
				with := (&load{rate: 50, url: w.newKeys(function, "new")}).begin(1)
				without := (&load{rate: 20, url: func(n int, _ *rand.Rand) string { return fmt.Sprintf("%s/?key=new-%d", front, n) }}).begin(2)
				time.Sleep(2 * time.Second)
				from := with.at()
				var heal func()
				if sub.fail == nil {
					heal = drop(t, r.port)
				} else {
					sub.fail(r)
				}
				time.Sleep(3 * time.Second)
				healed := with.at()
				if heal != nil {
					heal()
				} else {
					sub.mend(r)
				}
				eventually(t, "the Redis is used again", func() bool { return w.metric(t, "thicket_cache_redis_up") == 1 })
				back := with.at() - healed
				ss, others := with.end(), without.end()
				t.Logf("with a policy: %v", ss)
				t.Logf("naive: %v", others)

				s.count(guarded, "failed GETs", ss.bad(), 0)
				before := ss.between(500*time.Millisecond, from)
				s.ms(guarded, "p99 of the first second, more than before", ss.between(from, from+time.Second).quantile(0.99)-before.quantile(0.99), 35)
				s.ms(guarded, "p99 after that, more than before", ss.between(from+time.Second, healed).quantile(0.99)-before.quantile(0.99), 5)
				s.ms(guarded, "p50 after that, more than before", ss.between(from+time.Second, healed).quantile(0.5)-before.quantile(0.5), 5)
				s.ms(guarded, "until the Redis is used again", float64(back.Milliseconds()), 12_000)
				if sub.slow {
					s.breaks("naive go-redis", "p99 while it is broken, more than before, ms", others.between(from, healed).quantile(0.99)-others.between(500*time.Millisecond, from).quantile(0.99), 35)
				}
				w.settle()
			})
		})
	}
}

// TestHerd (scenario 9): a thousand callers of one key that nobody has, at two
// gateways, for an answer that takes half a second.
func TestHerd(t *testing.T) {
	for _, sub := range []struct {
		name  string
		up    bool
		bound float64
	}{{"redis up", true, 2}, {"redis down", false, 4}} {
		t.Run(strings.ReplaceAll(sub.name, " ", "_"), func(t *testing.T) {
			run(t, "9 herd, "+sub.name, func(t *testing.T, s *scenario) {
				r := startRedis(t)
				ws := []*world{newWorld(t, s, "THICKET_REDIS_URL="+r.url()), newWorld(t, s, "THICKET_REDIS_URL="+r.url())}
				// The same function in both: what differs in its environment would
				// be another, with other answers.
				ws[1].control = ws[0].control
				for i, w := range ws {
					w.control.start(fault{Latency: 500 * time.Millisecond}, function, naked)
					w.deploy(3, []string{function}, policy("thicket.timeout", "5s", "thicket.stale.fresh", "10s"))
					if i == 0 {
						w.deploy(3, []string{naked}, none())
					}
					w.before = w.metric(t, "go_goroutines")
				}
				all := ws[0].replicas(function)
				if !sub.up {
					r.kill()
				}
				herd := func(name string, ws ...*world) (failures, longest float64) {
					l := &load{began: time.Now()}
					client := newCaller()
					defer client.CloseIdleConnections()
					begin := make(chan struct{})
					for n := range 1000 {
						url := fmt.Sprintf("%s/function/%s?key=herd", ws[n%len(ws)].url, name)
						l.done.Go(func() {
							<-begin
							sample := sample{}
							from := time.Now()
							sample.class, sample.status, _, sample.note = call(client, url, 20*time.Second)
							sample.latency = time.Since(from)
							l.mu.Lock()
							defer l.mu.Unlock()
							l.samples = append(l.samples, sample)
						})
					}
					close(begin)
					l.done.Wait()
					ss := samples(l.samples)
					t.Logf("%s: %v", name, ss)
					return ss.bad(), ss.quantile(1)
				}
				failures, longest := herd(function, ws...)
				s.count(guarded, "calls to the origin for 1,000 callers of a cold key", float64(ws[0].seen(all...).Calls), sub.bound)
				s.count(guarded, "callers without an answer", failures, 0)
				s.ms(guarded, "until the last one is answered", longest, 1000)
				herd(naked, ws[0])
				s.breaks(bare, "calls to the origin for 1,000 callers of a cold key", float64(ws[0].seen(ws[0].three(naked)...).Calls), 4)
				for _, w := range ws {
					w.settle()
				}
			})
		})
	}
}

// TestClock (scenario 13): the Redis's clock is set an hour forth, and then an
// hour back. The gateway's own can't be set without that of the whole machine;
// how it counts time is tested with clocks that are passed in, where it does.
func TestClock(t *testing.T) {
	lib := faketime(t)
	run(t, "13 clock steps", func(t *testing.T, s *scenario) {
		file := t.TempDir() + "/now"
		step := func(offset string) {
			if err := os.WriteFile(file, []byte(offset), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		step("+0")
		r := startRedis(t, "LD_PRELOAD="+lib, "FAKETIME_TIMESTAMP_FILE="+file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1")
		w := newWorld(t, s, "THICKET_REDIS_URL="+r.url())
		w.deploy(2, []string{consumer}, nil)
		w.deploy(3, []string{function}, policy("thicket.stale.fresh", "200ms"))
		w.warm(function)
		l := (&load{rate: 50, url: w.keys(function)}).begin(1)
		for _, offset := range []string{"+3600", "-3600", "+300", "+0"} {
			time.Sleep(1200 * time.Millisecond)
			step(offset)
			var now time.Time
			eventually(t, "the Redis has the other time", func() bool {
				var err error
				now, err = r.admin.Time(context.Background()).Result()
				want, _ := time.ParseDuration(offset + "s")
				return err == nil && (time.Until(now)-want).Abs() < 5*time.Second
			})
		}
		time.Sleep(time.Second)
		ss := l.end()
		t.Logf("with a policy: %v", ss)
		s.count(guarded, "failed GETs", ss.bad(), 0)
		s.count(guarded, "transitions of breakers", w.transitions(function), 0)
		s.ms(guarded, "longest of all", ss.quantile(1), 1050)
		w.settle()
	})
}

// faketime finds the library that gives a program another clock.
func faketime(t *testing.T) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1"} {
		if found := glob(t, pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Skip("needs libfaketime: apt-get install faketime")
	return ""
}
