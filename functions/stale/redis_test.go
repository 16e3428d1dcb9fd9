package stale_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/functions/stale"
)

// server is a redis-server of a test's own.
type server struct {
	t    testing.TB
	port string
	args []string
	cmd  *exec.Cmd
	done chan struct{}

	dir    string
	filled func() // closes the hole in its place
}

// startRedis starts a redis-server with the options, on a free port.
func startRedis(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{t: t, port: freePort(t), args: args, dir: t.TempDir()}
	s.start()
	s.ready()
	return s
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// start starts it, and returns before it is ready.
func (s *server) start() {
	s.t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		s.t.Fatal("this test needs redis-server: install it with \"apt-get install redis-server\" or \"brew install redis\"")
	}
	args := append([]string{"--port", s.port, "--bind", "127.0.0.1", "--save", "", "--dir", s.dir, "--loglevel", "warning"}, s.args...)
	s.cmd = exec.Command(path, args...)
	s.cmd.Stdout, s.cmd.Stderr = s.t.Output(), s.t.Output()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, done := s.cmd, make(chan struct{})
	s.done = done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		<-done
	})
}

func (s *server) addr() string { return net.JoinHostPort("127.0.0.1", s.port) }
func (s *server) url() string  { return "redis://" + s.addr() }

// client returns a plain client, for what tests do to the server.
func (s *server) client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.addr()})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// ready waits until it answers.
func (s *server) ready() {
	s.t.Helper()
	c := s.client()
	waitFor(s.t, "redis-server", func() bool { return c.Ping(context.Background()).Err() == nil })
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// do sends the server a command.
func (s *server) do(args ...any) {
	s.t.Helper()
	if err := s.client().Do(s.t.Context(), args...).Err(); err != nil {
		s.t.Fatalf("%v: %v", args, err)
	}
}

// wait returns when what was loaded is in the Redis, so that others find it.
func stored(t testing.TB, s *server, n int) {
	t.Helper()
	c := s.client()
	waitFor(t, fmt.Sprintf("%d answers in the Redis", n), func() bool {
		keys, err := c.Keys(t.Context(), "*:e:*").Result()
		return err == nil && len(keys) == n
	})
}

func TestRedisShares(t *testing.T) {
	s := startRedis(t)
	a, b := open(t, stale.Config{RedisURL: s.url()}), open(t, stale.Config{RedisURL: s.url()})
	key := stale.NewKey("f.openfaas-fn", "sha256:1", "a")
	o := &origin{entry: stale.Entry{Status: 200, Header: map[string][]string{"Content-Type": {"text/plain"}, "X-A": {"1", "2"}}}}
	call(t, a, key, minute, o, stale.Miss, "1")
	stored(t, s, 1)
	r := call(t, b, key, minute, o, stale.Hit, "1")
	if !r.Shared || r.Status != 200 || len(r.Header["X-A"]) != 2 {
		t.Errorf("the other replica has %+v", r)
	}
	// All keys have an end, and leases are given back.
	c := s.client()
	waitFor(t, "the lease to be given back", func() bool {
		keys, _ := c.Keys(t.Context(), "*:l:*").Result()
		return len(keys) == 0
	})
	for _, k := range c.Keys(t.Context(), "*").Val() {
		if ttl := c.PTTL(t.Context(), k).Val(); ttl <= 0 || ttl > 67*time.Minute {
			t.Errorf("%s ends in %v, want about an hour", k, ttl)
		}
	}
}

// TestRedisFence is the script: who loaded before the generation changed, or
// has what is older, writes nothing.
func TestRedisFence(t *testing.T) {
	s := startRedis(t)
	c := s.client()
	key := stale.NewKey("f", "1", "a")
	young := string(stale.Encode(key, stale.Entry{Body: []byte("young")}, time.Second, time.Minute))
	old := string(stale.Encode(key, stale.Entry{Body: []byte("old")}, 30*time.Second, time.Minute))
	for _, tt := range []struct {
		name, there, value string
		age                time.Duration
		gen, current       string
		want               bool
	}{
		{"nothing there", "", old, 30 * time.Second, "", "", true},
		{"an older one there", old, young, time.Second, "", "", true},
		{"the same there", young, young, 100 * time.Millisecond, "", "", true},
		{"a younger one there", young, old, 30 * time.Second, "", "", false},
		{"another version there", "2" + young[1:], old, 30 * time.Second, "", "", true},
		{"garbage there", "x", old, 30 * time.Second, "", "", true},
		{"its generation", "", young, time.Second, "g", "g", true},
		{"purged since", "", young, time.Second, "", "g", false},
		{"another generation", "", young, time.Second, "f", "g", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.do("FLUSHALL")
			if tt.there != "" {
				s.do("SET", "e", tt.there, "PX", 60000)
			}
			if tt.current != "" {
				s.do("SET", "g", tt.current)
			}
			n, err := c.Eval(t.Context(), stale.WriteScript, []string{"e", "g"}, tt.value, 60000, tt.age.Milliseconds(), tt.gen).Int()
			if err != nil || (n == 1) != tt.want {
				t.Errorf("wrote %d, %v; want %v", n, err, tt.want)
			}
		})
	}
}

