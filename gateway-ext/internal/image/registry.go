package image

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
)

// RegistryConfig says where a [Registry] keeps its images and who may push.
type RegistryConfig struct {
	// Dir is the folder that belongs to the registry. It is made if absent.
	Dir string

	// MaxBytes bounds what is kept, in bytes. A push that would exceed it is
	// refused. 0 means no bound but the disk's.
	MaxBytes int64

	// Authorize tells whether the request carries the password. Whoever it
	// says yes to may push and delete; anybody may pull.
	Authorize func(*http.Request) bool

	// Keep, if not nil, returns the digests that are in use by functions:
	// those manifests are kept, whether or not a tag points to them.
	Keep func() []string

	// Logger is told of what goes wrong. It must not be nil.
	Logger *slog.Logger
}

// Registry is an OCI registry on this machine's disk. It is an [http.Handler]
// for the path /v2/.
type Registry struct{}

// NewRegistry opens the registry in cfg.Dir.
func NewRegistry(cfg RegistryConfig) (*Registry, error) { return nil, errors.ErrUnsupported }

// ServeHTTP implements [http.Handler].
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// Run keeps house until ctx ends: it removes uploads that were never finished,
// and manifests and layers that nothing refers to.
func (g *Registry) Run(ctx context.Context) error { <-ctx.Done(); return nil }
