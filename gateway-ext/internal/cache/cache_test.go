package cache_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/cache"
)

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// serve runs a server until the test ends.
func serve(t testing.TB, cfg cache.Config) *cache.Server {
	t.Helper()
	cfg.Logger = logger(t)
	s, err := cache.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return s
}

func client(t testing.TB, rawURL string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(time.Duration(1+rand.IntN(5)) * time.Millisecond)
	}
}

// realRedis starts Debian's, to compare with.
func realRedis(t *testing.T) *redis.Client {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("this test needs redis-server: install it with \"apt-get install redis-server\" or \"brew install redis\"")
	}
	dir, err := os.MkdirTemp("", "cache") // a socket's path is at most about 100 bytes long
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	cmd := exec.Command(path, "--port", "0", "--unixsocket", sock, "--save", "", "--dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	c := client(t, "unix://"+sock)
	waitFor(t, "redis-server", func() bool { return c.Ping(context.Background()).Err() == nil })
	return c
}

// TestLikeRedis is that each command is answered as a Redis answers it.
func TestLikeRedis(t *testing.T) {
	ours, theirs := client(t, serve(t, cache.Config{}).URL()), realRedis(t)
	value := func(age, life int, text string) string { return fmt.Sprintf("1-%013d%013d%s", age, life, text) }
	for _, command := range [][]any{
		{"PING"}, {"PING", "hi"}, {"SELECT", 0}, {"SELECT", 99}, {"SELECT", "x"},
		{"GET", "a"}, {"SET", "a", "1"}, {"GET", "a"}, {"get", "a"}, {"EXISTS", "a", "b", "a"},
		{"SET", "a", "2", "NX"}, {"GET", "a"}, {"SET", "a", "3", "XX"}, {"GET", "a"}, {"SET", "b", "3", "XX"}, {"GET", "b"},
		{"SET", "b", "4", "NX", "PX", 100000}, {"TTL", "b"}, {"SET", "b", "5", "NX", "PX", 100000}, {"SET", "b", "6", "EX", 50}, {"TTL", "b"},
		{"SET", "c", "", "ex", 0}, {"SET", "c", "", "PX", -1}, {"SET", "c", "", "PX", "x"}, {"SET", "c", "", "NX", "XX"}, {"SET", "c", "", "BAD"}, {"SET", "c"},
		{"TTL", "a"}, {"PTTL", "a"}, {"TTL", "none"}, {"PTTL", "none"},
		{"EXPIRE", "a", 100}, {"TTL", "a"}, {"PEXPIRE", "a", 200000}, {"TTL", "a"}, {"EXPIRE", "none", 1}, {"EXPIRE", "a", "x"}, {"EXPIRE", "b", -1}, {"EXISTS", "b"},
		{"SET", "s", "Hello"}, {"STRLEN", "s"}, {"STRLEN", "none"},
		{"GETRANGE", "s", 0, 1}, {"GETRANGE", "s", -3, -1}, {"GETRANGE", "s", 3, 100}, {"GETRANGE", "s", 4, 2}, {"GETRANGE", "s", -100, 2}, {"GETRANGE", "none", 0, 1}, {"GETRANGE", "s", "x", 1},
		{"GETRANGE", "s", -1, -100}, {"GETRANGE", "s", 0, -1},
		{"MGET", "s", "none", "a"},
		{"INCR", "n"}, {"INCR", "n"}, {"GET", "n"}, {"INCR", "s"}, {"EXPIRE", "n", 100}, {"INCR", "n"}, {"TTL", "n"},
		{"DEL", "s", "none", "n"}, {"UNLINK", "a"}, {"DEL", "a"}, {"DBSIZE"}, {"KEYS", "*"},
		{"PUBLISH", "nobody", "hears"},
		{"SET", "bin", "\x00\r\n\xff"}, {"GET", "bin"},

		{"EVALSHA", "0000000000000000000000000000000000000000", 0},
		{"EVAL", stale.WriteScript, 2, "e", "g", value(1000, 60000, "old"), 60000, 30000, ""}, {"GETRANGE", "e", 28, -1}, {"TTL", "e"},
		{"EVAL", stale.WriteScript, 2, "e", "g", value(0, 60000, "young"), 50000, 0, ""}, {"GETRANGE", "e", 28, -1}, {"TTL", "e"},
		{"EVAL", stale.WriteScript, 2, "e", "g", value(9000, 60000, "older"), 60000, 20000, ""}, {"GETRANGE", "e", 28, -1},
		{"EVAL", stale.WriteScript, 2, "e", "g", value(9000, 60000, "purged"), 60000, 0, "other"}, {"GETRANGE", "e", 28, -1},
		{"SET", "g", "other"}, {"EVAL", stale.WriteScript, 2, "e", "g", value(0, 60000, "purged"), 60000, 0, ""}, {"GETRANGE", "e", 28, -1},
		{"EVAL", stale.WriteScript, 2, "e", "g", value(0, 60000, "again"), 60000, 0, "other"}, {"GETRANGE", "e", 28, -1},
		{"SET", "e", "garbage", "PX", 50000}, {"EVAL", stale.WriteScript, 2, "e", "g", value(0, 60000, "over"), 60000, 9000, "other"}, {"GETRANGE", "e", 28, -1},
		{"SET", "e", "1-xxxxxxxxxxxxxyyyyyyyyyyyyyz", "PX", 50000}, {"EVAL", stale.WriteScript, 2, "e", "g", value(0, 60000, "over"), 60000, 9000, "other"}, {"GETRANGE", "e", 28, -1},
		{"SET", "l", "mine"}, {"EVAL", stale.ReleaseScript, 1, "l", "yours"}, {"GET", "l"},
		{"EVAL", stale.ReleaseScript, 1, "l", "mine"}, {"GET", "l"}, {"EVAL", stale.ReleaseScript, 1, "l", "mine"},
		{"EVAL", stale.ReleaseScript, 3, "l", "mine"}, {"EVAL", stale.ReleaseScript, "x", "l", "mine"},
	} {
		a, errA := ours.Do(t.Context(), command...).Result()
		b, errB := theirs.Do(t.Context(), command...).Result()
		kind := func(err error) string { // the word that clients look at
			if err == nil {
				return ""
			}
			word, _, _ := strings.Cut(err.Error(), " ")
			return word
		}
		if fmt.Sprint(a) != fmt.Sprint(b) || kind(errA) != kind(errB) {
			t.Errorf("%.80q = %v, %v; a Redis says %v, %v", command, a, errA, b, errB)
		}
	}
}

