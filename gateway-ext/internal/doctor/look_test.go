package doctor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
)

// listen listens on a port of loopback until the test ends.
func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	open, closed := listen(t), "127.0.0.1:1"
	m := doctor.Look(t.Context(), doctor.Subject{
		Name: "pi", Version: "v1", Data: filepath.Join(dir, "not", "yet"),
		Memory: func() (all, free int64) { return 2, 1 },
		Ports:  []doctor.Port{{Addr: "127.0.0.1:0"}, {Addr: open}, {Addr: "203.0.113.7:80"}},
		Targets: []doctor.Target{
			{What: "open", Addr: open}, {What: "closed", Addr: closed}, {What: "nobody", Addr: "nobody.invalid:80"},
			{What: "spoken to", Addr: open, Try: func(context.Context) error { return errors.New("says no") }},
			{What: "a socket", Addr: filepath.Join(dir, "socket")},
		},
		Redis: func(context.Context) (doctor.Redis, error) { return doctor.Redis{Version: "7"}, nil },
	})
	if m.Name != "pi" || m.Version != "v1" || m.Memory != (doctor.Room{All: 2, Free: 1}) || m.Time.IsZero() || m.Files == 0 {
		t.Errorf("the machine is %+v", m)
	}
	if m.Redis == nil || m.Redis.Version != "7" {
		t.Errorf("the Redis is %+v, want version 7", m.Redis)
	}
	if d := m.Disk; d.Path != dir || d.Made || d.Error != "" || d.Sync <= 0 || d.Bytes.All == 0 {
		t.Errorf("the disk is %+v, want the folder above the one that isn't there, %s", d, dir)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	for i, want := range []string{"", "taken", "doesn't have that address"} {
		if got := m.Ports[i].Error; (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("port %d: %q, want %q", i, got, want)
		}
	}
	for i, want := range []string{"", "refuses connections", "", "says no", "isn't there"} {
		got := m.Reaches[i]
		if i == 2 { // what a name server says differs
			if got.Name != "nobody.invalid" || got.Error == "" {
				t.Errorf("a name that isn't there: %+v", got)
			}
			continue
		}
		if (got.Error == "") != (want == "") || !strings.Contains(got.Error, want) {
			t.Errorf("target %d: %+v, want %q", i, got, want)
		}
	}
}

func TestLookAtState(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o711), os.WriteFile(filepath.Join(dir, "nodes.key"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	look := func() doctor.Disk { return doctor.Look(t.Context(), doctor.Subject{Data: dir}).Disk }
	if d := look(); !d.Made || d.Mode != 0o711 || d.Open != "" {
		t.Errorf("the folder is %+v, want mode 0711 and nothing open", d)
	}
	if err := os.Chmod(filepath.Join(dir, "nodes.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if d := look(); d.Open != filepath.Join(dir, "nodes.key") {
		t.Errorf("what is open is %q, want the key", d.Open)
	}
	if d := doctor.Look(t.Context(), doctor.Subject{Data: filepath.Join(dir, "nodes.key")}).Disk; d.Error != "it is no folder" {
		t.Errorf("a file is %+v", d)
	}
}

// A doctor that is called off looks at what is there, and waits for nothing.
func TestLookCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := doctor.Look(ctx, doctor.Subject{Data: t.TempDir(), Targets: []doctor.Target{{Addr: "192.0.2.1:80"}}})
	if m.Reaches[0].Error == "" {
		t.Error("nobody is reached after it was called off")
	}
}
