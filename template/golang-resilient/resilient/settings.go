//go:build go1.26

package resilient

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Settings are what the environment may say. The names in brackets are those
// of the variables, which are of-watchdog's where it has the same.
type Settings struct {
	Port       int    // [port, PORT] for requests; 8080
	ListenHost string // [listen_host] address to listen on; empty is all of them

	ReadTimeout  time.Duration // [read_timeout] to receive a request; 30s, 0 is off
	WriteTimeout time.Duration // [write_timeout] to answer it, and to finish when stopping; 30s, 0 is off
	ExecTimeout  time.Duration // [exec_timeout] for the handler alone; 30s, 0 is off

	// HealthcheckInterval [healthcheck_interval] is for how long requests are
	// still taken after SIGTERM, until the platform has noticed. 3s; 0 where
	// ListenHost is a loopback address, since whoever sends from this machine
	// stops to do so before it stops the function.
	HealthcheckInterval time.Duration

	MaxInflight int    // [max_inflight] requests at the same time; 0 is no bound
	ReadyPath   string // [ready_path] path that the handler answers readiness at; empty is always ready
	MetricsPort int    // [metrics_port] for Prometheus; 8081, 0 is off

	LogRequests bool       // [log_requests] a line for each request; false
	LogLevel    slog.Level // [log_level] debug, info, warn, error; info
	LogFormat   string     // [log_format] json or text; json

	// Replica [THICKET_REPLICA] is what Thicket calls this replica. A call that is
	// meant for another one is refused with 421: whoever calls replicas directly
	// may not know yet that the address has changed hands.
	Replica string

	SuppressLock bool   // [suppress_lock] make no .lock file in TempDir; false
	TempDir      string // the system's
}

// ReadSettings reads the settings. The error has a line for each mistake.
func ReadSettings(getenv func(string) string) (Settings, error) {
	e := environment{getenv: getenv}
	s := Settings{
		ListenHost:   strings.TrimSpace(getenv("listen_host")),
		ReadTimeout:  e.duration("read_timeout", 30*time.Second),
		WriteTimeout: e.duration("write_timeout", 30*time.Second),
		ExecTimeout:  e.duration("exec_timeout", 30*time.Second),
		MaxInflight:  e.number("max_inflight", 0, 1<<30),
		MetricsPort:  e.number("metrics_port", 8081, 65535),
		ReadyPath:    getenv("ready_path"),
		LogRequests:  e.boolean("log_requests"),
		LogFormat:    "json",
		Replica:      getenv("THICKET_REPLICA"),
		SuppressLock: e.boolean("suppress_lock"),
		TempDir:      os.TempDir(),
	}
	name := "port"
	if getenv(name) == "" {
		name = "PORT"
	}
	if s.Port = e.number(name, 8080, 65535); s.Port == 0 {
		e.wrong(name, "a port from 1 to 65535")
	}
	notice := 3 * time.Second
	if ip := net.ParseIP(s.ListenHost); ip != nil && ip.IsLoopback() {
		notice = 0
	}
	s.HealthcheckInterval = e.duration("healthcheck_interval", notice)
	if s.ReadyPath != "" && !strings.HasPrefix(s.ReadyPath, "/") {
		e.wrong("ready_path", "a path that begins with /")
	}
	switch v := getenv("log_format"); v {
	case "", "json":
	case "text":
		s.LogFormat = v
	default:
		e.wrong("log_format", "json or text")
	}
	if v := getenv("log_level"); v != "" && s.LogLevel.UnmarshalText([]byte(v)) != nil {
		e.wrong("log_level", "debug, info, warn or error")
	}
	if s.MetricsPort != 0 && s.MetricsPort == s.Port {
		e.wrong("metrics_port", "another port than the one for requests, or 0 for none")
	}
	return s, errors.Join(e.errs...)
}

// environment reads variables and collects what is wrong with them.
type environment struct {
	getenv func(string) string
	errs   []error
}

func (e *environment) wrong(name, want string) {
	e.errs = append(e.errs, fmt.Errorf("setting %s is %q, it must be %s", name, e.getenv(name), want))
}

func (e *environment) duration(name string, otherwise time.Duration) time.Duration {
	v := strings.TrimSpace(e.getenv(name))
	if v == "" {
		return otherwise
	}
	d, ok := parseDuration(v)
	if !ok {
		e.wrong(name, "a time like 30s, 1m30s, or a number of seconds")
	}
	return d
}

func (e *environment) number(name string, otherwise, limit int) int {
	v := strings.TrimSpace(e.getenv(name))
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > limit {
		e.wrong(name, fmt.Sprintf("a number from 0 to %d", limit))
		return otherwise
	}
	return n
}

func (e *environment) boolean(name string) bool {
	v := strings.TrimSpace(e.getenv(name))
	if v == "" {
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		e.wrong(name, "true or false")
	}
	return b
}

// parseDuration reads a time as OpenFaaS writes it: "30s" or "30".
func parseDuration(v string) (time.Duration, bool) {
	if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
		return time.Duration(seconds) * time.Second, seconds >= 0 && seconds <= math.MaxInt64/int64(time.Second)
	}
	d, err := time.ParseDuration(v)
	return d, err == nil && d >= 0
}
