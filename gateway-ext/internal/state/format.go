package state

import (
	"bytes"
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
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || n < 1 {
		return faas.Errorf(faas.ErrInvalid, "%s says %.20q and not a number: put %d into it if no other version of this program was here", path, b, format)
	}
	if n > format {
		return faas.Errorf(faas.ErrInvalid, "the state in %s was written by a newer version of this program (its format is %d, and this one knows %d): install that version again, or restore a backup from before into another folder", s.cfg.Dir, n, format)
	}
	return nil
}
