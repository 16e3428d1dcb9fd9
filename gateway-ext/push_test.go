package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPushWithDockerConfig pushes to a registry whose password is in the file
// that THICKET_DOCKER_CONFIG names, and nowhere else: another gateway, of which
// this one knows nothing.
func TestPushWithDockerConfig(t *testing.T) {
	shelf := start(t, t.TempDir())
	conf := filepath.Join(t.TempDir(), "config.json")
	push := func() (int, string) {
		t.Helper()
		code, _, stderr := run(t, ".", []string{
			"THICKET_REGISTRY=" + shelf.host(), "THICKET_DATA=" + t.TempDir(), "THICKET_DOCKER_CONFIG=" + conf,
			"DOCKER_CONFIG=" + t.TempDir(), // Docker's usual place has nothing
		}, "build", "-f", "testdata/stack.yml", "--push")
		return code, stderr
	}
	if code, stderr := push(); code == 0 || !strings.Contains(stderr, conf) {
		t.Errorf("push without the file = exit %d, %q, want an error that names it", code, stderr)
	}
	for _, tt := range []struct {
		password string
		code     int
		want     string
	}{
		{"a guess", 1, "log in with"},
		{testPassword, 0, ""},
	} {
		b, err := json.Marshal(map[string]any{"auths": map[string]any{shelf.host(): map[string]string{"username": "admin", "password": tt.password}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(conf, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, stderr := push(); code != tt.code || !strings.Contains(stderr, tt.want) || strings.Contains(stderr, tt.password) {
			t.Errorf("push with the password %q in the file = exit %d, %q, want %d and %q", tt.password, code, stderr, tt.code, tt.want)
		}
	}
	if code, _, body := shelf.get("/v2/probe/tags/list"); code != 200 || !strings.Contains(body, "latest") {
		t.Errorf("the registry has %d %q, want the tag latest", code, body)
	}
}
