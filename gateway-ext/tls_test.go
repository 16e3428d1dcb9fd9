package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/openfaas/faas-provider/types"
)

// writeCertificate writes a certificate for gateway.test and loopback, signed by
// itself, and its key, in place of those that are there.
func writeCertificate(t *testing.T, certFile, keyFile string, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "gateway"},
		DNSNames: []string{"*.gateway.test", "gateway.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "gateway"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		path, kind string
		b          []byte
		mode       os.FileMode
	}{{certFile, "CERTIFICATE", der, 0o644}, {keyFile, "PRIVATE KEY", secret, 0o600}} {
		if err := os.WriteFile(f.path+".new", pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.b}), f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(f.path+".new", f.path); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// trusting is a client that trusts certificates, and finds gateway.test at an
// address. It makes a connection for each request.
func trusting(host string, certs ...*x509.Certificate) *http.Client {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	dialer := &net.Dialer{}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, host)
		},
		TLSClientConfig:   &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2: true,
		DisableKeepAlives: true,
	}}
}

// secure asks for what is for HTTPS, though go-containerregistry thinks that
// loopback addresses have none.
type secure struct{ next http.RoundTripper }

func (s secure) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "https"
	return s.next.RoundTrip(r)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "fullchain.pem"), filepath.Join(dir, "privkey.pem")
	first := writeCertificate(t, certFile, keyFile, 1)
	g := start(t, filepath.Join(dir, "data"), "THICKET_TLS_CERT="+certFile, "THICKET_TLS_KEY="+keyFile)
	_, port, err := net.SplitHostPort(g.host())
	if err != nil {
		t.Fatal(err)
	}
	url := "https://gateway.test:" + port
	if !strings.Contains(g.logged(), url+"/ui/") {
		t.Errorf("the log doesn't say that the page is at %s/ui/", url)
	}
	client := trusting(g.host(), first)
	get := func(client *http.Client, url string) (*http.Response, string) {
		t.Helper()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}

	// Its own registry, by a loopback address, which this process itself pulls from.
	from, err := name.ParseReference(images(t) + "/probe:latest")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference("127.0.0.1:" + port + "/probe:latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img, remote.WithTransport(secure{client.Transport}), remote.WithAuth(&authn.Basic{Username: "admin", Password: testPassword})); err != nil {
		t.Fatal(err)
	}
	g.client = sdkFor(t, url, client)
	g.deploy(types.FunctionDeployment{Service: "probe", Image: to.String(), EnvVars: g.environment("hello")})

	if resp, body := get(client, url+"/function/probe?header=X-Forwarded-Proto"); resp.ProtoMajor != 2 || body != "https" {
		t.Errorf("by ALPN the client speaks %s, and the function sees %q, want HTTP/2 and https", resp.Proto, body)
	}
	one := trusting(g.host(), first)
	one.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	if resp, body := get(one, url+"/function/probe?header=X-Forwarded-Proto"); resp.Proto != "HTTP/1.1" || body != "https" {
		t.Errorf("without ALPN the client speaks %s, and the function sees %q, want HTTP/1.1 and https", resp.Proto, body)
	}
	if resp, _ := get(client, url+"/healthz"); resp.Header.Get("Strict-Transport-Security") != "" {
		t.Error("the gateway asks browsers to insist on TLS, for whatever else the host serves")
	}
	resp, err := http.Get(g.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 400 || !strings.Contains(string(text), "https://") {
		t.Errorf("plain HTTP = %d %q, %v, want 400 and a word of https://", resp.StatusCode, text, err)
	}

	// Renewals: one that goes wrong, and one that doesn't.
	if err := os.WriteFile(keyFile, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mistake is told", func() bool {
		get(client, url+"/healthz")
		return strings.Contains(g.logged(), "the old one goes on")
	})
	second := writeCertificate(t, certFile, keyFile, 2)
	both := trusting(g.host(), first, second)
	eventually(t, "the new certificate is used", func() bool {
		resp, _ := get(both, url+"/healthz")
		return resp.TLS.PeerCertificates[0].SerialNumber.Cmp(second.SerialNumber) == 0
	})
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

func TestTLSMistakes(t *testing.T) {
	dir := t.TempDir()
	cert, key, other := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "other.pem")
	writeCertificate(t, filepath.Join(dir, "unused.pem"), other, 1)
	writeCertificate(t, cert, key, 2)
	for _, tt := range []struct {
		cert, key, command string
		want               string
	}{
		{cert, "", "serve", "THICKET_TLS_KEY: "},
		{"", key, "serve", "THICKET_TLS_CERT: "},
		{dir + "/none.pem", key, "serve", "none.pem does not exist"},
		{cert, dir + "/none.pem", "serve", "none.pem does not exist"},
		{cert, other, "serve", "does not match"},
		{key, cert, "serve", cert},
		{cert, key, "up", "speaks no TLS"},
	} {
		code, _, stderr := run(t, "..", []string{"THICKET_DATA=" + t.TempDir(), "THICKET_ADDR=127.0.0.1:0", "THICKET_TLS_CERT=" + tt.cert, "THICKET_TLS_KEY=" + tt.key}, tt.command)
		if code == 0 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s with %q and %q: exit %d, %q, want an error with %q", tt.command, tt.cert, tt.key, code, stderr, tt.want)
		}
	}
	code, _, stderr := run(t, ".", []string{"THICKET_TLS_CERT=" + cert, "THICKET_TLS_KEY=" + key}, "serve", "--check")
	if code != 0 {
		t.Errorf("serve --check with the right files: exit %d, %q", code, stderr)
	}
}
