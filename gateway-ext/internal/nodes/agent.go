package nodes

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// AgentConfig is what a machine needs to be a node.
type AgentConfig struct {
	// Name is what the node is called. Required until it has joined; then it
	// keeps the name.
	Name string

	// Gateway is the URL at which it joins, and Token what lets it: a token's
	// text, or the gateway's [Secret]. Both are needed once.
	Gateway, Token string

	// Patient waits for a gateway that isn't there yet. Else that is an error,
	// for whoever has just typed where it is.
	Patient bool

	// Replace takes the place of a node of this name that is gone, if both
	// joined with the gateway's [Secret].
	Replace bool

	// Dir is the state folder, which is made if it isn't there. Required.
	Dir string

	// Listener is where the gateway calls. Required; the agent closes it.
	Listener net.Listener

	// Advertise is where the gateway reaches the listener: an address, with a
	// port if it is another. Empty tries the machine's own addresses.
	Advertise string

	Labels  map[string]string
	Machine func() remote.Machine // required

	// Examine looks at this machine when the gateway asks for it; gateway is as
	// Provider is told it. Nil can't.
	Examine func(ctx context.Context, gateway string, question json.RawMessage) (json.RawMessage, error)

	Logger *slog.Logger // required

	// Provider makes what runs the replicas, once the machine has joined as node.
	// gateway is where functions reach the gateway, and images that are in its
	// registry are: "http://192.168.1.2:8080". Required.
	Provider func(o provider.Observer, node, gateway string) (Runner, error)
}

// Runner is a provider that works while its Run does.
type Runner interface {
	provider.Provider
	Run(context.Context) error
}

// Agent makes a machine a node.
type Agent struct {
	cfg       AgentConfig
	log       *slog.Logger
	path      string // of the identity
	elsewhere string // where the gateway is now, if a person says that it has moved
	identity  *Identity
	server    *remote.Server
	conf      atomic.Pointer[tls.Config]
}

// IdentityFile is where a node keeps who it is, in its state folder.
const IdentityFile = "identity.json"

// OpenAgent reads who this node is. It starts nothing, and joins nothing.
func OpenAgent(cfg AgentConfig) (*Agent, error) {
	a := &Agent{cfg: cfg, log: cfg.Logger, path: filepath.Join(cfg.Dir, IdentityFile)}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(a.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		a.identity = new(Identity)
		if err := json.Unmarshal(b, a.identity); err != nil || !a.identity.Joined() {
			return nil, fmt.Errorf("%s can't be read: remove it and join again", a.path)
		}
	}
	switch {
	case a.identity != nil && cfg.Gateway != "" && cfg.Gateway != a.identity.Gateway:
		if err := checkGateway(cfg.Gateway); err != nil {
			return nil, err
		}
		a.elsewhere = cfg.Gateway
	case a.identity != nil:
	case cfg.Gateway == "" || cfg.Token == "":
		return nil, errors.New("this machine has joined no gateway: run gateway-ext token there, and paste the line that it prints here")
	default:
		if err := faas.CheckLabel("the node's name", cfg.Name); err != nil {
			return nil, err
		}
		if err := checkGateway(cfg.Gateway); err != nil {
			return nil, err
		}
		if a.identity, err = NewIdentity(cfg.Name); err != nil {
			return nil, err
		}
	}
	fresh := *a.identity
	fresh.Certificate = nil // nobody is let in before there is something to run things
	if err := a.showAs(&fresh); err != nil {
		return nil, err
	}
	a.server = remote.NewServer(remote.ServerConfig{Machine: cfg.Machine, Logger: cfg.Logger, Examine: a.examine})
	return a, nil
}

func checkGateway(s string) error {
	if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--join %s: write the gateway's address for nodes, as gateway-ext token prints it: https://host:8090", s)
	}
	return nil
}

// show has the listener show the identity as it is now.
func (a *Agent) show() error { return a.showAs(a.identity) }

func (a *Agent) showAs(id *Identity) error {
	conf, err := id.Server()
	if err == nil {
		a.conf.Store(conf)
	}
	return err
}

// Name is what the node is called.
func (a *Agent) Name() string { return a.identity.Name }

