package image

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
)

// tree is the files of an image, in memory: layers are laid over one another
// here, and the result is planted on disk in one go. It needs neither root nor
// a file system that can overlay, and since names and links are resolved within
// it, none leads elsewhere.
type tree struct {
	root  *node
	max   int // nodes
	nodes int
	steps int
}

// stepsPerNode bounds the work that paths in a layer can cause: links that go
// through links, 40 times over for each of 200,000 names, take minutes. It
// allows each name to be 100 folders deep.
const stepsPerNode = 100

type node struct {
	children map[string]*node // not nil for a folder only
	link     string           // not "" for a symbolic link only
	content  string           // the path of a file's content, below the store's folder
}

func (n *node) dir() bool { return n.children != nil }

func newTree(maxNodes int) *tree {
	return &tree{root: &node{children: map[string]*node{}}, max: maxNodes, nodes: 1}
}

// lay puts a layer over the tree. content gives the path of a numbered file.
func (t *tree) lay(entries []entry, content func(n int) string) error {
	// What a layer removes is below it, never in it, wherever in the archive
	// it says so.
	for i := range entries {
		if e := &entries[i]; e.Kind == kindWhiteout || e.Kind == kindOpaque {
			t.remove(e)
		}
	}
	for i := range entries {
		e := &entries[i]
		if e.Path == "" || e.Kind == kindWhiteout || e.Kind == kindOpaque {
			continue
		}
		dir, base := splitPath(e.Path)
		parent, err := t.walk(dir, makeMissing)
		if err != nil {
			return err
		}
		old := parent.children[base]
		n := &node{}
		switch e.Kind {
		case kindDir:
			if old != nil && old.dir() {
				continue
			}
			n.children = map[string]*node{}
		case kindFile:
			n.content = content(e.File)
		case kindSymlink:
			n.link = e.Link
		case kindHardlink:
			target, err := t.find(e.Link)
			if err != nil {
				return err
			}
			n.content, n.link = target.content, target.link
		}
		parent.children[base] = n
		if err := t.count(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) count() error {
	if t.nodes++; t.nodes > t.max {
		return tooMany(t.max)
	}
	return nil
}

func (t *tree) remove(e *entry) {
	if e.Kind == kindOpaque {
		if n, err := t.walk(e.Path, failMissing); err == nil {
			clear(n.children)
		}
		return
	}
	dir, base := splitPath(e.Path)
	if n, err := t.walk(dir, failMissing); err == nil {
		delete(n.children, base)
	}
}

// find returns the file or the symbolic link that a hard link means.
func (t *tree) find(p string) (*node, error) {
	dir, base := splitPath(p)
	parent, err := t.walk(dir, failMissing)
	if err != nil {
		return nil, hostile("the hard link's target %.100q is not in the image", p)
	}
	n := parent.children[base]
	if n == nil || n.dir() {
		return nil, hostile("the hard link's target %.100q is not a file in the image", p)
	}
	return n, nil
}

type missing int

const (
	failMissing missing = iota
	makeMissing
)

// walk returns the folder at p, going through symbolic links as a process would
// whose root is the tree's.
func (t *tree) walk(p string, m missing) (*node, error) {
	w := walker{tree: t, missing: m, at: []*node{t.root}}
	if err := w.walk(p); err != nil {
		return nil, err
	}
	return w.here(), nil
}

// walker follows a path through a tree, links included.
type walker struct {
	tree    *tree
	missing missing
	at      []*node // the folders from the root to here
	names   []string
	length  int  // of the names together
	hops    int  // links followed
	clamped bool // ".." was met at the root, where it stays
}

func (w *walker) walk(p string) error {
	rest := strings.Split(p, "/")
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		if w.tree.steps++; w.tree.steps > stepsPerNode*w.tree.max {
			return hostile("its folders and links are nested too deep")
		}
		here := w.here()
		switch part {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		next := here.children[part]
		switch {
		case next == nil:
			if w.missing == failMissing {
				return fs.ErrNotExist
			}
			next = &node{children: map[string]*node{}}
			here.children[part] = next
			if err := w.tree.count(); err != nil {
				return err
			}
		case next.link != "":
			if w.hops++; w.hops > 40 { // what Linux allows
				return hostile("the links at %.100q go in a circle", p)
			}
			if strings.HasPrefix(next.link, "/") {
				w.at, w.names, w.length = w.at[:1], nil, 0
			}
			rest = append(strings.Split(next.link, "/"), rest...)
			continue
		case !next.dir():
			return hostile("%.100q is used as a folder and is a file", p)
		}
		if w.down(part, next); w.length > maxPath {
			return hostile("the path %.60q… has more than %d bytes", p, maxPath)
		}
	}
	return nil
}

func (w *walker) here() *node { return w.at[len(w.at)-1] }

func (w *walker) down(name string, n *node) {
	w.at = append(w.at, n)
	w.names = append(w.names, name)
	w.length += len(name) + 1
}

func (w *walker) up() {
	if len(w.names) == 0 {
		w.clamped = true
		return
	}
	w.length -= len(w.names[len(w.names)-1]) + 1
	w.at, w.names = w.at[:len(w.at)-1], w.names[:len(w.names)-1]
}

// mounts are what a provider mounts something of its own on. They are in every
// tree, and they are what they look like: a symbolic link there, or on the way
// there, would have the provider mount over a file of the machine.
var mountDirs = []string{"tmp", "dev", "proc", "var/openfaas/secrets"}
var mountFiles = []string{"etc/hosts", "etc/resolv.conf"}

const emptyFile = "\x00empty" // no content: the file is made, not linked

func (t *tree) addMounts() {
	folder := func(p string) *node {
		n := t.root
		for part := range strings.SplitSeq(p, "/") {
			next := n.children[part]
			if next == nil || !next.dir() {
				next = &node{children: map[string]*node{}}
				n.children[part] = next
			}
			n = next
		}
		return n
	}
	for _, p := range mountDirs {
		folder(p)
	}
	for _, p := range mountFiles {
		dir, base := splitPath(p)
		d := folder(dir)
		if old := d.children[base]; old == nil || old.content == "" {
			d.children[base] = &node{content: emptyFile}
		}
	}
}

// plant makes the tree on disk, in the folder dir, which it makes. Both dir and
// the contents are below root.
func (t *tree) plant(root *os.Root, dir string) error {
	return t.plantDir(root, dir, t.root, nil)
}

func (t *tree) plantDir(root *os.Root, at string, n *node, names []string) error {
	if err := root.Mkdir(at, 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o755) // whatever the umask is
	if len(names) == 1 && names[0] == "tmp" {
		mode = 0o777 | fs.ModeSticky
	}
	if err := root.Chmod(at, mode); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		child, p := n.children[name], at+"/"+name
		var err error
		switch {
		case child.dir():
			err = t.plantDir(root, p, child, append(names, name))
		case child.link != "":
			err = root.Symlink(t.inside(names, child.link), p)
		case child.content == emptyFile:
			if err = root.WriteFile(p, nil, 0o444); err == nil {
				err = root.Chmod(p, 0o444)
			}
		default:
			err = linkOrCopy(root, child.content, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inside returns what a link in the folder dir should say, so that it means
// within the tree what it means to a process whose root is the tree's. Most
// links are left as they are. Those that start at the root become relative, and
// those that lead out through ".." end at the root, as they would there: a tree
// is also used, and looked into, by processes whose root is the machine's.
func (t *tree) inside(dir []string, link string) string {
	up := strings.Repeat("../", len(dir))
	absolute := strings.HasPrefix(link, "/")
	w := walker{tree: t, at: []*node{t.root}}
	if !absolute {
		for _, name := range dir {
			w.down(name, w.here().children[name])
		}
	}
	parts := strings.FieldsFunc(link, func(r rune) bool { return r == '/' })
	for i, part := range parts {
		var next *node
		if here := w.here(); here != nil {
			next = here.children[part]
		}
		switch {
		case part == ".":
		case part == "..":
			w.up()
		case i < len(parts)-1 && next != nil && next.link != "":
			// The last name is not followed: if it is a link, that one has
			// been put right itself.
			if w.walk(part) != nil && slices.Contains(parts[i+1:], "..") {
				return cmp.Or(up, ".") // leads nowhere, and must not lead elsewhere
			}
		default:
			w.down(part, next)
		}
	}
	switch {
	case w.clamped:
		return cmp.Or(up+strings.Join(w.names, "/"), ".")
	case absolute:
		return cmp.Or(up+strings.TrimLeft(link, "/"), ".")
	}
	return link
}

// linkOrCopy makes to a second name of from, or a copy where the file system
// has no hard links or has too many of this file.
func linkOrCopy(root *os.Root, from, to string) error {
	err := root.Link(from, to)
	if err == nil || !errors.Is(err, syscall.EMLINK) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	src, err := root.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.Chmod(fi.Mode().Perm()); err != nil {
		return err
	}
	return dst.Close()
}