func TestRedisCollapses(t *testing.T) {
	s := startRedis(t)
	caches := [2]*stale.Cache{open(t, stale.Config{RedisURL: s.url()}), open(t, stale.Config{RedisURL: s.url()})}
	o := &origin{takes: 500 * time.Millisecond}
	for _, c := range caches {
		call(t, c, stale.NewKey("f", "1", fmt.Sprintf("%p", c)), minute, new(origin), stale.Miss, "1") // connects
	}
	key := stale.NewKey("f", "1", "herd")
	var wg sync.WaitGroup
	start := time.Now()
	for i := range 1000 {
		wg.Go(func() {
			if r, err := caches[i%2].Do(t.Context(), key, minute, o.load); err != nil || len(r.Body) == 0 {
				t.Errorf("Do() = %q, %v", r.Body, err)
			}
		})
	}
	wg.Wait()
	t.Logf("1000 callers of two replicas were answered in %v by %d loads", time.Since(start).Round(time.Millisecond), o.calls.Load())
	// One, unless this machine is so busy that the Redis is given up on;
	// [TestLease] has it exactly.
	if n := o.calls.Load(); n > 2 {
		t.Errorf("%d loads for 1000 callers of two replicas, want at most 2", n)
	}
}

func TestRedisPurges(t *testing.T) {
	s := startRedis(t)
	a, b := open(t, stale.Config{RedisURL: s.url()}), open(t, stale.Config{RedisURL: s.url()})
	c := s.client()
	waitFor(t, "both to listen", func() bool {
		n := c.PubSubNumSub(t.Context(), "thicket:purge").Val()
		return n["thicket:purge"] == 2
	})
	key, o := stale.NewKey("f", "1", "a"), new(origin)
	call(t, a, key, minute, o, stale.Miss, "1")
	stored(t, s, 1)
	call(t, b, key, minute, o, stale.Hit, "1")
	if err := a.PurgeKey(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the key's purge to be heard", func() bool {
		r, err := b.Do(t.Context(), key, minute, o.load)
		return err == nil && string(r.Body) == "2"
	})
	waitFor(t, "the new answer to be shared", func() bool {
		r, err := a.Do(t.Context(), key, minute, o.load)
		return err == nil && string(r.Body) == "2"
	})
	if err := b.Purge(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the function's purge to be heard", func() bool {
		r, err := a.Do(t.Context(), key, minute, o.load)
		return err == nil && string(r.Body) == "3"
	})
}

func TestRedisSocketAndPassword(t *testing.T) {
	// A socket's path is at most about 100 bytes long.
	dir, err := os.MkdirTemp("", "stale")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	s := startRedis(t, "--unixsocket", sock)
	s.do("CONFIG", "SET", "requirepass", "p@ss:/w")
	for i, url := range []string{"unix://:p%40ss%3A%2Fw@" + sock + "?db=1", "redis://:p%40ss%3A%2Fw@" + s.addr() + "/2", "redis://default:p%40ss%3A%2Fw@" + s.addr()} {
		a, b := open(t, stale.Config{RedisURL: url}), open(t, stale.Config{RedisURL: url})
		key, o := stale.NewKey("f", "1", strconv.Itoa(i)), new(origin)
		call(t, a, key, minute, o, stale.Miss, "1")
		waitFor(t, "the answer to be shared", func() bool {
			r, err := b.Do(t.Context(), key, stale.Times{Fresh: time.Minute, Errors: -1}, func(context.Context) (stale.Entry, error) {
				return stale.Entry{}, errors.New("not yet")
			})
			return err == nil && r.Shared
		})
	}
}

