package image_test

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/openfaas/go-sdk/builder"
	"github.com/openfaas/go-sdk/stack"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
	"github.com/seed-780dceda/thicket/template"
)

// repository is the root of this repository, seen from here.
const repository = "../../.."

// write makes files with the given contents below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// stranger is a function with a go.mod of its own, of an older Go, with a
// package beside it and a file in it.
func stranger(t *testing.T) image.BuildConfig {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"hello/go.mod":         "module example.com/hello\n\ngo 1.18\n",
		"hello/handler.go":     "package hello\n\nimport (\n\t_ \"embed\"\n\t\"net/http\"\n\n\t\"example.com/hello/words\"\n)\n\n//go:embed name.txt\nvar name string\n\nfunc Handle(w http.ResponseWriter, r *http.Request) {\n\tw.Write([]byte(words.Greet(name)))\n}\n",
		"hello/name.txt":       "stranger",
		"hello/words/words.go": "package words\n\nfunc Greet(name string) string { return \"hello \" + name }\n",
		"hello/build/old":      "left by faas-cli",
	})
	return image.BuildConfig{
		Name:     "hello",
		Function: stack.Function{Language: "golang-resilient", Handler: "./hello", Image: "127.0.0.1:8080/hello:1.2"},
		Dir:      dir,
		Template: template.GolangResilient(),
		Environ:  os.Environ(),
	}
}

// member is a function that is one package of a module, with an internal
// package beside it, and a handler that is not in a file called handler.go.
func member(t *testing.T) image.BuildConfig {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"go.mod":                           "module example.com/app\n\ngo 1.26\n",
		"functions/internal/word/word.go":  "package word\n\nconst Word = \"hello \"\n",
		"functions/hello/greet.go":         "package hello\n\nimport (\n\t\"net/http\"\n\n\t\"example.com/app/functions/hello/name\"\n\t\"example.com/app/functions/internal/word\"\n)\n\nfunc Handle(w http.ResponseWriter, r *http.Request) {\n\tw.Write([]byte(word.Word + name.Name))\n}\n",
		"functions/hello/name/name.go":     "package name\n\nconst Name = \"member\"\n",
		"functions/unrelated/unrelated.go": "package unrelated\n\nnot even Go\n",
	})
	return image.BuildConfig{
		Name: "hello",
		Function: stack.Function{
			Language: "golang-resilient", Handler: "./functions/hello", Image: "127.0.0.1:8080/hello:latest",
			BuildArgs: map[string]string{"HANDLER": "functions/hello"},
		},
		Dir:      dir,
		Copy:     []string{"go.mod", "functions/internal"},
		Template: template.GolangResilient(),
		Environ:  os.Environ(),
	}
}

func build(t *testing.T, cfg image.BuildConfig) *image.Built {
	t.Helper()
	b, err := image.Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// only returns the one image of an index.
func only(t *testing.T, b *image.Built) v1.Image {
	t.Helper()
	manifest, err := b.Index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("the index has %d images, want 1", len(manifest.Manifests))
	}
	img, err := b.Index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// unpack writes the files of an image below a new folder and returns what is said of each.
func unpack(t *testing.T, img v1.Image) (string, map[string]*tar.Header) {
	t.Helper()
	dir, files := t.TempDir(), map[string]*tar.Header{}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		content, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(content); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(h.Name, "/")
			files[name] = h
			if h.Typeflag == tar.TypeDir {
				if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
				continue
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, h.FileInfo().Mode().Perm()); err != nil {
				t.Fatal(err)
			}
		}
		content.Close()
	}
	return dir, files
}

// ask runs a function's program, asks it for path, stops it, and returns the answer.
func ask(t *testing.T, program, path string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append([]string{"port=" + freePort(t), "listen_host=127.0.0.1", "metrics_port=0", "suppress_lock=true", "log_format=text"}, env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, url := "", ""
	log := bufio.NewScanner(stderr)
	for url == "" && log.Scan() {
		said += log.Text() + "\n"
		if _, addr, ok := strings.Cut(log.Text(), "msg=ready addr="); ok {
			url = "http://" + addr
		}
	}
	if url == "" {
		cmd.Wait()
		t.Fatalf("%s ended before it was ready:\n%s", program, said)
	}
	resp, err := http.Get(url + path)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for log.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v, want exit code 0 after an interrupt", program, err)
	}
	return string(body)
}

