package image

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// maxManifest bounds a manifest, an index and a configuration. The
	// distribution specification asks registries for 4 MB.
	maxManifest = 4 << 20
	// askTimeout bounds a request for something small.
	askTimeout = time.Minute
	// stallTimeout is how long a layer may send nothing before its connection
	// is given up and the rest is asked for on a new one.
	stallTimeout = 30 * time.Second
	// attempts is how often something is asked for without any progress.
	attempts = 4
	// busyFor is how long a registry may say that it is busy, without giving
	// anything; busyMost is the longest that it is left alone each time.
	busyFor  = 10 * time.Minute
	busyMost = time.Minute
)

// source is a repository at a registry, as one image is pulled from it.
type source struct {
	image  string // what the caller called it, for errors
	repo   name.Repository
	client *http.Client
}

// connect makes itself known to the registry of ref.
func (s *Store) connect(ctx context.Context, image string, ref name.Reference) (*source, error) {
	src := &source{image: image, repo: ref.Context()}
	auth, err := authn.Resolve(ctx, Keychain(s.cfg.DockerConfig), src.repo)
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "image %s: the credentials for %s can't be read: %w", image, src.host(), err)
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	guard := schemeGuard{next: s.transport, host: src.host(), plain: s.plain(src.host())}
	rt, err := transport.NewWithContext(asking, src.repo.Registry, auth, guard, []string{src.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, src.explain(ctx, err, "")
	}
	src.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	return src, nil
}

// Keychain returns the passwords of registries that a Docker config.json has; an
// empty path is where Docker keeps its own. The file is read each time somebody
// asks, so that a login takes effect without a restart.
func Keychain(path string) authn.Keychain {
	if path == "" {
		return authn.DefaultKeychain
	}
	return dockerConfig(path)
}

// dockerConfig is the path of a config.json.
type dockerConfig string

