package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/openfaas/go-sdk/stack"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// goTemplate is the template that Build knows: its build.sh and the last stage
// of its Dockerfile say what an image is made of.
const goTemplate = "golang-resilient"

// handlerArg is the build argument that names the place of the handler folder
// in its module, for a function that is one package of a larger module.
const handlerArg = "HANDLER"

// buildArgs are those that the template's Dockerfile declares.
var buildArgs = []string{handlerArg, "GOFLAGS", "GOPRIVATE", "GOPROXY"}

// BuildConfig says what [Build] should build. [Stack.BuildConfig] fills in what
// a stack file says of a function.
type BuildConfig struct {
	Name     string         // the function's name
	Function stack.Function // lang, handler, image, build_args and platforms are read
	Dir      string         // the stack file's folder; handler and copied paths are relative to it
	Copy     []string       // configuration.copy: files and folders that are put beside the handler

	// Platforms to build for. None means those of the function, and if it has
	// none either, Linux on this machine's architecture. Each costs one compile.
	Platforms []v1.Platform

	// Template is the root of golang-resilient, for a Dir without one of its
	// own in template/golang-resilient, which goes first.
	Template fs.FS

	// Environ is the environment for go and git, as from [os.Environ]. Without
	// PATH and HOME neither works. SOURCE_DATE_EPOCH (seconds since 1970) in
	// it is the time the image says it was created; else that is the time of
	// the commit, else 1970, never now: the same source gives the same bytes.
	Environ []string

	// Go is the go command. Empty means the first "go" in the PATH of this process.
	Go string

	// Certificates is a file with the certificate authorities that functions
	// trust, in PEM. Empty means those that this machine trusts.
	Certificates string

	// Progress, if not nil, is told what is being done, a line at a time:
	// "compile for linux/arm64". It is called by the goroutine that builds.
	Progress func(step string)
}

// Built is an image for one or more platforms, in memory, ready for [Push].
type Built struct {
	Function  string
	Ref       string // where the stack file wants it: "127.0.0.1:8080/weather:latest"
	Index     v1.ImageIndex
	Digest    v1.Hash // of Index
	Platforms []v1.Platform
}

// Build compiles a function's Go handler with its template into a static
// program for each platform, and makes an OCI image index of them. It makes the
// same context as faas-cli does for Docker, in a temporary folder, and has the
// template's own script compile it, so that both build the same function; the
// Go build cache makes the second time fast. The same source built by the same
// Go gives the same bytes, wherever it lies.
//
// What is wrong with the function is a [faas.ErrInvalid] that says what to
// change. Nothing is left behind in either case.
func Build(ctx context.Context, cfg BuildConfig) (_ *Built, err error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	platforms, err := cfg.check()
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "thicket-build-")
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", cfg.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	c := buildContext{BuildConfig: cfg, root: filepath.Join(tmp, "context")}
	if err := c.render(); err != nil {
		return nil, err
	}
	recipe, err := readRecipe(filepath.Join(c.root, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	if err := c.assemble(ctx); err != nil {
		return nil, err
	}
	base, err := c.baseLayer(ctx)
	if err != nil {
		return nil, err
	}
	config, err := c.imageConfig(ctx, recipe)
	if err != nil {
		return nil, err
	}
	made := make([]v1.Image, len(platforms))
	for i, p := range platforms {
		cfg.Progress("compile for " + p.String())
		program := filepath.Join(tmp, "program")
		if err := c.compile(ctx, p, program); err != nil {
			return nil, err
		}
		if made[i], err = makeImage(base, program, recipe.entrypoint[0], config, p); err != nil {
			return nil, fmt.Errorf("build %s for %s: %w", cfg.Name, p, err)
		}
	}
	index, err := makeIndex(made, platforms)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", cfg.Name, err)
	}
	digest, err := index.Digest()
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", cfg.Name, err)
	}
	return &Built{Function: cfg.Name, Ref: cfg.Function.Image, Index: index, Digest: digest, Platforms: platforms}, nil
}