// Run joins if that is to be done, and is a node until ctx ends. Then it drains
// and stops what it runs.
func (a *Agent) Run(ctx context.Context) error {
	tunnels := &remote.Tunnels{Lookup: a.server.Lookup, Logger: a.log}
	s := &http.Server{
		Handler:           a.server.Handler(),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			protocolHello:         func(_ *http.Server, c *tls.Conn, _ http.Handler) { c.Close() },
			remote.TunnelProtocol: func(_ *http.Server, c *tls.Conn, _ http.Handler) { tunnels.Serve(c) },
		},
	}
	l := tls.NewListener(a.cfg.Listener, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return a.conf.Load(), nil },
	})
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		return errors.Join(a.work(gctx), s.Close())
	})
	g.Go(func() error {
		a.keepAnnouncing(gctx)
		return nil
	})
	return g.Wait()
}

// work joins, if that is to be done, and runs what the gateway asks for.
func (a *Agent) work(ctx context.Context) error {
	if err := a.belong(ctx); err != nil {
		return err
	}
	relay, err := openRelay(a.identity, a.log)
	if err != nil {
		return err
	}
	defer relay.listener.Close()
	runner, err := a.cfg.Provider(a.server, a.identity.Name, a.identity.Functions)
	if err != nil {
		return err
	}
	a.server.Attach(&located{runner, a.identity.registry(), relay})
	if err := a.show(); err != nil { // from now on the gateway is let in
		return err
	}
	// What runs is drained while the gateway can still be told.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var told sync.WaitGroup
	defer told.Wait()
	defer stop()
	told.Go(func() { _ = a.server.Run(serving) }) // it has no error but its context's
	told.Go(func() { relay.run(serving) })
	return runner.Run(ctx)
}

// located is a provider whose images may be in the gateway's registry, and whose
// functions may use its cache, which the gateway calls by addresses that mean
// something on its own machine alone.
type located struct {
	provider.Provider
	registry string // the registry's address from here
	cache    *relay // to the gateway's cache
}

// Apply implements [provider.Provider].
func (l *located) Apply(ctx context.Context, w provider.Workload) error {
	host, rest, ok := strings.Cut(w.Function.Image, "/")
	_, port, _ := net.SplitHostPort(l.registry)
	if name, p, err := net.SplitHostPort(host); ok && err == nil && p == port {
		if addr, err := netip.ParseAddr(name); name == "localhost" || err == nil && addr.IsLoopback() {
			w.Function.Image = l.registry + "/" + rest
		}
	}
	if cache := w.Function.EnvVars[cacheVar]; strings.HasPrefix(cache, relayScheme) {
		w.Function.EnvVars = maps.Clone(w.Function.EnvVars)
		w.Function.EnvVars[cacheVar] = l.cache.here(cache)
	}
	return l.Provider.Apply(ctx, w)
}

// belong joins, if the machine hasn't, or looks for its gateway at another
// address, if it has moved.
func (a *Agent) belong(ctx context.Context) error {
	if a.identity.Joined() && a.elsewhere == "" {
		return nil
	}
	app, err := a.application(a.cfg.Gateway)
	if err != nil {
		return err
	}
	app.Replace = a.cfg.Replace
	join := func() error { return a.identity.Join(ctx, a.cfg.Gateway, a.cfg.Token, app) }
	if a.elsewhere != "" {
		// It must be let in again, so that it is found where it is.
		if err := a.show(); err != nil {
			return err
		}
		join = func() error {
			err := a.identity.Follow(ctx, a.elsewhere, app)
			if errors.Is(err, faas.ErrForbidden) {
				return fmt.Errorf("this machine is node %s of the gateway at %s, and that is not the one at %s (%w): to have it join that one, stop it and remove %s",
					a.identity.Name, a.identity.Gateway, a.elsewhere, err, a.path)
			}
			return err
		}
	}
	const often, seldom = time.Second, 15 * time.Second
	for pause := often; ; pause = min(2*pause, seldom) {
		err := join()
		if err == nil {
			break
		}
		if !a.cfg.Patient || !errors.Is(err, faas.ErrUnavailable) {
			return fmt.Errorf("join %s: %w", a.cfg.Gateway, err)
		}
		a.log.Warn("the gateway isn't there yet: it is tried again", "gateway", a.cfg.Gateway, "in", pause.String(), "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	if err := a.keep(); err != nil {
		return err
	}
	a.log.Info("joined", "node", a.identity.Name, "gateway", a.identity.Gateway)
	for _, note := range a.identity.Notes {
		a.log.Warn("the gateway has noticed something about this machine", "what", note)
	}
	return nil
}

// keep writes down who the node is, readable by its user alone.
func (a *Agent) keep() error {
	b, err := json.Marshal(a.identity)
	if err != nil {
		return err
	}
	tmp := a.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	f, err := os.Open(tmp)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, a.path)
}

