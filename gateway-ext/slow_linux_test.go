package main_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSlowClients lets 700 clients keep the gateway waiting in the ways there are,
// while others use it: those are cut, and these answered. How fast is said, and no
// verdict: on a machine that tests other things at the same time it means little.
func TestSlowClients(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var healthy sync.WaitGroup
	calls := newCalls(t, g)
	for range 8 {
		healthy.Go(func() { calls.make(ctx) })
	}
	eventually(t, "calls are answered", func() bool { return calls.count() > 500 })
	before := calls.take()

	const every = 10 * time.Second
	attacks := []struct {
		name    string
		clients int
		first   string // sent at once
		then    string // sent now and then
	}{
		{"head", 500, "GET /function/probe HTTP/1.1\r\nHost: thicket\r\nX-A: ", "a"},
		{"nothing", 50, "", ""},
		{"body", 50, "POST /function/probe HTTP/1.1\r\nHost: thicket\r\nContent-Length: 1000\r\n\r\n", "a"},
		{"answer", 50, "GET /function/probe?zeros=16777216 HTTP/1.1\r\nHost: thicket\r\n\r\n", ""},
		{"many answers", 50, strings.Repeat("GET /function/probe?zeros=1048576 HTTP/1.1\r\nHost: thicket\r\n\r\n", 16), ""},
	}
	took := make([][]time.Duration, len(attacks))
	var mu sync.Mutex // guards took
	var attackers sync.WaitGroup
	for i, a := range attacks {
		reads := strings.Contains(a.name, "answer")
		for range a.clients {
			attackers.Go(func() {
				d := net.Dialer{Timeout: time.Minute}
				nc, err := d.DialContext(ctx, "tcp", g.host())
				if err != nil {
					t.Error(err)
					return
				}
				defer nc.Close()
				defer context.AfterFunc(ctx, func() { nc.Close() })()
				begun := time.Now()
				if reads {
					_ = nc.(*net.TCPConn).SetReadBuffer(4 << 10)
				}
				_, err = io.WriteString(nc, a.first)
				ended := make(chan struct{})
				go func() { // ends with the connection
					defer close(ended)
					if reads {
						for b := make([]byte, 1); err == nil; {
							_, err = nc.Read(b)
							select {
							case <-time.After(every):
							case <-ctx.Done():
							}
						}
						return
					}
					_, _ = io.Copy(io.Discard, nc)
				}()
				for cut := false; !cut && ctx.Err() == nil; {
					if reads {
						cut = isCut(nc)
						select {
						case <-time.After(50 * time.Millisecond):
						case <-ctx.Done():
						}
						continue
					}
					select {
					case <-ended:
						cut = true
					case <-time.After(every):
						_, _ = io.WriteString(nc, a.then)
					case <-ctx.Done():
					}
				}
				mu.Lock()
				took[i] = append(took[i], time.Since(begun))
				mu.Unlock()
			})
		}
	}
	all := make(chan struct{})
	go func() { attackers.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(time.Minute):
		t.Error("after a minute, there are slow clients that were not cut")
	}
	during := calls.take()
	cancel()
	<-all
	healthy.Wait()
	for i, a := range attacks {
		if len(took[i]) == 0 {
			t.Errorf("%s: no client was cut", a.name)
			continue
		}
		t.Logf("%3d clients slow with %s: cut after %v at most", a.clients, a.name, slices.Max(took[i]).Round(time.Millisecond))
	}
	if len(during) == 0 {
		t.Fatal("no call was answered meanwhile")
	}
	t.Logf("calls of others, p99: %v of %d before, %v of %d meanwhile", p99(before), len(before), p99(during), len(during))
}

// calls counts calls that are as they should be.
type calls struct {
	t    *testing.T
	host string

	mu   sync.Mutex // guards below
	took []time.Duration
}

func newCalls(t *testing.T, g *thicket) *calls { return &calls{t: t, host: g.host()} }

// make calls the function, one call after the other on one connection.
func (c *calls) make(ctx context.Context) {
	nc, err := net.Dial("tcp", c.host)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer nc.Close()
	r := bufio.NewReader(nc)
	for ctx.Err() == nil {
		begun := time.Now()
		if _, err := io.WriteString(nc, "POST /function/probe HTTP/1.1\r\nHost: thicket\r\nContent-Length: 4\r\n\r\nping"); err != nil {
			c.t.Errorf("call: %v", err)
			return
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			c.t.Errorf("answer: %v", err)
			return
		}
		b, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK || string(b) != "ping" || err != nil {
			c.t.Errorf("answer = %d %q, %v", res.StatusCode, b, err)
			return
		}
		c.mu.Lock()
		c.took = append(c.took, time.Since(begun))
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *calls) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.took)
}

// take returns how long the calls took since the last time it was asked.
func (c *calls) take() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.took
	c.took = nil
	return took
}

func p99(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)*99/100].Round(10 * time.Microsecond)
}

// isCut says whether the other side has closed a connection or reset it, also if
// there is still something to read.
func isCut(nc net.Conn) bool {
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	cut := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		const established = 1 // of Linux's tcp_states.h
		cut = err != nil || info.State != established
	})
	return cut || err != nil
}
