package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
)

// Reach sees whether a registry answers, over the scheme that is configured for
// it, without a password and without asking for an image.
func (s *Store) Reach(ctx context.Context, registry string) error {
	r, err := name.NewRegistry(registry)
	if err != nil {
		return err
	}
	scheme := "https"
	if s.plain(r.RegistryStr()) {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+r.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	res, err := s.transport.RoundTrip(req)
	if err != nil {
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			return fmt.Errorf("it speaks no TLS: list %s in THICKET_INSECURE_REGISTRIES on this machine", registry)
		}
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4096) // so that the connection can be used again
	// 401 is a registry that wants a password, and 403 one that has a proxy before it.
	if !slices.Contains([]int{http.StatusOK, http.StatusUnauthorized, http.StatusForbidden}, res.StatusCode) {
		return fmt.Errorf("it answers %s to /v2/, as no registry does", res.Status)
	}
	return nil
}

// RegistryOf returns the registry that an image's name names, "" if it is none.
func RegistryOf(ref string) string {
	r, err := name.ParseReference(ref)
	if err != nil {
		return ""
	}
	return r.Context().RegistryStr()
}
