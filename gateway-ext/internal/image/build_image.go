package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// The user that functions run as, the one that distroless images call nonroot.
const nonroot = 65532

// bundles are where the systems we know keep the certificate authorities they
// trust.
var bundles = [...]string{
	"/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL
	"/etc/ssl/ca-bundle.pem",             // openSUSE
	"/etc/ssl/cert.pem",                  // macOS, BSD
}

// recipe is what the last stage of a template's Dockerfile says of the image.
type recipe struct {
	env        []string
	entrypoint []string
	user       string
	workdir    string
	ports      []string

	other     string // an instruction that would have to be executed
	otherLine int
}

// readRecipe reads the instructions that describe an image, so that it is
// written in one place what is in it for Docker and for us. Instructions that
// would have to be executed are refused.
func readRecipe(dockerfile string) (*recipe, error) {
	data, err := os.ReadFile(dockerfile)
	if err != nil {
		return nil, fmt.Errorf("read the template's Dockerfile: %w", err)
	}
	r := &recipe{}
	number, started := 0, 0
	logical := ""
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" && logical == "" {
			continue
		}
		if logical == "" {
			started = number
		}
		if part, more := strings.CutSuffix(line, `\`); more {
			logical += part + " "
			continue
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(logical+line), " ")
		logical = ""
		rest = strings.TrimSpace(rest)
		switch strings.ToUpper(word) {
		case "FROM":
			*r = recipe{}
		case "ENV":
			r.env = append(r.env, strings.Fields(rest)...)
		case "EXPOSE":
			r.ports = append(r.ports, strings.Fields(rest)...)
		case "USER":
			r.user = rest
		case "WORKDIR":
			r.workdir = rest
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &r.entrypoint); err != nil {
				return nil, faas.Errorf(faas.ErrInvalid, "the template's Dockerfile, line %d: write ENTRYPOINT as a list: [\"/function\"]", started)
			}
		case "ARG", "COPY", "LABEL": // the program and the base files are known
		default:
			r.other, r.otherLine = word, started
		}
	}
	switch {
	case r.other != "":
		return nil, faas.Errorf(faas.ErrInvalid, "the template's Dockerfile, line %d: gateway-ext can't do %s in the last stage; do it in a stage before, or build with: faas-cli build", r.otherLine, r.other)
	case len(r.entrypoint) != 1 || r.user == "":
		return nil, faas.Errorf(faas.ErrInvalid, "the template's Dockerfile needs in its last stage an ENTRYPOINT with the program alone, and a USER")
	}
	return r, nil
}

// baseLayer is the layer with what a program expects around it. It is the same
// for all functions built on a machine, so it is stored and sent once.
func (c *buildContext) baseLayer(ctx context.Context) (v1.Layer, error) {
	certs, err := c.certificates()
	if err != nil {
		return nil, err
	}
	goroot, err := c.output(ctx, c.Go, "env", "GOROOT")
	if err != nil {
		return nil, fmt.Errorf("build %s: ask go where it is: %w", c.Name, err)
	}
	zones, err := os.ReadFile(filepath.Join(goroot, "lib", "time", "zoneinfo.zip"))
	if err != nil {
		return nil, fmt.Errorf("build %s: read the time zones of Go: %w", c.Name, err)
	}
	var l layerWriter
	l.file("etc/passwd", 0o644, fmt.Appendf(nil, "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:%d:%d:nonroot:/home/app:/sbin/nologin\n", nonroot, nonroot))
	l.file("etc/group", 0o644, fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nonroot))
	l.file("etc/ssl/certs/ca-certificates.crt", 0o644, certs)
	l.file("usr/local/go/lib/time/zoneinfo.zip", 0o644, zones)
	l.dir("home/app", 0o755, nonroot)
	l.dir("tmp", 0o1777, 0)
	return l.layer()
}

func (c *buildContext) certificates() ([]byte, error) {
	if c.Certificates != "" {
		data, err := os.ReadFile(c.Certificates)
		if err != nil {
			return nil, fmt.Errorf("build %s: read the certificates: %w", c.Name, err)
		}
		return data, nil
	}
	for _, file := range bundles {
		if data, err := os.ReadFile(file); err == nil && len(data) > 0 {
			return data, nil
		}
	}
	return nil, fmt.Errorf("build %s: this machine has no certificate authorities for the image (looked for %s); on Debian: apt install ca-certificates",
		c.Name, strings.Join(bundles[:], ", "))
}

// imageConfig is the configuration that the images of all platforms share.
func (c *buildContext) imageConfig(ctx context.Context, r *recipe) (v1.ConfigFile, error) {
	commit, revision := c.commit(ctx)
	created, err := c.created(commit)
	if err != nil {
		return v1.ConfigFile{}, err
	}
	labels := map[string]string{
		"org.opencontainers.image.title":   c.Name,
		"org.opencontainers.image.created": created.Format(time.RFC3339),
	}
	if revision != "" {
		labels["org.opencontainers.image.revision"] = revision
		if source := c.origin(ctx); source != "" {
			labels["org.opencontainers.image.source"] = source
		}
	}
	if tag, err := name.NewTag(c.Function.Image); err == nil && tag.TagStr() != "latest" {
		labels["org.opencontainers.image.version"] = tag.TagStr()
	}
	ports := map[string]struct{}{}
	for _, p := range r.ports {
		if !strings.Contains(p, "/") {
			p += "/tcp"
		}
		ports[p] = struct{}{}
	}
	return v1.ConfigFile{
		Created: v1.Time{Time: created},
		Config: v1.Config{
			Entrypoint:   r.entrypoint,
			Env:          r.env,
			ExposedPorts: ports,
			Labels:       labels,
			User:         r.user,
			WorkingDir:   r.workdir,
		},
	}, nil
}

// commit returns when the commit was made that is checked out, and which it is,
// with "-dirty" behind it if files differ from it. Both are zero without git.
func (c *buildContext) commit(ctx context.Context) (time.Time, string) {
	out, err := c.output(ctx, "git", "-C", c.Dir, "log", "-1", "--format=%ct %H")
	if err != nil {
		return time.Time{}, ""
	}
	seconds, revision, _ := strings.Cut(out, " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, ""
	}
	if changed, err := c.output(ctx, "git", "-C", c.Dir, "status", "--porcelain", "--untracked-files=no"); err != nil || changed != "" {
		revision += "-dirty"
	}
	return time.Unix(n, 0).UTC(), revision
}

// origin returns the address of the repository that it was cloned from, without
// a password that may be in it, or "" if that is only a path on this machine.
func (c *buildContext) origin(ctx context.Context) string {
	remote, err := c.output(ctx, "git", "-C", c.Dir, "config", "--get", "remote.origin.url")
	if err != nil {
		return ""
	}
	if u, err := url.Parse(remote); err == nil && u.Host != "" {
		u.User = nil
		return u.String()
	}
	if user, path, ok := strings.Cut(remote, "@"); ok && !strings.ContainsAny(user, "/:") {
		if host, path, ok := strings.Cut(path, ":"); ok { // git@host:path
			return "https://" + host + "/" + strings.TrimSuffix(path, ".git")
		}
	}
	return ""
}

// output runs a program and returns what it said, without space around it.
func (c *buildContext) output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = c.Environ
	cmd.WaitDelay = cancelGrace
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// makeImage puts a program on top of the base layer.
func makeImage(base v1.Layer, program, at string, config v1.ConfigFile, p v1.Platform) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var l layerWriter
	l.file(strings.TrimPrefix(at, "/"), 0o755, data)
	top, err := l.layer()
	if err != nil {
		return nil, err
	}
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	config.RootFS = v1.RootFS{Type: "layers"}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, &config); err != nil {
		return nil, err
	}
	return mutate.Append(img,
		mutate.Addendum{Layer: base, MediaType: types.OCILayer, History: v1.History{Created: config.Created, CreatedBy: "gateway-ext build", Comment: "certificates, time zones, users"}},
		mutate.Addendum{Layer: top, MediaType: types.OCILayer, History: v1.History{Created: config.Created, CreatedBy: "gateway-ext build", Comment: "program"}},
	)
}

func makeIndex(images []v1.Image, platforms []v1.Platform) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for i, img := range images {
		size, err := img.Size()
		if err != nil {
			return nil, err
		}
		digest, err := img.Digest()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			MediaType: types.OCIManifestSchema1, Size: size, Digest: digest, Platform: &platforms[i],
		}})
	}
	return index, nil
}

// layerWriter writes files into a layer, in order, all of them of 1970 and of
// root, with the folders above them. The zero value is an empty layer.
type layerWriter struct {
	files []layerFile
}

type layerFile struct {
	header tar.Header
	data   []byte
}

func (l *layerWriter) dir(path string, mode int64, owner int) {
	l.files = append(l.files, layerFile{header: tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: mode, Uid: owner, Gid: owner}})
}

func (l *layerWriter) file(path string, mode int64, data []byte) {
	l.files = append(l.files, layerFile{header: tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(data))}, data: data})
}

// layer returns what was written as a gzipped layer.
func (l *layerWriter) layer() (v1.Layer, error) {
	written := map[string]bool{}
	for _, f := range slices.Clone(l.files) {
		for dir := filepath.Dir(filepath.Clean(f.header.Name)); dir != "."; dir = filepath.Dir(dir) {
			if !written[dir] {
				written[dir] = true
				l.dir(dir, 0o755, 0)
			}
		}
	}
	slices.SortFunc(l.files, func(a, b layerFile) int { return cmp.Compare(a.header.Name, b.header.Name) })
	made := &layer{diff: sha256.New()}
	zip, err := gzip.NewWriterLevel(&made.gzipped, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(io.MultiWriter(zip, made.diff))
	for _, f := range l.files {
		f.header.ModTime = time.Unix(0, 0)
		f.header.Format = tar.FormatPAX
		if err := w.WriteHeader(&f.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return made, nil
}

// layer is a gzipped layer in memory.
type layer struct {
	gzipped bytes.Buffer
	diff    hash.Hash // of what is gzipped
}

// Digest implements [v1.Layer].
func (l *layer) Digest() (v1.Hash, error) {
	sum := sha256.Sum256(l.gzipped.Bytes())
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, nil
}

// DiffID implements [v1.Layer].
func (l *layer) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(l.diff.Sum(nil))}, nil
}

// Compressed implements [v1.Layer].
func (l *layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.gzipped.Bytes())), nil
}

// Uncompressed implements [v1.Layer].
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return gzip.NewReader(bytes.NewReader(l.gzipped.Bytes()))
}

// Size implements [v1.Layer].
func (l *layer) Size() (int64, error) { return int64(l.gzipped.Len()), nil }

// MediaType implements [v1.Layer].
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
