package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/cache"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery/eureka"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/proxy"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/ui"
)

// lookPatience is how long who deploys waits for the image to be looked up: long
// enough for a registry far away, over TLS and with a token.
const lookPatience = 3 * time.Second

// checkFlag has serve say whether it would start, and end.
const checkFlag = "check"

func (c *command) serve() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Be the gateway of this machine",
		Long: `Serve the OpenFaaS API, the registry of images and the functions on THICKET_ADDR
(:8080), and run what was deployed before. With no password set, one is made on
the first start; the log says where it is kept.

SIGTERM finishes what is in flight and stops; a second one hurries. SIGUSR2 puts
the program that is then on the disk in this one's place, in the same process:
who calls meanwhile waits a moment and is answered. A listening socket that
systemd hands over is used in place of THICKET_ADDR.`,
		Example: `  gateway-ext serve
  THICKET_ADDR=127.0.0.1:9090 THICKET_DATA=$HOME/thicket gateway-ext serve
  gateway-ext serve --check          are the settings right?`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(c.environ)
			if err == nil && check && s.TLSCert != "" {
				_, err = openCertificate(s.TLSCert, s.TLSKey, c.logger(s))
			}
			if err != nil || check {
				return err
			}
			return c.runServe(cmd.Context(), s)
		},
	}
	cmd.Flags().BoolVar(&check, checkFlag, false, "only check the settings")
	return cmd
}

// gateway is all parts of a running gateway, wired.
type gateway struct {
	log      *slog.Logger
	drain    time.Duration
	state    *state.State
	store    *image.Store
	registry *image.Registry
	table    *discovery.Table
	redis    *cache.Server // for the functions; nil if there is a real one
	answers  *stale.Cache
	traces   *traces // nil if nobody wants them
	process  *provider.Process
	nodes    *nodes.Nodes
	fleet    *fleet.Fleet
	services *eureka.Registry // that registered themselves
	api      *api.Handler

	handler http.Handler
	// public is the address people use. inner is a loopback address that only
	// functions are given: it stays open while public is closed and drained,
	// so that a function in flight can still call another.
	public, inner net.Listener
	// door is where machines join; nil if none may.
	door      net.Listener
	authority *nodes.Authority

	cutUpgrades func() // see [proxy.Proxy.CutUpgrades]

	certificate *certificate // of public; nil and it speaks plain HTTP

	successor *successor // takes its place when asked to; nil if nobody can
	handed    *os.File   // public's socket, when that has been asked

	url                          string // where public answers, as a client on this machine writes it
	user, password, passwordPath string
}

