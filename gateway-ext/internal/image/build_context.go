package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	// maxDepth bounds folders within folders, so that a link to a folder above
	// itself ends in a sentence.
	maxDepth = 64

	// maxContextBytes bounds what is copied for one function.
	maxContextBytes = 1 << 30

	// maxCompilerLines is how much of what the compiler says is shown.
	maxCompilerLines = 20

	// cancelGrace is how long go may take to stop when it is told to.
	cancelGrace = 5 * time.Second
)

// buildContext is the folder that one function is built in: the template, and in
// its function folder the handler, and the copied paths on top.
type buildContext struct {
	BuildConfig

	root  string // of the context
	bytes int64  // copied so far
}

func (c *buildContext) invalid(format string, args ...any) error {
	return faas.Errorf(faas.ErrInvalid, "build %s: %w", c.Name, fmt.Errorf(format, args...))
}

// handlerDir is the folder with the function's own code.
func (c *buildContext) handlerDir() string { return filepath.Join(c.Dir, c.Function.Handler) }

// functionDir is where the handler goes in the context.
func (c *buildContext) functionDir() string { return filepath.Join(c.root, "function") }

// render makes the context that "faas-cli build --shrinkwrap" makes, but for
// .git, which the template's .dockerignore takes out there.
func (c *buildContext) render() error {
	template, where, err := c.template()
	if err != nil {
		return err
	}
	if err := c.copyFS(template, c.root); err != nil {
		return fmt.Errorf("build %s: copy the template %s: %w", c.Name, where, err)
	}
	entries, err := os.ReadDir(c.handlerDir())
	if err != nil {
		return fmt.Errorf("build %s: read the handler: %w", c.Name, err)
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), ".go") }) {
		return c.invalid("there is no Go file in %s; write a handler.go with func Handle(w http.ResponseWriter, r *http.Request)", c.handlerDir())
	}
	for _, e := range entries {
		if e.Name() == "build" || e.Name() == "template" {
			continue // as faas-cli does: they are its own
		}
		if err := c.copy(filepath.Join(c.handlerDir(), e.Name()), filepath.Join(c.functionDir(), e.Name()), 0); err != nil {
			return err
		}
	}
	for _, p := range c.Copy {
		clean := filepath.Clean(filepath.FromSlash(p))
		if clean == "." || !filepath.IsLocal(clean) {
			return c.invalid("configuration.copy has %q, which is not below the stack file's folder", p)
		}
		from := filepath.Join(c.Dir, clean)
		if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
			return c.invalid("configuration.copy has %q, but there is no %s", p, from)
		}
		if err := c.copy(from, filepath.Join(c.functionDir(), clean), 0); err != nil {
			return err
		}
	}
	return nil
}

// template returns the template to use: of the stack's folder, as faas-cli
// does, else the one that came with this program.
func (c *buildContext) template() (fs.FS, string, error) {
	own := filepath.Join(c.Dir, "template", goTemplate)
	if _, err := os.Stat(filepath.Join(own, "template.yml")); err == nil {
		if _, err := os.Stat(filepath.Join(own, "build.sh")); err != nil {
			return nil, "", c.invalid("the template in %s has no build.sh; remove the folder to use the one inside of gateway-ext", own)
		}
		return os.DirFS(own), own, nil
	}
	if c.Template == nil {
		return nil, "", c.invalid("there is no template in %s; fetch it with: faas-cli template pull", own)
	}
	return c.Template, "inside of gateway-ext", nil
}

// copyFS copies a template.
func (c *buildContext) copyFS(from fs.FS, to string) error {
	return fs.WalkDir(from, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, filepath.FromSlash(path))
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		data, err := fs.ReadFile(from, path)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, data, 0o644)
	})
}