func TestBuild(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("runs what it has built, which is for Linux")
	}
	for name, tt := range map[string]struct {
		cfg  image.BuildConfig
		want string
	}{
		"a stranger's function": {stranger(t), "hello stranger"},
		"one of a module":       {member(t), "hello member"},
	} {
		t.Run(name, func(t *testing.T) {
			b := build(t, tt.cfg)
			if err := validate.Index(b.Index); err != nil {
				t.Error(err)
			}
			root, _ := unpack(t, only(t, b))
			if got := ask(t, filepath.Join(root, "function"), "/"); got != tt.want {
				t.Errorf("it answers %q, want %q", got, tt.want)
			}
		})
	}
}

func TestBuildImage(t *testing.T) {
	cfg := stranger(t)
	var steps []string
	cfg.Progress = func(step string) { steps = append(steps, step) }
	b := build(t, cfg)
	img := only(t, b)
	manifest, err := b.Index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if manifest.MediaType != types.OCIImageIndex || manifest.Manifests[0].Platform.String() != "linux/"+runtime.GOARCH {
		t.Errorf("index = %+v, want one for this machine", manifest)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config
	if !slices.Equal(c.Entrypoint, []string{"/function"}) || c.User != "65532:65532" || c.WorkingDir != "/home/app" {
		t.Errorf("config = %+v", c)
	}
	if _, ok := c.ExposedPorts["8080/tcp"]; !ok {
		t.Errorf("exposed ports = %v, want 8080", c.ExposedPorts)
	}
	if !slices.Contains(c.Env, "ZONEINFO=/usr/local/go/lib/time/zoneinfo.zip") || !slices.Contains(c.Env, "HOME=/home/app") {
		t.Errorf("env = %v, want that of the template's Dockerfile", c.Env)
	}
	if c.Labels["org.opencontainers.image.title"] != "hello" || c.Labels["org.opencontainers.image.version"] != "1.2" ||
		c.Labels["org.opencontainers.image.created"] != "1970-01-01T00:00:00Z" {
		t.Errorf("labels = %v", c.Labels)
	}
	root, files := unpack(t, img)
	for name, mode := range map[string]fs.FileMode{
		"function":                           0o755,
		"etc/passwd":                         0o644,
		"etc/group":                          0o644,
		"etc/ssl/certs/ca-certificates.crt":  0o644,
		"usr/local/go/lib/time/zoneinfo.zip": 0o644,
		"tmp":                                fs.ModeDir | fs.ModeSticky | 0o777,
		"home/app":                           fs.ModeDir | 0o755,
	} {
		if h := files[name]; h == nil || h.FileInfo().Mode() != mode {
			t.Errorf("%s = %+v, want mode %v", name, h, mode)
		}
	}
	if h := files["home/app"]; h != nil && h.Uid != 65532 {
		t.Errorf("home/app belongs to %d, want 65532", h.Uid)
	}
	if passwd, _ := os.ReadFile(filepath.Join(root, "etc/passwd")); !strings.Contains(string(passwd), "nonroot:x:65532:65532:") {
		t.Errorf("etc/passwd = %q", passwd)
	}
	if !slices.Equal(steps, []string{"compile for linux/" + runtime.GOARCH}) {
		t.Errorf("steps = %q", steps)
	}
}

// The same source gives the same bytes, in whatever folder, and with the base
// files in a layer that all functions share.
func TestBuildIsReproducible(t *testing.T) {
	first, second, other := build(t, stranger(t)), build(t, stranger(t)), build(t, member(t))
	if first.Digest != second.Digest {
		t.Errorf("digests %v and %v of the same function differ", first.Digest, second.Digest)
	}
	layers := func(b *image.Built) []v1.Descriptor {
		m, err := only(t, b).Manifest()
		if err != nil {
			t.Fatal(err)
		}
		return m.Layers
	}
	a, b := layers(first), layers(other)
	if a[0].Digest != b[0].Digest || a[1].Digest == b[1].Digest {
		t.Errorf("layers %v and %v: want the first shared, and only that", a, b)
	}
	cfg := stranger(t)
	cfg.Environ = append(cfg.Environ, "SOURCE_DATE_EPOCH=86400")
	config, err := only(t, build(t, cfg)).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Created.Time; !got.Equal(time.Unix(86400, 0)) {
		t.Errorf("created = %v, want what SOURCE_DATE_EPOCH says", got)
	}
}

// What git knows is on the label, but for the password of who cloned it.
func TestBuildKnowsItsSource(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git here")
	}
	cfg := stranger(t)
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", cfg.Dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2020-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", ".")
	git("-c", "user.name=n", "-c", "user.email=e@example.com", "commit", "-q", "-m", "first")
	git("remote", "add", "origin", "https://me:secret@example.com/me/hello.git")
	config, err := only(t, build(t, cfg)).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"org.opencontainers.image.title":    "hello",
		"org.opencontainers.image.version":  "1.2",
		"org.opencontainers.image.created":  "2020-01-02T03:04:05Z",
		"org.opencontainers.image.revision": git("rev-parse", "HEAD"),
		"org.opencontainers.image.source":   "https://example.com/me/hello.git",
	}
	if !maps.Equal(config.Config.Labels, want) {
		t.Errorf("labels = %v, want %v", config.Config.Labels, want)
	}
	write(t, cfg.Dir, map[string]string{"hello/name.txt": "somebody"})
	if config, err = only(t, build(t, cfg)).ConfigFile(); err != nil {
		t.Fatal(err)
	}
	if got := config.Config.Labels["org.opencontainers.image.revision"]; !strings.HasSuffix(got, "-dirty") {
		t.Errorf("revision = %q of files that are not committed", got)
	}
}

