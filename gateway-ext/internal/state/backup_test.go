package state_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
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

// TestFormat: what a newer program has written is left alone by all that would
// read it, and what is older than the number gets one.
func TestFormat(t *testing.T) {
	dir := t.TempDir()
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "newer") {
			t.Errorf("%s of a newer program = %v, want an ErrInvalid that says so", what, err)
		}
	}
	file := filepath.Join(dir, "format")
	number := func() string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	s := open(t, state.Config{Dir: dir})
	put(t, bucket(t, s, "b"), "k", "v")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := number(); got != "1\n" {
		t.Errorf("the folder's number is %q, want 1", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s = open(t, state.Config{Dir: dir})
	if got := all(t, bucket(t, s, "b")); got["k"] != "v" || number() != "1\n" {
		t.Errorf("a folder from before the numbers has %v and the number %q", got, number())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: quiet})
	refused("a gateway's folder", err)
	_, err = state.Claim(state.Config{Dir: dir, Logger: quiet})
	refused("a node's folder", err)
	if number() != "2\n" {
		t.Errorf("the number became %q", number())
	}

	var newer bytes.Buffer
	zip := gzip.NewWriter(&newer)
	out := tar.NewWriter(zip)
	manifest := []byte(`{"thicket":"v9.0.0","format":2}`)
	if err := errors.Join(out.WriteHeader(&tar.Header{Name: "backup.json", Size: int64(len(manifest))}), second(out.Write(manifest)), out.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	err = state.Restore(t.Context(), state.Config{Dir: filepath.Join(t.TempDir(), "new"), Logger: quiet}, &newer)
	refused("a backup", err)
	if err == nil || !strings.Contains(err.Error(), "v9.0.0") {
		t.Errorf("the refusal %v doesn't say which version wrote it", err)
	}
}

func second(_ int, err error) error { return err }

// TestNATSFormat: nor is it read from a cluster.
func TestNATSFormat(t *testing.T) {
	c := startNATS(t, 1, nil)
	cfg := state.Config{Dir: t.TempDir(), NATS: c.config("nuc"), Logger: quiet}
	s := open(t, cfg)
	meta, err := s.JetStream().KeyValue(t.Context(), "thicket_meta")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := meta.Put(t.Context(), "format", []byte("2")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err = state.Open(t.Context(), cfg); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Open() of a newer program's prefix = %v, want an ErrInvalid that says so", err)
	}
}

// TestClaim: a node's folder belongs to one process, and to no gateway beside it.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	folder, err := state.Claim(state.Config{Dir: dir, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.Claim(state.Config{Dir: dir, Logger: quiet}); !errors.Is(err, faas.ErrConflict) {
		t.Errorf("Claim() of a folder in use = %v, want an ErrConflict", err)
	}
	if _, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: quiet}); !errors.Is(err, faas.ErrConflict) {
		t.Errorf("Open() of a node's folder = %v, want an ErrConflict", err)
	}
	if err := folder.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, state.Config{Dir: dir})
}
