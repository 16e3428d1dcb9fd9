package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// natsServers are real NATS servers, each with files of its own.
type natsServers struct {
	t       *testing.T
	options []*server.Options
	servers []*server.Server
}

// freePort is a TCP port of loopback that nobody has.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startNATS starts n servers, which are a cluster if they are more than one.
func startNATS(t *testing.T, n int, change func(*server.Options)) *natsServers {
	t.Helper()
	c := &natsServers{t: t, options: make([]*server.Options, n), servers: make([]*server.Server, n)}
	var routes []*url.URL
	for range n {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprint("127.0.0.1:", freePort(t))})
	}
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprint("nats-", i), Host: "127.0.0.1", Port: freePort(t),
			JetStream: true, StoreDir: filepath.Join(t.TempDir(), fmt.Sprint("nats-", i)), NoSigs: true, NoLog: true,
			MaxPayload: 8 << 20,
		}
		if n > 1 {
			host, port, _ := strings.Cut(routes[i].Host, ":")
			o.Cluster = server.ClusterOpts{Name: "shelf", Host: host}
			fmt.Sscan(port, &o.Cluster.Port)
			o.Routes = routes
		}
		if change != nil {
			change(o)
		}
		c.options[i] = o
	}
	for i := range n {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range n {
			c.stop(i)
		}
	})
	return c
}

func (c *natsServers) start(i int) {
	c.t.Helper()
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		c.t.Fatal(err)
	}
	c.servers[i] = s
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		c.t.Fatalf("NATS server %d doesn't start", i)
	}
}

func (c *natsServers) stop(i int) {
	if c.servers[i] != nil {
		c.servers[i].Shutdown()
		c.servers[i].WaitForShutdown()
		c.servers[i] = nil
	}
}

// config is how the cluster is used by a gateway.
func (c *natsServers) config(node string) state.NATS {
	var urls []string
	for _, o := range c.options {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return state.NATS{URL: strings.Join(urls, ","), Node: node}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestNATS is the contract of a bucket, with the store elsewhere: on one server,
// and on a cluster of three.
func TestNATS(t *testing.T) {
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			c := startNATS(t, servers, nil)
			cfg := state.Config{Dir: t.TempDir(), NATS: c.config("nuc")}
			s := open(t, cfg)
			b, other := bucket(t, s, "declared"), bucket(t, s, "nodes")
			large := strings.Repeat("x", state.MaxValue)
			put(t, b, "a.b", "1")
			put(t, b, "gone", "2")
			put(t, b, "a.b", "3")
			put(t, b, "large", large)
			put(t, other, "node.pi-1", "{}")
			for range 2 {
				if err := b.Delete(t.Context(), "gone"); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := b.Get(t.Context(), "a.b"); err != nil || string(got) != "3" {
				t.Errorf("Get(a.b) = %q, %v, want 3", got, err)
			}
			if _, err := b.Get(t.Context(), "gone"); !errors.Is(err, faas.ErrNotFound) {
				t.Errorf("Get(gone) = %v, want ErrNotFound", err)
			}
			if err := b.Put(t.Context(), "k", make([]byte, state.MaxValue+1)); !errors.Is(err, faas.ErrTooLarge) {
				t.Errorf("Put of too large a value = %v, want ErrTooLarge", err)
			}
			if err := s.Writable(); err != nil {
				t.Errorf("Writable() = %v", err)
			}
			stream, err := s.JetStream().Stream(t.Context(), "KV_thicket_declared")
			if err != nil {
				t.Fatal(err)
			}
			if got := stream.CachedInfo().Config; got.Replicas != servers || got.AllowDirect {
				t.Errorf("the stream has %d replicas of %d, and any of them answers: %t", got.Replicas, servers, got.AllowDirect)
			}
			want := map[string]string{"a.b": "3", "large": large}
			if got := all(t, b); !maps.Equal(got, want) {
				t.Errorf("%d keys are there, want %d with the newest values", len(got), len(want))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if got := all(t, bucket(t, s, "declared")); !maps.Equal(got, want) {
				t.Errorf("after the restart: %d keys, want %d with the newest values", len(got), len(want))
			}
			if _, err := s.Bucket(t.Context(), "declared"); err != nil {
				t.Errorf("Bucket() once more = %v", err)
			}
		})
	}
}

// TestNATSLosesOne: a cluster of three goes on with two, in the middle of writes,
// and has all of it when the third is back and another is lost.
func TestNATSLosesOne(t *testing.T) {
	c := startNATS(t, 3, nil)
	s := open(t, state.Config{Dir: t.TempDir(), NATS: c.config("nuc")})
	b := bucket(t, s, "declared")
	want := make(map[string]string)
	write := func(round string) {
		t.Helper()
		for i := range 20 {
			key := fmt.Sprintf("%s.%d", round, i)
			began := time.Now()
			put(t, b, key, round)
			if took := time.Since(began); took > time.Second {
				t.Logf("%s waited for %s, while the servers chose another leader", key, took.Round(time.Millisecond))
			}
			want[key] = round
		}
	}
	write("three")
	for i := range 3 {
		c.stop(i)
		write(fmt.Sprint("without-", i))
		c.start(i)
		eventually(t, "all servers are current again", func() bool {
			stream, err := s.JetStream().Stream(t.Context(), "KV_thicket_declared")
			if err != nil || stream.CachedInfo().Cluster == nil || stream.CachedInfo().Cluster.Leader == "" {
				return false
			}
			for _, r := range stream.CachedInfo().Cluster.Replicas {
				if !r.Current || r.Offline {
					return false
				}
			}
			return true
		})
		if got := all(t, b); !maps.Equal(got, want) {
			t.Fatalf("without server %d: %d keys are there, want %d", i, len(got), len(want))
		}
	}
}

// TestNATSAway: what is asked while nobody is there is refused at once with a
// sentence, and works again when the server is back, with what was there.
func TestNATSAway(t *testing.T) {
	c := startNATS(t, 1, nil)
	s := open(t, state.Config{Dir: t.TempDir(), NATS: c.config("nuc")})
	b := bucket(t, s, "declared")
	put(t, b, "before", "1")
	c.stop(0)
	eventually(t, "it is noticed", func() bool { return s.Writable() != nil })
	for what, err := range map[string]error{
		"Put":      b.Put(t.Context(), "k", []byte("v")),
		"Delete":   b.Delete(t.Context(), "before"),
		"Each":     b.Each(t.Context(), func(string, []byte) error { return nil }),
		"Writable": s.Writable(),
	} {
		if !errors.Is(err, faas.ErrUnavailable) || !strings.Contains(err.Error(), "until it is back") {
			t.Errorf("%s = %v, want an ErrUnavailable that says what is and what will be", what, err)
		}
	}
	c.start(0)
	eventually(t, "it is back", func() bool { return s.Writable() == nil })
	put(t, b, "after", "2")
	if got, want := all(t, b), map[string]string{"before": "1", "after": "2"}; !maps.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
}

// TestNATSComesLater: a gateway that is there before its NATS waits.
func TestNATSComesLater(t *testing.T) {
	c := startNATS(t, 1, nil)
	c.stop(0)
	cfg := state.Config{Dir: t.TempDir(), NATS: c.config("nuc"), Logger: quiet}
	cfg.NATS.Patience = 100 * time.Millisecond
	if _, err := state.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "can't be used: it doesn't answer") {
		t.Errorf("Open() = %v, want that it doesn't answer", err)
	}
	said := make(said, 100)
	cfg.NATS.Patience, cfg.Logger = 0, slog.New(slog.NewTextHandler(said, nil))
	opened := make(chan error)
	var s *state.State
	go func() {
		var err error
		s, err = state.Open(t.Context(), cfg)
		opened <- err
	}()
	if line := <-said; !strings.Contains(line, "waiting for it") {
		t.Errorf("the log says %q, want that it is waited for", line)
	}
	c.start(0)
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	s.Close()

	// Who stops it meanwhile isn't kept waiting.
	c.stop(0)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := state.Open(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open() = %v, want its context's end", err)
	}
}

