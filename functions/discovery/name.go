package discovery

import (
	"fmt"
	"net/url"
	"strings"
)

const (
	functionPrefix   = "/function/"
	defaultNamespace = "openfaas-fn"
)

// destination is what a request's address asks for.
type destination struct {
	name Name   // the zero Name if it is for the gateway itself
	path string // what the function gets: as it came, begins with "/"
}

// destinationOf reads an address of a function: by its name, or as the gateway
// has it.
func (c *Client) destinationOf(u *url.URL) (destination, error) {
	path := u.EscapedPath()
	if u.Host == c.gateway.Host && u.Scheme == c.gateway.Scheme {
		rest, ok := strings.CutPrefix(path, c.gateway.EscapedPath()+functionPrefix)
		segment, path, _ := strings.Cut(rest, "/")
		name, ours := parseName(segment)
		if !ok || !ours {
			return destination{}, nil // the gateway knows what to say
		}
		return destination{name, "/" + path}, nil
	}
	name, ok := parseName(u.Host)
	if u.Scheme != "http" || !ok {
		return destination{}, fmt.Errorf("%.200q is no function: write http://NAME.NAMESPACE/ or %s%sNAME", u.Scheme+"://"+u.Host, c.gateway, functionPrefix)
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return destination{name, path}, nil
}

// parseName reads "name" or "name.namespace", which are DNS labels.
func parseName(s string) (Name, bool) {
	n := Name{s, defaultNamespace}
	if i := strings.LastIndexByte(s, '.'); i >= 0 {
		n = Name{s[:i], s[i+1:]}
	}
	return n, isLabel(n.Function) && isLabel(n.Namespace)
}

// isLabel says whether s is a DNS label in lower case (RFC 1123).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// throughGateway returns the address at which the gateway takes the call.
func (c *Client) throughGateway(u *url.URL, to destination) *url.URL {
	if to.name == (Name{}) || u.Host == c.gateway.Host && u.Scheme == c.gateway.Scheme {
		return u
	}
	via := *c.gateway
	path := c.gateway.EscapedPath() + functionPrefix + to.name.String() + to.path
	setPath(&via, path)
	via.RawQuery, via.ForceQuery = u.RawQuery, u.ForceQuery
	return &via
}

// setPath sets a path that is escaped already.
func setPath(u *url.URL, escaped string) {
	u.RawPath = escaped
	var err error
	if u.Path, err = url.PathUnescape(escaped); err != nil {
		u.Path = escaped // not reached: it was one
	}
}
