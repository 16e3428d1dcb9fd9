package weather_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/functions/weather"
	consumer "github.com/seed-780dceda/thicket/functions/weather-consumer"
	producer "github.com/seed-780dceda/thicket/functions/weather-producer"
)

// redisServer is a redis-server of a test's own, on a socket in its own folder.
type redisServer struct {
	t      *testing.T
	socket string
	cmd    *exec.Cmd
	client *redis.Client
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("this test needs redis-server: install it with \"apt-get install redis-server\" or \"brew install redis\"")
	}
	dir := t.TempDir()
	s := &redisServer{t: t, socket: filepath.Join(dir, "s")}
	s.cmd = exec.Command(path, "--port", "0", "--unixsocket", s.socket, "--save", "", "--dir", dir, "--loglevel", "warning")
	s.cmd.Stdout, s.cmd.Stderr = t.Output(), t.Output()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Signal(syscall.SIGCONT)
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	s.client = redis.NewClient(&redis.Options{Network: "unix", Addr: s.socket})
	t.Cleanup(func() { s.client.Close() })
	s.until("it answers", func(ctx context.Context) bool { return s.client.Ping(ctx).Err() == nil })
	return s
}

func (s *redisServer) url() string { return "unix://" + s.socket }

func (s *redisServer) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *redisServer) until(what string, done func(ctx context.Context) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			s.t.Fatalf("waited in vain for the Redis until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// holds says whether there is an answer in the Redis.
func (s *redisServer) holds(ctx context.Context) bool {
	keys, err := s.client.Keys(ctx, "*:e:*").Result()
	return err == nil && len(keys) > 0
}

// upstream is what a function asks, which can be broken.
type upstream struct {
	*httptest.Server
	broken atomic.Bool
	asked  atomic.Int64
	hold   atomic.Pointer[chan struct{}] // answers wait until it is closed
}

func newUpstream(t *testing.T, h http.HandlerFunc) *upstream {
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.asked.Add(1)
		if hold := u.hold.Load(); hold != nil {
			<-*hold
		}
		if u.broken.Load() {
			http.Error(w, "broken", http.StatusBadGateway)
			return
		}
		h(w, r)
	}))
	t.Cleanup(u.Close)
	return u
}

// answerOpenMeteo answers as the service does.
func answerOpenMeteo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/search" {
		io.WriteString(w, `{"results":[{"name":"Stuttgart","latitude":48.78,"longitude":9.17,"country_code":"DE","postcodes":["70569"]}]}`)
		return
	}
	io.WriteString(w, `{"utc_offset_seconds":3600,"current":{"time":1732298400,"temperature_2m":5.1,"weather_code":3,"is_day":1}}`)
}

// function is one of the weather functions, as a handler.
type function interface {
	http.Handler
	Close() error
}

func closing[F function](t *testing.T) func(f F, err error) function {
	return func(f F, err error) function {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := f.Close(); err != nil {
				t.Error("close:", err)
			}
		})
		return f
	}
}

// replicas makes the replicas of the functions, which are told what both need.
var replicas = map[string]func(t *testing.T, upstream string, environ ...string) function{
	"producer": func(t *testing.T, upstream string, environ ...string) function {
		cfg, err := weather.Settings[producer.Config](append([]string{
			"openmeteo_url=" + upstream, "openmeteo_geocoding_url=" + upstream, "secret_mount_path=" + t.TempDir(),
		}, environ...))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
		return closing[*producer.Producer](t)(producer.New(cfg))
	},
	"consumer": func(t *testing.T, upstream string, environ ...string) function {
		cfg, err := weather.Settings[consumer.Config](append([]string{"gateway_url=" + upstream}, environ...))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
		return closing[*consumer.Consumer](t)(consumer.New(cfg))
	},
}

// upstreams are what they ask, and the words with which they do without.
var upstreams = map[string]struct {
	answer http.HandlerFunc
	words  string
}{
	"producer": {answerOpenMeteo, weather.MessageStale},
	"consumer": {func(w http.ResponseWriter, r *http.Request) {
		report, _ := good(5.1)(r.Context(), stuttgart)
		report.ServedBy = "producer-1"
		weather.WriteJSON(w, report)
	}, weather.MessageUnreachable},
}

// get asks a function for Stuttgart, with a caller's patience.
func get(t *testing.T, f function) weather.Report {
	t.Helper()
	r, err := try(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func try(ctx context.Context, f function) (r weather.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/?zip=70569&country=DE", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != 200 {
		return r, fmt.Errorf("the function answers %d %s (%v), want 200 and a report", w.Code, w.Body, err)
	}
	return r, nil
}

// each runs a test for both functions.
func each(t *testing.T, test func(t *testing.T, u *upstream, words string, replica func(environ ...string) function)) {
	for name, kind := range upstreams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUpstream(t, kind.answer)
			test(t, u, kind.words, func(environ ...string) function { return replicas[name](t, u.URL, environ...) })
		})
	}
}

