package stale_test

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/functions/stale"
)

// faulty is what can be wrong with a Redis.
var faulty = []struct {
	name string
	args []string
	hurt func(t *testing.T, s *server)
	heal func(t *testing.T, s *server)
}{
	{name: "killed", hurt: func(_ *testing.T, s *server) {
		s.signal(syscall.SIGKILL)
		<-s.done
	}, heal: func(_ *testing.T, s *server) { s.start() }},
	{name: "frozen", hurt: func(_ *testing.T, s *server) { s.signal(syscall.SIGSTOP) },
		heal: func(_ *testing.T, s *server) { s.signal(syscall.SIGCONT) }},
	{name: "silent", hurt: func(t *testing.T, s *server) {
		// In its place somebody listens who never answers.
		s.signal(syscall.SIGKILL)
		<-s.done
		hole(t, s)
	}, heal: func(_ *testing.T, s *server) { s.start() }},
	{name: "full", hurt: func(_ *testing.T, s *server) {
		s.do("CONFIG", "SET", "maxmemory", "1mb")
	}, heal: func(_ *testing.T, s *server) { s.do("CONFIG", "SET", "maxmemory", "0") }},
	{name: "read-only", hurt: func(t *testing.T, s *server) {
		master := startRedis(t, "--repl-diskless-sync-delay", "0")
		s.do("REPLICAOF", "127.0.0.1", master.port)
	}, heal: func(_ *testing.T, s *server) { s.do("REPLICAOF", "NO", "ONE") }},
	{name: "without its master", args: []string{"--replica-serve-stale-data", "no"}, hurt: func(t *testing.T, s *server) {
		s.do("REPLICAOF", "127.0.0.1", freePort(t))
	}, heal: func(_ *testing.T, s *server) { s.do("REPLICAOF", "NO", "ONE") }},
	{name: "loading", hurt: func(t *testing.T, s *server) {
		c := s.client()
		for i := range 3000 {
			c.Set(t.Context(), "ballast"+strconv.Itoa(i), i, 0)
		}
		s.do("SAVE")
		s.signal(syscall.SIGKILL)
		<-s.done
		// A millisecond for each key.
		s.args = append(s.args, "--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
		s.start()
		waitFor(t, "the server to load", func() bool { return redis.IsLoadingError(s.client().Ping(t.Context()).Err()) })
	}, heal: func(*testing.T, *server) {}},
	{name: "locked", hurt: func(t *testing.T, s *server) {
		// A connection stays what it is when the password changes.
		conn := s.client().Conn()
		defer conn.Close()
		for _, args := range [][]any{{"CONFIG", "SET", "requirepass", "secret"}, {"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}} {
			if err := conn.Do(t.Context(), args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}, heal: func(t *testing.T, s *server) {
		c := redis.NewClient(&redis.Options{Addr: s.addr(), Password: "secret"})
		defer c.Close()
		if err := c.ConfigSet(t.Context(), "requirepass", "").Err(); err != nil {
			t.Fatal(err)
		}
	}},
}

// hole listens in the server's place and never says a word, until the server is
// to start again.
func hole(t *testing.T, s *server) {
	l, err := net.Listen("tcp", s.addr())
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	s.filled = func() {
		_ = l.Close()
		<-accepted
		for _, c := range conns {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}
}

// TestRedisFaults is that whatever is wrong with the Redis, no call fails for it
// or waits for it, and that it is used again soon after it is well.
func TestRedisFaults(t *testing.T) {
	for _, tt := range faulty {
		t.Run(tt.name, func(t *testing.T) {
			s := startRedis(t, tt.args...)
			reg := prometheus.NewRegistry()
			c := open(t, stale.Config{RedisURL: s.url(), Registerer: reg})
			o := new(origin)
			warm := stale.NewKey("f", "1", "warm")
			call(t, c, warm, minute, o, stale.Miss, "1")
			stored(t, s, 1)

			n := 0
			// ask makes calls of cold keys, some at once, and returns how long the
			// slowest took.
			ask := func(callers int) time.Duration {
				t.Helper()
				var slowest atomic.Int64
				var wg sync.WaitGroup
				for range callers {
					n++
					key := stale.NewKey("f", "1", strconv.Itoa(n))
					wg.Go(func() {
						start := time.Now()
						if _, err := c.Do(t.Context(), key, minute, o.load); err != nil {
							t.Errorf("a call failed: %v", err)
						}
						for took := int64(time.Since(start)); ; {
							old := slowest.Load()
							if took <= old || slowest.CompareAndSwap(old, took) {
								return
							}
						}
					})
				}
				wg.Wait()
				return time.Duration(slowest.Load())
			}
			healthy := ask(8)
			tt.hurt(t, s)
			began := time.Now()
			first := ask(32)
			later, most, slow := time.Duration(0), first, 0
			for i := 0; time.Since(began) < 2*time.Second; i++ {
				took := ask(4)
				most = max(most, took)
				if time.Since(began) > time.Second {
					if later = max(later, took); took > 5*time.Millisecond {
						slow++
					}
				}
				call(t, c, warm, minute, o, stale.Hit, "1")
				time.Sleep(20 * time.Millisecond) // the pace of calls
			}
			t.Logf("slowest of cold calls: healthy %v, first 32 at once %v, ever %v, after one second %v (%d rounds above 5ms)",
				healthy.Round(10*time.Microsecond), first.Round(10*time.Microsecond), most.Round(10*time.Microsecond), later.Round(10*time.Microsecond), slow)
			// The bounds are 35 and 5 ms. On a busy machine a goroutine may wait
			// longer than that for a processor; a client that waits for the Redis
			// would take seconds.
			if most > 250*time.Millisecond {
				t.Errorf("a call took %v", most)
			}

			if s.filled != nil {
				s.filled()
			}
			tt.heal(t, s)
			s.ready()
			healed := time.Now()
			look := s.client()
			there := look.Keys(t.Context(), "*:e:*").Val()
			waitFor(t, "answers to be written again", func() bool {
				ask(1)
				keys, err := look.Keys(t.Context(), "*:e:*").Result()
				return err == nil && len(keys) > len(there)
			})
			took := time.Since(healed)
			t.Logf("used again after %v", took.Round(time.Millisecond))
			if took > 12*time.Second {
				t.Errorf("the Redis was used again after %v, want at most 12s", took)
			}
		})
	}
}

// TestRedisNeverThere is that a cache opens and works without its Redis, and
// that a black-holed address costs no more than a frozen one.
func TestRedisNeverThere(t *testing.T) {
	for _, url := range []string{"redis://127.0.0.1:" + freePort(t), "redis://" + blackHole(t), "redis+cluster://127.0.0.1:" + freePort(t) + ",127.0.0.1:" + freePort(t),
		"redis+sentinel://mymaster@127.0.0.1:" + freePort(t), "unix://" + filepath.Join(t.TempDir(), "none.sock"), "redis://no-such-host.invalid"} {
		t.Run(url, func(t *testing.T) {
			c := open(t, stale.Config{RedisURL: url})
			o := new(origin)
			for i := range 5 {
				start := time.Now()
				call(t, c, stale.NewKey("f", "1", strconv.Itoa(i)), minute, o, stale.Miss, strconv.Itoa(i+1))
				took := time.Since(start)
				t.Logf("call %d took %v", i+1, took.Round(10*time.Microsecond))
				if took > 250*time.Millisecond {
					t.Errorf("call %d took %v", i+1, took)
				}
			}
		})
	}
}

// blackHole returns an address where connecting gets no answer: its backlog is
// full, so that the kernel drops who else comes.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 10 {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("this system answers although the backlog is full")
	return ""
}