// openGateway opens the state folder, takes the address and makes all parts.
// Nothing is served or started until run. socket, if not nil, is listened on in
// place of the address. pulled, if not nil, is told how many bytes of an image
// have arrived.
func openGateway(ctx context.Context, s settings, log *slog.Logger, socket net.Listener, pulled func(ref string, done, total int64)) (_ *gateway, err error) {
	g := &gateway{log: log, drain: s.Drain, public: socket}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()

	if g.state, err = state.Open(ctx, state.Config{Dir: s.Data, NATS: s.nats(), Logger: log}); err != nil {
		return nil, err
	}
	if g.user, g.password, g.passwordPath, err = s.credentials(g.state.Password); err != nil {
		return nil, err
	}
	if g.public == nil {
		if g.public, err = listenAt("THICKET_ADDR", s.Addr); err != nil {
			return nil, err
		}
	}
	if g.inner, err = listenAt("THICKET_ADDR", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	g.url = clientURL(g.public.Addr())
	var dial func(ctx context.Context, network, addr string) (net.Conn, error)
	if s.TLSCert != "" {
		if g.certificate, err = openCertificate(s.TLSCert, s.TLSKey, log); err != nil {
			return nil, err
		}
		g.url = secureURL(g.url, g.certificate.name())
		dial = dialPlain(g.public.Addr(), g.inner.Addr())
	}

	metrics := prometheus.NewRegistry()
	if g.certificate != nil {
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "thicket_tls_certificate_expiry_timestamp_seconds",
			Help: "Until when the gateway's certificate is valid, in seconds since 1970.",
		}, func() float64 { return float64(g.certificate.now.Load().Leaf.NotAfter.Unix()) }))
	}
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	if g.store, err = image.OpenStore(image.StoreConfig{
		Dir:           filepath.Join(s.Data, "images"),
		MaxImageBytes: int64(s.ImageSize),
		Insecure:      s.InsecureRegistries,
		DockerConfig:  s.DockerConfig,
		Dial:          dial,
		Others:        func() bool { return len(g.nodes.List()) > 1 },
		Progress:      pulled,
		Logger:        log,
	}); err != nil {
		return nil, err
	}

	g.table = discovery.Open(discovery.Config{Path: filepath.Join(s.Data, "discovery"), Logger: log})

	// The gateway itself needs no Redis to keep answers for all replicas; with
	// one, it shares them with other gateways.
	if g.answers, err = stale.Open(stale.Config{RedisURL: s.RedisURL, Namespace: "thicket:gateway", Registerer: metrics, Logger: log}); err != nil {
		return nil, fmt.Errorf("THICKET_REDIS_URL: %w", err)
	}
	redisURL := s.RedisURL
	if redisURL == "" {
		// Functions on other machines outlive this process, and keep the password.
		password, err := g.state.Key("cache")
		if err != nil {
			return nil, err
		}
		if g.redis, err = cache.Open(cache.Config{Password: hex.EncodeToString(password), Logger: log}); err != nil {
			return nil, err
		}
		redisURL = g.redis.URL()
	}
	functionEnv := map[string]string{"THICKET_REDIS_URL": redisURL}
	if err := g.openNodes(ctx, s, func(name faas.Name) bool { _, _, ok := g.fleet.Known(name); return ok }); err != nil {
		return nil, err
	}
	if g.process, err = provider.NewProcess(provider.ProcessConfig{
		Node:       s.Node,
		Zone:       s.Zone,
		Dir:        filepath.Join(s.Data, "replicas"),
		GatewayURL: "http://" + g.inner.Addr().String(),
		Env:        functionEnv,
		Images:     g.store,
		Observer:   g.nodes.Watch(g.table),
		LogBytes:   int(s.LogBuffer),
		Logger:     log,
	}); err != nil {
		return nil, err
	}

	g.nodes.Attach(g.process)
	metrics.MustRegister(g.nodes)

	key, err := g.state.Key("secrets")
	if err != nil {
		return nil, err
	}
	declared, err := g.state.Bucket(ctx, "declared")
	if err != nil {
		return nil, err
	}
	discoveryKey, err := g.state.Key("discovery")
	if err != nil {
		return nil, err
	}
	direct := directAccess{node: s.Node, key: discoveryKey}
	limits := proxy.Limits{Timeout: s.Timeout, TimeoutSetting: "THICKET_TIMEOUT"}
	var invoke *proxy.Proxy // made before anything is declared
	if g.fleet, err = fleet.New(ctx, fleet.Config{
		Store:        declared,
		Key:          key,
		Provider:     g.nodes,
		Images:       g.store,
		MaxFunctions: s.MaxFunctions,
		Check: func(d types.FunctionDeployment) (policy, warning string, err error) {
			policy, warning, err = limits.Check(d)
			return policy, warning, cmp.Or(err, direct.check(d))
		},
		Possible: g.nodes.Possible,
		Patience: lookPatience,
		Environment: func(d types.FunctionDeployment) map[string]string {
			return merged(limits.Environment(d), direct.environment(d))
		},
		Changed: func(name faas.Name) {
			if g.services != nil {
				g.services.Declare(name)
			}
			if invoke != nil {
				invoke.Changed(name)
			}
		},
		Loads:       func(yield func(faas.Name, faas.Load)) { invoke.Loads(yield) },
		Invocations: func(name faas.Name) float64 { return invoke.Invocations(name) },
		Ready:       func(name faas.Name) int { return len(g.table.Route(name).Endpoints) },
		Room:        g.nodes.Rooms,
		Logger:      log,
	}); err != nil {
		return nil, err
	}

	auth := api.NewAuth(g.user, g.password)
	if g.registry, err = image.NewRegistry(image.RegistryConfig{
		Dir:       filepath.Join(s.Data, "registry"),
		MaxBytes:  int64(s.RegistrySize),
		Pulls:     s.RegistryPulls,
		Authorize: auth.Authorized,
		Keep:      g.fleet.Digests,
		Logger:    log,
	}); err != nil {
		return nil, err
	}

	g.services = eureka.New(eureka.Config{
		Table:    g.table,
		Logger:   log,
		Declared: g.fleet.Running,
		Check: func(d types.FunctionDeployment) error {
			_, _, err := limits.Check(d)
			return err
		},
		Changed: func(name faas.Name) {
			if invoke != nil {
				invoke.Changed(name)
			}
		},
		Own: g.own,
	})

	release, rev := buildVersion()
	if s.traces {
		if g.traces, err = openTraces(ctx, release, log); err != nil {
			return nil, err
		}
	}
	if invoke, err = proxy.New(proxy.Config{
		Table:          g.table,
		Node:           s.Node,
		Zone:           s.Zone,
		Dial:           g.dialReplica,
		Wake:           g.fleet.Wake,
		Known:          g.known,
		Names:          func() []faas.Name { return append(g.fleet.Names(), g.services.Names()...) },
		Declared:       func(name faas.Name) *faas.Function { return cmp.Or(g.fleet.Running(name), g.services.Service(name)) },
		Cache:          g.answers,
		Chaos:          s.Chaos,
		ChaosSetting:   "THICKET_CHAOS=true",
		Timeout:        s.Timeout,
		TimeoutSetting: "THICKET_TIMEOUT",
		HoldTime:       s.HoldTime,
		HoldQueue:      s.HoldQueue,
		MaxBody:        int64(s.MaxBody),
		MaxBodySetting: "THICKET_MAX_BODY",
		Registerer:     metrics,
		Tracer:         g.traces.tracer(),
		Version:        release,
		Logger:         log,
	}); err != nil {
		return nil, err
	}

	g.cutUpgrades = invoke.CutUpgrades

	replicas, watch := tellReplicas(g.table)
	parts := invoke.Operate()
	maps.Copy(parts, g.fleet.Operate())
	maps.Copy(parts, g.nodes.Operate())
	parts["GET /system/backup"] = g.serveBackup
	parts["GET /system/doctor"] = g.serveExamination(s)
	g.api = api.New(api.Config{
		Health:      g.state.Writable,
		Fleet:       g.fleet,
		Invocations: g.fleet.Invocations,
		Parts:       parts,
		Discovery: &api.Discovery{
			Snapshot: replicas,
			Watch:    watch,
			Direct:   tellDirect(invoke),
			Key:      discoveryKey,
			Allowed:  func(name faas.Name) bool { return asksForDiscovery(g.fleet.Running(name)) },
		},
		Auth:       auth,
		Version:    types.VersionInfo{Release: release, SHA: rev},
		Registerer: metrics,
		Logger:     log,
	})
	pages := ui.New(ui.Config{
		Functions:        func() []types.FunctionStatus { return g.fleet.Functions("") },
		Replicas:         func() []ui.Replica { return g.replicas(invoke) },
		Nodes:            g.machines,
		Invocations:      g.fleet.Invocations,
		Loads:            invoke.Loads,
		Decisions:        g.decisions,
		ReasonAnnotation: fleet.StatusAnnotation,
		Addresses: []ui.Address{
			{Name: "Registry", URL: g.url[strings.Index(g.url, "://")+len("://"):], Note: "how the names of images begin that are pushed here"},
			{Name: "Metrics", URL: g.url + "/metrics", Note: "for Prometheus"},
		},
		User:         g.user,
		PasswordFile: g.passwordPath,
		Version:      release,
		Logger:       log,
	})

	mux := http.NewServeMux()
	mux.Handle("/system/", g.api)
	mux.Handle("/healthz", g.api)
	mux.Handle("/eureka/", g.api.Guard(g.services.Serve))
	mux.Handle("/v2/", g.registry)
	mux.Handle("/ui/", auth.Require(pages))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /{$}", http.RedirectHandler("/ui/", http.StatusTemporaryRedirect))
	g.handler = invoke.Before(http1.Isolate(mux))

	for _, missing := range g.process.Missing() {
		log.Warn("guarantee missing on this machine", "what", missing)
	}
	return g, nil
}

