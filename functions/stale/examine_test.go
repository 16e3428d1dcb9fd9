package stale_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func TestExamine(t *testing.T) {
	s := startRedis(t, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
	got, err := stale.Examine(t.Context(), "redis://127.0.0.1:"+s.port+"/0")
	if err != nil || got.Version == "" || got.MaxMemory != 64<<20 || got.Policy != "allkeys-lru" {
		t.Errorf("Examine() = %+v, %v, want 64 MiB and allkeys-lru", got, err)
	}
	for _, wrong := range []string{"redis://nobody:guessed@127.0.0.1:" + s.port, "redis://:hidden@127.0.0.1:1", "http://:hidden@x"} {
		if _, err := stale.Examine(t.Context(), wrong); err == nil || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "guessed") {
			t.Errorf("Examine(%q): %v, want an error without the password", wrong, err)
		}
	}
}

func TestAddrs(t *testing.T) {
	got, err := stale.Addrs("redis+sentinel://main@a.lan,b.lan:1234/0")
	if want := []string{"a.lan:26379", "b.lan:1234"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Addrs() = %q, %v, want %q", got, err, want)
	}
	if got, err := stale.Addrs("unix:///run/redis.sock"); err != nil || !slices.Equal(got, []string{"/run/redis.sock"}) {
		t.Errorf("Addrs() = %q, %v, want the socket", got, err)
	}
	if _, err := stale.Addrs("x"); err == nil {
		t.Error("what is no URL has addresses")
	}
}
