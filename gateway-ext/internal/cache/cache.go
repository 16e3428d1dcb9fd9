// Package cache is a small server that speaks Redis's protocol, for the replicas
// of one fleet to share their last good answers where nobody runs a Redis. Those on
// other nodes are connected from there (package nodes).
//
// It knows the commands that functions/stale needs, and a few with which to look
// at it: strings with an end, messages, and, instead of Lua, the two scripts of
// that package. A function gets [Server.URL] as it would get a Redis's, so that
// nothing in it changes when there is a real one. What it has is gone when the
// process ends, and nobody copies it.
//
// Whatever its clients do, it takes a bounded amount of memory: values by
// [Config.Memory], those that were used least recently going first; connections,
// their buffers and their subscriptions by constants. It listens on this machine
// only and wants a password. While nobody calls, it does nothing.
package cache

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/redcon"
)

// Config is what a [Server] needs to know.
type Config struct {
	// Addr is where it listens: a loopback address and port, or the path of a
	// socket. Default 127.0.0.1:0, a free port.
	Addr string

	// Password is asked of everybody. Default is a random one, which only
	// [Server.URL] tells.
	Password string

	// Memory bounds the values in bytes, with their keys and what they cost to
	// keep. Default 16 MiB: some thousand answers of a weather function.
	Memory int64

	// Logger is told of clients that break the protocol. Required.
	Logger *slog.Logger
}

const (
	defaultMemory = 16 << 20

	maxConns = 256

	// A command that is longer than this ends the connection, as it would on a
	// Redis with another number: the longest that functions/stale sends is an
	// answer of 256 KiB that can't be compressed.
	maxCommand = 1 << 20
	// Before the password was given, this is plenty.
	maxStranger = 1 << 10

	// Commands above smallBuffer wait for one of largeBuffers places, so that all
	// connections together can't take more than 8 MiB + 256 * 16 KiB.
	smallBuffer  = 16 << 10
	largeBuffers = 8

	// A command that has begun must be whole within this, and an answer taken.
	commandTimeout = 5 * time.Second
	// Who doesn't say a word for this long is gone. go-redis keeps connections
	// for five minutes as functions/stale sets it.
	idleTimeout = 10 * time.Minute
)

// Server is made by [Open].
type Server struct {
	cfg   Config
	ln    net.Listener
	store *store
	hub   *hub
	large chan struct{}

	mu    sync.Mutex // guards below
	conns map[*conn]struct{}
	done  sync.WaitGroup
}

// Open begins to listen, so that [Server.URL] is known. [Server.Run] serves.
func Open(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		return nil, errors.New("cache: Config.Logger is nil")
	}
	cfg.Addr = cmp.Or(cfg.Addr, "127.0.0.1:0")
	cfg.Password = cmp.Or(cfg.Password, rand.Text())
	cfg.Memory = cmp.Or(max(cfg.Memory, 0), defaultMemory)
	network := "tcp"
	if strings.HasPrefix(cfg.Addr, "/") {
		network = "unix"
		if err := removeSocket(cfg.Addr); err != nil {
			return nil, err
		}
	} else if host, _, err := net.SplitHostPort(cfg.Addr); err != nil || !isLoopback(host) {
		return nil, fmt.Errorf("the cache's address is %.60q: write a loopback address and a port, as 127.0.0.1:6379, or the path of a socket; for other machines run a Redis", cfg.Addr)
	}
	ln, err := net.Listen(network, cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the cache: %w", err)
	}
	if network == "unix" {
		// Functions may run as other users. The password is what keeps people out.
		if err := os.Chmod(cfg.Addr, 0o666); err != nil {
			return nil, errors.Join(fmt.Errorf("open the cache's socket to functions: %w", err), ln.Close())
		}
	}
	return &Server{
		cfg: cfg, ln: ln, store: newStore(cfg.Memory), hub: newHub(),
		large: make(chan struct{}, largeBuffers), conns: make(map[*conn]struct{}),
	}, nil
}

// removeSocket removes the socket that a server left behind which was killed.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for the cache's old socket: %w", err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("the cache is to listen at %s, which is there and is no socket: remove it or name another path", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the cache's old socket: %w", err)
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// URL is how a client of Redis reaches the server, with the password.
func (s *Server) URL() string {
	u := url.URL{User: url.UserPassword("default", s.cfg.Password)}
	if s.ln.Addr().Network() == "unix" {
		u.Scheme, u.Path = "unix", s.cfg.Addr
	} else {
		u.Scheme, u.Host = "redis", s.ln.Addr().String()
	}
	return u.String()
}

// Run serves until ctx ends, and returns when all connections have.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.ln.Close() })
	defer stop()
	var pause time.Duration
	for {
		nc, err := s.ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			s.end()
			return nil
		case errors.Is(err, net.ErrClosed):
			s.end()
			return fmt.Errorf("serve the cache: %w", err)
		case err != nil:
			// Out of files, most likely: some will be closed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.cfg.Logger.Warn("the cache takes no connection", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		s.accept(nc)
	}
}