func isFresh(r weather.Report) bool {
	return !r.Empty() && r.Temperature == 5.1 && !r.Stale && r.Message == ""
}

func isStale(r weather.Report, words string) bool {
	return !r.Empty() && r.Temperature == 5.1 && r.Stale && r.Message == words
}

// What one replica was told, all know. On a machine that is busy a Redis may be
// too slow to be waited for, so that it is asked more than once.
func TestReplicasShare(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, words string, replica func(environ ...string) function) {
		s := startRedis(t)
		redis, every := "THICKET_REDIS_URL="+s.url(), "weather_fresh=0"
		first := replica(redis, every)
		s.until("it holds an answer", func(ctx context.Context) bool {
			if r := get(t, first); !isFresh(r) {
				t.Fatalf("report = %+v, want a fresh one", r)
			}
			return s.holds(ctx)
		})
		s.until("another replica needs no question of its own", func(context.Context) bool {
			asked := u.asked.Load()
			if r := get(t, replica(redis)); !isFresh(r) {
				t.Fatalf("another replica has %+v, want it fresh", r)
			}
			return u.asked.Load() == asked
		})

		u.broken.Store(true)
		late := replica(redis, every)
		s.until("a replica that begins in an outage has what another one knew", func(context.Context) bool {
			return isStale(get(t, late), words)
		})
		if r := get(t, replica(redis, every, "OPENFAAS_NAME=another")); !r.Empty() {
			t.Errorf("a function of another name has %+v, want nothing", r)
		}
		if r := get(t, replica(every)); !r.Empty() {
			t.Errorf("a replica without the Redis has %+v, want nothing", r)
		}
		u.broken.Store(false)
		if r := get(t, replica(redis, every)); !isFresh(r) {
			t.Errorf("report = %+v after the outage, want a fresh one", r)
		}
	})
}

// With weather_fresh=0 every replica asks, also while another one does.
func TestReplicasThatAlwaysAsk(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ string, replica func(environ ...string) function) {
		s := startRedis(t)
		environ := []string{"THICKET_REDIS_URL=" + s.url(), "weather_fresh=0"}
		both := [...]function{replica(environ...), replica(environ...)}
		for _, f := range both {
			get(t, f)
		}
		hold := make(chan struct{})
		release := sync.OnceFunc(func() { close(hold) })
		defer release()
		u.hold.Store(&hold)
		var wg sync.WaitGroup
		for n, f := range both {
			asked := u.asked.Load()
			wg.Go(func() {
				if r, err := try(t.Context(), f); err != nil || !isFresh(r) {
					t.Errorf("replica %d has %+v, %v, want a fresh report", n, r, err)
				}
			})
			s.until("the replica asks", func(context.Context) bool { return u.asked.Load() > asked })
		}
		release()
		wg.Wait()
	})
}

// A Redis that stands still takes nobody's patience, neither when a replica
// starts nor when it is asked.
func TestReplicasDoWithoutARedisThatStandsStill(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, words string, replica func(environ ...string) function) {
		s := startRedis(t)
		environ := []string{"THICKET_REDIS_URL=" + s.url(), "weather_fresh=0"}
		first := replica(environ...)
		s.until("it holds an answer", func(ctx context.Context) bool {
			if r := get(t, first); !isFresh(r) {
				t.Fatalf("report = %+v, want a fresh one", r)
			}
			return s.holds(ctx)
		})
		s.signal(syscall.SIGSTOP)
		second := replica(environ...)
		for range 20 {
			for _, f := range []function{first, second} {
				if r := get(t, f); !isFresh(r) {
					t.Fatalf("report = %+v, want a fresh one in time", r)
				}
			}
		}
		u.broken.Store(true)
		for range 20 {
			for _, f := range []function{first, second} {
				if r := get(t, f); !isStale(r, words) {
					t.Fatalf("report = %+v, want what the replica itself remembers", r)
				}
			}
		}
		s.signal(syscall.SIGCONT)
		third := replica(environ...)
		s.until("a new replica has what is in it", func(context.Context) bool { return isStale(get(t, third), words) })
	})
}

// A replica may be there before its Redis, and for ever without it.
func TestReplicasDoWithoutARedisThatIsNotThere(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, words string, replica func(environ ...string) function) {
		f := replica("THICKET_REDIS_URL=unix://"+filepath.Join(t.TempDir(), "s"), "weather_fresh=0")
		if r := get(t, f); !isFresh(r) {
			t.Fatalf("report = %+v, want a fresh one", r)
		}
		u.broken.Store(true)
		if r := get(t, f); !isStale(r, words) {
			t.Errorf("report = %+v, want the remembered one", r)
		}
	})
}
