package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// checkTree fails if anything in an image's tree leads out of it, or is of a
// kind or a mode that it mustn't be.
func checkTree(t testing.TB, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			checkLink(t, root, rel)
		case !fi.IsDir() && !fi.Mode().IsRegular():
			t.Errorf("%s is a %v", rel, fi.Mode())
		case fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0, fi.Mode()&0o022 != 0 && rel != "tmp":
			t.Errorf("%s has the mode %v", rel, fi.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, p := range []string{"tmp", "dev", "proc", "var/openfaas/secrets", "etc/hosts", "etc/resolv.conf"} {
		// No part of a path that something is mounted on may be a link.
		for at := p; at != "."; at = filepath.Dir(at) {
			if fi, err := os.Lstat(filepath.Join(root, at)); err != nil || fi.Mode()&fs.ModeSymlink != 0 {
				t.Errorf("%s is not a mount point: %v, %v", at, fi, err)
			}
		}
	}
}

// checkLink follows a link as the kernel does for a process whose root is the
// machine's, name by name, and fails if it is ever above the tree.
func checkLink(t testing.TB, root, rel string) {
	t.Helper()
	at := strings.Split(filepath.Dir(rel), "/")
	if at[0] == "." {
		at = nil
	}
	rest := []string{filepath.Base(rel)}
	for hops := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				target, _ := os.Readlink(filepath.Join(root, rel))
				t.Errorf("the link %s -> %s leads out of the tree", rel, target)
				return
			}
			at = at[:len(at)-1]
			continue
		}
		at = append(at, part)
		target, err := os.Readlink(filepath.Join(append([]string{root}, at...)...))
		if err != nil {
			continue // no link, or nothing there
		}
		if hops++; hops > 40 {
			return
		}
		if strings.HasPrefix(target, "/") {
			t.Errorf("the link %s -> %s is absolute", rel, target)
			return
		}
		at = at[:len(at)-1]
		rest = append(strings.Split(target, "/"), rest...)
	}
}

