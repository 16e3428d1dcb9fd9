package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/redis/go-redis/v9"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// settings is everything that can be set, all of it by environment variables.
// It is read once, in main, and handed down in pieces. The table in the README
// has a row for each field; a test compares the two.
type settings struct {
	Addr      string `env:"THICKET_ADDR" envDefault:":8080"`
	NodesAddr string `env:"THICKET_NODES_ADDR"`
	NodesOnly bool   `env:"THICKET_NODES_ONLY" envDefault:"false"`
	TokenFile string `env:"THICKET_TOKEN_FILE"`
	Data      string `env:"THICKET_DATA"`
	Node      string `env:"THICKET_NODE"`
	Zone      string `env:"THICKET_ZONE"`

	Providers    []providerSetting `env:"THICKET_PROVIDERS"`
	User         string            `env:"THICKET_USER" envDefault:"admin"`
	Password     string            `env:"THICKET_PASSWORD"`
	PasswordFile string            `env:"THICKET_PASSWORD_FILE"`
	// SecretMountPath has OpenFaaS's own name: what its gateway is deployed
	// with works here too.
	SecretMountPath string `env:"secret_mount_path" envDefault:"/run/secrets"`

	TLSCert string `env:"THICKET_TLS_CERT"`
	TLSKey  string `env:"THICKET_TLS_KEY"`

	RedisURL string `env:"THICKET_REDIS_URL"`

	NATSURL    string `env:"THICKET_NATS_URL"`
	NATSCreds  string `env:"THICKET_NATS_CREDS"`
	NATSCA     string `env:"THICKET_NATS_CA"`
	NATSPrefix string `env:"THICKET_NATS_PREFIX" envDefault:"thicket"`

	LogLevel  slog.Level `env:"THICKET_LOG_LEVEL" envDefault:"INFO"`
	LogFormat logFormat  `env:"THICKET_LOG_FORMAT" envDefault:"auto"`

	Timeout   time.Duration `env:"THICKET_TIMEOUT" envDefault:"60s"`
	HoldTime  time.Duration `env:"THICKET_HOLD_TIME" envDefault:"30s"`
	HoldQueue int           `env:"THICKET_HOLD_QUEUE" envDefault:"1000"`
	Drain     time.Duration `env:"THICKET_DRAIN" envDefault:"30s"`
	MaxBody   size          `env:"THICKET_MAX_BODY" envDefault:"100Mi"`

	Chaos bool `env:"THICKET_CHAOS" envDefault:"false"`

	MaxFunctions int  `env:"THICKET_MAX_FUNCTIONS" envDefault:"10000"`
	LogBuffer    size `env:"THICKET_LOG_BUFFER" envDefault:"1Mi"`

	RegistrySize       size     `env:"THICKET_REGISTRY_SIZE" envDefault:"10Gi"`
	RegistryPulls      int      `env:"THICKET_REGISTRY_PULLS" envDefault:"8"`
	ImageSize          size     `env:"THICKET_IMAGE_SIZE" envDefault:"2Gi"`
	InsecureRegistries []string `env:"THICKET_INSECURE_REGISTRIES"`
	DockerConfig       string   `env:"THICKET_DOCKER_CONFIG"`

	traces    bool   // OpenTelemetry's variables ask for them
	tracesURL string // and where they go, if it is said
}

// size is a number of bytes, written as Kubernetes does: "512Mi", "10Gi", "1000".
type size int64

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *size) UnmarshalText(text []byte) error {
	n, err := faas.ParseMemory(string(text))
	if err != nil {
		return err
	}
	if n <= 0 {
		return fmt.Errorf("%q is not more than 0 bytes", text)
	}
	*s = size(n)
	return nil
}

// providerSetting is an OpenFaaS provider that is to be a node: "NAME=URL", with
// user and password in the URL.
type providerSetting nodes.Provider

// UnmarshalText implements [encoding.TextUnmarshaler]. Its errors repeat no
// password.
func (p *providerSetting) UnmarshalText(text []byte) error {
	const write = "write NAME=URL for each, separated by commas, such as faasd=http://admin:PASSWORD@192.168.1.20:8080"
	name, u, ok := strings.Cut(strings.TrimSpace(string(text)), "=")
	if !ok || strings.Contains(name, "/") {
		return errors.New("one has no name: " + write)
	}
	p.Name = strings.TrimSpace(name)
	if err := faas.CheckLabel("a node's name", p.Name); err != nil {
		return err
	}
	if err := p.Endpoint.Parse(u); err != nil {
		return fmt.Errorf("%s: %w; %s", p.Name, err, write)
	}
	return nil
}

// providers are the OpenFaaS providers that are to be nodes.
func (s *settings) providers() []nodes.Provider {
	var all []nodes.Provider
	for _, p := range s.Providers {
		all = append(all, nodes.Provider(p))
	}
	return all
}

