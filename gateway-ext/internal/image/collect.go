package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// collectEvery is how often the registry is tidied up.
	collectEvery = time.Hour
	// uploadAge is how long an upload may take.
	uploadAge = 24 * time.Hour
)

// Run keeps house until ctx ends: it removes uploads that were never finished,
// and manifests and layers that nothing refers to.
func (g *Registry) Run(ctx context.Context) error {
	wait := time.Minute // not while everything else starts
	for {
		select {
		case <-time.After(wait + rand.N(wait/2)):
		case <-ctx.Done():
			return nil
		}
		wait = collectEvery
		freed, err := g.Collect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			g.cfg.Logger.Error("the registry can't be tidied up", "err", err)
		case freed > 0:
			g.cfg.Logger.Info("registry tidied up", "freed", freed)
		}
	}
}

// Collect removes uploads that nobody goes on with, manifests that no tag and no
// index points to and that Keep doesn't name, and layers that no manifest is
// made of. What is younger than the grace period stays. It returns how many
// bytes of layers it removed. Pushes that finish meanwhile wait for it.
func (g *Registry) Collect(ctx context.Context) (freed int64, err error) {
	if err := g.gate.Acquire(ctx, gateWeight); err != nil {
		return 0, err
	}
	defer g.gate.Release(gateWeight)
	g.purgeUploads(ctx, time.Now().Add(-uploadAge))
	c := &collection{
		g: g, vacuum: storage.NewVacuum(ctx, g.driver), horizon: time.Now().Add(-g.cfg.Grace),
		keep: map[digest.Digest]bool{}, marked: map[digest.Digest]bool{},
	}
	if g.cfg.Keep != nil {
		for _, d := range g.cfg.Keep() {
			c.keep[digest.Digest(d)] = true
		}
	}
	err = errors.Join(c.run(ctx), g.measure())
	if err != nil {
		err = fmt.Errorf("collect garbage: %w", err)
	}
	return c.freed, err
}

func (g *Registry) purgeUploads(ctx context.Context, before time.Time) {
	if _, err := g.root.Stat(libraryRoot + "repositories"); missingPath(err) {
		return // nothing was ever pushed
	}
	_, errs := storage.PurgeUploads(ctx, g.driver, before, true)
	for _, err := range errs {
		g.cfg.Logger.Warn("an unfinished upload can't be removed", "err", err)
	}
}

// missingPath tells whether the library found nothing there. It reports so for
// whatever was never pushed to.
func missingPath(err error) bool {
	_, ok := errors.AsType[driver.PathNotFoundError](err)
	return ok || errors.Is(err, fs.ErrNotExist)
}

type collection struct {
	g       *Registry
	vacuum  storage.Vacuum
	horizon time.Time
	keep    map[digest.Digest]bool
	marked  map[digest.Digest]bool // needed by some repository
	freed   int64
}

// run marks first, in all repositories, and removes nothing until that has
// succeeded. What refers is removed before what it refers to, so that it may be
// interrupted at any point.
func (c *collection) run(ctx context.Context) error {
	var remove []func() error
	repos, ok := c.g.images.(distribution.RepositoryEnumerator)
	if !ok {
		return errors.New("the library can't list repositories")
	}
	err := repos.Enumerate(ctx, func(repo string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		todo, err := c.repository(ctx, repo)
		remove = append(remove, todo...)
		if err != nil {
			return fmt.Errorf("repository %s: %w", repo, err)
		}
		return nil
	})
	if err != nil && !missingPath(err) {
		return err
	}
	for _, f := range remove {
		if err := f(); err != nil && !missingPath(err) {
			return err
		}
	}
	return c.blobs(ctx)
}