// TestExpires is that ends are real.
func TestExpires(t *testing.T) {
	c := client(t, serve(t, cache.Config{}).URL())
	start := time.Now()
	if err := c.Set(t.Context(), "k", "v", 50*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end", func() bool { return errors.Is(c.Get(t.Context(), "k").Err(), redis.Nil) })
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("it ended after %v, want 50ms", took)
	}
	if ok, err := c.SetNX(t.Context(), "k", "again", time.Minute).Result(); err != nil || !ok {
		t.Errorf("SetNX() = %v, %v after the end", ok, err)
	}
}

// TestShares is what it is for: two replicas of a function share answers.
func TestShares(t *testing.T) {
	dir, err := os.MkdirTemp("", "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, addr := range []string{"", "[::1]:0", filepath.Join(dir, "s")} {
		t.Run(addr, func(t *testing.T) {
			s := serve(t, cache.Config{Addr: addr})
			var replicas [2]*stale.Cache
			for i := range replicas {
				c, err := stale.Open(stale.Config{RedisURL: s.URL(), Logger: logger(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				replicas[i] = c
			}
			times := stale.Times{Fresh: time.Minute, IfError: time.Hour, Errors: -1}
			key := stale.NewKey("f", "1", "a")
			body := bytes.Repeat([]byte("incompressible "), 10_000)
			for i := range body {
				body[i] ^= byte(rand.IntN(256))
			}
			if _, err := replicas[0].Do(t.Context(), key, times, func(context.Context) (stale.Entry, error) {
				return stale.Entry{Body: body}, nil
			}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the answer to be shared", func() bool {
				r, err := replicas[1].Do(t.Context(), key, times, func(context.Context) (stale.Entry, error) {
					return stale.Entry{}, errors.New("the origin is gone")
				})
				return err == nil && r.Shared && bytes.Equal(r.Body, body)
			})
			// Messages pass, too.
			look := client(t, s.URL())
			waitFor(t, "both to listen and hear", func() bool { return look.Publish(t.Context(), "thicket:purge", "nothing").Val() == 2 })
			if err := replicas[1].Purge(t.Context(), "f"); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the purge to be heard", func() bool {
				r, err := replicas[0].Do(t.Context(), key, times, func(context.Context) (stale.Entry, error) {
					return stale.Entry{Body: []byte("new")}, nil
				})
				return err == nil && string(r.Body) == "new"
			})
			// One of many callers loads.
			var calls atomic.Int64
			herd := stale.NewKey("f", "1", "herd")
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					_, err := replicas[i%2].Do(t.Context(), herd, times, func(context.Context) (stale.Entry, error) {
						calls.Add(1)
						time.Sleep(200 * time.Millisecond) // what a load takes
						return stale.Entry{Body: []byte("x")}, nil
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := calls.Load(); n > 2 {
				t.Errorf("%d loads for 200 callers, want at most 2", n)
			}
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	c := client(t, serve(t, cache.Config{Memory: 1 << 20}).URL())
	value := make([]byte, 10<<10)
	if err := c.Set(t.Context(), "used", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := c.Set(t.Context(), strconv.Itoa(i), value, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), "used").Err(); err != nil {
			t.Fatalf("what is used often is gone after %d others: %v", i, err)
		}
	}
	info := c.Info(t.Context()).Val()
	_, rest, _ := strings.Cut(info, "used_memory:")
	number, _, _ := strings.Cut(rest, "\r")
	if n, err := strconv.Atoi(number); err != nil || n > 1<<20 || n < 1<<19 {
		t.Errorf("1000 values of 10 KiB take %q bytes, want a little below 1 MiB", number)
	}
	if n := c.Exists(t.Context(), "0", "999").Val(); n != 1 {
		t.Errorf("%d of the first and the last are there, want the last only", n)
	}
	// One that doesn't fit at all pushes nothing but itself out for good.
	if err := c.Set(t.Context(), "huge", make([]byte, 1<<20-200), 0).Err(); err == nil && c.Exists(t.Context(), "huge").Val() != 0 {
		t.Error("a value above the bound was kept")
	}
}

// raw connects without a client, and logs in if it knows the password.
func raw(t testing.TB, s *cache.Server, login bool) net.Conn {
	t.Helper()
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	if login {
		password, _ := u.User.Password()
		fmt.Fprintf(nc, "AUTH %s\r\n", password)
		if line, err := bufio.NewReader(nc).ReadString('\n'); err != nil || line != "+OK\r\n" {
			t.Fatalf("AUTH = %q, %v", line, err)
		}
	}
	return nc
}

func TestStrangers(t *testing.T) {
	s := serve(t, cache.Config{})
	for _, send := range []string{
		"GET a\r\n", "AUTH wrong\r\n", "AUTH other wrong\r\n", "HELLO 2\r\n", "HELLO 2 AUTH default wrong\r\n", "HELLO 3\r\n", "FLUSHALL\r\n",
		"*1\r\n$-1\r\n", "*1000000000\r\n", "$5\r\nx\r\n",
	} {
		nc := raw(t, s, false)
		fmt.Fprint(nc, send+"QUIT\r\n")
		answer, _ := io.ReadAll(nc)
		if !bytes.HasPrefix(answer, []byte("-")) && len(answer) > 0 && !bytes.HasPrefix(answer, []byte("+OK")) || bytes.Contains(answer, []byte("$")) {
			t.Errorf("a stranger's %q is answered %q", send, answer)
		}
	}
	// Without a password there is no room for long commands.
	nc := raw(t, s, false)
	fmt.Fprintf(nc, "*2\r\n$4\r\nAUTH\r\n$100000000\r\n")
	_, _ = nc.Write(make([]byte, 64<<10)) // fails once the server has enough
	if _, err := io.ReadAll(nc); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the connection was not ended: %v", err)
	}
	// Nor is there with one, above a megabyte.
	nc = raw(t, s, true)
	fmt.Fprintf(nc, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000000\r\n")
	_, _ = io.CopyN(nc, zeros{}, 8<<20)
	if _, err := io.ReadAll(nc); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the connection was not ended: %v", err)
	}
	// Others are served all the while.
	if err := client(t, s.URL()).Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestConnectionsAreBounded(t *testing.T) {
	s := serve(t, cache.Config{})
	before := runtime.NumGoroutine()
	for range 256 {
		raw(t, s, true)
	}
	nc := raw(t, s, false)
	if answer, _ := io.ReadAll(nc); !bytes.Contains(answer, []byte("max number of clients")) {
		t.Errorf("one connection more is answered %q", answer)
	}
	t.Logf("%d goroutines for 256 connections", runtime.NumGoroutine()-before)
}

// TestRunEnds is that Run waits for all that it began.
func TestRunEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	s, err := cache.Open(cache.Config{Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	idle, half := raw(t, s, true), raw(t, s, true)
	fmt.Fprint(half, "*3\r\n$3\r\nSET\r\n")
	sub := raw(t, s, true)
	fmt.Fprint(sub, "SUBSCRIBE c\r\n")
	if _, err := bufio.NewReader(sub).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
	for _, nc := range []net.Conn{idle, half, sub} {
		_, _ = io.ReadAll(nc) // ends
	}
	waitFor(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestOpen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:6379", "nowhere", file} {
		if s, err := cache.Open(cache.Config{Addr: addr, Logger: logger(t)}); err == nil {
			t.Errorf("Open() listens on %s", s.URL())
		} else if len(err.Error()) < 60 {
			t.Errorf("Open(%q) = %q, want a sentence", addr, err)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a file that is no socket is gone: %v", err)
	}
}

func FuzzCommands(f *testing.F) {
	for _, s := range []string{"PING\r\n", "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "SET a b PX 100 NX\r\nGET a\r\n", "EVAL x 0\r\n", "SUBSCRIBE a\r\nUNSUBSCRIBE\r\n",
		"HELLO 2 AUTH default x\r\n", "GETRANGE a -9223372036854775808 9223372036854775807\r\n", "*3\r\n$1\r\n", "SET a \"b\r\n", "EVAL \"\" 9 a\r\n", "INCR a\r\nINCR a\r\n"} {
		f.Add([]byte(s))
	}
	s := serve(f, cache.Config{Memory: 1 << 20})
	look := client(f, s.URL())
	f.Fuzz(func(t *testing.T, b []byte) {
		nc := raw(t, s, true)
		if _, err := nc.Write(b); err != nil {
			return
		}
		_ = nc.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, nc)
		if err := look.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkGet(b *testing.B) {
	c := client(b, serve(b, cache.Config{}).URL())
	if err := c.Set(b.Context(), "k", make([]byte, 4<<10), 0).Err(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Get(b.Context(), "k").Err(); err != nil {
			b.Fatal(err)
		}
	}
}
