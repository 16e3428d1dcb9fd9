package weather

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

const (
	// maxBody bounds what is read of an answer, from a service or a producer.
	// The longest real one, ten places with all their postal codes, has about
	// 20 KB.
	maxBody = 256 << 10

	// dialTimeout bounds name lookup and connecting, each try of TLS likewise.
	// A service that is far away needs 0.3 s; one that is unreachable must not
	// keep people waiting until the deadline.
	dialTimeout = 1500 * time.Millisecond

	userAgent = "thicket-weather/1 (+https://github.com/seed-780dceda/thicket)"
)

// ServiceError says that a weather service failed to answer.
type ServiceError struct {
	Service    string        // one of the Source… constants, or the producer's name
	Status     int           // of the answer; 0 if there was none
	RetryAfter time.Duration // what the service asked for; 0 if nothing
	Err        error         // what went wrong; never holds the request's URL, which may hold the key
}

// Error says which service, and what went wrong.
func (e *ServiceError) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("%s answered %d: %v", e.Service, e.Status, e.Err)
	}
	return fmt.Sprintf("ask %s: %v", e.Service, e.Err)
}

// Unwrap returns what went wrong.
func (e *ServiceError) Unwrap() error { return e.Err }

// NewClient returns an HTTP client for weather services: proxies as the
// environment says, bounded in connections and in what it reads, and following
// no redirect, since none of the services redirects and a redirect would carry
// the key to a stranger. It has no timeout of its own; contexts bound it.
func NewClient() *http.Client {
	transport := newTransport()
	transport.Proxy = http.ProxyFromEnvironment
	return newClient(transport)
}

// NewGatewayClient returns an HTTP client for calling functions through the
// gateway. It is like [NewClient], but never goes through a proxy: the gateway
// is near.
func NewGatewayClient() *http.Client { return newClient(newTransport()) }

func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConns:           32,
		MaxIdleConnsPerHost:    16,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
}

func newClient(transport *http.Transport) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// getJSON asks a service and decodes a 200. Any other status is a
// [*ServiceError] with that status and reason's text, which reads the service's
// own form of an error.
func getJSON(ctx context.Context, client *http.Client, service string, u *url.URL, into any, reason func(body []byte) string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return &ServiceError{Service: service, Err: errors.New("the base URL makes no valid request")}
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return &ServiceError{Service: service, Err: withoutURL(err)}
	}
	body, err := ReadAnswer(resp)
	if err != nil {
		return &ServiceError{Service: service, Err: err}
	}
	if resp.StatusCode != http.StatusOK {
		text := reason(body)
		if text == "" {
			text = http.StatusText(resp.StatusCode)
		}
		return &ServiceError{Service: service, Status: resp.StatusCode, RetryAfter: resilience.RetryAfter(resp.Header, time.Now()), Err: errors.New(text)}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return &ServiceError{Service: service, Err: fmt.Errorf("read its answer: %w", err)}
	}
	return nil
}

// ReadAnswer reads a whole body up to the bound of this package, and closes it.
func ReadAnswer(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read its answer: %w", err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("its answer has more than %d bytes", maxBody)
	}
	return body, nil
}

// withoutURL takes the URL out of an error of net/http: it holds the key.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// excerpt bounds a text from a service that is about to be logged.
func excerpt(s string) string {
	const limit = 200
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}