// run serves until ctx ends, or a part fails. Then it stops in order: no new
// connection, what is in flight is finished, replicas are stopped, state is
// closed. Once hurry ends nothing is waited for. The error is errRestart if its
// successor is to take over now.
func (g *gateway) run(ctx, hurry context.Context) (err error) {
	defer func() {
		if closing := g.close(); closing != nil {
			err = errors.Join(err, closing)
		}
	}()

	release, _ := buildVersion()
	g.log.Info("gateway started", "version", release, "addr", g.public.Addr().String(), "ui", g.url+"/ui/")
	if g.passwordPath != "" {
		g.log.Info("log in with the generated password", "command", g.loginCommand())
	}

	// Parts outlive ctx: they are stopped one after the other below.
	partsCtx, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	replicasCtx, stopReplicas := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReplicas()

	public, inner := g.server(), g.server()
	public.RegisterOnShutdown(g.api.Drain)
	h2 := newHTTP2(g.handler, g.public.Addr(), g.log)
	public.HTTP2 = h2.take

	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(public, g.public, g.certificate) })
	group.Go(func() error { return serve(inner, g.inner, nil) })
	group.Go(h2.serve)
	group.Go(func() error { return g.registry.Run(partsCtx) })
	group.Go(func() error { return g.fleet.Run(partsCtx) })
	group.Go(func() error { return g.nodes.Run(partsCtx) })
	group.Go(func() error { return g.table.Run(partsCtx) })
	group.Go(func() error { return g.services.Run(partsCtx) })
	group.Go(func() error { return g.prune(partsCtx) })
	group.Go(func() error { return settle(partsCtx) })
	door := g.nodes.Server()
	if g.door != nil {
		group.Go(func() error { return g.serveDoor(door) })
	}
	if g.successor != nil {
		group.Go(func() (err error) {
			g.handed, err = g.successor.wait(groupCtx, g.public, g.log)
			return err
		})
	}
	replicasGone := make(chan struct{})
	if g.redis != nil {
		redisCtx, stopRedis := context.WithCancel(context.WithoutCancel(ctx))
		group.Go(func() error {
			defer stopRedis()
			<-replicasGone
			return nil
		})
		group.Go(func() error { return g.redis.Run(redisCtx) })
	}
	group.Go(func() error {
		defer close(replicasGone)
		return g.process.Run(replicasCtx)
	})

	group.Go(func() error {
		<-groupCtx.Done()
		g.log.Info("stopping", "drain", g.drain.String())
		defer context.AfterFunc(hurry, func() {
			g.log.Warn("asked again to stop: hurrying")
			g.process.Hurry()
		})()
		drain, cancel := context.WithTimeout(hurry, g.drain)
		defer cancel()
		// First nobody accepts any more; who was accepted is served.
		err := errors.Join(public.Detach(), g.public.Close())
		over := make(chan struct{})
		var both errgroup.Group
		both.Go(func() error {
			defer close(over)
			return shutdown(drain, public)
		})
		both.Go(func() error { return h2.shutdown(drain, over) })
		err = errors.Join(err, both.Wait(), door.Close())
		g.cutUpgrades()
		stopParts()
		stopReplicas()
		<-replicasGone
		return errors.Join(err, shutdown(drain, inner))
	})
	if err := group.Wait(); err != nil {
		return err
	}
	g.log.Info("stopped")
	return nil
}

