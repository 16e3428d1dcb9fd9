package provider

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// enterTree makes the calling thread see nothing but the job's tree: the image's
// files, read-only, and a few places of its own. It uses plain binds, which every
// kernel has, on top of a small file system in memory; all of it vanishes with
// the last process that sees it.
func (m *machine) enterTree(j *job) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("a mount namespace of its own: %w", err)
	}
	unix.Umask(0o022)
	// What is mounted here stays here; what the machine unmounts goes here too,
	// or a stick could not be pulled as long as a function runs.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	resolv, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		resolv = "" // this machine asks no name server
	}
	t := tree{}
	t.add("/proc", mountProc)
	t.add("/dev", mountDev)
	t.add("/dev/shm", tmpfs(m.tmp))
	t.add("/tmp", tmpfs(m.tmp))
	t.add("/etc/hosts", func(at string) error { return os.WriteFile(at, j.hosts, 0o644) })
	if resolv != "" {
		t.add("/etc/resolv.conf", func(at string) error { return bindFile(resolv, at) })
	}
	t.add(j.mount, func(at string) error {
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		return bind(j.secrets, at)
	})

	root := m.staging
	// The root holds folders, links and the hosts file: a few hundred entries.
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=8m"); err != nil {
		return fmt.Errorf("mount its root: %w", err)
	}
	if err := t.graft(j.root, "/", root); err != nil {
		return fmt.Errorf("put its tree together: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter its tree: %w", err)
	}
	if err := enterRoot(unix.PivotRoot); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|readOnly, ""); err != nil {
		return fmt.Errorf("make its root read-only: %w", err)
	}
	return nil
}

// enterRoot makes the file system that the calling thread stands in its root.
func enterRoot(pivot func(root, old string) error) error {
	// With both the same, the old root ends up on top of the new one, from where
	// it can be taken away: pivot_root(2).
	err := pivot(".", ".")
	if err == nil {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leave the machine's tree: %w", err)
		}
		return nil
	}
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("enter its tree: %w", err)
	}
	// What containers may call by default doesn't include it. The root of an
	// initramfs can't be pivoted either: as there the new one is moved on top,
	// from where nobody gets below who may not call chroot.
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move its tree to the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter its tree: %w", err)
	}
	return unix.Chdir("/")
}

const readOnly = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// tree is the places in a replica's tree that don't come from its image: what
// makes each, by its path.
type tree map[string]func(at string) error

func (t tree) add(path string, make func(at string) error) { t[path] = make }

// below says whether one of the places is below path.
func (t tree) below(path string) bool {
	for p := range t {
		if strings.HasPrefix(p, strings.TrimSuffix(path, "/")+"/") {
			return true
		}
	}
	return false
}

// graft makes the folder at, which exists and is path in the replica's tree, show
// what the image has there at src ("" if nothing), and the places of our own.
func (t tree) graft(src, path, at string) error {
	var entries []os.DirEntry
	if src != "" {
		var err error
		if entries, err = os.ReadDir(src); err != nil {
			return err
		}
	}
	own := t.children(path)
	for _, e := range entries {
		if slices.Contains(own, e.Name()) {
			continue
		}
		if err := t.show(e, filepath.Join(src, e.Name()), filepath.Join(at, e.Name())); err != nil {
			return err
		}
	}
	for _, name := range own {
		path, at := filepath.Join(path, name), filepath.Join(at, name)
		if make := t[path]; make != nil {
			if err := make(at); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if !t.below(path) {
			continue
		}
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		from := filepath.Join(src, name)
		if info, err := os.Lstat(from); src == "" || t[path] != nil || err != nil || !info.IsDir() {
			from = ""
		}
		if err := t.graft(from, path, at); err != nil {
			return err
		}
	}
	return nil
}

// children are the names in the folder path under which, or below which, a place
// of our own is.
func (t tree) children(path string) (names []string) {
	prefix := strings.TrimSuffix(path, "/") + "/"
	for p := range t {
		if rest, ok := strings.CutPrefix(p, prefix); ok {
			name, _, _ := strings.Cut(rest, "/")
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// show makes one entry of the image visible. What is neither a file nor a folder
// nor a link has no business in an image and is left out.
func (t tree) show(e os.DirEntry, src, at string) error {
	switch e.Type() {
	case os.ModeDir:
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		return bind(src, at)
	case os.ModeSymlink:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		return os.Symlink(target, at)
	case 0:
		return bindFile(src, at)
	}
	return nil
}

// bind shows the folder or file src at the same kind of thing, read-only.
func bind(src, at string) error {
	if err := unix.Mount(src, at, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: src, Err: err}
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|readOnly, ""); err != nil {
		return &os.PathError{Op: "make read-only", Path: src, Err: err}
	}
	return nil
}

func bindFile(src, at string) error {
	if err := os.WriteFile(at, nil, 0o644); err != nil {
		return err
	}
	return bind(src, at)
}

// tmpfs makes a folder in memory, as much as size, that everybody may write to.
func tmpfs(size int64) func(string) error {
	return func(at string) error {
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		return unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", size))
	}
}

// mountProc shows a function its own processes and no others'. Kernels before
// 5.8 would hide the others from the whole machine, so there they stay visible;
// their environment and memory are closed to other users anyway.
func mountProc(at string) error {
	if err := os.Mkdir(at, 0o555); err != nil {
		return err
	}
	options := "hidepid=2"
	if !kernelAtLeast(5, 8) {
		options = ""
	}
	return unix.Mount("proc", at, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

// mountDev makes the few devices that programs expect.
func mountDev(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		dst := filepath.Join(at, name)
		if err := os.WriteFile(dst, nil, 0o666); err != nil {
			return err
		}
		// Not read-only, and with devices: that is what these are.
		if err := unix.Mount("/dev/"+name, dst, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "bind", Path: "/dev/" + name, Err: err}
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(at, name)); err != nil {
			return err
		}
	}
	return nil
}
