package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// patience bounds each try to reach something.
const patience = 2500 * time.Millisecond

// Subject is what [Look] looks at, beside what each machine has.
type Subject struct {
	Name, Version string
	Data          string                   // the state folder, which may not be there
	Memory        func() (all, free int64) // nil: not known
	Ports         []Port                   // to try to listen on
	Targets       []Target                 // to try to reach
	Redis         func(context.Context) (Redis, error)
	Running       bool // it runs functions, and Missing says what it can't hold them to
	Missing       []string
	Password      string    // what is wrong with it
	Expires       time.Time // of the certificate
}

// Target is something that must be reached.
type Target struct {
	What, Setting string
	Addr          string // host:port, or the path of a socket
	// Try speaks to it. Nil only connects.
	Try func(context.Context) error
}

// Look finds out how this machine is. It waits for nothing longer than some
// seconds, and ends when ctx does.
func Look(ctx context.Context, s Subject) Machine {
	m := Machine{
		Name: s.Name, Version: s.Version, Platform: runtime.GOOS + "/" + runtime.GOARCH, Root: os.Geteuid() == 0,
		Clock: clock(), Files: openFiles(), Missing: s.Missing, Password: s.Password, Expires: s.Expires,
		Ports: slices.Clone(s.Ports), Reaches: make([]Reach, len(s.Targets)),
	}
	if s.Memory != nil {
		m.Memory.All, m.Memory.Free = s.Memory()
	}
	m.Tasks = tasks()
	if !s.Running {
		m.Groups = groups()
	}
	var work sync.WaitGroup
	work.Go(func() { m.Disk = lookAtDisk(s.Data) })
	work.Go(func() {
		for i := range m.Ports {
			m.Ports[i].try(ctx)
		}
	})
	for i, t := range s.Targets {
		work.Go(func() { m.Reaches[i] = t.Reach(ctx) })
	}
	if s.Redis != nil {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			if r, err := s.Redis(ctx); err == nil {
				m.Redis = &r
			} // why not is what the target for it says
		})
	}
	work.Wait()
	m.Time = time.Now()
	return m
}

// Reach tries it.
func (t Target) Reach(ctx context.Context) Reach {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	r := Reach{What: t.What, Setting: t.Setting, Addr: t.Addr}
	host, _, err := net.SplitHostPort(t.Addr)
	if err == nil {
		if _, numeric := netip.ParseAddr(host); numeric != nil {
			if _, err := net.DefaultResolver.LookupHost(ctx, host); err != nil {
				r.Name, r.Error = host, Explain(err)
				return r
			}
		}
	}
	if t.Try != nil {
		err = t.Try(ctx)
	} else {
		network := "tcp"
		if filepath.IsAbs(t.Addr) {
			network = "unix"
		}
		var conn net.Conn
		if conn, err = (&net.Dialer{}).DialContext(ctx, network, t.Addr); err == nil {
			err = conn.Close()
		}
	}
	r.Took = time.Since(began)
	if err != nil {
		r.Error = Explain(err)
	}
	return r
}

// Explain is why something can't be reached, in words that follow its name.
func Explain(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dns.IsNotFound:
			return "there is no such name"
		case dns.IsTimeout, errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENETUNREACH):
			return "no name server answers"
		}
		return "the name server says: " + dns.Err
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses connections"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route to it"
	case errors.Is(err, syscall.ECONNRESET):
		return "cuts connections"
	case errors.Is(err, fs.ErrNotExist):
		return "isn't there"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("doesn't answer within %s", patience)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return fmt.Sprintf("doesn't answer within %s", patience)
	}
	return fmt.Sprintf("%.300s", err.Error())
}

// taken is the error of a port that somebody listens on.
const taken = "taken"

// try sees whether the port could be listened on, by doing it for a moment.
func (p *Port) try(ctx context.Context) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Addr)
	switch {
	case err == nil:
		l.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		p.Error, p.By = taken, listener(ctx, p.Addr)
	case errors.Is(err, syscall.EACCES):
		p.Error = "this user may not listen there"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		p.Error = "this machine doesn't have that address"
	default:
		p.Error = Explain(err)
	}
}

// lookAtDisk looks at a folder, or at the one above in which it would be made.
func lookAtDisk(path string) Disk {
	d := Disk{Path: path}
	for {
		info, err := os.Stat(d.Path)
		if err == nil {
			if d.Made = d.Path == path; d.Made {
				d.Mode, d.Open = uint32(info.Mode().Perm()), readable(path)
			}
			if !info.IsDir() {
				d.Error = "it is no folder"
				return d
			}
			break
		}
		if parent := filepath.Dir(d.Path); errors.Is(err, fs.ErrNotExist) && parent != d.Path {
			d.Path = parent
			continue
		}
		d.Error = cause(err)
		return d
	}
	d.measure()
	d.write()
	return d
}

// readable finds something in a state folder that only its owner should read,
// and others can.
func readable(dir string) string {
	for _, pattern := range []string{"*.key", "*-password", "store", "registry", "node/*.json"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern)) // the patterns are right
		for _, path := range found {
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
				return path
			}
		}
	}
	return ""
}

// write writes a small file a few times, until it is on the disk, and says how
// long that took in the middle. Nothing of it stays.
func (d *Disk) write() {
	f, err := os.CreateTemp(d.Path, ".thicket-doctor-")
	if err != nil {
		d.Error = cause(err)
		return
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		d.Error = cause(err)
		return
	}
	var took []time.Duration
	for began := time.Now(); len(took) < 5 && time.Since(began) < time.Second; {
		start := time.Now()
		_, err := f.WriteAt(make([]byte, 4096), int64(len(took))*4096)
		if err = cmp.Or(err, f.Sync()); err != nil {
			d.Error = cause(err)
			return
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	d.Sync = took[len(took)/2]
}

// cause is an error without the path, which is told beside it.
func cause(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return err.Error()
}

func openFiles() int64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int64(min(limit.Cur, 1<<40))
}
