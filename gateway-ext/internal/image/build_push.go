package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// PushConfig says how [Push] reaches registries.
type PushConfig struct {
	// Ref is where to push to. Empty means where the stack file wants it.
	Ref string

	// Username and Password are for the registry at Own ("127.0.0.1:8080"),
	// the gateway's, and are sent to no other.
	Own                string
	Username, Password string

	// Keychain knows the passwords of other registries: see [Keychain]. Nil
	// means none.
	Keychain authn.Keychain

	// PlainHTTP lists registries ("nas.lan:5000") that don't speak TLS.
	// Loopback addresses are spoken to without it in any case.
	PlainHTTP []string

	// Transport carries the requests. Nil means one with go-containerregistry's limits.
	Transport http.RoundTripper

	// Progress, if not nil, is told how many bytes of how many are there. What
	// the registry had already counts as there. It is called by one goroutine
	// at a time, and not after Push has returned.
	Progress func(done, total int64)
}

// Push sends an image to its registry, without the layers that are there
// already, and returns the reference by digest: "host/name@sha256:…". An error
// says what its reader can do about it.
func Push(ctx context.Context, b *Built, cfg PushConfig) (string, error) {
	target := cfg.Ref
	if target == "" {
		target = b.Ref
	}
	ref, err := name.ParseReference(target)
	if err != nil {
		return "", faas.Errorf(faas.ErrInvalid, "push %s: %w; write the image like 127.0.0.1:8080/%s:latest", b.Function, err, b.Function)
	}
	host := ref.Context().RegistryStr()
	if isLoopback(host) || slices.Contains(cfg.PlainHTTP, host) {
		if ref, err = name.ParseReference(target, name.Insecure); err != nil {
			return "", faas.Errorf(faas.ErrInvalid, "push %s: %w", b.Function, err)
		}
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithUserAgent("thicket")}
	switch {
	case cfg.Own != "" && host == cfg.Own:
		opts = append(opts, remote.WithAuth(&authn.Basic{Username: cfg.Username, Password: cfg.Password}))
	case cfg.Keychain != nil:
		auth, err := authn.Resolve(ctx, cfg.Keychain, ref.Context())
		if err != nil {
			return "", faas.Errorf(faas.ErrInvalid, "push %s: the credentials for %s can't be read: %w", ref, host, err)
		}
		opts = append(opts, remote.WithAuth(auth))
	}
	if cfg.Transport != nil {
		opts = append(opts, remote.WithTransport(cfg.Transport))
	}
	if err := write(ref, b.Index, cfg.Progress, opts); err != nil {
		return "", pushError(ctx, ref, cfg.Own != "" && host == cfg.Own, err)
	}
	return ref.Context().Digest(b.Digest.String()).String(), nil
}

// write sends the index and passes on what is reported of it meanwhile.
func write(ref name.Reference, index v1.ImageIndex, progress func(done, total int64), opts []remote.Option) error {
	if progress == nil {
		return remote.WriteIndex(ref, index, opts...)
	}
	updates := make(chan v1.Update, 16)
	result := make(chan error, 1)
	go func() { result <- remote.WriteIndex(ref, index, append(opts, remote.WithProgress(updates))...) }()
	for {
		select {
		case u, ok := <-updates:
			if !ok { // all is reported, and the result is next
				return <-result
			}
			if u.Error == nil {
				progress(u.Complete, u.Total)
			}
		case err := <-result: // it gave up before it began to report
			return err
		}
	}
}

// pushError adds what can be done about it to the errors that people meet.
func pushError(ctx context.Context, ref name.Reference, own bool, err error) error {
	host := ref.Context().RegistryStr()
	var answer *transport.Error
	var opErr *net.OpError
	var plain interface{ Timeout() bool }
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("push %s: %w", ref, context.Cause(ctx))
	case errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized && own:
		return faas.Errorf(faas.ErrInvalid, "push %s: the gateway at %s takes another user or password: set THICKET_PASSWORD, or THICKET_PASSWORD_FILE, to its own", ref, host)
	case errors.As(err, &answer) && answer.StatusCode == http.StatusForbidden && own && len(answer.Errors) > 0:
		// Our own registry says in a sentence what is the matter: it is full.
		return faas.Errorf(faas.ErrNoSpace, "push %s: %s", ref, answer.Errors[0].Message)
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return faas.Errorf(faas.ErrInvalid, "push %s: %s doesn't let us (%d); log in with: docker login %s, or faas-cli registry-login: %w", ref, host, answer.StatusCode, host, err)
	case errors.As(err, &answer) && answer.StatusCode == http.StatusInsufficientStorage:
		return faas.Errorf(faas.ErrNoSpace, "push %s: the registry's disk is full: %w", ref, err)
	case errors.As(err, &opErr) && opErr.Op == "dial":
		return faas.Errorf(faas.ErrUnavailable, "push %s: no registry answers at %s (%w); is it running, and is the name in \"image\" right?", ref, host, opErr.Err)
	case errors.As(err, &plain) && plain.Timeout():
		return faas.Errorf(faas.ErrUnavailable, "push %s: %s doesn't answer in time: %w", ref, host, err)
	}
	return fmt.Errorf("push %s: %w", ref, err)
}

// isLoopback reports whether a registry's "host:port" is on this machine.
func isLoopback(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
