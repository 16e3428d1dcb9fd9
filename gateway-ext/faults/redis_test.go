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
	t.Cleanup(func() {
		if r.admin != nil {
			r.admin.Close()
			r.cmd.Process.Signal(syscall.SIGCONT)
			r.kill()
		}
	})
	r.start()
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

// byHand is the variant of who uses go-redis as it comes.
const byHand = "plain go-redis"

// silence keeps go-redis from telling every failed dial.
type silence struct{}

// Printf does nothing.
func (silence) Printf(context.Context, string, ...any) {}

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
				with := (&load{rate: 100, url: w.newKeys(function, "new")}).begin(1)
				without := (&load{rate: 20, url: func(n int, _ *rand.Rand) string { return fmt.Sprintf("%s/?key=new-%d", front, n) }}).begin(2)
				time.Sleep(1500 * time.Millisecond)
				from := with.at()
				var heal func()
				if sub.fail == nil {
					heal = drop(t, r.port)
				} else {
					sub.fail(r)
				}
				time.Sleep(2500 * time.Millisecond)
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
				before := ss.between(500*time.Millisecond, from-flight)
				s.ms(guarded, "longest of the first second, more than the longest before", ss.between(from-flight, from+time.Second).quantile(1)-before.quantile(1), 35)
				s.ms(guarded, "p99 after that, more than before", ss.between(from+time.Second, healed).quantile(0.99)-before.quantile(0.99), 5)
				s.ms(guarded, "p50 after that, more than before", ss.between(from+time.Second, healed).quantile(0.5)-before.quantile(0.5), 5)
				s.ms(guarded, "until the Redis is used again", float64(back.Milliseconds()), 12_000)
				if sub.slow {
					s.breaks(byHand, "longest while it is broken, more than the longest before, ms", others.between(from, healed).quantile(1)-others.between(500*time.Millisecond, from-flight).quantile(1), 35)
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
							from := time.Now()
							sample := call(client, url, 20*time.Second)
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
				for _, w := range ws {
					w.settle()
				}
				herd(naked, ws[0])
				s.breaks(bare, "calls to the origin for 1,000 callers of a cold key", float64(ws[0].seen(ws[0].three(naked)...).Calls), sub.bound)
			})
		})
	}
}