// check finds what can be wrong before anything is done, and returns the
// platforms to build for.
func (c *BuildConfig) check() ([]v1.Platform, error) {
	invalid := func(format string, args ...any) ([]v1.Platform, error) {
		return nil, faas.Errorf(faas.ErrInvalid, "build %s: %w", c.Name, fmt.Errorf(format, args...))
	}
	f := c.Function
	switch {
	case f.SkipBuild:
		return invalid("the stack file says skip_build: true")
	case f.Language != goTemplate:
		return invalid("its lang is %q, and gateway-ext builds %s only; build it with: faas-cli build --filter %s", f.Language, goTemplate, c.Name)
	case len(f.BuildOptions) > 0:
		return invalid("it has build_options, which install packages into an image by Docker; build it with: faas-cli build --filter %s", c.Name)
	}
	if err := faas.CheckLabel("the function's name", c.Name); err != nil {
		return nil, err
	}
	if _, err := name.ParseReference(f.Image); err != nil {
		return invalid("image %q is not the name of an image (%w); write it like 127.0.0.1:8080/%s:latest", f.Image, err, c.Name)
	}
	for key := range f.BuildArgs {
		if !slices.Contains(buildArgs, key) {
			return invalid("build_args has %q%s", key, meant(key, buildArgs))
		}
	}
	if h := f.BuildArgs[handlerArg]; h != "" && !filepath.IsLocal(filepath.FromSlash(h)) {
		return invalid("build_args.%s is %q, it must be the handler's folder below the folder of its go.mod", handlerArg, h)
	}
	info, err := os.Stat(filepath.Join(c.Dir, f.Handler))
	if err != nil || !info.IsDir() {
		return invalid("its handler %q is not a folder in %s; is the path right, seen from the stack file?", f.Handler, c.Dir)
	}
	if c.Go == "" {
		if c.Go, err = exec.LookPath("go"); err != nil {
			return invalid("Go is not installed (there is no \"go\" in PATH); install Go 1.26 or newer (https://go.dev/dl/), or build with Docker: faas-cli build --filter %s", c.Name)
		}
	}
	platforms := slices.Clone(c.Platforms)
	if len(platforms) == 0 {
		if platforms, err = ParsePlatforms(f.Platforms); err != nil {
			return invalid("platforms: %w", err)
		}
	}
	if len(platforms) == 0 {
		// Linux on a Mac, too: what runs in its containers, and on the Pis beside it.
		host := HostPlatform()
		host.OS = "linux"
		platforms = []v1.Platform{host}
	}
	return platforms, nil
}

// ParsePlatforms reads a list like "linux/amd64,linux/arm64,linux/arm/v7". An
// empty list is none.
func ParsePlatforms(list string) ([]v1.Platform, error) {
	var platforms []v1.Platform
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := v1.ParsePlatform(s)
		if err == nil && p.OS == "linux" && p.Architecture == "arm" && p.Variant == "" {
			p.Variant = "v7" // as Docker takes it
		}
		if err == nil && p.OS == "linux" && p.Architecture == "arm64" && p.Variant == "v8" {
			p.Variant = "" // the only one there is
		}
		if err != nil || !slices.Contains(buildable, p.String()) {
			return nil, faas.Errorf(faas.ErrInvalid, "%q is not a platform that can be built for, write some of: %s", s, strings.Join(buildable, ","))
		}
		if !slices.ContainsFunc(platforms, func(have v1.Platform) bool { return have.Equals(*p) }) {
			platforms = append(platforms, *p)
		}
	}
	return platforms, nil
}

// buildable are the platforms of Linux that Go compiles for without C.
var buildable = []string{
	"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5",
	"linux/386", "linux/riscv64", "linux/ppc64le", "linux/s390x", "linux/loong64",
}

// created returns the time that the image says it was made at.
func (c *buildContext) created(commit time.Time) (time.Time, error) {
	for _, kv := range c.Environ {
		if v, ok := strings.CutPrefix(kv, "SOURCE_DATE_EPOCH="); ok && v != "" {
			seconds, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return time.Time{}, faas.Errorf(faas.ErrInvalid, "SOURCE_DATE_EPOCH is %q, it must be a number of seconds since 1970", v)
			}
			return time.Unix(seconds, 0).UTC(), nil
		}
	}
	if !commit.IsZero() {
		return commit, nil
	}
	return time.Unix(0, 0).UTC(), nil
}