// Resolve implements [authn.Keychain].
func (path dockerConfig) Resolve(r authn.Resource) (authn.Authenticator, error) {
	f, err := os.Open(string(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cf, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range []string{r.String(), r.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		c, err := cf.GetAuthConfig(key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		a := authn.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
		if a != (authn.AuthConfig{}) {
			return authn.FromConfig(a), nil
		}
	}
	return authn.Anonymous, nil
}

// plain tells whether a registry is spoken to over plain HTTP.
func (s *Store) plain(hostport string) bool {
	host := hostport
	if i := strings.LastIndexByte(hostport, ':'); i >= 0 && !strings.HasSuffix(hostport, "]") {
		host = hostport[:i]
	}
	if slices.Contains(s.cfg.Insecure, hostport) || slices.Contains(s.cfg.Insecure, host) || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// schemeGuard keeps to the scheme that was configured for a registry. The
// library tries HTTPS and then HTTP for whatever looks local, which leaves it
// to whoever is on the network what is spoken.
type schemeGuard struct {
	next  http.RoundTripper
	host  string
	plain bool
}

var errScheme = errors.New("not the scheme that is configured for this registry")

func (g schemeGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == g.host && (r.URL.Scheme == "http") != g.plain {
		return nil, errScheme
	}
	return g.next.RoundTrip(r)
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("redirected too often")
	}
	if r.URL.Scheme != "https" && via[0].URL.Scheme == "https" {
		return errors.New("redirected from HTTPS to " + r.URL.Scheme)
	}
	return nil
}

func (src *source) host() string { return src.repo.RegistryStr() }

// get asks for a path of the repository, once.
func (src *source) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	u := src.repo.Scheme() + "://" + src.host() + "/v2/" + src.repo.RepositoryStr() + path
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(r.Header, header)
	return src.client.Do(r)
}

// read asks for something small, a few times if need be, and verifies it if
// its digest is known.
func (src *source) read(ctx context.Context, path, what string, want v1.Hash, accept ...string) (body []byte, mediaType string, err error) {
	for try := range attempts {
		if try > 0 {
			if err := backoff(ctx, try); err != nil {
				return nil, "", err
			}
		}
		body, mediaType, err = src.readOnce(ctx, path, want, accept)
		if err == nil {
			return body, mediaType, nil
		}
		if !temporary(err) {
			break
		}
	}
	return nil, "", src.explain(ctx, err, what)
}

func (src *source) readOnce(ctx context.Context, path string, want v1.Hash, accept []string) ([]byte, string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	h := http.Header{}
	if len(accept) > 0 {
		h["Accept"] = []string{strings.Join(accept, ", ")}
	}
	resp, err := src.get(ctx, path, h)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", transport.CheckError(resp, http.StatusOK)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, "", err
	}
	if len(body) > maxManifest {
		return nil, "", errTooLong
	}
	if sum := sha256.Sum256(body); want.Hex != "" && hex.EncodeToString(sum[:]) != want.Hex {
		return nil, "", &damagedError{want: want.String(), got: "sha256:" + hex.EncodeToString(sum[:])}
	}
	return body, resp.Header.Get("Content-Type"), nil
}

var errTooLong = fmt.Errorf("it is longer than %d bytes", maxManifest)

// damagedError says that what arrived is not what was asked for.
type damagedError struct{ want, got string }

func (e *damagedError) Error() string {
	return "it arrived damaged: its digest is " + e.got + " and not " + e.want
}

// download brings a blob into the file, going on where the file ends, and
// verifies it. A connection that is cut costs what was on its way and no more:
// the next one asks for the rest.
func (src *source) download(ctx context.Context, blob v1.Descriptor, f *os.File, progress func(int64)) error {
	sum := sha256.New()
	have, err := io.Copy(sum, f) // what an earlier pull left, if anything
	if err != nil {
		return err
	}
	progress(have)
	most := have
	restarted := false
	var busy time.Duration // that it was left alone for, since the last progress
	for try := 0; ; try++ {
		if try > 0 {
			if err := backoff(ctx, try); err != nil {
				return err
			}
		}
		if have < blob.Size {
			have, err = src.downloadOnce(ctx, blob, f, sum, have, progress)
		} else {
			err = nil
		}
		if err == nil && (have > blob.Size || hex.EncodeToString(sum.Sum(nil)) != blob.Digest.Hex) {
			err = &damagedError{want: blob.Digest.String(), got: "sha256:" + hex.EncodeToString(sum.Sum(nil))}
		}
		_, damaged := errors.AsType[*damagedError](err)
		switch {
		case err == nil:
			return nil
		case damaged && !restarted:
			// Perhaps what was there from before is what is wrong.
			restarted = true
			progress(-have)
			if err := restart(f, sum); err != nil {
				return err
			}
			have = 0
			continue
		case isDisk(err):
			return err
		case !damaged && have > most:
			most, try, busy = have, 0, 0
		}
		if wait, ok := errors.AsType[*busyError](err); ok && busy < busyFor {
			busy += wait.wait
			if err := pause(ctx, wait.wait); err != nil {
				return err
			}
			try = -1 // it is no failure
			continue
		}
		if damaged || !temporary(err) || try+1 >= attempts {
			return src.explain(ctx, err, "layer "+blob.Digest.String())
		}
	}
}

func restart(f *os.File, sum hash.Hash) error {
	sum.Reset()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return f.Truncate(0)
}

// downloadOnce asks for the blob from byte have on and returns how much there
// is then.
func (src *source) downloadOnce(ctx context.Context, blob v1.Descriptor, f *os.File, sum hash.Hash, have int64, progress func(int64)) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()

	h := http.Header{}
	if have > 0 {
		h.Set("Range", "bytes="+strconv.FormatInt(have, 10)+"-")
	}
	resp, err := src.get(ctx, "/blobs/"+blob.Digest.String(), h)
	if err != nil {
		return have, cause(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && have > 0 &&
		strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(have, 10)+"-"):
	case resp.StatusCode == http.StatusOK,
		resp.StatusCode == http.StatusPartialContent,
		resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		if have > 0 {
			if err := restart(f, sum); err != nil {
				return have, err
			}
			progress(-have)
			have = 0
		}
		if resp.StatusCode != http.StatusOK {
			return have, errNoRanges
		}
	default:
		err := transport.CheckError(resp, http.StatusOK)
		if s := resp.Header.Get("Retry-After"); resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
			if sec, bad := strconv.Atoi(s); bad == nil && sec >= 0 {
				return have, &busyError{err, min(max(time.Duration(sec)*time.Second, time.Second), busyMost)}
			}
		}
		return have, err
	}

	buf := make([]byte, 64<<10)
	body := io.LimitReader(resp.Body, blob.Size-have+1) // one more shows that it is too long
	for {
		n, err := body.Read(buf)
		if n > 0 {
			stall.Reset(stallTimeout)
			if _, err := f.Write(buf[:n]); err != nil {
				return have, err
			}
			sum.Write(buf[:n])
			have += int64(n)
			progress(int64(n))
		}
		if err == io.EOF {
			if have < blob.Size {
				return have, io.ErrUnexpectedEOF
			}
			return have, nil
		}
		if err != nil {
			return have, cause(ctx, err)
		}
	}
}

