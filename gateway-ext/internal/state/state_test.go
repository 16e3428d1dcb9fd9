package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, cfg state.Config) *state.State {
	t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := state.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func bucket(t *testing.T, s *state.State, name string) *state.Bucket {
	t.Helper()
	b, err := s.Bucket(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func all(t *testing.T, b *state.Bucket) map[string]string {
	t.Helper()
	got := make(map[string]string)
	if err := b.Each(t.Context(), func(key string, value []byte) error {
		got[key] = string(value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func put(t *testing.T, b *state.Bucket, key, value string) {
	t.Helper()
	if err := b.Put(t.Context(), key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func TestBucketKeepsWhatWasPut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	s := open(t, state.Config{Dir: dir})
	b, other := bucket(t, s, "one"), bucket(t, s, "other")
	large := strings.Repeat("x", state.MaxValue)
	put(t, b, "a.b", "1")
	put(t, b, "a.c", "2")
	put(t, b, "a.b", "3")
	put(t, b, "gone", "4")
	put(t, b, "large", large)
	put(t, other, "a.b", "of the other")
	for range 2 { // what isn't there is deleted just as well
		if err := b.Delete(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"a.b": "3", "a.c": "2", "large": large}
	if got := all(t, b); !maps.Equal(got, want) {
		t.Errorf("before the restart: %d keys, want %d with the newest values", len(got), len(want))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	b = bucket(t, open(t, state.Config{Dir: dir}), "one")
	if got := all(t, b); !maps.Equal(got, want) {
		t.Errorf("after the restart: %d keys, want %d with the newest values", len(got), len(want))
	}
	if got, err := b.Get(t.Context(), "a.b"); err != nil || string(got) != "3" {
		t.Errorf("Get(a.b) = %q, %v, want 3", got, err)
	}
	for _, key := range []string{"gone", "never"} {
		if _, err := b.Get(t.Context(), key); !errors.Is(err, faas.ErrNotFound) {
			t.Errorf("Get(%s) = %v, want ErrNotFound", key, err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, want 0700 (%v)", info.Mode(), err)
	}
}

func TestBucketRefuses(t *testing.T) {
	b := bucket(t, open(t, state.Config{Dir: t.TempDir()}), "b")
	if err := b.Put(t.Context(), "k", make([]byte, state.MaxValue+1)); !errors.Is(err, faas.ErrTooLarge) {
		t.Errorf("Put of too large a value = %v, want ErrTooLarge", err)
	}
	if err := b.Put(t.Context(), "not a key", nil); err == nil {
		t.Error("Put took a key with spaces")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, "k", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Put after cancel = %v, want context.Canceled", err)
	}
	boom := errors.New("boom")
	put(t, b, "k", "v")
	if err := b.Each(t.Context(), func(string, []byte) error { return boom }); err != boom {
		t.Errorf("Each = %v, want what f returned", err)
	}
	if got := all(t, b); len(got) != 1 {
		t.Errorf("kept %v, want k alone", got)
	}
}

// A caller without time says nothing of the store, which must go on for all
// others as if nothing had been.
func TestCallerWithoutTime(t *testing.T) {
	var said bytes.Buffer
	s, err := state.Open(t.Context(), state.Config{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := bucket(t, s, "b")
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
		err := b.Put(ctx, "k", []byte("v"))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put = %v, want nil or DeadlineExceeded", err)
		}
	}
	put(t, b, "k2", "v2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(said.String(), "anew") {
		t.Errorf("the store was started anew: %s", said.String())
	}
}

func TestKeyIsMadeOnce(t *testing.T) {
	s := open(t, state.Config{Dir: t.TempDir()})
	keys := make([][]byte, 8)
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			var err error
			if keys[i], err = s.Key("secrets"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, key := range keys {
		if !bytes.Equal(key, keys[0]) {
			t.Fatalf("keys %x and %x were made", key, keys[0])
		}
	}
}

func TestFolderBelongsToOne(t *testing.T) {
	dir := t.TempDir()
	first := open(t, state.Config{Dir: dir})
	_, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, faas.ErrConflict) {
		t.Fatalf("second Open = %v, want ErrConflict", err)
	}
	for _, part := range []string{dir, "process " + strconv.Itoa(os.Getpid())} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q doesn't say %q", err, part)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, state.Config{Dir: dir})
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below")} {
		s, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			s.Close()
			t.Errorf("Open(%q) succeeded", dir)
		}
	}
}

func TestKey(t *testing.T) {
	dir := t.TempDir()
	s := open(t, state.Config{Dir: dir})
	key, err := s.Key("secrets")
	if err != nil || len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
		t.Fatalf("Key = %x, %v, want 32 random bytes", key, err)
	}
	if again, err := s.Key("secrets"); err != nil || !bytes.Equal(again, key) {
		t.Errorf("second Key = %x, %v, want the first, %x", again, err, key)
	}
	if other, err := s.Key("other"); err != nil || bytes.Equal(other, key) {
		t.Errorf("Key of another name = %x, %v, want one of its own", other, err)
	}
	path := filepath.Join(dir, "secrets.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600 (%v)", info.Mode(), err)
	}

	tests := []struct {
		name  string
		spoil func() error
		want  string
	}{
		{"readable by others", func() error { return os.Chmod(path, 0o644) }, "chmod 600"},
		{"short", func() error { return os.WriteFile(path, key[:31], 0o600) }, "31 bytes"},
		{"empty", func() error { return os.WriteFile(path, nil, 0o600) }, "0 bytes"},
		{"a folder", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "not a small regular file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(path, key, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chmod(path, 0o600), tt.spoil()); err != nil {
				t.Fatal(err)
			}
			_, err := s.Key("secrets")
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Key = %v, want an ErrInvalid that says %q and the path", err, tt.want)
			}
		})
	}
}

func TestPassword(t *testing.T) {
	dir := t.TempDir()
	s := open(t, state.Config{Dir: dir})
	password, path, created, err := s.Password()
	if err != nil || !created || len(password) < 20 {
		t.Fatalf("Password = %q, created %t, %v, want a new one", password, created, err)
	}
	if want := filepath.Join(dir, "basic-auth-password"); path != want {
		t.Errorf("path = %s, want %s", path, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600 (%v)", info.Mode(), err)
	}
	again, _, created, err := s.Password()
	if again != password || created || err != nil {
		t.Errorf("second Password = %q, created %t, %v, want the first", again, created, err)
	}

	tests := []struct {
		name, content string
		mode          os.FileMode
		password      string
		refusal       string
	}{
		{"of one's own", " pa ss \n", 0o600, "pa ss", ""},
		{"empty", "\n", 0o600, "", "is empty"},
		{"two lines", "a\nb\n", 0o600, "", "more than one line"},
		{"readable by others", "a", 0o604, "", "chmod 600"},
		{"readable by the group", "a", 0o640, "", "chmod 600"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(path, []byte(tt.content), 0o600), os.Chmod(path, tt.mode)); err != nil {
				t.Fatal(err)
			}
			got, _, created, err := s.Password()
			if got != tt.password || created {
				t.Errorf("Password = %q, created %t, want %q", got, created, tt.password)
			}
			if (err == nil) != (tt.refusal == "") || err != nil && !strings.Contains(err.Error(), tt.refusal) {
				t.Errorf("error = %v, want %q", err, tt.refusal)
			}
		})
	}
}

func TestStoreIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, state.Config{Dir: dir, MaxBytes: 4 << 20})
	b := bucket(t, s, "b")
	value := strings.Repeat("x", 1<<20)
	var kept int
	var err error
	for kept = 0; kept < 10 && err == nil; kept++ {
		err = b.Put(t.Context(), fmt.Sprintf("k%d", kept), []byte(value))
	}
	kept--
	if !errors.Is(err, faas.ErrNoSpace) || !strings.Contains(err.Error(), "4 MiB") {
		t.Fatalf("Put number %d = %v, want an ErrNoSpace that names the bound", kept, err)
	}
	if got := all(t, b); len(got) != kept {
		t.Errorf("%d keys are left, want %d", len(got), kept)
	}
	if err := b.Delete(t.Context(), "k0"); err != nil {
		t.Fatalf("Delete when full: %v", err)
	}
	if err := b.Put(t.Context(), "new", []byte("small")); err != nil {
		t.Errorf("Put after Delete: %v", err)
	}
}
