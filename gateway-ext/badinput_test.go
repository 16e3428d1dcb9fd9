package main_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// TestMistakes makes the mistakes that people make with the program: each ends
// it with a sentence that says what is wrong and what to do, and no stack trace.
func TestMistakes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	open := write("open", "password\n", 0o644)
	stack := func(name, functions string) string {
		return write(name, "version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n"+functions, 0o644)
	}

	for _, tt := range []struct {
		name    string
		environ []string
		args    []string
		want    []string
	}{
		{"no such command", nil, []string{"serv"}, []string{`"serv"`, "serve"}},
		{"no such flag", nil, []string{"up", "--fiel", "x"}, []string{"--fiel", "up --help"}},
		{"argument too many", nil, []string{"serve", "now"}, []string{`"now"`}},
		{"settings, all at once", []string{"THICKET_TIMEOUT=soon", "THICKET_REGISTRY_SIZE=much", "THICKET_LOG_FORMAT=xml", "THICKET_ADRESS=:1"}, []string{"serve"},
			[]string{"THICKET_TIMEOUT: ", "THICKET_REGISTRY_SIZE: ", "THICKET_LOG_FORMAT: ", "THICKET_ADRESS: there is no such setting"}},
		{"address", []string{"THICKET_ADDR=8080"}, []string{"serve"}, []string{"THICKET_ADDR", ":8080"}},
		{"port taken", []string{"THICKET_ADDR=" + taken.Addr().String()}, []string{"serve"}, []string{taken.Addr().String(), "taken", "THICKET_ADDR"}},
		{"Redis address", []string{"THICKET_REDIS_URL=http://:hush@localhost"}, []string{"serve"}, []string{"THICKET_REDIS_URL", "redis://"}},
		{"password file missing", []string{"THICKET_PASSWORD_FILE=" + dir + "/none"}, []string{"serve"}, []string{dir + "/none", "does not exist"}},
		{"password file readable by all", []string{"THICKET_PASSWORD_FILE=" + open}, []string{"serve"}, []string{open, "chmod 600"}},
		{"a secret that is none", []string{"THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_TOKEN_FILE=" + write("secret", "swordfish\n", 0o600)}, []string{"serve"}, []string{"THICKET_TOKEN_FILE", "openssl rand -hex 32"}},
		{"a token's file readable by all", nil, []string{"node", "--join", "https://127.0.0.1:1", "--token-file", open}, []string{"--token-file", "chmod 600"}},
		{"two passwords", []string{"THICKET_PASSWORD=a", "THICKET_PASSWORD_FILE=" + open}, []string{"serve"}, []string{"not both"}},
		{"stack file missing", nil, []string{"up", "-f", dir + "/none.yml"}, []string{"none.yml", "-f"}},
		{"unknown key", nil, []string{"build", "-f", stack("key.yml", "  a:\n    image: a\n    enviroment:\n      x: y\n")}, []string{"key.yml:7", "enviroment", "environment"}},
		{"wrong type", nil, []string{"build", "-f", stack("type.yml", "  a:\n    image: [a]\n")}, []string{"type.yml:6", "image"}},
		{"bad name", nil, []string{"build", "-f", stack("name.yml", "  A_b:\n    image: a\n")}, []string{"name.yml:5", "A_b"}},
		{"no such platform", nil, []string{"build", "--platforms", "linux/arm/v9x,solaris"}, []string{"--platforms", "linux/arm64"}},
		{"handler missing", nil, []string{"build", "-f", stack("handler.yml", "  a:\n    lang: golang-resilient\n    handler: ./none\n    image: a\n")}, []string{"a", "none"}},
		{"registry doesn't answer", nil, []string{"build", "-f", stack("push.yml", "  probe:\n    lang: golang-resilient\n    handler: ./probe\n    image: 127.0.0.1:1/probe\n"), "--push"}, []string{"127.0.0.1:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "registry doesn't answer" {
				if err := os.CopyFS(filepath.Join(dir, "probe"), os.DirFS("testdata/probe")); err != nil {
					t.Fatal(err)
				}
			}
			code, stdout, stderr := run(t, "testdata", append([]string{"THICKET_DATA=" + t.TempDir(), "THICKET_ADDR=127.0.0.1:0"}, tt.environ...), tt.args...)
			if code == 0 {
				t.Errorf("exit code 0, want another\n%s%s", stdout, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr = %q, want %q in it", stderr, want)
				}
			}
			for _, never := range []string{"goroutine ", "panic", "hush", ".go:"} {
				if strings.Contains(stderr, never) {
					t.Errorf("stderr = %q, want no %q in it", stderr, never)
				}
			}
		})
	}
}

