package image

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// StoreConfig says where images are kept and how they are reached.
type StoreConfig struct {
	// Dir is the folder that belongs to the store. It is made if it is absent.
	// Images are made of hard links, so it must be one file system.
	Dir string

	// MaxImageBytes bounds one image: its layers as they are sent, and as they
	// are unpacked. 0 means 4 GiB. A larger one is refused before the disk is
	// full of it.
	MaxImageBytes int64

	// Insecure lists the registries ("host" or "host:port") that are spoken to
	// over plain HTTP. All others must speak HTTPS, but those on this machine's
	// loopback, which are always spoken to over plain HTTP.
	Insecure []string

	// DockerConfig is the path of a Docker config.json, which has the
	// credentials for registries. "" looks where Docker and Podman do.
	DockerConfig string

	// Platform is what images must be made for. The zero value is this
	// machine's.
	Platform v1.Platform

	// Logger is told of pulls and removals. It must not be nil.
	Logger *slog.Logger

	// Progress, if not nil, is told how many bytes of an image have arrived and
	// how many there are in all. It is called often, by several goroutines.
	Progress func(ref string, done, total int64)

	// Transport carries the requests; nil takes one with sensible timeouts.
	Transport http.RoundTripper
}

// Store keeps images unpacked on disk.
type Store struct{}

// OpenStore opens the store in cfg.Dir and removes what an earlier run left
// half done.
func OpenStore(cfg StoreConfig) (*Store, error) { return nil, errors.ErrUnsupported }

// Resolve returns the digest that ref points to now, of an index or of a
// manifest, and makes sure that there is an image for this platform.
func (s *Store) Resolve(ctx context.Context, ref string) (digest string, err error) {
	return "", errors.ErrUnsupported
}

// Fetch returns the image, from disk if it is there, else pulled.
func (s *Store) Fetch(ctx context.Context, ref string) (img faas.Image, release func(), err error) {
	return faas.Image{}, nil, errors.ErrUnsupported
}

// Prune removes images that nobody uses and keep doesn't want, then layers that
// no image is made of.
func (s *Store) Prune(ctx context.Context, keep func(ref string) bool) (freed int64, err error) {
	return 0, errors.ErrUnsupported
}