// loginCommand is what a person types, or pastes, to log in.
func (g *gateway) loginCommand() string {
	source := ""
	if g.passwordPath != "" {
		source = " < " + g.passwordPath
	}
	return fmt.Sprintf("faas-cli login -g %s -u %s --password-stdin%s", g.url, g.user, source)
}

// server returns a server for the whole handler. It bounds how long a client may
// take for the header and be idle; bodies and answers are bounded where they are
// used, since some stream for ever.
func (g *gateway) server() *http1.Server {
	return &http1.Server{Handler: g.handler, Logger: g.log, MaxConns: maxConns()}
}

// maxConns is how many clients may be connected: half of the descriptors that the
// system allows, for each may need another one to a replica; and what memory is
// for, at about 10 KB each.
func maxConns() int {
	const most = 10_000
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return most
	}
	return int(min(limit.Cur/2, most))
}

func serve(s *http1.Server, l net.Listener, c *certificate) (err error) {
	if c == nil {
		err = s.Serve(l)
	} else {
		err = s.ServeTLS(l, c.config())
	}
	// The listener may be closed before it is listened to.
	if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// shutdown waits for what is in flight until ctx ends, then cuts it.
func shutdown(ctx context.Context, s *http1.Server) error {
	if err := s.Shutdown(ctx); err != nil {
		return s.Close()
	}
	return nil
}

// prune removes images that no function uses any more, now and then.
func (g *gateway) prune(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Hour):
		}
		digests := g.fleet.Digests()
		freed, err := g.store.Prune(ctx, func(ref string) bool {
			_, digest, _ := strings.Cut(ref, "@")
			_, used := slices.BinarySearch(digests, digest)
			return used
		})
		if err != nil {
			g.log.Error("prune images", "err", err)
		} else if freed > 0 {
			g.log.Info("pruned images", "bytes", freed)
		}
	}
}