// copy copies a file or folder, following links, as faas-cli does.
func (c *buildContext) copy(from, to string, depth int) error {
	// The kernel follows 40 links in a path, and any of the calls below may be
	// the one that meets the bound (ELOOP).
	failed := func(err error) error {
		if depth > maxDepth || errors.Is(err, syscall.ELOOP) {
			return c.invalid("%.200s… is too many folders deep; is it a link to a folder that contains it?", from)
		}
		return fmt.Errorf("build %s: %w", c.Name, err)
	}
	info, err := os.Stat(from)
	if err != nil || depth > maxDepth {
		return failed(err)
	}
	switch {
	case info.IsDir() && info.Name() == ".git":
		return nil
	case info.IsDir():
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return failed(err)
		}
		for _, e := range entries {
			if err := c.copy(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), depth+1); err != nil {
				return err
			}
		}
		return nil
	case !info.Mode().IsRegular():
		return c.invalid("%s is neither a file nor a folder", from)
	}
	if c.bytes += info.Size(); c.bytes > maxContextBytes {
		return faas.Errorf(faas.ErrTooLarge, "build %s: handler and copied paths are larger than %d MB; does %s belong to them?", c.Name, maxContextBytes>>20, from)
	}
	if err := copyFile(from, to, info.Mode().Perm()); err != nil {
		return failed(err)
	}
	return nil
}

func copyFile(from, to string, perm fs.FileMode) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, perm|0o200)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	_, err = io.Copy(dst, src)
	return err
}

// assemble has the template's script put handler and main into one module.
func (c *buildContext) assemble(ctx context.Context) error {
	return c.script(ctx, nil, "assemble", c.Function.BuildArgs[handlerArg])
}

// compile has the template's script compile it. The variables are those that
// Docker sets for a Dockerfile.
func (c *buildContext) compile(ctx context.Context, p v1.Platform, program string) error {
	return c.script(ctx, []string{
		"TARGETOS=" + p.OS, "TARGETARCH=" + p.Architecture, "TARGETVARIANT=" + p.Variant,
	}, "compile", program)
}

// script runs the template's build.sh.
func (c *buildContext) script(ctx context.Context, environ []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"build.sh"}, args...)...)
	cmd.Dir = c.root
	cmd.Env = slices.Concat(c.Environ, []string{"GO=" + c.Go}, environ)
	for key, value := range c.Function.BuildArgs {
		if key != handlerArg {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = cancelGrace
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("build %s: %w", c.Name, context.Cause(ctx))
	}
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return fmt.Errorf("build %s: run build.sh: %w", c.Name, err)
	}
	return c.invalid("it doesn't compile:\n%s", c.explain(out.String()))
}

// compilerLine is "file:line:column: text" or "file:line: text".
var compilerLine = regexp.MustCompile(`^(\S+\.go|go\.mod)(:\d+.*)$`)

// explain makes what the compiler said short, and names files by where their
// author has them instead of where they were copied to.
func (c *buildContext) explain(said string) string {
	var lines []string
	dropped := 0
	for line := range strings.Lines(said) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" || strings.HasPrefix(line, "# ") {
			continue
		}
		if m := compilerLine.FindStringSubmatch(line); m != nil {
			line = c.source(filepath.Clean(m[1])) + m[2]
		}
		if len(lines) == maxCompilerLines {
			dropped++
			continue
		}
		lines = append(lines, "  "+line)
	}
	if dropped > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more lines", dropped))
	}
	return strings.Join(lines, "\n")
}

// source returns where a file of the function's module was copied from,
// relative to the stack file.
func (c *buildContext) source(file string) string {
	own := file
	if at := filepath.FromSlash(c.Function.BuildArgs[handlerArg]); at != "" {
		if rel, err := filepath.Rel(at, file); err == nil {
			own = rel
		}
	}
	for _, candidate := range []string{filepath.Join(c.Function.Handler, own), file} {
		if _, err := os.Stat(filepath.Join(c.Dir, candidate)); err == nil {
			return candidate
		}
	}
	return file
}

// head keeps the first part of what is written to it, which has the first and
// therefore the true mistakes.
type head struct{ bytes.Buffer }

const maxCompilerBytes = 64 << 10

func (h *head) Write(p []byte) (int, error) {
	if room := maxCompilerBytes - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
