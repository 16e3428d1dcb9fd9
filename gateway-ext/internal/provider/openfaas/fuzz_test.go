package openfaas_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
)

// FuzzParse: whatever is written as a provider's URL, no password is left in what
// is shown of it, and what is accepted can be asked.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"http://192.168.1.20:8080", "https://admin:geheim@example.com/base/", "http://admin:geheim@", "admin:geheim@host", "http://a:geheim@b@c", "://", "http://[::1]:80",
		"http://host?x=geheim", "ftp://host", " http://u:p%2Cq@h ",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var e openfaas.Endpoint
		err := e.Parse(s)
		if err != nil {
			return
		}
		u, bad := url.Parse(e.URL)
		if bad != nil || u.User != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Errorf("Parse(%q) leaves %q", s, e.URL)
		}
		if _, err := openfaas.New(openfaas.Config{Endpoint: e}); err != nil {
			t.Errorf("New() = %v of %q, which was parsed", err, e.URL)
		}
	})
}

// TestParseHidesPasswords: the sentence about a URL that is none has no password.
func TestParseHidesPasswords(t *testing.T) {
	for _, s := range []string{"http://admin:geheim@", "admin:geheim@host", "ftp://admin:geheim@host", "http://admin:gehe/im@host:8080", "http://admin:geheim@host:port", "http://admin:geheim@host/?q"} {
		var e openfaas.Endpoint
		if err := e.Parse(s); err == nil || strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), "gehe/im") {
			t.Errorf("Parse(%q) = %v, want an error without the password", s, err)
		}
	}
}
