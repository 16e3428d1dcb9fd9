package state

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// keySize is the length of a [State.Key]: that of an AES-256 key.
const keySize = 32

// PasswordFile is the name of the generated password's file in the state
// folder: OpenFaaS's own, so that the folder can serve as secret_mount_path.
const PasswordFile = "basic-auth-password"

// Key returns the 32 random bytes in the file NAME.key of the folder, which is
// made on the first call, readable by its owner alone. Where the store is not in
// the folder, a key that isn't the one that the store was used with is refused.
func (s *State) Key(name string) ([]byte, error) {
	s.making.Lock()
	defer s.making.Unlock()
	path := filepath.Join(s.cfg.Dir, name+".key")
	key, err := s.readPrivate(path)
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		key, err = make([]byte, keySize), nil
		rand.Read(key) // never returns an error
	}
	if err != nil {
		return nil, err
	}
	if len(key) != keySize {
		return nil, faas.Errorf(faas.ErrInvalid, "the key %s has %d bytes instead of %d: put the right file back from a backup (without it, what it encrypted can't be read)",
			path, len(key), keySize)
	}
	sum := sha256.Sum256(key)
	if err := s.engine.key(name, hex.EncodeToString(sum[:8])); err != nil {
		return nil, err
	}
	if made {
		if err := s.writePrivate(path, key); err != nil {
			return nil, fmt.Errorf("make the key %s: %w", path, err)
		}
	}
	return key, nil
}

// Password returns the password in the folder's file [PasswordFile], and the
// file's path. The first call makes both, and says so with created.
func (s *State) Password() (password, path string, created bool, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	path = filepath.Join(s.cfg.Dir, PasswordFile)
	b, err := s.readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, 24) // 192 bits, 32 characters that a shell leaves alone
		rand.Read(raw)
		password = base64.RawURLEncoding.EncodeToString(raw)
		if err := s.writePrivate(path, []byte(password+"\n")); err != nil {
			return "", path, false, fmt.Errorf("make the password file: %w", err)
		}
		return password, path, true, nil
	}
	if err != nil {
		return "", path, false, err
	}
	password = string(bytes.TrimSpace(b))
	if password == "" {
		return "", path, false, faas.Errorf(faas.ErrInvalid, "the password file %s is empty: write a password into it, or remove it and one is generated", path)
	}
	if strings.ContainsAny(password, "\r\n") {
		return "", path, false, faas.Errorf(faas.ErrInvalid, "the password file %s has more than one line: it must hold the password alone", path)
	}
	return password, path, false, nil
}

// readPrivate reads a small file that nobody but its owner can read.
func (s *State) readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > 4<<10 {
		return nil, faas.Errorf(faas.ErrInvalid, "%s is not a small regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, faas.Errorf(faas.ErrInvalid, "others can read %s (mode %04o): chmod 600 %s, and change what is in it if they may have", path, perm, path)
	}
	return os.ReadFile(path)
}

// writePrivate makes a file that only its owner can read. It is there whole or
// not at all, also after a power cut.
func (s *State) writePrivate(path string, data []byte) (err error) {
	if err := s.cfg.roomOnDisk(len(data)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // with mode 0600
	if err != nil {
		return noSpace(err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name()) // if it is still there; err is what counts
			err = noSpace(err)
		}
	}()
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncOne(filepath.Dir(path))
}

// syncTree makes durable all that is in a folder, and that it is there. What
// the store wrote it has synced itself, but for the folders it made.
func syncTree(dir string) error {
	if err := syncOne(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && (e.IsDir() || e.Type().IsRegular()) {
			err = syncOne(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the store is at work, and took it away again
		}
		return err
	})
}

func syncOne(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