// said is a log's lines.
type said chan string

func (s said) Write(b []byte) (int, error) {
	select {
	case s <- string(b):
	default:
	}
	return len(b), nil
}

// TestNATSPrefixBelongsToOne: two gateways don't share by accident.
func TestNATSPrefixBelongsToOne(t *testing.T) {
	c := startNATS(t, 1, nil)
	dir := t.TempDir()
	first := open(t, state.Config{Dir: dir, NATS: c.config("nuc")})
	put(t, bucket(t, first, "declared"), "k", "first's")
	other := state.Config{Dir: t.TempDir(), NATS: c.config("laptop"), Logger: quiet}
	_, err := state.Open(t.Context(), other)
	if !errors.Is(err, faas.ErrConflict) || !strings.Contains(err.Error(), "used by the gateway nuc") || !strings.Contains(err.Error(), "THICKET_NATS_PREFIX") {
		t.Errorf("a second gateway's Open() = %v, want an ErrConflict that names the first, and the setting", err)
	}
	other.NATS.Prefix = "laptop"
	second := open(t, other)
	if got := all(t, bucket(t, second, "declared")); len(got) > 0 {
		t.Errorf("another prefix has %v of the first's", got)
	}
	// A gateway that was killed has the prefix still: its folder says who it is.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	first = open(t, state.Config{Dir: dir, NATS: c.config("nuc")})
	if got := all(t, bucket(t, first, "declared")); got["k"] != "first's" {
		t.Errorf("the first has %v after its restart", got)
	}
	// One that ends gives it free, to who has its keys.
	if _, err := first.Key("secrets"); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	other.Dir, other.NATS.Prefix = t.TempDir(), ""
	third := open(t, other)
	if _, err := third.Key("secrets"); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "*.key") {
		t.Errorf("Key() of a machine without the keys = %v, want an ErrInvalid that says where they are", err)
	}
}