func TestBuildPlatforms(t *testing.T) {
	cfg := stranger(t)
	cfg.Function.Platforms = "linux/arm64, linux/arm/v6"
	b := build(t, cfg)
	manifest, err := b.Index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, m := range manifest.Manifests {
		have = append(have, m.Platform.String())
		img, err := b.Index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if p := config.Platform(); p.String() != m.Platform.String() {
			t.Errorf("the image for %s says it is for %s", m.Platform, p)
		}
	}
	if want := []string{"linux/arm64", "linux/arm/v6"}; !slices.Equal(have, want) {
		t.Errorf("platforms = %v, want %v", have, want)
	}
}

func TestParsePlatforms(t *testing.T) {
	got, err := image.ParsePlatforms(" linux/amd64,linux/arm,linux/arm/v7,linux/arm64/v8,, ")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range got {
		names = append(names, p.String())
	}
	if want := []string{"linux/amd64", "linux/arm/v7", "linux/arm64"}; !slices.Equal(names, want) {
		t.Errorf("ParsePlatforms() = %v, want %v", names, want)
	}
	for _, s := range []string{"linux", "arm64", "linux/arm/v9", "windows/amd64", "linux/arm/v7/x", "linux/amd64:1"} {
		if _, err := image.ParsePlatforms(s); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "linux/amd64,") {
			t.Errorf("ParsePlatforms(%q) = %v, want what may be written", s, err)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, cfg *image.BuildConfig)
		want   string
	}{
		{"another template", func(t *testing.T, cfg *image.BuildConfig) { cfg.Function.Language = "python3-http" }, "faas-cli build --filter hello"},
		{"skip_build", func(t *testing.T, cfg *image.BuildConfig) { cfg.Function.SkipBuild = true }, "skip_build: true"},
		{"build_options", func(t *testing.T, cfg *image.BuildConfig) { cfg.Function.BuildOptions = []string{"dev"} }, "faas-cli build --filter hello"},
		{"a name", func(t *testing.T, cfg *image.BuildConfig) { cfg.Name = "../x" }, "not a DNS label"},
		{"an image", func(t *testing.T, cfg *image.BuildConfig) { cfg.Function.Image = "UPPER/case" }, `image "UPPER/case" is not the name of an image`},
		{"a build_arg", func(t *testing.T, cfg *image.BuildConfig) {
			cfg.Function.BuildArgs = map[string]string{"HANDELR": "x"}
		}, `build_args has "HANDELR", did you mean "HANDLER"?`},
		{"a handler elsewhere", func(t *testing.T, cfg *image.BuildConfig) {
			cfg.Function.BuildArgs = map[string]string{"HANDLER": "../x"}
		}, "below the folder of its go.mod"},
		{"no handler folder", func(t *testing.T, cfg *image.BuildConfig) { cfg.Function.Handler = "./helo" }, `its handler "./helo" is not a folder`},
		{"an empty handler folder", func(t *testing.T, cfg *image.BuildConfig) {
			write(t, cfg.Dir, map[string]string{"empty/README": "nothing"})
			cfg.Function.Handler = "empty"
		}, "write a handler.go with func Handle"},
		{"no Handle", func(t *testing.T, cfg *image.BuildConfig) {
			write(t, cfg.Dir, map[string]string{"hello/handler.go": "package hello\n"})
		}, "there is no func Handle"},
		{"no template", func(t *testing.T, cfg *image.BuildConfig) { cfg.Template = nil }, "faas-cli template pull"},
		{"no Go", func(t *testing.T, cfg *image.BuildConfig) { t.Setenv("PATH", t.TempDir()) }, "Go is not installed"},
		{"a path to copy that is not there", func(t *testing.T, cfg *image.BuildConfig) { cfg.Copy = []string{"shared"} }, `configuration.copy has "shared", but there is no `},
		{"a path to copy outside", func(t *testing.T, cfg *image.BuildConfig) { cfg.Copy = []string{"../elsewhere"} }, "not below the stack file's folder"},
		{"a link to itself", func(t *testing.T, cfg *image.BuildConfig) {
			if err := os.Symlink(".", filepath.Join(cfg.Dir, "hello", "again")); err != nil {
				t.Fatal(err)
			}
		}, "is it a link to a folder that contains it?"},
		{"a date", func(t *testing.T, cfg *image.BuildConfig) {
			cfg.Environ = append(cfg.Environ, "SOURCE_DATE_EPOCH=yesterday")
		}, "number of seconds"},
		{"what doesn't compile", func(t *testing.T, cfg *image.BuildConfig) {
			write(t, cfg.Dir, map[string]string{"hello/words/words.go": "package words\n\nfunc Greet(name string) string { return 1 }\n"})
		}, "it doesn't compile:\n  hello/words/words.go:3:41: "},
		{"a Dockerfile that runs something", func(t *testing.T, cfg *image.BuildConfig) {
			own := filepath.Join(cfg.Dir, "template", "golang-resilient")
			if err := os.CopyFS(own, template.GolangResilient()); err != nil {
				t.Fatal(err)
			}
			write(t, own, map[string]string{"Dockerfile": "FROM alpine\nRUN apk add curl\nUSER 1\nENTRYPOINT [\"/function\"]\n"})
		}, "line 2: gateway-ext can't do RUN in the last stage"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := stranger(t)
			tt.change(t, &cfg)
			t.Setenv("TMPDIR", t.TempDir())
			_, err := image.Build(t.Context(), cfg)
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build() = %v, want invalid with %q", err, tt.want)
			}
			if left, _ := os.ReadDir(os.TempDir()); len(left) > 0 {
				t.Errorf("it left %v behind", left)
			}
		})
	}
}

