package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Bounds on what one image may consist of. They are far above what real images
// have, and low enough that a hostile one is refused within a few megabytes.
const (
	// maxPath leaves a quarter of Linux's 4,096 bytes to the folder that the
	// tree is in.
	maxPath = 3072
	// maxName is what ext4, xfs, btrfs and APFS take.
	maxName = 255
	// maxWindow bounds the memory that a zstd frame may ask for. "zstd -19"
	// uses 8 MB, and Docker's layers less.
	maxWindow = 32 << 20
)

// bounds are what an image may unpack to.
type bounds struct {
	bytes int64
	names int
}

// maxNames bounds the names in an image. A node of the tree takes about 250
// bytes while it is planted: 50 MB. The largest images of machine learning
// frameworks have some 60,000.
const maxNames = 200_000

// errHostile marks what is wrong with a layer itself, as against with the disk
// or the network.
var errHostile = errors.New("refused")

func hostile(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errHostile, fmt.Sprintf(format, args...))
}

func tooMuch(bound int64) error {
	return hostile("it unpacks to more than %d bytes, the bound that THICKET_IMAGE_SIZE sets", bound)
}

func tooMany(bound int) error { return hostile("it has more than %d names", bound) }

// kind is what a name in a layer stands for.
type kind string

const (
	kindDir      kind = "dir"
	kindFile     kind = "file"
	kindSymlink  kind = "symlink"
	kindHardlink kind = "hardlink" // another name of the file Link
	kindWhiteout kind = "whiteout" // the name is gone from the layers below
	kindOpaque   kind = "opaque"   // what layers below have in this folder is gone
)

// entry is one name in a layer.
type entry struct {
	Path string `json:"p"` // relative and clean; "" is the root
	Kind kind   `json:"k"`
	Link string `json:"l,omitempty"` // as it stands in the layer
	File int    `json:"f,omitempty"` // the number of the file with the content
}

// layerHeader is the first line of a layer's index; the entries follow, one to
// a line.
type layerHeader struct {
	Bytes int64 `json:"bytes"` // the sum of the files' sizes
	Names int   `json:"names"`
}

// A layer on disk is a folder with the content of its files under numbers, and
// an index that says what they are called. No name that a stranger chose is
// ever a path in it, so nothing can be written through it to somewhere else:
// names meet the disk only when a tree is planted, and by then they have been
// resolved in memory.
const (
	layerFiles = "f"
	layerIndex = "index"
)

func contentPath(n int) string { return layerFiles + "/" + strconv.Itoa(n) }

// unpackLayer reads a layer (a tar archive, plain, gzip or zstd) and writes it
// into the empty folder dir. It returns the digest of the unpacked archive, in hex, which is what an image's
// configuration calls the layer.
func unpackLayer(ctx context.Context, r io.Reader, dir *os.Root, max bounds) (h layerHeader, diffID string, err error) {
	plain, closeFn, err := decompress(r)
	if err != nil {
		return h, "", err
	}
	defer closeFn()

	stream := &boundedReader{ctx: ctx, r: plain, left: max.bytes, max: max.bytes, sum: sha256.New()}
	u := unpacker{dir: dir, left: max.bytes, max: max}
	if err := dir.Mkdir(layerFiles, 0o755); err != nil {
		return h, "", err
	}
	if err := u.unpack(tar.NewReader(stream)); err != nil {
		// What the stream says of itself is nearer the cause than what the
		// archive reader makes of it.
		if stream.err != nil && stream.err != io.EOF {
			err = stream.err
		}
		return h, "", err
	}
	// The archive ends before its padding does, and the digest is over all.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return h, "", err
	}
	h = layerHeader{Bytes: max.bytes - u.left, Names: len(u.entries)}
	if err := writeIndex(dir, h, u.entries); err != nil {
		return h, "", err
	}
	return h, hex.EncodeToString(stream.sum.Sum(nil)), nil
}

// decompress returns what r holds, whatever of the three formats it is in. The
// media type isn't asked: registries and builders are known to get it wrong.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, hostile("its gzip header is damaged: %v", err)
		}
		return zr, func() { zr.Close() }, nil
	case string(magic) == "\x28\xb5\x2f\xfd":
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, hostile("its zstd header is damaged: %v", err)
		}
		return zr, zr.Close, nil
	}
	return br, func() {}, nil
}

// boundedReader hashes what is read and refuses to go on after max bytes.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
	max  int64
	sum  hash.Hash
	err  error // sticky
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.err = context.Cause(b.ctx); b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.err = tooMuch(b.max)
		return 0, b.err
	}
	b.sum.Write(p[:n])
	if err != nil && err != io.EOF && !isDiskFull(err) {
		if _, ok := errors.AsType[*fs.PathError](err); !ok {
			err = hostile("it is damaged: %v", err)
		}
	}
	b.err = err
	return n, err
}

type unpacker struct {
	dir     *os.Root
	entries []entry
	files   int
	left    int64 // bytes
	max     bounds
}

func (u *unpacker) unpack(tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return hostile("it is not a sound archive: %v", err)
		}
		if err := u.add(hdr, tr); err != nil {
			return err
		}
		if len(u.entries) > u.max.names {
			return tooMany(u.max.names)
		}
	}
}

