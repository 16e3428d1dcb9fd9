package discovery_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// filled runs a table for a while, with a replica of its own and one of a node,
// and returns its file.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "discovery")
	synctest.Test(t, func(t *testing.T) {
		w := running(t, path)
		w.Observe(replica("local", faas.Ready))
		n := w.node(1)
		if err := n.source.Agree(discovery.Lease{
			Suspect: nodeLease.Suspect, Gone: nodeLease.Gone, Detail: []byte(`{"name":"pi"}`),
			Probe: discovery.Target{Addr: netip.AddrPortFrom(n.addr, 8080), Health: "/healthz"},
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
	})
	return path
}

func TestLastKnownGood(t *testing.T) {
	path := filled(t)
	synctest.Test(t, func(t *testing.T) {
		w := running(t, path)
		// At once, and as a suspect. The replica of the old process is not there.
		if got, want := w.suspects(), []string{"weather-1"}; !slices.Equal(got, want) || len(w.ids()) != 1 {
			t.Fatalf("the route has %v, suspect %v, want %v", w.ids(), got, want)
		}
		if s := w.Replicas()[0]; !s.LastSeen.IsZero() || s.Source != "node" || s.Addr.String() != "10.0.0.1:8080" {
			t.Errorf("it is %+v, want one that was not seen", s)
		}
		saved := w.Saved("node")
		if len(saved) != 1 || saved[0].Name != "pi-1" || string(saved[0].Lease.Detail) != `{"name":"pi"}` || saved[0].Lease.Probe.Health != "/healthz" || len(saved[0].Replicas) != 1 {
			t.Fatalf("Saved() = %+v", saved)
		}
		// It answers, so it stays, until its source is heard.
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(w.suspects()) != 1 {
			t.Fatalf("after an hour the route has %v", w.ids())
		}
		s, err := w.Source("node", "pi-1", saved[0].Lease, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Heard()
		synctest.Wait()
		if len(w.suspects()) != 0 || len(w.ids()) != 1 {
			t.Errorf("after it was heard the route has %v, suspect %v", w.ids(), w.suspects())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := running(t, path)
		w.net.set(func() { w.net.dead[netip.MustParseAddr("10.0.0.1")] = true })
		if took := w.until("a dead one leaves", func() bool { return len(w.ids()) == 0 }); took > 11*time.Second {
			t.Errorf("a dead one was known for %v after the start", took)
		}
		time.Sleep(10 * time.Second) // for the last write
	})
	synctest.Test(t, func(t *testing.T) {
		if w := running(t, path); len(w.Replicas()) != 0 {
			t.Errorf("who was removed is back: %+v", w.Replicas())
		}
	})
}

// TestWritesAreRare counts how often the file is replaced: heartbeats are no
// reason, and a burst of changes is one write each few seconds.
func TestWritesAreRare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "discovery")
	synctest.Test(t, func(t *testing.T) {
		w := running(t, path)
		n := w.node(1)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		writes := 0
		var last os.FileInfo
		look := func() {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if last == nil || !os.SameFile(last, info) {
				writes++
			}
			last = info
		}
		look()
		writes = 0
		for range 600 {
			time.Sleep(time.Second)
			synctest.Wait()
			look()
		}
		if writes != 0 {
			t.Errorf("%d writes in ten minutes of heartbeats, want none", writes)
		}
		for i := range 60 {
			r := replica("more", faas.Ready)
			r.ID += string(rune('a' + i))
			n.source.Observe(r)
			time.Sleep(time.Second)
			synctest.Wait()
			look()
		}
		if writes == 0 || writes > 13 {
			t.Errorf("%d writes in a minute of changes, want one each five seconds", writes)
		}
		left, err := filepath.Glob(path + ".*")
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

func TestBrokenFile(t *testing.T) {
	good, err := os.ReadFile(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{
		"empty":       nil,
		"cut":         good[:len(good)-7],
		"flipped":     flipped,
		"other":       []byte("hello\nworld"),
		"long":        bytes.Repeat([]byte("x"), 41<<20),
		"newer":       bytes.Replace(good, []byte("thicket-discovery 1 "), []byte("thicket-discovery 2 "), 1),
		"unreadable":  nil,
		"not a table": []byte("thicket-discovery 1 00000000\n"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "discovery")
			if name == "unreadable" {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			table := discovery.Open(discovery.Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("logged %q, want one warning", log.String())
			}
			table.Observe(replica("a", faas.Ready))
			if len(table.Route(weather).Endpoints) != 1 {
				t.Error("the table doesn't work")
			}
		})
	}
}

// TestDiskGone writes where nothing can be written: the table goes on, says so,
// and writes when it can.
func TestDiskGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	path := filepath.Join(dir, "discovery")
	synctest.Test(t, func(t *testing.T) {
		w := running(t, path)
		n := w.node(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !strings.Contains(w.log.String(), "not on disk") || len(w.ids()) != 1 {
			t.Errorf("logged %q, the route has %v", w.log.String(), w.ids())
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		n.off.Store(true) // something happens, which is nothing to be kept
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("thicket-discovery 1 00000000\n"))
	f.Add([]byte("thicket-discovery 1 2d8fcd97\n[]"))
	f.Fuzz(func(t *testing.T, body []byte) {
		// Half of the time with the right sum, so that what is behind is reached.
		for _, content := range [][]byte{body, discovery.Marked(body)} {
			list, err := discovery.ParseFile(content)
			if err != nil && list != nil {
				t.Errorf("ParseFile(%q) = %v and %v", content, list, err)
			}
		}
		// Whatever it holds, a table opens with it.
		path := filepath.Join(t.TempDir(), "discovery")
		if err := os.WriteFile(path, discovery.Marked(body), 0o600); err != nil {
			t.Fatal(err)
		}
		table := discovery.Open(discovery.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
		for _, s := range table.Replicas() {
			if !s.Suspect || s.Source == discovery.Local {
				t.Errorf("%+v is trusted", s)
			}
		}
	})
}
