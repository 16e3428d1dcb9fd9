package provider

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// checkSecretNames refuses names that are not plain file names. They were checked
// when they were declared; a provider may also hear from another machine.
func checkSecretNames(secrets map[string][]byte) error {
	for name := range secrets {
		if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
			return faas.Errorf(faas.ErrInvalid, "secret %q can't be a file: use a-z, 0-9, \"-\" and \".\"", name)
		}
	}
	return nil
}

// prepareSecrets returns an empty folder for the secrets of all functions: in
// memory where the machine has such a place, so that they are never on a disk.
func prepareSecrets(dir string, m *machine) (string, error) {
	mode := os.FileMode(0o700)
	if m.users && !m.trees {
		mode = 0o711 // functions go through it to their own
	}
	for _, folder := range append(m.memoryFolder(dir), filepath.Join(dir, "secrets")) {
		// A folder by that name may belong to a killed gateway of ours. One that
		// belongs to somebody else can't be removed, or not be made again.
		if err := os.RemoveAll(folder); err != nil {
			continue
		}
		if err := os.Mkdir(folder, mode); err != nil {
			continue
		}
		return folder, os.Chmod(folder, mode)
	}
	return "", fmt.Errorf("there is no place for secrets: %s can't be made", filepath.Join(dir, "secrets"))
}

// putSecrets writes the revision's secrets to a folder of its own, if it isn't
// there yet. All replicas of the revision share it. The caller holds f.mu.
func (rev *revision) putSecrets(p *Process, uid int) (folder string, err error) {
	if rev.secrets != "" {
		return rev.secrets, nil
	}
	folder = filepath.Join(p.secrets, strings.ToLower(rand.Text()))
	if err := os.Mkdir(folder, 0o700); err != nil {
		return "", err
	}
	rev.uid = uid
	err = writeSecrets(folder, uid, rev.values)
	if err == nil && uid != 0 {
		err = errors.Join(os.Chmod(folder, 0o500), os.Chown(folder, uid, uid))
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(folder))
	}
	rev.secrets = folder
	return folder, nil
}

// replaceSecrets changes the values under the replicas that run: each file is
// replaced as a whole. The caller holds f.mu.
func (rev *revision) replaceSecrets(values map[string][]byte) error {
	old := rev.values
	rev.values = values
	if rev.secrets == "" {
		return nil
	}
	if err := writeSecrets(rev.secrets, rev.uid, values); err != nil {
		return err
	}
	var errs []error
	for name := range old {
		if _, ok := values[name]; !ok {
			errs = append(errs, os.Remove(filepath.Join(rev.secrets, name)))
		}
	}
	return errors.Join(errs...)
}

func (rev *revision) removeSecrets() error {
	if rev.secrets == "" {
		return nil
	}
	folder := rev.secrets
	rev.secrets = ""
	return os.RemoveAll(folder)
}

// writeSecrets writes each secret as a file that only uid can read. The errors
// name the file and never what is in it.
func writeSecrets(folder string, uid int, values map[string][]byte) error {
	for name, value := range values {
		tmp := filepath.Join(folder, "."+name)
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(tmp, value, 0o400); err != nil {
			return err
		}
		if uid != 0 {
			if err := os.Chown(tmp, uid, uid); err != nil {
				return err
			}
		}
		if err := os.Rename(tmp, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}