// repository marks what a repository needs and returns what removes the rest of
// it.
func (c *collection) repository(ctx context.Context, repo string) (remove []func() error, err error) {
	named, err := reference.WithName(repo)
	if err != nil {
		return nil, err
	}
	r, err := c.g.images.Repository(ctx, named)
	if err != nil {
		return nil, err
	}
	manifests, err := r.Manifests(ctx)
	if err != nil {
		return nil, err
	}
	tags, current, err := c.tags(ctx, r)
	if err != nil {
		return nil, err
	}

	needed := map[digest.Digest]bool{} // here
	var revisions []digest.Digest
	err = enumerate(ctx, manifests, func(d digest.Digest) error {
		revisions = append(revisions, d)
		if current[d] || c.keep[d] || c.young(revisionLinkPath(repo, d.Encoded())) {
			return c.mark(ctx, manifests, d, needed)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, d := range revisions {
		if !needed[d] {
			remove = append(remove, func() error { return c.vacuum.RemoveManifest(repo, d, tags) })
		}
	}
	err = enumerate(ctx, r.Blobs(ctx), func(d digest.Digest) error {
		if !needed[d] && !c.young(layerLinkPath(repo, d.Encoded())) {
			remove = append(remove, func() error { return c.vacuum.RemoveLayer(repo, d) })
		}
		return nil
	})
	return remove, err
}

// tags returns a repository's tags, and what they point to now.
func (c *collection) tags(ctx context.Context, r distribution.Repository) ([]string, map[digest.Digest]bool, error) {
	current := map[digest.Digest]bool{}
	tags, err := r.Tags(ctx).All(ctx)
	if err != nil {
		if _, ok := errors.AsType[distribution.ErrRepositoryUnknown](err); ok || missingPath(err) {
			return nil, current, nil
		}
		return nil, nil, err
	}
	for _, tag := range tags {
		d, err := r.Tags(ctx).Get(ctx, tag)
		if err != nil {
			if _, ok := errors.AsType[distribution.ErrTagUnknown](err); ok {
				continue // its manifest was deleted
			}
			return nil, nil, err
		}
		current[d.Digest] = true
	}
	return tags, current, nil
}

// enumerate calls f for each link of a part of a repository that can list them.
func enumerate(ctx context.Context, part any, f func(digest.Digest) error) error {
	e, ok := part.(distribution.ManifestEnumerator)
	if !ok {
		return fmt.Errorf("the library can't list a %T", part)
	}
	if err := e.Enumerate(ctx, f); err != nil && !missingPath(err) {
		return err
	}
	return nil
}

// mark notes that a manifest is needed, and everything that it refers to.
func (c *collection) mark(ctx context.Context, manifests distribution.ManifestService, d digest.Digest, needed map[digest.Digest]bool) error {
	if needed[d] {
		return nil
	}
	needed[d], c.marked[d] = true, true
	m, err := manifests.Get(ctx, d)
	if err != nil {
		if _, ok := errors.AsType[distribution.ErrManifestUnknownRevision](err); ok {
			return nil // a layer, or a manifest that is not here
		}
		return err
	}
	for _, ref := range m.References() {
		if isManifest(ref) {
			if err := c.mark(ctx, manifests, ref.Digest, needed); err != nil {
				return err
			}
		}
		needed[ref.Digest], c.marked[ref.Digest] = true, true
	}
	return nil
}

func isManifest(d ocispec.Descriptor) bool {
	return d.MediaType == "" || strings.Contains(d.MediaType, ".manifest.") || strings.Contains(d.MediaType, ".index.")
}

// blobs removes what no repository needs.
func (c *collection) blobs(ctx context.Context) error {
	var unneeded []digest.Digest
	err := c.g.images.Blobs().Enumerate(ctx, func(d digest.Digest) error {
		if d.Algorithm() == digest.SHA256 && !c.marked[d] && !c.young(blobPath(d.Encoded())) {
			unneeded = append(unneeded, d)
		}
		return ctx.Err()
	})
	if err != nil && !missingPath(err) {
		return err
	}
	for _, d := range unneeded {
		if fi, err := c.g.root.Stat(blobPath(d.Encoded())); err == nil {
			c.freed += fi.Size()
		}
		if err := c.vacuum.RemoveBlob(d.String()); err != nil && !missingPath(err) {
			return err
		}
	}
	return c.leftovers()
}

// leftovers removes what writes that were cut by a full disk or a power cut left
// beside the files they were to become.
func (c *collection) leftovers() error {
	return fs.WalkDir(c.g.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".tmp" || c.young(p) {
			return gone(err)
		}
		return gone(c.g.root.Remove(p))
	})
}

// young tells whether a file was written, or renewed, within the grace period.
func (c *collection) young(p string) bool {
	fi, err := c.g.root.Stat(p)
	return err == nil && fi.ModTime().After(c.horizon)
}
