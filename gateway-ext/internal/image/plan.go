package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// plan is what is known of an image before its layers are here.
type plan struct {
	src       *source
	digest    string   // what the reference points to: an index or the manifest
	platforms []string // for which there is something
	key       string   // the manifest's digest, in hex
	manifest  *v1.Manifest
	config    *v1.ConfigFile
}

// manifestTypes are what is asked for as a manifest.
var manifestTypes = []string{string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}

// look finds out what ref points to, and which of it is for this platform.
func (s *Store) look(ctx context.Context, image string, ref name.Reference) (*plan, error) {
	src, err := s.connect(ctx, image, ref)
	if err != nil {
		return nil, err
	}
	var want v1.Hash
	what := "tag " + ref.Identifier()
	if d, ok := ref.(name.Digest); ok {
		what = "manifest " + d.DigestStr()
		if want, err = v1.NewHash(d.DigestStr()); err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "image %s: %w", image, err)
		}
	}
	raw, mediaType, err := src.read(ctx, "/manifests/"+ref.Identifier(), what, want, manifestTypes...)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	p := &plan{src: src, digest: "sha256:" + hex.EncodeToString(sum[:])}

	if isIndex(raw, mediaType) {
		var child v1.Hash
		if child, p.platforms, err = s.choose(image, raw); err != nil {
			return nil, p.elsewhere(err)
		}
		if raw, mediaType, err = src.read(ctx, "/manifests/"+child.String(), "manifest "+child.String(), child, manifestTypes...); err != nil {
			return nil, err
		}
		sum = sha256.Sum256(raw)
	}
	p.key = hex.EncodeToString(sum[:])
	if p.manifest, err = v1.ParseManifest(bytes.NewReader(raw)); err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: its manifest can't be read: %w", image, err)
	}
	if err := s.checkManifest(image, p.manifest, mediaType); err != nil {
		return nil, err
	}
	conf := p.manifest.Config.Digest
	body, _, err := src.read(ctx, "/blobs/"+conf.String(), "configuration "+conf.String(), conf)
	if err != nil {
		return nil, err
	}
	if p.config, err = v1.ParseConfigFile(bytes.NewReader(body)); err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: its configuration can't be read: %w", image, err)
	}
	if p.platforms == nil {
		p.platforms = madeFor(p.config)
	}
	if err := s.checkConfig(image, p); err != nil {
		return nil, p.elsewhere(err)
	}
	return p, nil
}

// misfit is that an image is sound, and for other machines than this one.
type misfit struct {
	error
	digest    string
	platforms []string
}

// Unwrap returns the sentence.
func (m *misfit) Unwrap() error { return m.error }

// elsewhere completes an error that says that an image is for other machines.
func (p *plan) elsewhere(err error) error {
	if m, ok := errors.AsType[*misfit](err); ok {
		m.digest, m.platforms = p.digest, p.platforms
	}
	return err
}

// Platforms returns those that an image is made for, as OCI writes them:
// "linux/arm/v7". It asks the registry.
func (s *Store) Platforms(ctx context.Context, ref, digest string) ([]string, error) {
	r, err := s.parse(ref)
	if err != nil {
		return nil, err
	}
	at := r.Context().Digest(digest)
	src, err := s.connect(ctx, ref, at)
	if err != nil {
		return nil, err
	}
	want, err := v1.NewHash(digest)
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: %w", ref, err)
	}
	raw, mediaType, err := src.read(ctx, "/manifests/"+digest, "manifest "+digest, want, manifestTypes...)
	if err != nil {
		return nil, err
	}
	if isIndex(raw, mediaType) {
		m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, faas.Errorf(faas.ErrInvalid, "image %s: its index can't be read: %w", ref, err)
		}
		return names(offered(m)), nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: its manifest can't be read: %w", ref, err)
	}
	body, _, err := src.read(ctx, "/blobs/"+m.Config.Digest.String(), "configuration "+m.Config.Digest.String(), m.Config.Digest)
	if err != nil {
		return nil, err
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(body))
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: its configuration can't be read: %w", ref, err)
	}
	return madeFor(c), nil
}

// madeFor is the platform of an image that is for one, nil if it doesn't say.
func madeFor(c *v1.ConfigFile) []string {
	if c.OS == "" || c.Architecture == "" {
		return nil
	}
	return names([]v1.Platform{{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}})
}

// isIndex tells whether raw lists manifests. The content type is what the
// registry says, the body is what is verified by digest: the body decides.
func isIndex(raw []byte, mediaType string) bool {
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return false
	}
	if m.MediaType != "" {
		return m.MediaType.IsIndex()
	}
	return len(m.Manifests) > 0 || types.MediaType(mediaType).IsIndex()
}

func (s *Store) checkManifest(image string, m *v1.Manifest, mediaType string) error {
	if m.SchemaVersion != 2 {
		return faas.Errorf(faas.ErrInvalid, "image %s: its manifest has the version %d (%s), only version 2 is understood: push it with a newer tool", image, m.SchemaVersion, mediaType)
	}
	switch m.Config.MediaType {
	case types.OCIConfigJSON, types.DockerConfigJSON, "":
	default:
		return faas.Errorf(faas.ErrInvalid, "image %s: this is not a container image, but %q", image, m.Config.MediaType)
	}
	var total int64
	for _, l := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if l.Digest.Algorithm != "sha256" || len(l.Digest.Hex) != 64 || strings.Trim(l.Digest.Hex, "0123456789abcdef") != "" {
			return faas.Errorf(faas.ErrInvalid, "image %s: its manifest names a part by %.80q, which is not a sha256 digest", image, l.Digest)
		}
		if l.Size < 0 || l.Size > s.cfg.MaxImageBytes-total {
			return s.tooLarge(image)
		}
		total += l.Size
	}
	if len(m.Layers) > maxLayers {
		return faas.Errorf(faas.ErrInvalid, "image %s: it has %d layers, at most %d are allowed", image, len(m.Layers), maxLayers)
	}
	return nil
}

// maxLayers is four times what Docker can make.
const maxLayers = 512

func (s *Store) checkConfig(image string, p *plan) error {
	c := p.config
	if c.OS != "" && c.Architecture != "" {
		have := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
		if rank(s.platforms, have) < 0 {
			return s.unfit(image, []v1.Platform{have})
		}
	}
	if len(c.RootFS.DiffIDs) != len(p.manifest.Layers) {
		return faas.Errorf(faas.ErrInvalid, "image %s: its manifest has %d layers and its configuration %d", image, len(p.manifest.Layers), len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" || len(d.Hex) != 64 || strings.Trim(d.Hex, "0123456789abcdef") != "" {
			return faas.Errorf(faas.ErrInvalid, "image %s: its configuration names a layer by %.80q, which is not a sha256 digest", image, d)
		}
	}
	return nil
}

func (s *Store) tooLarge(image string) error {
	return faas.Errorf(faas.ErrInvalid, "image %s: it is larger than %d bytes, the bound that THICKET_IMAGE_SIZE sets", image, s.cfg.MaxImageBytes)
}
