package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// build pulls an image's layers and plants its tree.
func (s *Store) build(ctx context.Context, image string, p *plan) (*record, error) {
	start := time.Now()
	pr := s.startProgress(image, p)
	held, sizes, err := s.takeLayers(ctx, image, p, pr)
	defer func() {
		for _, release := range held {
			release()
		}
	}()
	if err != nil {
		return nil, err
	}
	rec := &record{
		Manifest:   p.key,
		Refs:       []string{p.src.repo.Name() + "@" + p.digest},
		Platform:   platformName(s.platforms[0]),
		Offer:      p.digest,
		Platforms:  p.platforms,
		Entrypoint: p.config.Config.Entrypoint,
		Cmd:        p.config.Config.Cmd,
		Env:        p.config.Config.Env,
		WorkingDir: p.config.Config.WorkingDir,
		User:       p.config.Config.User,
	}
	t := newTree(maxNames)
	for i, d := range p.config.RootFS.DiffIDs {
		dir := layersDir + "/" + d.Hex
		entries, err := readIndex(s.root, dir)
		if err != nil {
			return nil, s.diskError(image, err)
		}
		if err := t.lay(entries, func(n int) string { return dir + "/" + contentPath(n) }); err != nil {
			return nil, s.layerError(image, d.String(), err)
		}
		rec.Layers = append(rec.Layers, d.Hex)
		rec.Bytes += sizes[i]
	}
	t.addMounts()
	tmp := tmpDir + "/tree-" + p.key
	if err := s.plant(t, tmp, rec); err != nil {
		return nil, s.diskError(image, errors.Join(err, s.root.RemoveAll(tmp)))
	}
	s.remember(rec)
	s.cfg.Logger.Info("image pulled", "image", image, "digest", p.digest, "layers", len(rec.Layers), "bytes", rec.Bytes, "took", time.Since(start).Round(time.Millisecond).String())
	return rec, nil
}

func (s *Store) plant(t *tree, tmp string, rec *record) error {
	if err := s.root.RemoveAll(tmp); err != nil {
		return err
	}
	if err := s.root.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := s.root.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := t.plant(s.root, tmp+"/"+rootfs); err != nil {
		return err
	}
	if err := s.writeRecord(tmp, rec); err != nil {
		return err
	}
	// The contents are on the disk since their layers are. Names are written in
	// order by every file system that a store should be on, so those of the
	// tree are there if the rename is.
	if err := s.root.Rename(tmp, treesDir+"/"+rec.Manifest); err != nil {
		return err
	}
	return syncFile(s.root, treesDir)
}

// takeLayers brings an image's layers onto the disk, three at a time, since
// registries limit what one connection gets.
func (s *Store) takeLayers(ctx context.Context, image string, p *plan, pr *progress) (held []func(), sizes []int64, err error) {
	var mu sync.Mutex // guards held and total
	var total int64
	sizes = make([]int64, len(p.manifest.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for i, blob := range p.manifest.Layers {
		diffID := p.config.RootFS.DiffIDs[i]
		g.Go(func() error {
			size, release, err := s.layers.take(ctx, diffID.Hex, func(ctx context.Context) (int64, error) {
				return s.pullLayer(ctx, image, p.src, blob, diffID, pr)
			})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			held, sizes[i] = append(held, release), size
			if total += size; total > s.cfg.MaxImageBytes {
				return s.tooLarge(image)
			}
			return nil
		})
	}
	err = g.Wait()
	return held, sizes, err
}

// pullLayer downloads, verifies and unpacks one layer.
func (s *Store) pullLayer(ctx context.Context, image string, src *source, blob v1.Descriptor, diffID v1.Hash, pr *progress) (int64, error) {
	// A part that an earlier attempt left is gone on with.
	part := tmpDir + "/" + partPrefix + blob.Digest.Hex[:32] + "-" + diffID.Hex[:32]
	f, err := s.root.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, s.diskError(image, err)
	}
	defer f.Close()
	if err := src.download(ctx, blob, f, pr.add); err != nil {
		if isDisk(err) {
			return 0, s.diskError(image, errors.Join(err, s.root.Remove(part)))
		}
		return 0, err
	}
	defer s.root.Remove(part)

	// One at a time: unpacking takes a processor and memory, and a bound on
	// what hostile layers fill until the image is refused.
	select {
	case s.unpacking <- struct{}{}:
		defer func() { <-s.unpacking }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	tmp := tmpDir + "/layer-" + diffID.Hex
	h, err := s.unpack(ctx, f, tmp, diffID)
	if err != nil {
		err = errors.Join(err, s.root.RemoveAll(tmp))
		if isDisk(err) {
			return 0, s.diskError(image, err)
		}
		return 0, s.layerError(image, blob.Digest.String(), err)
	}
	return h.Bytes, nil
}

func (s *Store) unpack(ctx context.Context, f *os.File, tmp string, diffID v1.Hash) (layerHeader, error) {
	var h layerHeader
	if _, err := f.Seek(0, 0); err != nil {
		return h, err
	}
	if err := s.root.RemoveAll(tmp); err != nil {
		return h, err
	}
	if err := s.root.Mkdir(tmp, 0o700); err != nil {
		return h, err
	}
	dir, err := s.root.OpenRoot(tmp)
	if err != nil {
		return h, err
	}
	defer dir.Close()
	h, got, err := unpackLayer(ctx, f, dir, bounds{bytes: s.cfg.MaxImageBytes, names: maxNames})
	if err != nil {
		return h, err
	}
	if got != diffID.Hex {
		return h, hostile("it unpacks to sha256:%s, and the image's configuration says %s", got, diffID)
	}
	if err := syncLayer(dir); err != nil {
		return h, err
	}
	if err := s.root.Rename(tmp, layersDir+"/"+diffID.Hex); err != nil {
		return h, err
	}
	return h, syncFile(s.root, layersDir)
}

// layerError makes a sentence of what is wrong with a layer.
func (s *Store) layerError(image, layer string, err error) error {
	if errors.Is(err, errHostile) {
		return faas.Errorf(faas.ErrInvalid, "image %s: layer %s is %w", image, layer, err)
	}
	return fmt.Errorf("image %s: layer %s: %w", image, layer, err)
}

// diskError tells a full disk from one that is broken.
func (s *Store) diskError(image string, err error) error {
	if isDiskFull(err) {
		return faas.Errorf(faas.ErrNoSpace, "image %s: the disk with %s is full: make room there and deploy again", image, s.cfg.Dir)
	}
	return fmt.Errorf("image %s: %w", image, err)
}

// progress counts what has arrived of an image.
type progress struct {
	tell  func(done, total int64)
	total int64

	mu   sync.Mutex // guards below, and the order of calls
	done int64
}

func (s *Store) startProgress(image string, p *plan) *progress {
	pr := &progress{}
	for _, l := range p.manifest.Layers {
		pr.total += l.Size
	}
	if f := s.cfg.Progress; f != nil {
		pr.tell = func(done, total int64) { f(image, done, total) }
	}
	return pr
}

func (p *progress) add(n int64) {
	if p.tell == nil || n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	p.tell(p.done, p.total)
}