func TestRedisCluster(t *testing.T) {
	s := startRedis(t, "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
	s.do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	waitFor(t, "the cluster", func() bool {
		return strings.Contains(s.client().ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
	url := "redis+cluster://" + s.addr()
	a, b := open(t, stale.Config{RedisURL: url}), open(t, stale.Config{RedisURL: url})
	key, o := stale.NewKey("f", "1", "a"), new(origin)
	call(t, a, key, minute, o, stale.Miss, "1")
	stored(t, s, 1)
	if r := call(t, b, key, minute, o, stale.Hit, "1"); !r.Shared {
		t.Error("the answer is not from the cluster")
	}
	if err := a.Purge(t.Context(), "f"); err != nil {
		t.Error(err)
	}
	// A slot that nobody owns is no reason to fail.
	s.do("CLUSTER", "DELSLOTSRANGE", 0, 16383)
	call(t, a, stale.NewKey("g", "1", "a"), minute, o, stale.Miss, "2")
}

func TestRedisSentinel(t *testing.T) {
	s := startRedis(t)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	port := freePort(t)
	text := fmt.Sprintf("port %s\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 %s 1\n", port, s.port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := exec.Command(s.cmd.Path, conf, "--sentinel")
	sentinel.Stdout, sentinel.Stderr = t.Output(), t.Output()
	if err := sentinel.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sentinel.Process.Kill()
		_ = sentinel.Wait()
	})
	c := redis.NewSentinelClient(&redis.Options{Addr: "127.0.0.1:" + port})
	defer c.Close()
	waitFor(t, "the sentinel", func() bool { return c.Ping(t.Context()).Err() == nil })
	url := "redis+sentinel://mymaster@127.0.0.1:" + port + "/1"
	a, b := open(t, stale.Config{RedisURL: url}), open(t, stale.Config{RedisURL: url})
	db := redis.NewClient(&redis.Options{Addr: s.addr(), DB: 1})
	defer db.Close()
	o := new(origin)
	n := 0
	waitFor(t, "an answer to be stored", func() bool {
		n++
		key := stale.NewKey("f", "1", strconv.Itoa(n))
		_, _ = a.Do(t.Context(), key, minute, o.load)
		return db.DBSize(t.Context()).Val() > 0
	})
	waitFor(t, "it to be found", func() bool {
		for i := range n {
			if r, err := b.Do(t.Context(), stale.NewKey("f", "1", strconv.Itoa(i+1)), minute, o.load); err == nil && r.Shared {
				return true
			}
		}
		return false
	})
}

func TestURLs(t *testing.T) {
	for _, url := range []string{"localhost:6379", "http://localhost", "redis://h1,h2", "redis://h/x", "redis://h/-1", "redis://h:99999", "redis://",
		"redis+sentinel://h1,h2", "redis+cluster://h1/3", "redis+x://h", "rediss+x://h", "redis://u:%zz@h", "unix://relative", "redis://h?pool_size=3", "redis://a:secret@h h"} {
		c, err := stale.Open(stale.Config{RedisURL: url, Logger: logger(t)})
		if err == nil {
			_ = c.Close()
			t.Errorf("Open() takes %q", url)
			continue
		}
		if text := err.Error(); strings.Contains(text, "secret") || len(text) < 40 {
			t.Errorf("Open(%q) = %q, want a sentence without the password", url, text)
		}
	}
}

// TestNothingIsLeft is that Close waits for every goroutine.
func TestNothingIsLeft(t *testing.T) {
	s := startRedis(t)
	frozen := startRedis(t)
	frozen.signal(syscall.SIGSTOP)
	before := runtime.NumGoroutine()
	for range 5 {
		for _, url := range []string{s.url(), frozen.url(), "redis://127.0.0.1:" + freePort(t), ""} {
			c, err := stale.Open(stale.Config{RedisURL: url, Logger: logger(t)})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				if _, err := c.Do(t.Context(), stale.NewKey("f", "1", strconv.Itoa(i)), minute, new(origin).load); err != nil {
					t.Error(err)
				}
			}
			start := time.Now()
			_ = c.Close()
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("Close took %v", took)
			}
		}
	}
	waitFor(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before+1 })
}
