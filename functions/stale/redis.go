package stale

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// WriteScript is the Lua with which answers are written to the Redis, and
// ReleaseScript that which gives a lease back. They are exported for servers
// that aren't Redis, and have no Lua, to know them.
//
// WriteScript sets KEYS[1], an answer, to ARGV[1] for ARGV[2] ms, if KEYS[2], the
// function's generation, is ARGV[4] (empty if it has none) and what is there, of
// the same first byte, isn't younger than ARGV[3] ms. How old that is, is told
// by two decimal numbers in it, bytes 2-14 and 15-27: its age and its remaining
// life when it was written, both in ms.
//
// ReleaseScript deletes KEYS[1] if it is ARGV[1].
const (
	WriteScript = `-- thicket stale: write
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[4] then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left > 0 then
  local head = redis.call('GETRANGE', KEYS[1], 0, 27)
  local age, life = tonumber(string.sub(head, 3, 15)), tonumber(string.sub(head, 16, 28))
  if string.sub(head, 1, 1) == string.sub(ARGV[1], 1, 1) and age and life
    and left <= life and age + life - left < tonumber(ARGV[3]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`

	ReleaseScript = `-- thicket stale: release
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`
)

// store is a backend over go-redis. It has two clients, so that large writes
// over a slow network neither take the readers' connections nor their short
// timeouts.
type store struct {
	namespace string
	limit     int // of a value read
	r, w      redis.UniversalClient
	writing   *redis.Script
	releasing *redis.Script
}

func newRedis(rawURL, namespace string, limit int) (*store, error) {
	o, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	// go-redis writes every failed dial to stderr, through the one logger that a
	// process has for it, and offers no other way. What is wrong is told to
	// Config.Logger and counted.
	redis.SetLogger(silence{})
	read, write := *o, *o
	read.PoolSize, read.MinIdleConns = 8, 1
	read.ReadTimeout, read.WriteTimeout = RedisBudget, RedisBudget
	write.PoolSize = 2
	write.ReadTimeout, write.WriteTimeout = writeTimeout, writeTimeout
	return &store{
		namespace: namespace, limit: limit,
		r: redis.NewUniversalClient(&read), w: redis.NewUniversalClient(&write),
		writing: redis.NewScript(WriteScript), releasing: redis.NewScript(ReleaseScript),
	}, nil
}

// silence is a logger for go-redis.
type silence struct{}

// Printf does nothing.
func (silence) Printf(context.Context, string, ...any) {}

// tuned returns the options that all servers have. go-redis's own would wait for
// seconds: a frozen server costs 5 s with them even if the context ends after
// 50 ms, a black-holed one over a minute.
func tuned() *redis.UniversalOptions {
	return &redis.UniversalOptions{
		MaxRetries:            -1,
		DialTimeout:           100 * time.Millisecond,
		DialerRetries:         1,
		PoolTimeout:           10 * time.Millisecond,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
		ReadBufferSize:        8 << 10,
		WriteBufferSize:       8 << 10,
		PipelinePoolSize:      -1,
		// A name that moved to another server is followed, in the end.
		ConnMaxLifetime:       10 * time.Minute,
		ConnMaxLifetimeJitter: time.Minute,
		ConnMaxIdleTime:       5 * time.Minute,
		FailingTimeoutSeconds: 1,
		// Valkey doesn't know them, and says so.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

const urlForms = "write redis://[user:password@]host[:port][/db], rediss:// for TLS, unix:///path, redis+sentinel://master@host1,host2 or redis+cluster://host1,host2"

// parseURL reads the forms that [Config] has. Errors don't repeat the URL, which
// may hold a password.
func parseURL(raw string) (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, fmt.Errorf("the Redis's URL has no scheme: %s", urlForms)
	}
	o := tuned()
	if scheme == "unix" {
		return unixOptions(raw, o)
	}
	plain, tlsOn := strings.CutPrefix(scheme, "rediss")
	kind := plain
	if !tlsOn {
		if kind, ok = strings.CutPrefix(scheme, "redis"); !ok {
			kind = "?"
		}
	}
	authority, query, _ := strings.Cut(rest, "?")
	if query != "" {
		return nil, errors.New("the Redis's URL has settings after a question mark, which it may not: timeouts and pools are chosen for a cache")
	}
	authority, path, _ := strings.Cut(authority, "/")
	path = strings.Trim(path, "/")
	var user string
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, authority = authority[:i], authority[i+1:]
	}
	port := "6379"
	switch kind {
	case "":
		if strings.Contains(authority, ",") {
			return nil, fmt.Errorf("the Redis's URL has several hosts: %s", urlForms)
		}
	case "+cluster":
		o.IsClusterMode = true
		if path != "" && path != "0" {
			return nil, errors.New("the Redis's URL has a database, and a cluster has only one: leave it out")
		}
	case "+sentinel":
		port = "26379"
		i := strings.LastIndexByte(user, '@')
		user, o.MasterName = user[:max(i, 0)], user[i+1:]
		if o.MasterName == "" {
			return nil, errors.New("the Redis's URL names no master: write redis+sentinel://master@host1,host2,host3/0, with the name that the sentinels know it by")
		}
	default:
		return nil, fmt.Errorf("the Redis's URL has the unknown scheme %.20q: %s", scheme, urlForms)
	}
	var err error
	if o.Username, o.Password, err = userInfo(user); err != nil {
		return nil, err
	}
	if path != "" {
		if o.DB, err = strconv.Atoi(path); err != nil || o.DB < 0 {
			return nil, fmt.Errorf("the Redis's URL has %.20q as its database: write a number from 0 on", path)
		}
	}
	for host := range strings.SplitSeq(authority, ",") {
		addr, err := hostPort(host, port)
		if err != nil {
			return nil, err
		}
		o.Addrs = append(o.Addrs, addr)
	}
	if tlsOn {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if kind == "" {
			o.TLSConfig.ServerName, _, _ = net.SplitHostPort(o.Addrs[0])
		}
	}
	return o, nil
}

