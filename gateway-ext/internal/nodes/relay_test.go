package nodes_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// echo is a server on this machine's loopback that says every line again.
func echo(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the test ends
			}()
		}
	}()
	return l.Addr().String()
}

// says sends a line, and returns the answer.
func says(t *testing.T, c net.Conn, line string) (string, error) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// TestRelay: functions on a node reach the gateway's cache, until the node is
// removed; who is no node doesn't.
func TestRelay(t *testing.T) {
	cache := echo(t)
	images := providertest.NewImages(t, providertest.Program(t))
	g := startGateway(t, images, providertest.NewTable(t), nil, func(c *nodes.Config) {
		c.Cache = "redis://default:secret@" + cache
		c.Env = map[string]string{"shared": "yes"}
	})
	g.join(images, "pi-1", "linux/arm64")
	w := providertest.Workload("f", 1, 1)
	w.Function.Constraints = []string{"node==pi-1"}
	name := g.apply(w)
	r := g.table.AwaitReady(t, name, 1, 1)[0]
	conn, err := g.Dialer(r.Node, r.ID)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true,
	}}
	res, err := client.Get("http://f/env")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	_, at, _ := strings.Cut(string(text), `"THICKET_REDIS_URL":"`)
	at, _, _ = strings.Cut(at, `"`)
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "redis" || u.User.String() != "default:secret" || u.Host == cache || !strings.Contains(string(text), `"shared":"yes"`) {
		t.Fatalf("the function finds the cache at %q (%v), want the node's own address: %s", at, err, text)
	}

	near, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	for _, line := range []string{"PING", "again"} {
		if got, err := says(t, near, line); got != line {
			t.Errorf("over the relay the cache answers %q, %v, want %q", got, err, line)
		}
	}

	// A stranger may speak to the door, and no further: also one whose
	// certificate says that it is pi-1, by another authority.
	other, err := nodes.NewAuthority([]byte(strings.Repeat("o", 32)))
	if err != nil {
		t.Fatal(err)
	}
	for who, conf := range map[string]*tls.Config{
		"nobody":            {InsecureSkipVerify: true},
		"of another fleet":  {InsecureSkipVerify: true, Certificates: other.Server().Certificates},
		"the gateway's own": {InsecureSkipVerify: true, Certificates: g.authority.Server().Certificates},
	} {
		conf.NextProtos = []string{"thicket-cache/1"}
		c, err := tls.Dial("tcp", strings.TrimPrefix(g.url, "https://"), conf)
		if err != nil {
			continue // turned away at once
		}
		if got, err := says(t, c, "PING"); err == nil {
			t.Errorf("%s is answered %q by the cache", who, got)
		}
		c.Close()
	}

	if err := g.Dismiss(t.Context(), "pi-1"); err != nil {
		t.Fatal(err)
	}
	if got, err := says(t, near, "PING"); err == nil {
		t.Errorf("over the connection of a node that was removed the cache answers %q", got)
	}
	providertest.Await(t, "a node that was removed reaches the cache no more", func() bool {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			return true
		}
		defer c.Close()
		_, err = says(t, c, "PING")
		return err != nil
	})
}