func TestSecondGatewayOnTheSameFolder(t *testing.T) {
	g := start(t, t.TempDir())
	code, _, stderr := run(t, ".", []string{"THICKET_DATA=" + g.dir, "THICKET_ADDR=127.0.0.1:0"}, "serve")
	if code == 0 || !strings.Contains(stderr, g.dir) {
		t.Errorf("second gateway: exit %d, %q, want an error that names the folder", code, stderr)
	}
	if code, _, _ := g.get("/healthz"); code != 200 {
		t.Errorf("the first one's health = %d, want 200", code)
	}
}

// TestTroubleWithImages deploys what can't run: the deployment is accepted, and
// the function says why it isn't there, in its status and in its log.
func TestTroubleWithImages(t *testing.T) {
	g := start(t, t.TempDir())
	for _, tt := range []struct{ service, image, want string }{
		{"missing", g.host() + "/missing:latest", "missing"},
		{"unreachable", "127.0.0.1:1/unreachable:latest", "127.0.0.1:1"},
	} {
		if _, err := g.client.Deploy(t.Context(), types.FunctionDeployment{Service: tt.service, Image: tt.image}); err != nil {
			t.Fatal(err)
		}
		var reason string
		eventually(t, "a reason for "+tt.service, func() bool {
			f, err := g.client.GetFunction(t.Context(), tt.service, "openfaas-fn")
			if err != nil {
				t.Fatal(err)
			}
			if f.AvailableReplicas != 0 {
				t.Fatalf("%s has a replica", tt.service)
			}
			reason = (*f.Annotations)["thicket.status"]
			return reason != ""
		})
		if !strings.Contains(reason, tt.want) {
			t.Errorf("%s: reason %q, want %q in it", tt.service, reason, tt.want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		lines, err := g.client.GetLogs(ctx, tt.service, "openfaas-fn", false, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		said := false
		for line := range lines {
			said = said || strings.Contains(line.Text, tt.want)
		}
		cancel()
		if !said {
			t.Errorf("%s: the log says nothing of %q", tt.service, tt.want)
		}
	}
}

// TestBadRequests sends what no client should.
func TestBadRequests(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_MAX_BODY=1Ki")
	g.deploy(g.probe())
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"malformed JSON", "POST", "/system/functions", `{"service": "a", "image": }`, 400, "column"},
		{"wrong type", "POST", "/system/functions", `{"service": "a", "image": 7}`, 400, "image"},
		{"bad name", "POST", "/system/functions", `{"service": "A b", "image": "a"}`, 400, "DNS label"},
		{"declaration too large", "POST", "/system/functions", `{"service": "` + strings.Repeat("a", 3<<20) + `"}`, 413, ""},
		{"body too large", "POST", "/function/probe", strings.Repeat("a", 2<<10), 413, "THICKET_MAX_BODY"},
		{"unknown function", "GET", "/function/prob", "", 404, "probe"},
		{"asynchronous", "POST", "/async-function/probe", "", 501, "async"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, g.url+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(tt.path, "/system/") {
				req.SetBasicAuth("admin", testPassword)
			}
			status, header, body := g.do(req)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%s %s = %d %q, want %d and %q", tt.method, tt.path, status, body, tt.status, tt.want)
			}
			if header.Get("X-OpenFaaS-Internal") == "" {
				t.Error("no X-OpenFaaS-Internal header")
			}
		})
	}
}
