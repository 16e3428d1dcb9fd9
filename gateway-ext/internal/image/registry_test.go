package image_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// newServer serves f on loopback and returns its host and port.
func newServer(t testing.TB, f http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestPushNeedsThePassword(t *testing.T) {
	reg := newRegistry(t)
	img := imageOf(t, host, layerOf(t, tarEntry{name: "x"}))
	tag, err := name.NewTag(reg.addr + "/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	for who, auth := range map[string]authn.Authenticator{
		"nobody":         authn.Anonymous,
		"wrong password": &authn.Basic{Username: "admin", Password: "guess"},
	} {
		if err := remote.Write(tag, img, remote.WithAuth(auth)); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") {
			t.Errorf("%s: push = %v, want it refused", who, err)
		}
	}
	if err := remote.Write(tag, img, admin); err != nil {
		t.Fatal(err)
	}
	// Anybody may pull.
	if _, err := remote.Image(tag); err != nil {
		t.Errorf("anonymous pull = %v", err)
	}
	for who, auth := range map[string]authn.Authenticator{"nobody": authn.Anonymous, "wrong password": &authn.Basic{Username: "admin", Password: "guess"}} {
		if err := remote.Delete(tag.Context().Digest(digestOf(t, img)), remote.WithAuth(auth)); err == nil {
			t.Errorf("%s may delete", who)
		}
	}
	if _, err := remote.Image(tag); err != nil {
		t.Errorf("after refused deletions: %v", err)
	}
}
