package discovery

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// Answer is what a probe tells.
type Answer int

const (
	// Unknown tells nothing: it was this machine that couldn't ask.
	Unknown Answer = iota
	Answered
	Refused // somebody says that nobody is there, or nobody says anything
)

var answerNames = [...]string{"unknown", "answered", "refused"}

// String returns the answer's name.
func (a Answer) String() string {
	if a < 0 || int(a) >= len(answerNames) {
		return "invalid"
	}
	return answerNames[a]
}

// probeTimeout bounds one probe. A lost packet is sent again after a second.
const probeTimeout = 2 * time.Second

// Ask opens a connection to the target and, if it has a path, asks that over
// HTTP: an answer below 500 is one (401 and 404 come from somebody who is
// there). No redirect is followed, nothing but the status is read, and no name
// is looked up.
func Ask(ctx context.Context, target Target) Answer {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", target.Addr.String())
	if err != nil {
		return Judge(ctx, err)
	}
	defer conn.Close()
	if target.Health == "" {
		return Answered
	}
	path, err := url.ParseRequestURI(target.Health)
	if err != nil {
		return Answered // the connection is what can be asked
	}
	// A transport of its own, for one request over one connection: nothing is
	// kept, and a stranger can't make it connect elsewhere.
	transport := &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target.Addr.String(), nil)
	if err != nil {
		return Answered
	}
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path.Path, path.RawPath, path.RawQuery
	r.Header.Set("User-Agent", "thicket")
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return Judge(ctx, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 500 {
		return Refused
	}
	return Answered
}

// local are the errors that say something of this machine and nothing of the
// other: no route since the network isn't up, too many open files, a firewall.
var local = [...]error{
	syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EMFILE, syscall.ENFILE,
	syscall.ENOBUFS, syscall.ENOMEM, syscall.EACCES, syscall.EPERM,
}

// Judge says what the error of a question tells of who was asked; nil is an answer.
func Judge(ctx context.Context, err error) Answer {
	if err == nil {
		return Answered
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return Unknown // the table is closed
	}
	for _, l := range local {
		if errors.Is(err, l) {
			return Unknown
		}
	}
	return Refused
}