func TestHostileLayers(t *testing.T) {
	reg := newRegistry(t)
	const bound = 1 << 20
	s, dir := openStore(t, func(c *image.StoreConfig) { c.MaxImageBytes = bound })
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	long := strings.Repeat("n", 256)
	many := make([]tarEntry, 0, 2100)
	for i := range 2100 {
		many = append(many, tarEntry{name: fmt.Sprintf("d/%d", i)})
	}
	circle := []tarEntry{{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "a"}, {name: "a/x", body: "x"}}

	for _, tt := range []struct {
		name   string
		layers [][]tarEntry
		err    string            // in the sentence, or
		files  map[string]string // what must be there
	}{
		{name: "dot dot", layers: [][]tarEntry{{{name: up + "outside", body: "owned"}}}, err: "leads out of the image"},
		{name: "dot dot inside", layers: [][]tarEntry{{{name: "a/../b", body: "x"}}}, err: "leads out of the image"},
		{name: "absolute", layers: [][]tarEntry{{{name: outside, body: "inside"}}}, files: map[string]string{outside: "inside"}},
		{name: "write through a link", layers: [][]tarEntry{
			{{name: "evil", kind: tar.TypeSymlink, link: filepath.Dir(outside)}, {name: "evil/outside", body: "inside"}},
		}, files: map[string]string{outside: "inside"}},
		{name: "write through a link of a layer below", layers: [][]tarEntry{
			{{name: "evil", kind: tar.TypeSymlink, link: up + filepath.Dir(outside)}}, {{name: "evil/outside", body: "inside"}},
		}, files: map[string]string{outside: "inside"}},
		{name: "write over a link", layers: [][]tarEntry{
			{{name: "evil", kind: tar.TypeSymlink, link: outside}}, {{name: "evil", body: "inside"}},
		}, files: map[string]string{"evil": "inside"}},
		{name: "links out", layers: [][]tarEntry{{
			{name: "etc/passwd", body: "inside"},
			{name: "a/b/absolute", kind: tar.TypeSymlink, link: "/etc/passwd"},
			{name: "a/b/relative", kind: tar.TypeSymlink, link: up + "etc/passwd"},
			{name: "a/b/good", kind: tar.TypeSymlink, link: "../../etc/passwd"},
			{name: "top", kind: tar.TypeSymlink, link: "/"},
			{name: "a/top", kind: tar.TypeSymlink, link: "/"},
			{name: "a/above", kind: tar.TypeSymlink, link: "top/../../etc/passwd"},
			{name: "lib.so", kind: tar.TypeSymlink, link: "lib.so.1"},
			{name: "lib.so.1", kind: tar.TypeSymlink, link: "etc/passwd"},
			{name: "nowhere", kind: tar.TypeSymlink, link: "/proc/self/../../../../x"},
		}}, files: map[string]string{"a/b/absolute": "inside", "a/b/relative": "inside", "a/b/good": "inside", "a/above": "inside", "top/etc/passwd": "inside", "lib.so": "inside"}},
		{name: "links at mount points", layers: [][]tarEntry{{
			{name: "etc", kind: tar.TypeSymlink, link: "/usr/etc"},
			{name: "etc/hosts", kind: tar.TypeSymlink, link: outside},
			{name: "tmp", kind: tar.TypeSymlink, link: "/"},
			{name: "dev", body: "a file"},
			{name: "var/openfaas", kind: tar.TypeSymlink, link: filepath.Dir(outside)},
		}}, files: map[string]string{"etc/hosts": ""}},
		{name: "hard link out", layers: [][]tarEntry{{{name: "evil", kind: tar.TypeLink, link: up + "outside"}}}, err: "leads out of the image"},
		{name: "hard link to an absolute name", layers: [][]tarEntry{{{name: "evil", kind: tar.TypeLink, link: outside}}}, err: "is not in the image"},
		{name: "hard link through a link", layers: [][]tarEntry{
			{{name: "l", kind: tar.TypeSymlink, link: filepath.Dir(outside)}, {name: "evil", kind: tar.TypeLink, link: "l/outside"}},
		}, err: "is not in the image"},
		{name: "hard link to the layer below", layers: [][]tarEntry{{{name: "a", body: "a"}}, {{name: "b", kind: tar.TypeLink, link: "a"}}}, files: map[string]string{"b": "a"}},
		{name: "hard link to a folder", layers: [][]tarEntry{{{name: "a", kind: tar.TypeDir}, {name: "b", kind: tar.TypeLink, link: "a"}}}, err: "is not a file"},
		{name: "hard link to itself", layers: [][]tarEntry{{{name: "a", kind: tar.TypeLink, link: "a"}}}, err: "is not a file"},
		{name: "devices", layers: [][]tarEntry{{
			{name: "dev/sda", kind: tar.TypeBlock}, {name: "dev/kmsg", kind: tar.TypeChar}, {name: "pipe", kind: tar.TypeFifo}, {name: "x", body: "x"},
		}}, files: map[string]string{"x": "x"}},
		{name: "modes", layers: [][]tarEntry{{{name: "d", kind: tar.TypeDir, mode: 0o7777}, {name: "d/x", mode: 0o7777, body: "x"}}}, files: map[string]string{"d/x": "x"}},
		{name: "an unknown type", layers: [][]tarEntry{{{name: "x", kind: 'Q'}}}, err: "unknown type"},
		{name: "huge size", layers: [][]tarEntry{{{name: "x", size: 1 << 50}}}, err: "unpacks to more than 1048576 bytes"},
		{name: "too large", layers: [][]tarEntry{{{name: "x", body: strings.Repeat("0", bound)}}}, err: "unpacks to more than 1048576 bytes"},
		{name: "too large together", layers: [][]tarEntry{{{name: "x", body: strings.Repeat("0", bound/2)}}, {{name: "y", body: strings.Repeat("1", bound/2+1)}}}, err: "is larger than 1048576 bytes"},
		{name: "long name", layers: [][]tarEntry{{{name: "a/" + long}}}, err: "at most 255 are allowed"},
		{name: "long path", layers: [][]tarEntry{{{name: strings.Repeat("a/", 2000) + "a"}}}, err: "at most 3072 are allowed"},
		{name: "long path through links", layers: [][]tarEntry{{
			{name: strings.Repeat("a/", 1000), kind: tar.TypeDir}, {name: "l", kind: tar.TypeSymlink, link: strings.Repeat("a/", 1000)},
			{name: strings.Repeat("a/", 1000) + "l", kind: tar.TypeSymlink, link: "/" + strings.Repeat("a/", 500) + "b"},
			{name: "l/l/" + strings.Repeat("c/", 1200) + "c", body: "x"},
		}}, err: "has more than 3072 bytes"},
		{name: "links in a circle", layers: [][]tarEntry{circle}, err: "go in a circle"},
		{name: "a link to itself", layers: [][]tarEntry{{{name: "a", kind: tar.TypeSymlink, link: "a"}, {name: "a/b/c", body: "x"}}}, err: "go in a circle"},
		{name: "a file as a folder", layers: [][]tarEntry{{{name: "a", body: "x"}, {name: "a/b", body: "x"}}}, err: "is a file"},
		{name: "a link to nowhere", layers: [][]tarEntry{{{name: "a", kind: tar.TypeSymlink}}}, err: "which no link can"},
		{name: "the root is a file", layers: [][]tarEntry{{{name: "./", kind: tar.TypeSymlink, link: "/x"}}}, err: "its root is not a folder"},
		{name: "whiteout of everything", layers: [][]tarEntry{{{name: "a", body: "x"}}, {{name: ".wh..wh..opq"}, {name: "b", body: "y"}}}, files: map[string]string{"b": "y"}},
		{name: "whiteout of dots", layers: [][]tarEntry{{{name: "a/.wh..."}}}, err: "removes no name"},
		{name: "whiteout of nothing", layers: [][]tarEntry{{{name: "a/.wh."}}}, err: "removes no name"},
		{name: "whiteout through a link", layers: [][]tarEntry{
			{{name: "l", kind: tar.TypeSymlink, link: filepath.Dir(outside)}}, {{name: "l/.wh.outside"}, {name: "l/.wh..wh..opq"}, {name: "x", body: "x"}},
		}, files: map[string]string{"x": "x"}},
		{name: "whiteout of the same layer's", layers: [][]tarEntry{{{name: "a", body: "x"}, {name: ".wh.a"}}}, files: map[string]string{"a": "x"}},
		{name: "many small files", layers: [][]tarEntry{many}, err: "unpacks to more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var layers []v1.Layer
			for _, l := range tt.layers {
				layers = append(layers, gzipLayerOf(t, l...))
			}
			img, release, err := s.Fetch(t.Context(), reg.push(t, "hostile:1", imageOf(t, host, layers...)))
			if tt.err != "" {
				if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "/hostile@sha256:") {
					t.Errorf("Fetch() = %v, want it refused with %q", err, tt.err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if err == nil {
				defer release()
				checkTree(t, img.Root)
				for p, want := range tt.files {
					if got := content(t, img.Root, p); got != want {
						t.Errorf("%s = %q, want %q", p, got, want)
					}
				}
			}
			if got := content(t, outside); got != "untouched" {
				t.Errorf("the file outside is %q", got)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
				t.Errorf("left in tmp: %v, %v", left, err)
			}
		})
	}
}

func TestBombs(t *testing.T) {
	reg := newRegistry(t)
	s, _ := openStore(t, func(c *image.StoreConfig) { c.MaxImageBytes = 1 << 20 })
	// 8 MB that are 8 KB on the way.
	plain := tarOf(t, tarEntry{name: "zeros", body: strings.Repeat("\x00", 8<<20)})
	var small bytes.Buffer
	w, err := zstd.NewWriter(&small)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// After the archive's end: what no reader of the archive ever sees.
	tail := gzipped(t, append(tarOf(t, tarEntry{name: "x"}), make([]byte, 8<<20)...))
	for name, packed := range map[string][]byte{"gzip": gzipped(t, plain), "zstd": small.Bytes(), "tail": tail} {
		t.Run(name, func(t *testing.T) {
			ref := reg.push(t, "bomb:"+name, imageOf(t, host, static.NewLayer(packed, types.OCILayer)))
			_, _, err := s.Fetch(t.Context(), ref)
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "unpacks to more than 1048576 bytes") {
				t.Errorf("Fetch() = %v", err)
			}
		})
	}
}