func unixOptions(raw string, o *redis.UniversalOptions) (*redis.UniversalOptions, error) {
	simple, err := redis.ParseURL(raw)
	if err != nil || !strings.HasPrefix(simple.Addr, "/") {
		return nil, errors.New("the Redis's URL is no socket: write unix:///run/redis/redis.sock, with ?db=1 behind it for another database than 0")
	}
	o.Addrs, o.Username, o.Password, o.DB = []string{simple.Addr}, simple.Username, simple.Password, simple.DB
	return o, nil
}

// userInfo parses user:password, either of which may be escaped or missing.
func userInfo(s string) (user, password string, err error) {
	if s == "" {
		return "", "", nil
	}
	user, password, both := strings.Cut(s, ":")
	if !both {
		// As redis-cli has it, a lone word is the password's user.
		password = ""
	}
	u, errUser := url.PathUnescape(user)
	p, errPassword := url.PathUnescape(password)
	if errUser != nil || errPassword != nil {
		return "", "", errors.New("the Redis's URL has a user or password with a wrong escape in it: write each % as %25")
	}
	return u, p, nil
}

// hostPort returns an address with its port.
func hostPort(s, port string) (string, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		host, p = strings.Trim(s, "[]"), port
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("the Redis's URL has the port %.20q: write a number from 1 to 65535", p)
	}
	if host == "" || strings.ContainsAny(host, " /@") || strings.Contains(host, ":") && net.ParseIP(strings.SplitN(host, "%", 2)[0]) == nil {
		return "", fmt.Errorf("the Redis's URL has a host that is none: %s", urlForms)
	}
	return net.JoinHostPort(host, p), nil
}

// A function's keys have a hash tag in common, so that a cluster has them in one
// place and a script may have two of them.
func (s *store) prefix(function string) string { return s.namespace + ":{v1:" + function + "}:" }

func (s *store) entryKey(k Key) string {
	return s.prefix(k.function) + "e:" + hex.EncodeToString(k.sum[:])
}
func (s *store) leaseKey(k Key) string {
	return s.prefix(k.function) + "l:" + hex.EncodeToString(k.sum[:])
}
func (s *store) genKey(function string) string { return s.prefix(function) + "gen" }
func (s *store) channel() string               { return s.namespace + ":purge" }

func (s *store) read(ctx context.Context, key Key, lease string, life time.Duration) (reading, error) {
	var (
		take  *redis.BoolCmd
		gen   *redis.StringCmd
		value *redis.StringCmd
		left  *redis.DurationCmd
	)
	_, err := s.r.Pipelined(ctx, func(p redis.Pipeliner) error {
		if lease != "" {
			take = p.SetNX(ctx, s.leaseKey(key), lease, life)
		}
		gen = p.Get(ctx, s.genKey(key.function))
		value = p.GetRange(ctx, s.entryKey(key), 0, int64(s.limit)) // not GET: what others put there has no bound
		left = p.PTTL(ctx, s.entryKey(key))
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return reading{}, err
	}
	for _, err := range [...]error{gen.Err(), value.Err(), left.Err()} {
		if err != nil && !errors.Is(err, redis.Nil) {
			return reading{}, err
		}
	}
	r := reading{gen: gen.Val(), left: left.Val()}
	if v := value.Val(); v != "" {
		r.value = []byte(v)
		if r.left == -2 {
			r.left = 0 // it ended just now
		}
	}
	if take != nil {
		if err := take.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return reading{}, err
		}
		r.won = take.Val()
	}
	return r, nil
}

func (s *store) generation(ctx context.Context, function string) (string, error) {
	gen, err := s.r.Get(ctx, s.genKey(function)).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return gen, err
}

func (s *store) write(ctx context.Context, key Key, value []byte, life, age time.Duration, gen string) error {
	return s.writing.Run(ctx, s.w, []string{s.entryKey(key), s.genKey(key.function)},
		value, life.Milliseconds(), age.Milliseconds(), gen).Err()
}

func (s *store) remove(ctx context.Context, key Key) error {
	return s.w.Del(ctx, s.entryKey(key)).Err()
}

func (s *store) release(ctx context.Context, key Key, lease string) error {
	return s.releasing.Run(ctx, s.w, []string{s.leaseKey(key)}, lease).Err()
}

func (s *store) purge(ctx context.Context, function, gen string) error {
	return s.w.Set(ctx, s.genKey(function), gen, genLife).Err()
}

func (s *store) publish(ctx context.Context, message string) error {
	return s.w.Publish(ctx, s.channel(), message).Err()
}

func (s *store) listen(ctx context.Context, f func(string)) error {
	const quiet = 30 * time.Second // then it is asked whether it lives
	sub := s.w.Subscribe(ctx, s.channel())
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
	defer func() {
		if stop() {
			_ = sub.Close()
		}
	}()
	asked := false
	for {
		m, err := sub.ReceiveTimeout(ctx, quiet)
		var netErr net.Error
		switch {
		case err == nil:
			asked = false
		case errors.As(err, &netErr) && netErr.Timeout() && !asked:
			asked = true
			if err := sub.Ping(ctx); err != nil {
				return err
			}
		default:
			return err
		}
		if m, ok := m.(*redis.Message); ok {
			f(m.Payload)
		}
	}
}

func (s *store) ping(ctx context.Context) error { return s.r.Ping(ctx).Err() }

func (s *store) close() error { return errors.Join(s.r.Close(), s.w.Close()) }
