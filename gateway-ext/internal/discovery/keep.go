package discovery

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxFile is the largest file that is read or written: all sources with the
// largest details, and their replicas.
const maxFile = 40 << 20

// What is on disk is one line that names the format and the sum of the rest, and
// the rest: a JSON list. A power cut in the middle of a write can't be mistaken
// for a shorter list.
const fileMark = "thicket-discovery 1 %08x\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// savedSource is one source on disk.
type savedSource struct {
	Kind     string          `json:"kind"`
	Name     string          `json:"name"`
	Suspect  time.Duration   `json:"suspect"`
	Gone     time.Duration   `json:"gone"`
	Probe    Target          `json:"probe"`
	Detail   json.RawMessage `json:"detail,omitempty"`
	Replicas []faas.Replica  `json:"replicas,omitempty"`
}

// keeper writes what is known whenever it is told that it changed, but not more
// often than every few seconds: cards in small machines die of writes. When a
// disk is slow or full, only this goroutine notices.
func (t *Table) keeper(ctx context.Context, changed <-chan struct{}) {
	if t.cfg.Path == "" {
		return
	}
	var last []byte
	for {
		select {
		case <-ctx.Done():
			t.save(&last)
			return
		case <-changed:
		}
		t.save(&last)
		select {
		case <-ctx.Done():
		case <-time.After(keepPause):
		}
	}
}

// save writes what is known, if that isn't what was written last.
func (t *Table) save(last *[]byte) {
	t.mu.Lock()
	dirty := t.changed
	t.changed = false
	var list []savedSource
	if dirty {
		for key, s := range t.sources {
			list = append(list, savedSource{
				Kind: key.kind, Name: key.name,
				Suspect: s.lease.Suspect, Gone: s.lease.Gone, Probe: s.lease.Probe, Detail: s.lease.Detail,
				Replicas: s.saved().Replicas,
			})
		}
	}
	t.mu.Unlock()
	if !dirty {
		return
	}
	slices.SortFunc(list, func(a, b savedSource) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	body, err := json.Marshal(list)
	switch {
	case err != nil:
	case bytes.Equal(body, *last):
		return
	case len(body) > maxFile-len(fileMark):
		err = fmt.Errorf("%d bytes are more than a start would read", len(body))
	default:
		err = writeFile(t.cfg.Path, body)
	}
	if err != nil {
		// What is there stays. It is tried again in the next round, which comes
		// with the next thing that happens.
		t.mu.Lock()
		t.changed = true
		t.mu.Unlock()
		t.cfg.Logger.Error("what is known of replicas is not on disk", "path", t.cfg.Path, "err", err)
		return
	}
	*last = body
}

// writeFile replaces the file at path, so that whatever happens either the old
// or the new one is there.
func writeFile(path string, body []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = fmt.Fprintf(f, fileMark+"%s", crc32.Checksum(body, castagnoli), body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// restore reads what was known before the start.
func (t *Table) restore() {
	list, err := readFile(t.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.cfg.Logger.Warn("what was known of replicas can't be read: waiting for those who tell of them", "path", t.cfg.Path, "err", err)
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, saved := range list {
		s := &Source{
			t: t, kind: saved.Kind, name: saved.Name, replicas: make(map[string]*Endpoint), opened: now,
			lease: Lease{Suspect: saved.Suspect, Gone: saved.Gone, Probe: saved.Probe, Detail: saved.Detail},
		}
		t.sources[sourceKey{s.kind, s.name}] = s
		s.suspect(true, now)
		for _, r := range saved.Replicas {
			t.observe(r, s)
		}
	}
	t.changed = false
	if len(list) > 0 {
		t.cfg.Logger.Info("replicas are known from before the start", "sources", len(list))
	}
}

// readFile reads and checks the file at path.
func readFile(path string) ([]savedSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return parseFile(content)
}

// parseFile reads the content of a file. Whatever it holds, it doesn't panic,
// and what it returns is sound.
func parseFile(content []byte) ([]savedSource, error) {
	head, body, found := bytes.Cut(content, []byte("\n"))
	if !found || string(head)+"\n" != fmt.Sprintf(fileMark, crc32.Checksum(body, castagnoli)) {
		return nil, errors.New("it is cut off, broken, or of another version")
	}
	var list []savedSource
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	if len(list) > maxSources {
		return nil, fmt.Errorf("it has %d sources, at most %d are taken", len(list), maxSources)
	}
	for _, s := range list {
		if s.Suspect <= 0 || s.Gone < s.Suspect || len(s.Detail) > maxDetail {
			return nil, fmt.Errorf("what it says of %.100q makes no sense", s.Name)
		}
		for _, r := range s.Replicas {
			_, err := faas.ParseName(r.Function.String())
			if err != nil || r.ID == "" || !r.Addr.IsValid() || r.State >= faas.Gone {
				return nil, fmt.Errorf("what it says of replica %.100q makes no sense", r.ID)
			}
		}
	}
	return list, nil
}