var (
	errStalled  = fmt.Errorf("it sent nothing for %v", stallTimeout)
	errNoRanges = errors.New("it sent another part than the one asked for")
)

// busyError is that a registry has no time now, and says when to come again.
type busyError struct {
	error
	wait time.Duration
}

// Unwrap returns what it answered.
func (e *busyError) Unwrap() error { return e.error }

// cause returns why ctx was ended, if it was, since err says only that it was.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// backoff waits a quarter of a second before the first repetition, and twice as
// long before each one after it.
func backoff(ctx context.Context, attempt int) error {
	return pause(ctx, 125*time.Millisecond<<min(attempt, 6))
}

// pause waits for d, and up to half as long again, so that not all come at once.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d + rand.N(d/2)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// temporary tells whether asking again may help.
func temporary(err error) bool {
	if _, ok := errors.AsType[*damagedError](err); ok || errors.Is(err, errTooLong) || errors.Is(err, context.Canceled) || isDisk(err) {
		return false
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return e.StatusCode >= 500 || e.StatusCode == http.StatusRequestTimeout || e.StatusCode == http.StatusTooManyRequests
	}
	return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, errScheme)
}

// explain makes a sentence of what went wrong between here and the registry.
// what is what was asked for: "tag latest", "layer sha256:…". If ctx has ended,
// that is what went wrong.
func (src *source) explain(ctx context.Context, err error, what string) error {
	img, host := src.image, src.host()
	if why := context.Cause(ctx); why != nil {
		return fmt.Errorf("image %s: %w", img, why)
	}
	if what == "" {
		what = "it"
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		switch {
		case e.StatusCode == http.StatusNotFound && what == "it":
			return faas.Errorf(faas.ErrUnavailable, "image %s: %s answers, but not as a registry does (404 for /v2/)", img, host)
		case e.StatusCode == http.StatusNotFound:
			return faas.Errorf(faas.ErrNotFound, "image %s: registry %s has no %s in %s", img, host, what, src.repo.RepositoryStr())
		case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
			return faas.Errorf(faas.ErrNotFound, "image %s: registry %s doesn't give it to us (%d): either it doesn't exist, or it needs credentials, which belong into the Docker config.json", img, host, e.StatusCode)
		case e.StatusCode == http.StatusTooManyRequests:
			return faas.Errorf(faas.ErrUnavailable, "image %s: registry %s says that we ask too often (429): wait, or log in", img, host)
		}
		return faas.Errorf(faas.ErrUnavailable, "image %s: registry %s answered %d when asked for %s", img, host, e.StatusCode, what)
	}
	if _, ok := errors.AsType[*damagedError](err); ok || errors.Is(err, errTooLong) {
		return faas.Errorf(faas.ErrInvalid, "image %s: %s from registry %s is refused: %w", img, what, host, err)
	}
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	if notTLS || errors.Is(err, http.ErrSchemeMismatch) {
		return faas.Errorf(faas.ErrUnavailable, "image %s: registry %s speaks plain HTTP: name it in THICKET_INSECURE_REGISTRIES if that is meant to be", img, host)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", askTimeout)
	}
	return faas.Errorf(faas.ErrUnavailable, "image %s: registry %s can't be reached: %w", img, host, err)
}