// accept serves a connection, unless there are too many.
func (s *Server) accept(nc net.Conn) {
	c := &conn{Server: s, nc: nc}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		_ = nc.SetDeadline(time.Now().Add(time.Millisecond))
		_, _ = nc.Write([]byte("-ERR max number of clients reached\r\n"))
		_ = nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.done.Go(func() {
		if err := c.serve(); err != nil {
			s.cfg.Logger.Debug("the cache ended a connection", "err", err)
		}
		_ = nc.Close()
		s.hub.leave(c)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// end ends all connections and waits for them.
func (s *Server) end() {
	s.mu.Lock()
	for c := range s.conns {
		_ = c.nc.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// conn is one client.
type conn struct {
	*Server
	nc    net.Conn
	known bool // gave the password
	quit  bool
	large bool // has a place for a large buffer

	mu   sync.Mutex // guards writing
	subs []string   // channels; only serve's goroutine changes it
}

// serve reads and obeys commands until the client leaves.
func (c *conn) serve() error {
	defer c.shrink(nil)
	var (
		buf  = make([]byte, 0, 4<<10)
		args [][]byte
		out  []byte

		begun time.Time // when what is in buf was, if it is not yet whole
	)
	for {
		rest := buf
		for len(rest) > 0 {
			whole, a, _, left, err := redcon.ReadNextCommand(rest, args)
			if err != nil {
				_ = c.write(redcon.AppendError(out, "ERR Protocol error"))
				return fmt.Errorf("read a command: %w", err)
			}
			if !whole {
				break
			}
			args, rest = a, left
			if len(args) > 0 {
				out = c.do(out, args)
			}
			if len(out) >= 64<<10 || c.quit {
				if err := c.write(out); err != nil || c.quit {
					return err
				}
				out = out[:0]
			}
		}
		if err := c.write(out); err != nil {
			return err
		}
		if out = out[:0]; cap(out) > smallBuffer {
			out = nil
		}
		if len(rest) < len(buf) || len(buf) == 0 {
			begun = time.Now()
		}
		n := copy(buf, rest)
		buf = c.shrink(buf[:n])
		end := begun.Add(idleTimeout)
		switch {
		case n > 0:
			end = begun.Add(commandTimeout)
		case len(c.subs) > 0:
			end = begun.Add(24 * time.Hour) // TCP's own keep-alive finds the dead
		}
		var err error
		if buf, err = c.grow(buf); err != nil {
			return err
		}
		_ = c.nc.SetReadDeadline(end) // fails with the connection
		m, err := c.nc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		if m == 0 && err != nil {
			return nil // the usual end
		}
	}
}

// grow makes room for more of a command, within bounds.
func (c *conn) grow(buf []byte) ([]byte, error) {
	limit := maxCommand
	if !c.known {
		limit = maxStranger
	}
	switch {
	case len(buf) >= limit:
		return nil, fmt.Errorf("a command is longer than %d bytes", limit)
	case len(buf) < cap(buf):
		return buf, nil
	}
	if 2*cap(buf) > smallBuffer && !c.large {
		select {
		case c.Server.large <- struct{}{}:
			c.large = true
		case <-time.After(commandTimeout):
			return nil, errors.New("too many long commands at a time")
		}
	}
	return append(make([]byte, 0, min(2*cap(buf), maxCommand)), buf...), nil
}

// shrink gives a large buffer back if what is left of it is small.
func (c *conn) shrink(buf []byte) []byte {
	if !c.large || len(buf) > smallBuffer/2 {
		return buf
	}
	c.large = false
	<-c.Server.large
	return append(make([]byte, 0, smallBuffer), buf...)
}

// write sends answers.
func (c *conn) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetWriteDeadline(time.Now().Add(commandTimeout)) // fails with the connection
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("write an answer: %w", err)
	}
	return nil
}

// do obeys one command and appends its answer.
func (c *conn) do(out []byte, args [][]byte) []byte {
	name := strings.ToUpper(string(args[0][:min(len(args[0]), 32)]))
	if !c.known {
		switch name {
		case "AUTH", "HELLO", "QUIT":
		default:
			return redcon.AppendError(out, "NOAUTH Authentication required.")
		}
	}
	cmd, ok := commands[name]
	if !ok {
		return redcon.AppendError(out, fmt.Sprintf("ERR unknown command %q: this is Thicket's cache, which knows few; run a Redis for more", name))
	}
	if len(args) < cmd.min || cmd.max > 0 && len(args) > cmd.max {
		return redcon.AppendError(out, fmt.Sprintf("ERR wrong number of arguments for %q", name))
	}
	if len(c.subs) > 0 {
		switch name {
		case "SUBSCRIBE", "UNSUBSCRIBE", "PING", "QUIT":
		default:
			return redcon.AppendError(out, "ERR only SUBSCRIBE, UNSUBSCRIBE, PING and QUIT are allowed while subscribed")
		}
	}
	return cmd.do(c, out, args)
}

// authenticate checks a password.
func (c *conn) authenticate(user, password []byte) bool {
	ok := subtle.ConstantTimeCompare(password, []byte(c.cfg.Password)) == 1 && bytes.Equal(user, []byte("default"))
	c.known = c.known || ok
	return ok
}