// TestNATSRefused: what no waiting helps is a sentence at once.
func TestNATSRefused(t *testing.T) {
	locked := startNATS(t, 1, func(o *server.Options) { o.Username, o.Password = "thicket", "secret" })
	bare := startNATS(t, 1, func(o *server.Options) { o.JetStream = false })
	wrong := locked.config("nuc")
	wrong.URL = strings.Replace(wrong.URL, "://", "://thicket:wrong-password@", 1)
	noCreds, noCA, none, plain := locked.config("nuc"), locked.config("nuc"), bare.config("nuc"), bare.config("nuc")
	noCreds.Creds = filepath.Join(t.TempDir(), "absent.creds")
	noCA.CA = filepath.Join(t.TempDir(), "absent.pem")
	none.Patience = 100 * time.Millisecond
	plain.URL = strings.Replace(plain.URL, "nats://", "tls://", 1)
	for name, tt := range map[string]struct {
		cfg  state.NATS
		want string
	}{
		"no user":      {locked.config("nuc"), "THICKET_NATS_CREDS"},
		"wrong user":   {wrong, "THICKET_NATS_URL"},
		"no creds":     {noCreds, "absent.creds"},
		"no CA":        {noCA, "absent.pem"},
		"no JetStream": {none, "its JetStream isn't enabled"},
		"no TLS":       {plain, "TLS"},
		"no URL":       {state.NATS{URL: "http://127.0.0.1"}, "nats://host:4222"},
		"no prefix":    {state.NATS{URL: "nats://127.0.0.1:1", Prefix: "a.b"}, "is not a prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := state.Open(t.Context(), state.Config{Dir: t.TempDir(), NATS: tt.cfg, Logger: quiet})
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "wrong-password") {
				t.Errorf("Open() = %v, want an error that says %q", err, tt.want)
			}
		})
	}
	right := locked.config("nuc")
	right.URL = strings.Replace(right.URL, "://", "://thicket:secret@", 1)
	put(t, bucket(t, open(t, state.Config{Dir: t.TempDir(), NATS: right}), "b"), "k", "v")
}

// TestNATSMaxPayload: servers as they are by default take a megabyte.
func TestNATSMaxPayload(t *testing.T) {
	c := startNATS(t, 1, func(o *server.Options) { o.MaxPayload = 1 << 20 })
	b := bucket(t, open(t, state.Config{Dir: t.TempDir(), NATS: c.config("nuc")}), "b")
	put(t, b, "k", strings.Repeat("x", 1<<20-2<<10))
	if err := b.Put(t.Context(), "k", make([]byte, 1<<20)); !errors.Is(err, faas.ErrTooLarge) || !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("Put() = %v, want an ErrTooLarge that says max_payload", err)
	}
}

// TestBackupBetweenStores: a backup of a folder fills a cluster, and the other way
// round.
func TestBackupBetweenStores(t *testing.T) {
	archive, key, password := backup(t)
	c := startNATS(t, 1, nil)
	cfg := state.Config{Dir: filepath.Join(t.TempDir(), "new"), NATS: c.config("nuc"), Logger: quiet}
	if err := state.Restore(t.Context(), cfg, bytes.NewReader(archive[:len(archive)-20])); err == nil {
		t.Error("Restore() took half a backup")
	}
	if err := state.Restore(t.Context(), cfg, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	if got := all(t, bucket(t, s, "declared")); len(got) != 2 || got["function.a"] != "1" {
		t.Errorf("declared has %d keys after a restore, want the 2 from before", len(got))
	}
	if k, err := s.Key("secrets"); err != nil || !bytes.Equal(k, key) {
		t.Errorf("Key() = %x, %v after a restore, want that from before", k, err)
	}
	if p, _, created, err := s.Password(); p != password || created || err != nil {
		t.Errorf("Password() = %q, %v, %v after a restore, want that from before", p, created, err)
	}
	// And back into a folder.
	var back bytes.Buffer
	if err := s.Backup(t.Context(), &back, "v1", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := cfg
	again.Dir = filepath.Join(t.TempDir(), "again")
	if err := state.Restore(t.Context(), again, bytes.NewReader(archive)); !errors.Is(err, faas.ErrConflict) {
		t.Errorf("Restore() over a prefix in use = %v, want %v", err, faas.ErrConflict)
	}
	if got := all(t, bucket(t, open(t, cfg), "declared")); len(got) != 2 {
		t.Errorf("a refused restore has left %d of 2 keys", len(got))
	}
	folder := state.Config{Dir: filepath.Join(t.TempDir(), "folder"), Logger: quiet}
	if err := state.Restore(t.Context(), folder, bytes.NewReader(back.Bytes())); err != nil {
		t.Fatal(err)
	}
	s = open(t, folder)
	if got := all(t, bucket(t, s, "nodes")); got["node.pi-1"] != "{}" {
		t.Errorf("nodes has %v after a restore", got)
	}
	if names := s.JetStream().KeyValueStoreNames(t.Context()); true {
		for name := range names.Name() {
			if strings.HasPrefix(name, "thicket_") || name == "meta" || name == "lease" {
				t.Errorf("the folder has a bucket %s, which is the cluster's", name)
			}
		}
	}
}