func TestFormats(t *testing.T) {
	plain := tarOf(t, tarEntry{name: "x", body: "x"})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, packed := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": enc.EncodeAll(plain, nil), "two gzip members": slices.Concat(gzipped(t, plain[:700]), gzipped(t, plain[700:]))} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := image.UnpackAndPlant(t.Context(), dir, 1<<20, 1000, bytes.NewReader(packed)); err != nil {
				t.Fatal(err)
			}
			if got := content(t, dir, "rootfs/x"); got != "x" {
				t.Errorf("x = %q", got)
			}
		})
	}
	for name, broken := range map[string][]byte{
		"half a gzip":   gzipped(t, plain)[:60],
		"half a zstd":   enc.EncodeAll(plain, nil)[:30],
		"half an entry": plain[:512],
		"no archive":    bytes.Repeat([]byte("nonsense"), 100),
	} {
		t.Run(name, func(t *testing.T) {
			if err := image.UnpackAndPlant(t.Context(), t.TempDir(), 1<<20, 1000, bytes.NewReader(broken)); !errors.Is(err, image.ErrHostile) {
				t.Errorf("unpack = %v, want it refused", err)
			}
		})
	}
}

func TestTooManyNames(t *testing.T) {
	for name, write := range map[string]func(w *tar.Writer) error{
		"files": func(w *tar.Writer) error {
			for i := range 1001 {
				if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeSymlink, Linkname: "x"}); err != nil {
					return err
				}
			}
			return nil
		},
		"implied folders": func(w *tar.Writer) error {
			for i := range 2 {
				name := fmt.Sprint(i) + strings.Repeat("/d", 1400) + "/x"
				if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			if err := errors.Join(write(w), w.Close()); err != nil {
				t.Fatal(err)
			}
			err := image.UnpackAndPlant(t.Context(), t.TempDir(), 1<<30, 1000, &buf)
			if !errors.Is(err, image.ErrHostile) || !strings.Contains(err.Error(), "more than 1000 names") {
				t.Errorf("unpack = %v", err)
			}
		})
	}
}

