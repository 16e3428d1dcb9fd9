package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caarlos0/env/v11"
	"golang.org/x/sys/unix"
)

// A gateway is replaced without anybody being turned away by never closing its
// listening socket: who connects while there is no gateway waits in the
// kernel's queue, and is answered by the next one. The socket comes from the
// service manager, as systemd's socket activation does it (sd_listen_fds(3)),
// or from the gateway that was in this very process before, see [command.succeed].

// heirVariable is how a gateway tells the next one in the same process which
// descriptor its listening socket has: "PID:FD". LISTEN_FDS wouldn't do, as it
// means the descriptors from 3 on, and by the time of a restart these belong to
// the Go runtime, which can't be asked to let go of them.
const heirVariable = "GATEWAY_EXT_SOCKET"

// firstListenFD is the first descriptor of LISTEN_FDS.
const firstListenFD = 3

// errRestart is why a gateway has stopped whose place is to be taken by the
// program as it is now on the disk.
var errRestart = errors.New("asked to restart")

// runServe runs gateways one after the other: the next one in the rare case that
// what was to take the place of one couldn't.
func (c *command) runServe(ctx context.Context, s settings) error {
	log := c.logger(s)
	socket, err := inherited(c.environ)
	if err != nil {
		return err
	}
	for {
		g, err := openGateway(ctx, s, log, socket, nil)
		if err != nil {
			return err
		}
		g.successor = c.successor(log)
		if err = g.run(ctx, c.hurry); !errors.Is(err, errRestart) {
			return err
		}
		if ctx.Err() != nil {
			return g.handed.Close() // asked to stop meanwhile
		}
		if err != errRestart {
			log.Warn("the gateway has stopped for its restart, but not cleanly", "err", err)
		}
		err = g.successor.exec(g.handed)
		log.Error("the program could not take this one's place, which goes on", "err", err)
		if socket, err = net.FileListener(g.handed); err != nil {
			return err
		}
		if err := g.handed.Close(); err != nil {
			return err
		}
	}
}

// inherited returns the listening socket that this process was started with, or
// nil if it was started with none. It must be called once: the descriptor is
// then the listener's.
func inherited(environ []string) (net.Listener, error) {
	vars := env.ToMap(environ)
	pid := strconv.Itoa(os.Getpid())
	if of, fd, ok := strings.Cut(vars[heirVariable], ":"); ok && of == pid {
		n, err := strconv.Atoi(fd)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not a descriptor", heirVariable, fd)
		}
		return listenerOf(n)
	}
	if vars["LISTEN_PID"] != pid {
		return nil, nil // not meant for this process
	}
	switch n, err := strconv.Atoi(vars["LISTEN_FDS"]); {
	case err != nil:
		return nil, fmt.Errorf("LISTEN_FDS: %q is not a number of sockets", vars["LISTEN_FDS"])
	case n == 0:
		return nil, nil
	case n > 1:
		return nil, fmt.Errorf("LISTEN_FDS: %d sockets are handed over (%s), and the gateway listens on one: leave one ListenStream= in its socket unit", n, vars["LISTEN_FDNAMES"])
	}
	return listenerOf(firstListenFD)
}

// listenerOf makes a listener of a descriptor, which is closed.
func listenerOf(fd int) (net.Listener, error) {
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "inherited socket")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d was handed over as a listening socket, and is none", fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d was handed over as a listening socket: %w", fd, err)
	}
	if _, ok := l.(*net.TCPListener); !ok {
		return nil, errors.Join(fmt.Errorf("the socket that was handed over listens on %s %s: write a port into ListenStream= of the socket unit", l.Addr().Network(), l.Addr()), l.Close())
	}
	return l, nil
}

// withoutHandover is an environment without what says which sockets its process
// was given: they are not for another.
func withoutHandover(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == heirVariable || name == "LISTEN_PID" || name == "LISTEN_FDS" || name == "LISTEN_FDNAMES"
	})
}

// executable is where the program will be found when it is to take its own
// place: the path by which it was started, since an update may have changed what
// a symbolic link on the way points to. If that is not this program (it was
// started by another name), it is the program's own path.
func executable(arg0 string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path, err := exec.LookPath(arg0)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return self, nil
	}
	ours, err := os.Stat(self)
	if err != nil {
		return self, nil
	}
	if info, err := os.Stat(path); err != nil || !os.SameFile(info, ours) {
		return self, nil
	}
	return path, nil
}

// successor is the program that takes this one's place.
type successor struct {
	path    string
	args    []string // with the program's name
	environ []string
	asked   chan os.Signal // when it is to do so
}

// successor returns what SIGUSR2 starts. There is none if the program can't be found.
func (c *command) successor(log *slog.Logger) *successor {
	path, err := executable(c.args[0])
	if err != nil {
		log.Warn("SIGUSR2 won't restart the gateway: it doesn't know where its program is", "err", err)
		return nil
	}
	return &successor{path: path, args: c.args, environ: withoutHandover(c.environ), asked: c.restart}
}

// checkTimeout is how long a program may take to say whether it would start.
const checkTimeout = 30 * time.Second

// check has the program say whether it would start here: one that is cut short,
// is for another machine, or knows a setting no more, must not take the place of
// one that works.
func (s *successor) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.path, append(slices.Clone(s.args[1:]), "--"+checkFlag)...)
	cmd.Env = s.environ
	cmd.WaitDelay = time.Second
	var said tail
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.path, err, bytes.TrimSpace(said.b))
	}
	return nil
}

// tail keeps the last bytes that are written.
type tail struct{ b []byte }

// Write implements [io.Writer].
func (t *tail) Write(p []byte) (int, error) {
	const most = 2048
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-most):]
	return len(p), nil
}

// wait returns when the gateway is to be replaced, and a successor is there that
// says it would start; or when ctx ends. The file is the listening socket, which
// so stays open when the listener is closed.
func (s *successor) wait(ctx context.Context, l net.Listener, log *slog.Logger) (*os.File, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case <-s.asked:
		}
		log.Info("asked to restart", "program", s.path)
		if err := s.check(ctx); err != nil {
			if ctx.Err() == nil {
				log.Error("the program on the disk would not start, so this one goes on", "err", err)
			}
			continue
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			log.Error("the listening socket can't be handed over, so this gateway goes on", "err", err)
			continue
		}
		return f, errRestart
	}
}

// exec puts the program in this one's place, in this process, and gives it the
// listening socket. It returns only if that can't be done.
func (s *successor) exec(socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var handed int
	var kept error
	if err := raw.Control(func(fd uintptr) {
		handed = int(fd)
		_, kept = unix.FcntlInt(fd, unix.F_SETFD, 0) // it is not to be closed by exec
	}); err != nil || kept != nil {
		return fmt.Errorf("hand over the listening socket: %w", cmp.Or(err, kept))
	}
	// What is ignored stays so, and else a signal that comes before the program
	// can take it would end it.
	signal.Ignore(syscall.SIGUSR2)
	err = syscall.Exec(s.path, s.args, append(slices.Clone(s.environ), fmt.Sprintf("%s=%d:%d", heirVariable, os.Getpid(), handed)))
	signal.Notify(s.asked, syscall.SIGUSR2)
	syscall.CloseOnExec(handed)
	return fmt.Errorf("exec %s: %w", s.path, err)
}