// close releases what is still held; it may be called at any stage.
func (g *gateway) close() error {
	var errs []error
	for _, l := range []net.Listener{g.public, g.inner, g.door} {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if g.redis != nil { // Run ends it, also if it has not begun
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		errs = append(errs, g.redis.Run(ended))
	}
	if g.answers != nil {
		errs = append(errs, g.answers.Close())
	}
	errs = append(errs, g.traces.close())
	if g.registry != nil {
		errs = append(errs, g.registry.Close())
	}
	if g.store != nil {
		errs = append(errs, g.store.Close())
	}
	if g.state != nil {
		errs = append(errs, g.state.Close())
	}
	return errors.Join(errs...)
}

// listenAt takes a TCP address, which a setting has.
func listenAt(setting, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is taken by another program: stop it, or set %s to another address", addr, setting)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("this user may not listen on %s: ports below 1024 need root; set %s to another port", addr, setting)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", setting, err)
	}
	return l, nil
}

// clientURL is how a client on this machine reaches a listener.
func clientURL(a net.Addr) string {
	t := a.(*net.TCPAddr)
	host := t.IP.String()
	if t.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(host, strconv.Itoa(t.Port))}).String()
}

// secureURL is how clients reach it by TLS: by the name that the certificate is
// for, if there is one.
func secureURL(plain, name string) string {
	u, err := url.Parse(plain)
	if err != nil {
		return plain // not reached: clientURL made it
	}
	if u.Scheme = "https"; name != "" {
		port := u.Port()
		u.Host = strings.TrimSuffix(net.JoinHostPort(name, port), ":443")
	}
	return u.String()
}

// logger returns the logger the settings ask for.
func (c *command) logger(s settings) *slog.Logger {
	opts := &slog.HandlerOptions{Level: s.LogLevel}
	format := s.LogFormat
	if format == "auto" {
		format = "json"
		if isTerminal(c.stderr) {
			format = "text"
		}
	}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(c.stderr, opts))
	}
	return slog.New(slog.NewTextHandler(c.stderr, opts))
}
