package main_test

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUpgrade has this program take over what earlier ones have written: state
// folders of each format that there was (0 is from before there was a number), and
// a backup. In each were two functions in two namespaces, of which one was called
// three times, a secret, and a service that had registered itself; since format 1 a
// node that had joined and was labelled, and a token.
func TestUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name  string
		nodes bool
		calls float64 // a backup has what was counted when the count was last stored
		make  func(t *testing.T, dir string)
	}{
		{"format 0", false, 3, func(t *testing.T, dir string) { unpack(t, "testdata/state/format-0.tgz", dir) }},
		{"format 1", true, 3, func(t *testing.T, dir string) { unpack(t, "testdata/state/format-1.tgz", dir) }},
		{"backup of format 1", true, 0, func(t *testing.T, dir string) {
			if code, _, stderr := run(t, ".", []string{"THICKET_DATA=" + dir}, "restore", "testdata/state/backup-1.tgz"); code != 0 {
				t.Fatalf("restore: exit %d\n%s", code, stderr)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			tt.make(t, dir)
			g := start(t, dir, "THICKET_NODE=nuc", "THICKET_NODES_ADDR=127.0.0.1:0")
			var functions []struct {
				Name, Namespace string
				InvocationCount float64
				Replicas        int
				Secrets         []string
				EnvVars         map[string]string
			}
			for _, ns := range []string{"openfaas-fn", "shelf"} {
				list := functions[len(functions):]
				g.read("/system/functions?namespace="+ns, &list)
				functions = append(functions, list...)
			}
			if len(functions) != 2 {
				t.Fatalf("there are %d functions, want 2: %+v", len(functions), functions)
			}
			f, other := functions[0], functions[1]
			if f.Name != "probe" || f.Replicas != 2 || f.InvocationCount != tt.calls || len(f.Secrets) != 1 || f.EnvVars["answer"] != "hello" {
				t.Errorf("the first function is %+v, want probe with 2 replicas, %v calls, a secret and its variable", f, tt.calls)
			}
			if other.Name != "other" || other.EnvVars["answer"] != "shelf" {
				t.Errorf("the second function is %+v, want other with its variable", other)
			}
			var secrets []struct{ Name string }
			if g.read("/system/secrets?namespace=openfaas-fn", &secrets); len(secrets) != 1 || secrets[0].Name != "key" {
				t.Errorf("the secrets are %v, want key", secrets)
			}
			if log := g.logged(); strings.Contains(log, "can't be read") || strings.Contains(log, `"level":"ERROR"`) {
				t.Errorf("the log says\n%s", log)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "format")); string(b) != "1\n" {
				t.Errorf("the folder's format is %q now (%v), want 1", b, err)
			}
			if !tt.nodes {
				return
			}
			var nodes []struct {
				Name   string
				Labels map[string]string
			}
			g.read("/system/nodes", &nodes)
			if len(nodes) != 2 || nodes[1].Name != "pi-1" || nodes[1].Labels["disk"] != "ssd" || nodes[1].Labels["zone"] != "shelf-1" {
				t.Errorf("the nodes are %+v, want nuc and pi-1 with its labels", nodes)
			}
			var tokens []struct{ Note string }
			if g.read("/system/tokens", &tokens); len(tokens) != 1 || tokens[0].Note != "fixture" {
				t.Errorf("the tokens are %+v, want the one from before", tokens)
			}
		})
	}
}

// TestDowngrade: a gateway and a node leave alone what a newer program has written.
func TestDowngrade(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "format"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"serve"}, {"node", "--listen", "127.0.0.1:0", "--join", "https://127.0.0.1:1", "--token", "x"}} {
		code, _, stderr := run(t, ".", []string{"THICKET_ADDR=127.0.0.1:0", "THICKET_DATA=" + dir}, args...)
		if code == 0 || !strings.Contains(stderr, "newer version of this program") {
			t.Errorf("%s ended with %d and said %q, want a refusal", args[0], code, stderr)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 2 { // and a lock
		t.Errorf("the folder has %v (%v), want nothing new", entries, err)
	}
}

// read reads what the API answers.
func (g *thicket) read(path string, v any) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	code, _, body := g.do(req)
	if err := json.Unmarshal([]byte(body), v); err != nil || code != http.StatusOK {
		g.t.Fatalf("GET %s = %d %.200s (%v)", path, code, body, err)
	}
}

// unpack makes a folder of an archive.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(in); err == nil {
				err = os.WriteFile(path, b, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