func (u *unpacker) add(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if e, ok, err := whiteout(name); err != nil || ok {
		if ok && err == nil && e.Kind != "" {
			u.entries = append(u.entries, e)
		}
		return err
	}

	e := entry{Path: name}
	switch hdr.Typeflag {
	case tar.TypeDir:
		e.Kind = kindDir
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > maxPath || strings.ContainsRune(hdr.Linkname, 0) {
			return hostile("the link %.100q points to %.100q, which no link can", name, hdr.Linkname)
		}
		e.Kind, e.Link = kindSymlink, hdr.Linkname
	case tar.TypeLink:
		target, err := cleanName(hdr.Linkname)
		if err != nil {
			return err
		}
		e.Kind, e.Link = kindHardlink, target
	case tar.TypeReg, tar.TypeGNUSparse:
		if e.File, err = u.write(hdr, content); err != nil {
			return err
		}
		e.Kind = kindFile
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		// Devices are what the provider gives to a function, never what an
		// image brings along. Old images have a few in /dev, so these are left
		// out and the image is not refused.
		return nil
	default:
		return hostile("%.100q is of the unknown type %q", name, hdr.Typeflag)
	}
	if e.Path == "" && e.Kind != kindDir {
		return hostile("its root is not a folder")
	}
	u.entries = append(u.entries, e)
	return nil
}

// write writes one file's content under the next number. Whoever may reach the
// tree may read it, nobody may write it: it is shared by all images with this
// layer, and by functions that run as users of their own, who stand in for
// whichever user the image names.
func (u *unpacker) write(hdr *tar.Header, content io.Reader) (int, error) {
	if hdr.Size < 0 || hdr.Size > u.left {
		return 0, tooMuch(u.max.bytes)
	}
	u.left -= hdr.Size
	u.files++
	name := contentPath(u.files)
	f, err := u.dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := io.CopyN(f, content, hdr.Size); err != nil {
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			return 0, err
		}
		if errors.Is(err, errHostile) || errors.Is(err, context.Canceled) {
			return 0, err
		}
		return 0, hostile("it ends in the middle of %.100q: %v", hdr.Name, err)
	}
	mode := fs.FileMode(0o444)
	if hdr.Mode&0o111 != 0 {
		mode = 0o555
	}
	if err := f.Chmod(mode); err != nil {
		return 0, err
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	// Python, make and others compare these. What a file system can't hold
	// is not worth refusing an image for.
	if t := hdr.ModTime; t.Unix() > 0 && t.Year() < 2200 {
		_ = u.dir.Chtimes(name, time.Time{}, t)
	}
	return u.files, nil
}

// cleanName returns a name of an archive as a relative clean path. It takes
// "/etc", "./etc" and "etc//" for "etc", as every tool does, and refuses "..",
// which no tool writes.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", hostile("the name %.60q… has %d bytes, at most %d are allowed", name, len(name), maxPath)
	}
	parts := make([]string, 0, 8)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", hostile("the name %.100q leads out of the image", name)
		case len(part) > maxName:
			return "", hostile("the name %.60q… has %d bytes between two slashes, at most %d are allowed", part, len(part), maxName)
		case strings.ContainsRune(part, 0):
			return "", hostile("the name %.100q has a zero byte", name)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/"), nil
}

// whiteout reads the names by which a layer removes what is below it (OCI image
// specification, "Whiteouts"). It returns true for each that starts with the
// reserved prefix, with an entry of no kind if it means nothing.
func whiteout(name string) (entry, bool, error) {
	const prefix, reserved, opaque = ".wh.", ".wh..wh.", ".wh..wh..opq"
	dir, base := splitPath(name)
	switch {
	case !strings.HasPrefix(base, prefix):
		return entry{}, false, nil
	case base == opaque:
		return entry{Path: dir, Kind: kindOpaque}, true, nil
	case strings.HasPrefix(base, reserved):
		return entry{}, true, nil // aufs kept its own files under such names
	}
	gone := base[len(prefix):]
	if gone == "" || gone == "." || gone == ".." {
		return entry{}, true, hostile("%.100q removes no name", name)
	}
	return entry{Path: joinPath(dir, gone), Kind: kindWhiteout}, true, nil
}

func splitPath(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p
	}
	return p[:i], p[i+1:]
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

func writeIndex(dir *os.Root, h layerHeader, entries []entry) error {
	f, err := dir.OpenFile(layerIndex, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(h); err != nil {
		return err
	}
	for i := range entries {
		if err := enc.Encode(&entries[i]); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// readHeader reads the first line of a layer's index.
func readHeader(dir *os.Root, layer string) (h layerHeader, err error) {
	f, err := dir.Open(layer + "/" + layerIndex)
	if err != nil {
		return h, err
	}
	defer f.Close()
	err = json.NewDecoder(io.LimitReader(f, 1<<10)).Decode(&h)
	return h, err
}

// readIndex reads what a layer on disk consists of.
func readIndex(dir *os.Root, layer string) ([]entry, error) {
	f, err := dir.Open(layer + "/" + layerIndex)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dec := json.NewDecoder(bufio.NewReader(f))
	var h layerHeader
	if err := dec.Decode(&h); err != nil {
		return nil, err
	}
	entries := make([]entry, h.Names)
	for i := range entries {
		if err := dec.Decode(&entries[i]); err != nil {
			return nil, fmt.Errorf("the index of layer %s is damaged: %w", layer, err)
		}
	}
	return entries, nil
}