func TestBuildStops(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("that's enough")
	cfg := stranger(t)
	cfg.Progress = func(string) { cancel(enough) }
	if _, err := image.Build(ctx, cfg); !errors.Is(err, enough) {
		t.Errorf("Build() = %v, want %v", err, enough)
	}
}

// Docker gets the context that go-sdk renders, and runs the script that is in it.
// This does the same, for a new function as faas-cli makes it, for a function of
// a module, and for those of this repository.
func TestContextForDocker(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("compiles for Linux, and runs that")
	}
	if testing.Short() {
		t.Skip("compiles four programs")
	}
	repo, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	templates := filepath.Join(repo, "template")
	compile := func(t *testing.T, dir, name, handler, at string, copied []string) string {
		t.Helper()
		out := t.TempDir()
		t.Chdir(dir) // go-sdk takes copied paths from there
		root, err := builder.CreateBuildContext(name, handler, "golang-resilient", copied,
			builder.WithBuildDir(out), builder.WithTemplateDir(templates))
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(out, "program")
		for _, args := range [][]string{{"assemble", at}, {"compile", program}} {
			cmd := exec.CommandContext(t.Context(), "sh", append([]string{"build.sh"}, args...)...)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH)
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("build.sh %v: %v\n%s", args, err, said)
			}
		}
		return program
	}
	t.Run("new", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "new"), os.DirFS(filepath.Join(templates, "golang-resilient", "function"))); err != nil {
			t.Fatal(err)
		}
		program := compile(t, dir, "new", "./new", "", nil)
		if got := ask(t, program, "/"); !strings.HasPrefix(got, "Hello! You said:") {
			t.Errorf("it answers %q", got)
		}
	})
	t.Run("member", func(t *testing.T) {
		cfg := member(t)
		program := compile(t, cfg.Dir, cfg.Name, cfg.Function.Handler, cfg.Function.BuildArgs["HANDLER"], cfg.Copy)
		if got := ask(t, program, "/"); got != "hello member" {
			t.Errorf("it answers %q", got)
		}
		// Not only the same function: the same bytes.
		docker, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		root, _ := unpack(t, only(t, build(t, cfg)))
		if ours, err := os.ReadFile(filepath.Join(root, "function")); err != nil || !slices.Equal(ours, docker) {
			t.Errorf("gateway-ext's program has %d bytes, Docker's %d, and they differ (%v)", len(ours), len(docker), err)
		}
	})
	s, err := image.ReadStack(filepath.Join(repo, "stack.yml"), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range s.Names() {
		t.Run(name, func(t *testing.T) {
			f := s.Functions[name]
			compile(t, repo, name, f.Handler, f.BuildArgs["HANDLER"], s.StackConfiguration.CopyExtraPaths)
		})
	}
}
