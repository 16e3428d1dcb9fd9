package state

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// A backup is a tar archive, compressed with gzip:
//
//	backup.json           what it is: see manifest
//	keys/NAME.key         the keys of [State.Key]
//	keys/PASSWORD         the generated password
//	buckets/NAME.jsonl    a [Bucket]: a line of JSON for each key, see pair
//	folders/NAME/...      whatever else the caller wants to have kept
//	end                   empty: without it the backup isn't whole

// manifest says what a backup is.
type manifest struct {
	Thicket string    `json:"thicket"` // the version that made it
	Format  int       `json:"format"`  // of the state, see format
	Made    time.Time `json:"made"`
}

// pair is one key of a bucket.
type pair struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

const (
	manifestName = "backup.json"
	endName      = "end"
)

// Backup writes all that the state holds, and the folders with the given names,
// as one archive. It has every secret in it: who has the backup has them.
//
// What is declared meanwhile may be in it or not.
func (s *State) Backup(ctx context.Context, w io.Writer, version string, folders map[string]string) error {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	err := s.backup(ctx, out, version, folders)
	if err != nil {
		return fmt.Errorf("make a backup: %w", err)
	}
	return errors.Join(out.Close(), zip.Close())
}

func (s *State) backup(ctx context.Context, out *tar.Writer, version string, folders map[string]string) error {
	m, err := json.Marshal(manifest{Thicket: version, Format: format, Made: time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := put(out, manifestName, m); err != nil {
		return err
	}
	// The buckets first: a key that is made later is of nothing in them.
	var names []string
	for name, err := range s.buckets(ctx) {
		if err != nil {
			return s.explain(err)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := s.Bucket(ctx, name)
		if err != nil {
			return err
		}
		var lines bytes.Buffer
		to := json.NewEncoder(&lines)
		if err := b.Each(ctx, func(key string, value []byte) error { return to.Encode(pair{key, value}) }); err != nil {
			return err
		}
		if err := put(out, "buckets/"+name+".jsonl", lines.Bytes()); err != nil {
			return err
		}
	}
	keys, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*.key"))
	if err != nil {
		return err
	}
	for _, key := range append(keys, filepath.Join(s.cfg.Dir, PasswordFile)) {
		b, err := s.readPrivate(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a password that somebody chose is not in the folder
		}
		if err != nil {
			return err
		}
		if err := put(out, "keys/"+filepath.Base(key), b); err != nil {
			return err
		}
	}
	for name, dir := range folders {
		if err := putFolder(ctx, out, "folders/"+name, dir); err != nil {
			return err
		}
	}
	return put(out, endName, nil)
}

// buckets returns the names of all there are, or an error.
func (s *State) buckets(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		list := s.js.KeyValueStoreNames(ctx)
		for stream := range list.Name() {
			if name, ok := s.engine.bucket(stream); ok && !yield(name, nil) {
				return
			}
		}
		if err := list.Error(); err != nil {
			yield("", err)
		}
	}
}

// put writes one small file.
func put(out *tar.Writer, name string, b []byte) error {
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := out.Write(b)
	return err
}

// putFolder writes a folder's regular files. One that goes meanwhile, or is
// being written, is left out.
func putFolder(ctx context.Context, out *tar.Writer, name, dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := root.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := out.WriteHeader(&tar.Header{Name: path.Join(name, p), Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
			return err
		}
		_, err = io.CopyN(out, f, info.Size())
		return err
	})
}

// Restore makes a state folder of a backup. The folder must be empty, or not be
// there: nothing is ever overwritten. A backup that isn't whole, or is of a
// newer version, leaves it as it was.
func Restore(ctx context.Context, cfg Config, r io.Reader) (err error) {
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return faas.Errorf(faas.ErrConflict, "%s is not empty: stop the gateway, move the folder away, and restore again", cfg.Dir)
	}
	// Beside it first: it is there whole or not at all.
	parent := filepath.Dir(filepath.Clean(cfg.Dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".restore-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	into := cfg
	into.Dir = tmp
	if err := restore(ctx, into, r); err != nil {
		return err
	}
	if err := os.Remove(cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, cfg.Dir); err != nil {
		return err
	}
	return syncOne(parent)
}

func restore(ctx context.Context, cfg Config, r io.Reader) error {
	notWhole := func(err error) error {
		return faas.Errorf(faas.ErrInvalid, "this is no backup of a gateway, or not a whole one: %w", err)
	}
	zip, err := gzip.NewReader(r)
	if err != nil {
		return notWhole(err)
	}
	in := tar.NewReader(zip)
	root, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	s, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	if err := s.vacant(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	defer func() {
		if s != nil { // err says what went wrong before
			s.forget(ctx)
			s.Close()
		}
	}()
	for first, whole := true, false; ; first = false {
		h, err := in.Next()
		if err == io.EOF && whole {
			// The checksum stands behind the archive's end: read up to it.
			if _, err := io.Copy(io.Discard, zip); err != nil {
				return notWhole(err)
			}
			err, s = s.Close(), nil
			return err
		}
		if err != nil {
			return notWhole(err)
		}
		kind, name, _ := strings.Cut(h.Name, "/")
		switch {
		case h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name):
			return notWhole(fmt.Errorf("it has the entry %.100q", h.Name))
		case first:
			var m manifest
			if err := json.NewDecoder(io.LimitReader(in, 64<<10)).Decode(&m); err != nil || h.Name != manifestName {
				return notWhole(fmt.Errorf("it begins with %.100q", h.Name))
			}
			if m.Format > format {
				return faas.Errorf(faas.ErrInvalid, "this backup was made by version %.40s, whose state this one can't read: install that version, or a newer one", m.Thicket)
			}
		case h.Name == endName:
			whole = true
		case kind == "keys" && !strings.Contains(name, "/"):
			b, err := io.ReadAll(io.LimitReader(in, 4<<10))
			if err != nil {
				return notWhole(err)
			}
			if err := s.writePrivate(filepath.Join(cfg.Dir, name), b); err != nil {
				return err
			}
		case kind == "buckets":
			if err := s.fill(ctx, strings.TrimSuffix(name, ".jsonl"), in); err != nil {
				return err
			}
		case kind == "folders":
			if err := unpack(root, name, in); err != nil {
				return noSpace(err)
			}
		}
	}
}

// vacant returns an [faas.ErrConflict] if something is stored: where the store is
// not in the folder, an empty folder doesn't say.
func (s *State) vacant(ctx context.Context) error {
	for name, err := range s.buckets(ctx) {
		if err != nil {
			return s.explain(err)
		}
		b, err := s.Bucket(ctx, name)
		if err != nil {
			return err
		}
		if err := b.Each(ctx, func(string, []byte) error {
			return faas.Errorf(faas.ErrConflict, "there is the state of a gateway under the prefix %s of NATS already: set another THICKET_NATS_PREFIX, or delete what is there", s.cfg.NATS.Prefix)
		}); err != nil {
			return err
		}
	}
	return s.engine.forget(ctx)
}

// forget removes what a restore has stored before it broke off. The folder goes as
// a whole.
func (s *State) forget(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := s.engine.forget(ctx); err != nil {
		s.cfg.Logger.Warn("what was restored in part could not be removed", "err", err)
	}
}

// fill stores a bucket's pairs.
func (s *State) fill(ctx context.Context, bucket string, r io.Reader) error {
	b, err := s.Bucket(ctx, bucket)
	if err != nil {
		return err
	}
	for d := json.NewDecoder(r); ; {
		var p pair
		if err := d.Decode(&p); err == io.EOF {
			return nil
		} else if err != nil || len(p.Value) > MaxValue {
			return faas.Errorf(faas.ErrInvalid, "this is no whole backup of a gateway: bucket %.40q can't be read (%w)", bucket, err)
		}
		if err := b.Put(ctx, p.Key, p.Value); err != nil {
			return err
		}
	}
}

// unpack writes one file of a folder.
func unpack(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