// TestHostileManifests has a registry that says what it likes.
func TestHostileManifests(t *testing.T) {
	img := imageOf(t, host, layerOf(t, tarEntry{name: "x", body: "x"}))
	for _, tt := range []struct {
		name string
		edit func(m *v1.Manifest, c *v1.ConfigFile)
		raw  string
		err  string
	}{
		{name: "not JSON", raw: "<html>", err: "can't be read"},
		{name: "the first version", raw: `{"schemaVersion":1,"name":"x","fsLayers":[]}`, err: "only version 2 is understood"},
		{name: "no index", raw: `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, err: "has no linux/arm64: it has no platform at all"},
		{name: "too long", raw: strings.Repeat(" ", 5<<20), err: "longer than"},
		{name: "not an image", edit: func(m *v1.Manifest, _ *v1.ConfigFile) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}, err: "not a container image, but"},
		{name: "negative size", edit: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size = -5 }, err: "is larger than"},
		{name: "huge sizes", edit: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size = 1<<63 - 1; m.Config.Size = 1<<63 - 1 }, err: "is larger than"},
		{name: "too many layers", edit: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers = slices.Repeat(m.Layers, 1000) }, err: "at most 512"},
		{name: "layers without names", edit: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs = nil }, err: "has 1 layers and its configuration 0"},
		{name: "a lie about a layer", edit: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64) }, err: "and the image's configuration says"},
		{name: "a path for a digest", edit: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Algorithm = "../../x" }, err: "can't be read"},
		{name: "a short layer", edit: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size-- }, err: "arrived damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg := liar(t, img, tt.edit, tt.raw)
			s, dir := openStore(t)
			_, _, err := s.Fetch(within(t, t.Context()), reg+"/x:1")
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "image "+reg+"/x:1") {
				t.Errorf("Fetch() = %v, want it refused with %q", err, tt.err)
			}
			for _, folder := range []string{"trees", "layers"} {
				if list, err := os.ReadDir(filepath.Join(dir, folder)); err != nil || len(list) > 0 {
					t.Errorf("%s has %v, %v", folder, list, err)
				}
			}
		})
	}
}

// liar serves an image whose manifest and configuration were edited, or raw in
// place of the manifest.
func liar(t testing.TB, img v1.Image, edit func(*v1.Manifest, *v1.ConfigFile), raw string) string {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m, c = m.DeepCopy(), c.DeepCopy()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	layer, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	conf := encode(t, c)
	if edit != nil {
		edit(m, c)
		conf = encode(t, c)
		h, n, err := v1.SHA256(bytes.NewReader(conf))
		if err != nil {
			t.Fatal(err)
		}
		m.Config.Digest = h
		if m.Config.Size < 1<<40 {
			m.Config.Size = n
		}
		raw = string(encode(t, m))
	}
	return newServer(t, serveParts(map[string][]byte{
		"/v2/x/manifests/1":                       []byte(raw),
		"/v2/x/blobs/" + m.Config.Digest.String(): conf,
		"/v2/x/blobs/" + digestOf(t, layers[0]):   layer,
		"/v2/":                                    nil,
	}))
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzUnpack(f *testing.F) {
	seeds := [][]tarEntry{
		{{name: "a/b", body: "x"}, {name: "l", kind: tar.TypeSymlink, link: "/a"}, {name: "l/c", body: "y"}, {name: "h", kind: tar.TypeLink, link: "l/b"}},
		{{name: "../x"}, {name: "a/.wh.b"}, {name: "a/.wh..wh..opq"}},
		{{name: "etc", kind: tar.TypeSymlink, link: "../../.."}, {name: "etc/hosts", kind: tar.TypeSymlink, link: "../x"}},
		{{name: "dev/null", kind: tar.TypeChar}, {name: "tmp", kind: tar.TypeFifo}},
	}
	for _, s := range seeds {
		b := tarOf(f, s...)
		f.Add(b, b)
		f.Add(gzipped(f, b), b)
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		dir := t.TempDir()
		err := image.UnpackAndPlant(t.Context(), dir, 1<<20, 1000, bytes.NewReader(lower), bytes.NewReader(upper))
		if err != nil {
			if _, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrExist) {
				t.Errorf("two names met on disk: %v", err)
			}
			return
		}
		checkTree(t, filepath.Join(dir, "rootfs"))
	})
}