// keepAnnouncing tells the gateway where this node is whenever the gateway
// hasn't called for a while: after a start, and when the address has changed.
func (a *Agent) keepAnnouncing(ctx context.Context) {
	const often, seldom = 2 * time.Second, 30 * time.Second
	pause := often
	said, seen := "", 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if pause = min(2*pause, seldom); a.conf.Load().ClientCAs == nil {
			pause = often
			continue // it hasn't joined yet
		}
		caller, visit := a.server.Caller()
		if caller != "" {
			if pause = often; visit == seen {
				said = ""
				continue
			}
			seen = visit // it is looked whether this node finds it, too
		}
		app, err := a.application(a.identity.Gateway)
		if err == nil {
			err = a.identity.Announce(ctx, app)
		}
		if err == nil || ctx.Err() != nil || err.Error() == said {
			continue
		}
		said = err.Error()
		switch {
		case !errors.Is(err, faas.ErrUnavailable):
			a.log.Warn("the gateway doesn't take this node back: what runs here goes on", "gateway", a.identity.Gateway, "err", err)
		case caller != "":
			a.log.Warn("the gateway calls this node, and isn't where this node knows it, so functions here can't call it, nor images be fetched from it: if it has moved, start this node once with --join and its new address",
				"gateway", a.identity.Gateway, "from", caller, "err", err)
		default:
			a.log.Warn("the gateway is away: what runs here goes on. If it has moved, start this node once with --join and its new address", "gateway", a.identity.Gateway, "err", err)
		}
	}
}

// application is what the machine says of itself.
func (a *Agent) application(gateway string) (Application, error) {
	app := Application{Labels: a.cfg.Labels, Machine: a.cfg.Machine(), Advertise: a.cfg.Advertise != ""}
	port := a.cfg.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	if app.Advertise {
		addrs, err := advertised(a.cfg.Advertise, port)
		app.Addresses = addrs
		return app, err
	}
	var addrs []netip.Addr
	bound := a.cfg.Listener.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if !bound.IsUnspecified() {
		addrs = []netip.Addr{bound}
	} else {
		addrs = Candidates(gateway)
	}
	for _, addr := range addrs[:min(len(addrs), maxAddresses)] {
		app.Addresses = append(app.Addresses, netip.AddrPortFrom(addr, port))
	}
	return app, nil
}

// advertised reads an address, or the name of one, with or without a port.
func advertised(s string, port uint16) ([]netip.AddrPort, error) {
	host, p, err := net.SplitHostPort(s)
	if err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("--advertise %s: %q is no port", s, p)
		}
		port = uint16(n)
	} else {
		host = s
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), port)}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("--advertise %s: %w", s, err)
	}
	var all []netip.AddrPort
	for _, addr := range found[:min(len(found), maxAddresses)] {
		all = append(all, netip.AddrPortFrom(addr.Unmap(), port))
	}
	return all, nil
}

// Candidates are this machine's addresses: first the one from which it reaches
// the gateway, which is nearly always right.
func Candidates(gateway string) []netip.Addr {
	var all []netip.Addr
	if u, err := url.Parse(gateway); err == nil {
		port := u.Port()
		if port == "" {
			port = "443"
		}
		// UDP sends nothing here: it only asks the routing table.
		if conn, err := net.DialTimeout("udp", net.JoinHostPort(u.Hostname(), port), trial); err == nil {
			all = append(all, conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
			conn.Close()
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return all
	}
	for _, ia := range addrs {
		n, ok := ia.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		if addr = addr.Unmap(); ok && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all
}
