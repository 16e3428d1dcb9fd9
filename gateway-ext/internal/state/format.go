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

// steps bring a folder from each format to the next: the first one from what was
// before there was a number. A format is added when an older program would misread
// what a newer one writes; its step is its only trace here, and with it goes a
// folder of the format before in testdata/state of the gateway's tests.
//
// A step is done before anything else reads the folder. It may be done again if it
// was cut short: the number is written when it is over.
var steps = [...]func(*State) error{
	0: func(*State) error { return nil }, // only the number was missing
}

// format is the number of how the state folder is laid out.
const format = len(steps)

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

// checkFormat refuses the folder of a newer program, and brings that of an older
// one up to date.
func (s *State) checkFormat() error {
	path := filepath.Join(s.cfg.Dir, formatFile)
	n := 0 // it is new, or older than the number
	b, err := s.readPrivate(path)
	if err == nil {
		n, err = knownFormat(s.cfg.Dir, b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for ; n < format; n++ {
		if err := steps[n](s); err != nil {
			return fmt.Errorf("bring the state in %s from format %d to %d: %w", s.cfg.Dir, n, n+1, err)
		}
		if err := s.writePrivate(path, fmt.Appendln(nil, n+1)); err != nil && !errors.Is(err, faas.ErrNoSpace) {
			return err // with a full disk what is there must be readable; the next start writes it
		}
	}
	return nil
}

// knownFormat reads the number of a place, and refuses what a newer program has
// written.
func knownFormat(at string, number []byte) (int, error) {
	n, err := strconv.Atoi(string(bytes.TrimSpace(number)))
	if err != nil || n < 1 {
		return 0, faas.Errorf(faas.ErrInvalid, "the format of the state in %s is said to be %.20q and not a number: write %d in its place if no other version of this program was there", at, number, format)
	}
	if n > format {
		return 0, faas.Errorf(faas.ErrInvalid, "the state in %s was written by a newer version of this program (its format is %d, and this one knows %d): install that version again, or restore a backup from before into another folder", at, n, format)
	}
	return n, nil
}