// logFormat is how log lines look.
type logFormat string

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *logFormat) UnmarshalText(text []byte) error {
	switch v := logFormat(text); v {
	case "auto", "text", "json":
		*f = v
		return nil
	}
	return fmt.Errorf("%q is not one of auto, text, json", text)
}

// readSettings reads the settings from environ ("KEY=value" strings). The error
// names every variable that is wrong, one a line.
func readSettings(environ []string) (settings, error) {
	vars := env.ToMap(environ)
	s, err := env.ParseAsWithOptions[settings](env.Options{Environment: vars})
	var wrong []error
	if agg, ok := errors.AsType[env.AggregateError](err); ok {
		for _, e := range agg.Errors {
			wrong = append(wrong, settingError(e))
		}
	} else if err != nil {
		wrong = append(wrong, err)
	}
	if err == nil {
		wrong = s.check()
	}
	var bad []error
	s.traces, bad = wantsTraces(vars)
	if wrong = append(wrong, bad...); s.traces {
		s.tracesURL = cmp.Or(vars["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"], vars["OTEL_EXPORTER_OTLP_ENDPOINT"])
	}
	fields := settingFields()
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if name == registryVariable {
			continue // for stack files
		}
		if strings.HasPrefix(name, "THICKET_") && !slices.ContainsFunc(fields, func(f settingField) bool { return f.name == name }) {
			wrong = append(wrong, fmt.Errorf("%s: there is no such setting: the README has a table of them", name))
		}
	}
	if s.Data == "" {
		s.Data = defaultData(vars)
	}
	if s.NodesAddr == "" {
		s.NodesAddr = defaultNodesAddr(s.Addr)
	}
	if s.Node == "" {
		host, _ := os.Hostname()
		s.Node, _, _ = strings.Cut(host, ".")
	}
	// Kubernetes calls machines by names with dots, which ours can't have.
	s.Node = strings.ReplaceAll(strings.ToLower(s.Node), ".", "-")
	return s, errors.Join(wrong...)
}

// check finds what the types alone can't.
func (s *settings) check() (wrong []error) {
	bad := func(name, format string, args ...any) {
		wrong = append(wrong, fmt.Errorf(name+": "+format, args...))
	}
	if _, _, err := net.SplitHostPort(s.Addr); err != nil {
		bad("THICKET_ADDR", "%q is not an address: write host:port or :port, such as :8080", s.Addr)
	}
	if _, _, err := net.SplitHostPort(s.NodesAddr); err != nil && s.NodesAddr != noNodes && s.NodesAddr != "" {
		bad("THICKET_NODES_ADDR", "%q is not an address: write host:port or :port, such as :8090, or off", s.NodesAddr)
	}
	if strings.TrimSpace(s.User) == "" || strings.ContainsRune(s.User, ':') {
		bad("THICKET_USER", "a user name is not empty and has no \":\"")
	}
	if s.Password != "" && s.PasswordFile != "" {
		bad("THICKET_PASSWORD_FILE", "set either this or THICKET_PASSWORD, not both")
	}
	switch {
	case s.TLSCert != "" && s.TLSKey == "":
		bad("THICKET_TLS_KEY", "a certificate needs its key: name the file with it")
	case s.TLSCert == "" && s.TLSKey != "":
		bad("THICKET_TLS_CERT", "a key needs its certificate: name the file with it, and those that signed it")
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"THICKET_TIMEOUT", s.Timeout}, {"THICKET_HOLD_TIME", s.HoldTime}, {"THICKET_DRAIN", s.Drain}} {
		if d.d <= 0 {
			bad(d.name, "%v is not more than 0", d.d)
		}
	}
	named := make(map[string]bool)
	for _, p := range s.Providers {
		if named[p.Name] {
			bad("THICKET_PROVIDERS", "two are called %s", p.Name)
		}
		named[p.Name] = true
	}
	if s.HoldQueue < 0 {
		bad("THICKET_HOLD_QUEUE", "%d is less than 0", s.HoldQueue)
	}
	if s.RegistryPulls < 1 {
		bad("THICKET_REGISTRY_PULLS", "%d is less than 1", s.RegistryPulls)
	}
	if s.MaxFunctions < 1 {
		bad("THICKET_MAX_FUNCTIONS", "%d is less than 1", s.MaxFunctions)
	}
	badURL, badPrefix := new(s.nats()).Check()
	if badURL != nil && s.NATSURL != "" {
		bad("THICKET_NATS_URL", "%v", badURL)
	}
	if badPrefix != nil {
		bad("THICKET_NATS_PREFIX", "%v", badPrefix)
	}
	for _, f := range []struct{ name, value string }{{"THICKET_NATS_CREDS", s.NATSCreds}, {"THICKET_NATS_CA", s.NATSCA}} {
		if f.value != "" && s.NATSURL == "" {
			bad(f.name, "is for the NATS at THICKET_NATS_URL: set that, too")
		}
	}
	if scheme, _, _ := strings.Cut(s.RedisURL, "://"); scheme != "" && !strings.Contains(scheme, "+") { // those are read by the cache
		if _, err := redis.ParseURL(s.RedisURL); err != nil {
			// The URL may hold a password, and so may the error's text.
			bad("THICKET_REDIS_URL", "is not a Redis address: write redis://host:6379/0, rediss:// for TLS, unix:// for a socket, redis+sentinel:// or redis+cluster://")
		}
	}
	return wrong
}

