package stale

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is what a Redis tells of itself.
type Server struct {
	Version   string
	MaxMemory int64  // bytes; 0 is without a bound
	Policy    string // for when they are full: "allkeys-lru"
}

// Addrs returns where the Redis of a URL is, of the forms that [Config] has:
// host:port, or the path of a socket.
func Addrs(rawURL string) ([]string, error) {
	o, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	return o.Addrs, nil
}

// Examine asks the Redis of a URL for what it is. The errors don't repeat the
// URL.
func Examine(ctx context.Context, rawURL string) (Server, error) {
	o, err := parseURL(rawURL)
	if err != nil {
		return Server{}, err
	}
	// There is time, and it is far away from any call.
	o.DialTimeout, o.ReadTimeout, o.PoolTimeout = 2*time.Second, 2*time.Second, 2*time.Second
	o.PoolSize = 1
	redis.SetLogger(silence{})
	c := redis.NewUniversalClient(o)
	defer c.Close()
	var s Server
	for _, section := range []string{"server", "memory"} {
		text, err := c.Info(ctx, section).Result()
		if err != nil {
			return s, fmt.Errorf("its answer: %w", err)
		}
		s.read(text)
	}
	return s, nil
}

// read takes what is of interest from lines of "key:value".
func (s *Server) read(info string) {
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		switch key {
		case "redis_version":
			s.Version = fmt.Sprintf("%.40s", value)
		case "maxmemory":
			s.MaxMemory, _ = strconv.ParseInt(value, 10, 64) // what is no number is no bound
		case "maxmemory_policy":
			s.Policy = fmt.Sprintf("%.40s", value)
		}
	}
}
