package state

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// format is the number of how the state folder is laid out. It grows when an
// older program would misread what a newer one has written; then this package
// knows how to bring the older one's folder up to it.
const format = 1

// formatFile has the folder's number.
const formatFile = "format"

// identityFile has what tells this folder from all others.
const identityFile = "identity"

// identity returns it; it is made on the first call. It isn't part of a backup: a
// folder that is made of one is another.
func (s *State) identity() (string, error) {
	path := filepath.Join(s.cfg.Dir, identityFile)
	b, err := s.readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(rand.Text())
		err = s.writePrivate(path, append(b, '\n'))
	}
	return string(bytes.TrimSpace(b)), err
}

// checkFormat refuses the folder of a newer program, and writes into one that
// has no number yet which it is of.
func (s *State) checkFormat() error {
	path := filepath.Join(s.cfg.Dir, formatFile)
	b, err := s.readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) { // it is new, or older than the number
		if err := s.writePrivate(path, fmt.Appendln(nil, format)); !errors.Is(err, faas.ErrNoSpace) {
			return err
		}
		return nil // what is there must be readable; the next start writes it
	}
	if err != nil {
		return err
	}
	return knownFormat(s.cfg.Dir, b)
}

// knownFormat refuses what a newer program has written at a place.
func knownFormat(at string, number []byte) error {
	n, err := strconv.Atoi(string(bytes.TrimSpace(number)))
	if err != nil || n < 1 {
		return faas.Errorf(faas.ErrInvalid, "the format of the state in %s is said to be %.20q and not a number: write %d in its place if no other version of this program was there", at, number, format)
	}
	if n > format {
		return faas.Errorf(faas.ErrInvalid, "the state in %s was written by a newer version of this program (its format is %d, and this one knows %d): install that version again, or restore a backup from before into another folder", at, n, format)
	}
	return nil
}
