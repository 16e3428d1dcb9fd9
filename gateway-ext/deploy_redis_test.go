package main_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestRedisSettings starts a Redis and a Sentinel with the files of deploy/redis.
func TestRedisSettings(t *testing.T) {
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is missing")
	}
	start := func(file string, args ...string) *redis.Client {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr)
		l.Close()
		dir := t.TempDir()
		conf := filepath.Join(dir, file)
		// A Sentinel writes into its file, and would look for the server in it.
		text := strings.ReplaceAll(mustRead(t, filepath.Join(deployed, "redis", file)), "192.168.1.3", "127.0.0.1")
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(server, append([]string{conf, "--port", strconv.Itoa(addr.Port), "--dir", dir}, args...)...)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		})
		c := redis.NewClient(&redis.Options{Addr: addr.String()})
		t.Cleanup(func() { c.Close() })
		eventually(t, file+" is taken", func() bool { return c.Ping(t.Context()).Err() == nil })
		return c
	}
	c := start("redis.conf")
	for name, want := range map[string]string{"maxmemory": strconv.Itoa(96 << 20), "maxmemory-policy": "allkeys-lfu", "save": "", "appendonly": "no"} {
		if got, err := c.ConfigGet(t.Context(), name).Result(); err != nil || got[name] != want {
			t.Errorf("%s is %q, %v, want %q", name, got[name], err, want)
		}
	}
	s := start("sentinel.conf", "--sentinel")
	if got, err := s.Do(t.Context(), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "answers").StringSlice(); err != nil || len(got) != 2 || got[1] != "6379" {
		t.Errorf("the Sentinel watches %v, %v", got, err)
	}
}