// nats is the cluster that keeps the state, if there is one.
func (s *settings) nats() state.NATS {
	return state.NATS{URL: s.NATSURL, Creds: s.NATSCreds, CA: s.NATSCA, Prefix: s.NATSPrefix, Node: s.Node}
}

// settingField is a field of settings and the variable it is read from.
type settingField struct{ field, name string }

func settingFields() (fields []settingField) {
	for f := range reflect.TypeFor[settings]().Fields() {
		if !f.IsExported() {
			continue // it follows from others
		}
		name, _, _ := strings.Cut(f.Tag.Get("env"), ",")
		fields = append(fields, settingField{f.Name, name})
	}
	return fields
}

// settingError turns a parse error of one field into "NAME: what is wrong".
func settingError(err error) error {
	pe, ok := errors.AsType[env.ParseError](err)
	if !ok {
		return err
	}
	for _, f := range settingFields() {
		if f.field == pe.Name {
			return fmt.Errorf("%s: %w", f.name, pe.Err)
		}
	}
	return err
}

// defaultNodesAddr is where machines join when nobody says: at the gateway's
// host, unless that can be reached from this machine alone.
func defaultNodesAddr(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return noNodes // addr is wrong, which was said
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return noNodes
	}
	return net.JoinHostPort(host, "8090")
}

// defaultData is where state is kept when nobody says: the system's folder for
// root, the user's state folder (XDG) for everybody else.
func defaultData(vars map[string]string) string {
	if os.Geteuid() == 0 {
		return "/var/lib/thicket"
	}
	if dir := vars["XDG_STATE_HOME"]; filepath.IsAbs(dir) {
		return filepath.Join(dir, "thicket")
	}
	return filepath.Join(vars["HOME"], ".local", "state", "thicket")
}

// generatedPassword is the file that the state folder keeps the generated
// password in.
func (s *settings) generatedPassword() string { return filepath.Join(s.Data, state.PasswordFile) }

// credentials finds user and password for the API. generate is asked for one when none
// was given; the last result says where that is kept, and is empty otherwise.
func (s *settings) credentials(generate func() (password, path string, created bool, err error)) (user, password, path string, err error) {
	switch {
	case s.Password != "":
		return s.User, s.Password, "", nil
	case s.PasswordFile != "":
		password, err := readSecretFile("THICKET_PASSWORD_FILE", s.PasswordFile)
		return s.User, password, "", err
	}
	// OpenFaaS's credential files, as Docker and Kubernetes mount them. Their
	// mode is the mounter's choice (0444 is usual), so it isn't judged.
	userFile := filepath.Join(s.SecretMountPath, "basic-auth-user")
	passwordFile := filepath.Join(s.SecretMountPath, "basic-auth-password")
	p, err := os.ReadFile(passwordFile)
	switch {
	case err == nil:
		user := s.User
		if u, err := os.ReadFile(userFile); err == nil {
			user = strings.TrimSpace(string(u))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", "", "", fmt.Errorf("read the user name: %w", err)
		}
		if password := strings.TrimSpace(string(p)); password != "" && user != "" {
			return user, password, "", nil
		}
		return "", "", "", fmt.Errorf("%s or basic-auth-user beside it is empty: write the credentials into them, or set THICKET_PASSWORD_FILE", passwordFile)
	case !errors.Is(err, fs.ErrNotExist):
		return "", "", "", fmt.Errorf("read the password: %w", err)
	}
	password, path, _, err = generate()
	return s.User, password, path, err
}

// readSecretFile reads what one setting names: a file that only its owner and
// group may read. What it returns has no line break at its end.
func readSecretFile(setting, path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: %s does not exist: create it with mode 0600, or leave %[1]s away", setting, path)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", setting, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%s: everybody on this machine can read %s (mode %04o): run chmod 600 %[2]s", setting, path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", setting, err)
	}
	// What echo wrote ends with a line break that nobody means.
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", fmt.Errorf("%s: %s is empty", setting, path)
	}
	return text, nil
}
