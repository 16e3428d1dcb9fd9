package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prune removes images that nobody has fetched and not released, and for none
// of whose references ("repository@sha256:…") keep returns true; then the layers
// that no image is made of. It returns how many bytes of layers were removed. It
// may be called at any time: what is being pulled is left alone.
// keep must not call the store.
func (s *Store) Prune(ctx context.Context, keep func(ref string) bool) (freed int64, err error) {
	err = s.trees.clear(func(_ string, r *record) bool {
		if ctx.Err() != nil {
			return false
		}
		s.mu.Lock()
		refs := r.Refs
		s.mu.Unlock()
		return !slices.ContainsFunc(refs, keep)
	}, func(key string, r *record) error {
		s.forget(r)
		s.cfg.Logger.Info("image removed", "image", r.Refs[len(r.Refs)-1])
		return s.discard(treesDir + "/" + key)
	})

	// A layer that is not held any more belongs to an image that is known by
	// now: build makes it known before it lets go. So it is asked what is used
	// only when the layers stand still.
	var used map[string]bool
	err = errors.Join(err, s.layers.clear(func(key string, _ int64) bool {
		if used == nil {
			used = s.usedLayers()
		}
		return !used[key] && ctx.Err() == nil
	}, func(key string, size int64) error {
		freed += size
		return s.discard(layersDir + "/" + key)
	}))
	err = errors.Join(err, s.removeParts(time.Now().Add(-partAge)))
	if err != nil {
		return freed, fmt.Errorf("prune images: %w", err)
	}
	return freed, context.Cause(ctx)
}

// partAge is how long a layer that arrived in part is kept for another attempt.
const partAge = time.Hour

// removeParts removes downloads that nobody goes on with. One that is just being
// unpacked is read on: its name is gone, the file is not.
func (s *Store) removeParts(before time.Time) error {
	list, err := fs.ReadDir(s.root.FS(), tmpDir)
	if err != nil {
		return err
	}
	for _, d := range list {
		fi, err := d.Info()
		if err != nil || !strings.HasPrefix(d.Name(), partPrefix) || fi.ModTime().After(before) {
			continue
		}
		if err := s.root.Remove(tmpDir + "/" + d.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// usedLayers returns the layers that the images on disk are made of.
func (s *Store) usedLayers() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[string]bool{}
	for _, r := range s.digests {
		for _, l := range r.Layers {
			used[l] = true
		}
	}
	return used
}

func (s *Store) forget(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest, other := range s.digests {
		if other == r {
			delete(s.digests, digest)
		}
	}
}

// discard removes a folder of the store so that it is never seen half removed.
func (s *Store) discard(path string) error {
	tmp := tmpDir + "/gone-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := s.root.Rename(path, tmp); err != nil {
		return err
	}
	return s.root.RemoveAll(tmp)
}
