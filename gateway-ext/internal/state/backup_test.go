package state_test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// backup makes a backup of a state with something of everything in it.
func backup(t *testing.T) (archive []byte, key []byte, password string) {
	t.Helper()
	s := open(t, state.Config{Dir: t.TempDir()})
	for k, v := range map[string]string{"function.a": "1", "function.b": string(bytes.Repeat([]byte{0, 255}, 1<<19))} {
		if err := bucket(t, s, "declared").Put(t.Context(), k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	if err := bucket(t, s, "nodes").Put(t.Context(), "node.pi-1", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	key, err := s.Key("secrets")
	if err != nil {
		t.Fatal(err)
	}
	password, _, _, err = s.Password()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "a", "b", "blob"), []byte("layer"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Backup(t.Context(), &out, "v1", map[string]string{"registry": folder, "absent": filepath.Join(folder, "absent")}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), key, password
}

func TestBackup(t *testing.T) {
	archive, key, password := backup(t)
	cfg := state.Config{Dir: filepath.Join(t.TempDir(), "new"), Logger: quiet}
	if err := state.Restore(t.Context(), cfg, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	want := map[string]string{"function.a": "1", "function.b": string(bytes.Repeat([]byte{0, 255}, 1<<19))}
	if got := all(t, bucket(t, s, "declared")); !maps.Equal(got, want) {
		t.Errorf("declared has %d keys after a restore, want the 2 from before", len(got))
	}
	if got := all(t, bucket(t, s, "nodes")); got["node.pi-1"] != "{}" {
		t.Errorf("nodes has %v after a restore", got)
	}
	if k, err := s.Key("secrets"); err != nil || !bytes.Equal(k, key) {
		t.Errorf("Key() = %x, %v after a restore, want that from before", k, err)
	}
	if p, _, created, err := s.Password(); p != password || created || err != nil {
		t.Errorf("Password() = %q, %v, %v after a restore, want that from before", p, created, err)
	}
	if b, err := os.ReadFile(filepath.Join(cfg.Dir, "registry", "a", "b", "blob")); string(b) != "layer" {
		t.Errorf("a folder's file is %q, %v after a restore", b, err)
	}
	if err := state.Restore(t.Context(), cfg, bytes.NewReader(archive)); !errors.Is(err, faas.ErrConflict) {
		t.Errorf("Restore() over a state = %v, want %v", err, faas.ErrConflict)
	}
}

// TestRestoreRefuses: what is no whole backup leaves nothing behind.
func TestRestoreRefuses(t *testing.T) {
	archive, _, _ := backup(t)
	flip := func(at int) []byte {
		b := bytes.Clone(archive)
		b[at] ^= 1
		return b
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "half": archive[:len(archive)/2], "without its end": archive[:len(archive)-20],
		// A damaged value can look like a value: only the checksum tells.
		"damaged": flip(len(archive) / 2), "damaged later": flip(len(archive) * 3 / 4), "another checksum": flip(len(archive) - 8),
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "new")
		err := state.Restore(t.Context(), state.Config{Dir: dir, Logger: quiet}, bytes.NewReader(b))
		if !errors.Is(err, faas.ErrInvalid) {
			t.Errorf("%s: Restore() = %v, want %v", name, err, faas.ErrInvalid)
		}
		if left, _ := os.ReadDir(parent); len(left) > 0 {
			t.Errorf("%s: Restore() left %v behind", name, left)
		}
	}
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	s := open(t, state.Config{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "format"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: quiet})
	if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Open() of a newer program's folder = %v", err)
	}
}
