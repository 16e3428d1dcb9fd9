package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// machine is what this machine can hold functions to. What it does is different
// on each operating system; what it is asked for is not.
type machine struct {
	users   bool     // each function runs as a user of its own
	trees   bool     // each replica sees its image's files and nothing else
	groups  *cgroups // nil: no limits
	missing []string // what it can't, in sentences

	name    string // unlike that of any other provider on this machine
	staging string // an empty folder, to mount on where nobody else sees it
	tmp     int64  // bytes of /tmp
}

// machineName is short, and the same for the same folder.
func machineName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "thicket-" + hex.EncodeToString(sum[:6])
}

// wait reaps the process; nobody else may. What is left of its group when it
// ends is killed while its number can't belong to anybody else.
func (p *process) wait() {
	if awaitExit(p.pid) {
		killGroup(p.pid)
	}
	state, err := p.os.Wait()
	if err == nil {
		p.state = state
	}
	close(p.exited)
}

// killAll kills the process and all that it started, wherever in the machine's
// tree of processes it went.
func (m *machine) killAll(proc *process, id string) {
	select {
	case <-proc.exited:
	default:
		killGroup(proc.pid)
		_ = proc.os.Kill() // it ended meanwhile, or it may and does
	}
	if proc.group != nil {
		proc.group.kill()
		return
	}
	killMarked(map[string]bool{id: true})
}

func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }

// pipes makes the two pipes that a process writes to. It may open them again, as
// /dev/stdout, so they belong to its user.
func (p *process) pipes(uid int) (stdout, stderr *os.File, err error) {
	if p.stdout, stdout, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("its output: %w", err)
	}
	if p.stderr, stderr, err = os.Pipe(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("its output: %w", err), p.stdout.Close(), stdout.Close())
	}
	if uid != 0 {
		err = errors.Join(stdout.Chown(uid, uid), stderr.Chown(uid, uid))
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("its output: %w", err),
			p.stdout.Close(), stdout.Close(), p.stderr.Close(), stderr.Close())
	}
	return stdout, stderr, nil
}

// launch starts the job's process, set up as sys says, in the tree at root: "/"
// where the caller stands in the tree already, else the folder it is in.
func (p *process) launch(j *job, root string, stdout, stderr *os.File, sys *syscall.SysProcAttr) error {
	dir, err := resolve(root, j.dir)
	if err != nil {
		return fmt.Errorf("its working directory %s is not in the image: %w", j.dir, cause(err))
	}
	path, err := lookUp(root, j)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("its input: %w", err)
	}
	defer null.Close()
	files := []*os.File{null, stdout, stderr}
	if root != "/" && sys.Credential != nil {
		// Its user may not walk through the state folder. It is handed the door
		// to its image instead, as the first file after the usual three.
		image, err := os.Open(root)
		if err != nil {
			return fmt.Errorf("its image: %w", cause(err))
		}
		defer image.Close()
		files = append(files, image)
		// It changes its folder while the door still has the number it has here.
		dir = fmt.Sprintf("/proc/self/fd/%d", image.Fd()) + strings.TrimPrefix(dir, root)
		path = imageDoor + strings.TrimPrefix(path, root)
	}
	p.started = time.Now()
	p.os, err = os.StartProcess(path, j.argv, &os.ProcAttr{Dir: dir, Env: j.environ(), Files: files, Sys: sys})
	if err != nil {
		return explainStart(j, err)
	}
	p.pid = p.os.Pid
	return nil
}

// imageDoor is where a process that can't go to its image by its path finds it.
const imageDoor = "/proc/self/fd/3"

// explainStart says what the image's owner can do about a start that failed.
func explainStart(j *job, err error) error {
	what := "check that it is a program"
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		what = "it is no program for this kind of processor, and no script that begins with #!"
	case errors.Is(err, syscall.ENOENT):
		what = "it needs an interpreter or a dynamic loader that is not in the image; link it statically"
	case errors.Is(err, syscall.EACCES):
		what = "it or a folder above it may be used by its owner only, and the function runs as a user of its own; chmod a+rX in the image"
	}
	return fmt.Errorf("%s can't be started (%w): %s", j.argv[0], cause(err), what)
}

// cause is what lies below an error that repeats paths of this machine.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// lookUp finds the job's program in its tree.
func lookUp(root string, j *job) (string, error) {
	name := j.argv[0]
	var candidates []string
	switch {
	case filepath.IsAbs(name):
		candidates = []string{name}
	case strings.Contains(name, "/"):
		candidates = []string{filepath.Join(j.dir, name)}
	default:
		for dir := range strings.SplitSeq(j.env["PATH"], ":") {
			if dir != "" {
				candidates = append(candidates, filepath.Join("/", dir, name))
			}
		}
	}
	var last error = exec.ErrNotFound
	for _, c := range candidates {
		path, err := resolve(root, c)
		if err == nil {
			var info os.FileInfo
			if info, err = os.Stat(path); err == nil && (info.IsDir() || info.Mode()&0o111 == 0) {
				err = fs.ErrPermission
			}
		}
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			last = cause(err)
		}
	}
	switch {
	case errors.Is(last, fs.ErrPermission):
		return "", fmt.Errorf("%s in the image is not executable: chmod +x it", name)
	case errors.Is(last, exec.ErrNotFound) && len(candidates) == 1:
		return "", fmt.Errorf("the image has no %s", candidates[0])
	case errors.Is(last, exec.ErrNotFound):
		return "", fmt.Errorf("the image has no %s in its PATH (%s)", name, j.env["PATH"])
	}
	return "", fmt.Errorf("%s in the image: %w", name, last)
}

// maxLinks is how many symbolic links are followed before they are a circle.
const maxLinks = 40

// resolve follows path as if root were "/": symbolic links lead nowhere else. It
// returns a path of this machine. The tree must not change meanwhile.
func resolve(root, path string) (string, error) {
	if root == "/" {
		_, err := os.Stat(path)
		return path, err
	}
	done, todo := "", strings.Split(filepath.Clean("/"+path), "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = strings.TrimSuffix(filepath.Dir("/"+done), "/")
			continue
		}
		next := filepath.Join("/", done, name)
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil { // no link
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(target) {
			done = ""
		}
		// Cleaning would take "a/../b" to mean "b" even if a is a link.
		todo = append(strings.Split(target, "/"), todo...)
	}
	full := filepath.Join(root, done)
	_, err := os.Stat(full)
	return full, err
}
