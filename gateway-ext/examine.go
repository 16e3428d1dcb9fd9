package main

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/functions/stale"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// What machines that run find out about themselves, for "gateway-ext doctor":
// the gateway when it is asked, and its nodes when it asks them.

// examination is what the gateway asks its nodes.
type examination struct {
	Registries []string `json:"registries"` // to try to reach, beside the gateway's own
}

// Bounds of an examination.
const (
	maxRegistries = 16
	maxExamined   = 200              // nodes, and functions' images
	examining     = 10 * time.Second // all of it; each part has less
)

// serveExamination answers with what there is to know of the gateway and its
// fleet. Nothing of it is judged here, and nothing is secret.
func (g *gateway) serveExamination(s settings) func(http.ResponseWriter, *http.Request) error {
	one := make(chan struct{}, 1) // at a time
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), examining)
		defer cancel()
		select {
		case one <- struct{}{}:
			defer func() { <-one }()
		case <-ctx.Done():
			return faas.Errorf(faas.ErrOverloaded, "another doctor is at work: try again")
		}
		release, _ := buildVersion()
		told := doctor.Gateway{Version: release}
		if g.door != nil {
			told.Joining = g.joinURL(r.Host)
		}
		functions, registries := g.examinedFunctions(ctx)
		told.Functions = functions
		for _, name := range s.InsecureRegistries {
			if !slices.Contains(registries, name) {
				registries = append(registries, name)
			}
		}
		registries = registries[:min(len(registries), maxRegistries)]
		told.Nodes = g.examinedNodes(ctx, s, registries)
		told.Time = time.Now()
		return faas.WriteJSON(w, told)
	}
}

// examinedFunctions returns the functions, and the registries that their images
// come from but for the gateway's own.
func (g *gateway) examinedFunctions(ctx context.Context) (all []doctor.Function, registries []string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var work errgroup.Group
	work.SetLimit(8)
	defer func() { _ = work.Wait() }() // none of it fails
	names := g.fleet.Names()
	all = make([]doctor.Function, len(names))
	for i, name := range names {
		all[i].Name = name.String()
		wanted, reason, _ := g.fleet.Known(name)
		all[i].Wanted, all[i].Reason = wanted, reason
		all[i].Ready = len(g.table.Route(name).Endpoints)
		f := g.fleet.Running(name)
		if f == nil {
			continue
		}
		if r := image.RegistryOf(f.Image); r != "" && !g.ownImages(r) && !slices.Contains(registries, r) {
			registries = append(registries, r)
		}
		if f.Digest != "" && i < maxExamined {
			work.Go(func() error {
				all[i].Platforms, _ = g.store.Platforms(ctx, f.Image, f.Digest) // unknown is any
				return nil
			})
		}
	}
	return all, registries
}

// ownImages says whether a registry is the gateway's own.
func (g *gateway) ownImages(registry string) bool {
	_, own, _ := strings.Cut(g.url, "://")
	host, port, err := net.SplitHostPort(registry)
	if registry == own || err != nil {
		return registry == own
	}
	addr, err := netip.ParseAddr(host)
	_, at, _ := net.SplitHostPort(g.public.Addr().String())
	return port == at && (host == "localhost" || err == nil && addr.IsLoopback())
}

// examinedNodes has all nodes look at themselves, at the same time.
func (g *gateway) examinedNodes(ctx context.Context, s settings, registries []string) []doctor.Node {
	question, err := json.Marshal(examination{registries})
	if err != nil {
		return nil // not reached: strings can be marshalled
	}
	list := g.nodes.List()
	all := make([]doctor.Node, len(list))
	var work errgroup.Group
	work.SetLimit(32)
	for i, n := range list {
		all[i] = doctor.Node{
			Name: n.Name, Local: n.Local, State: n.State, Reason: n.Reason, Cordoned: n.Cordoned || n.Draining,
			Version: n.Machine.Version, Platforms: n.Machine.Platforms, Ahead: time.Duration(n.Skew * float64(time.Second)),
		}
		switch {
		case n.Local:
			work.Go(func() error {
				all[i].Machine = new(doctor.Look(ctx, g.subject(s, registries)))
				return nil
			})
		case n.State != "gone" && i < maxExamined:
			work.Go(func() error {
				told, err := g.nodes.Examine(ctx, n.Name, question)
				var m doctor.Machine
				if err == nil {
					err = json.Unmarshal(told, &m)
				}
				if err != nil {
					all[i].Unexamined = err.Error()
					return nil
				}
				all[i].Machine = &m
				return nil
			})
		}
	}
	_ = work.Wait() // none of it fails
	return all
}

// subject is what the gateway looks at on its own machine.
func (g *gateway) subject(s settings, registries []string) doctor.Subject {
	about := subject(s)
	about.Missing, about.Running = g.process.Missing(), true
	about.Targets = append(about.Targets, registryTargets(g.store, registries)...)
	about.Password = weakness(g.user, g.password)
	if g.certificate != nil {
		about.Expires = g.certificate.now.Load().Leaf.NotAfter
	}
	return about
}

// subject is what is looked at on any machine.
func subject(s settings) doctor.Subject {
	release, _ := buildVersion()
	about := doctor.Subject{Name: s.Node, Version: release, Data: s.Data, Memory: provider.Memory}
	if s.RedisURL != "" {
		addrs, _ := stale.Addrs(s.RedisURL) // a wrong one was refused when it was read
		for _, addr := range addrs {
			about.Targets = append(about.Targets, doctor.Target{What: "the Redis", Setting: "THICKET_REDIS_URL", Addr: addr})
		}
		about.Redis = func(ctx context.Context) (doctor.Redis, error) {
			r, err := stale.Examine(ctx, s.RedisURL)
			return doctor.Redis{Version: r.Version, Memory: r.MaxMemory, Policy: r.Policy}, err
		}
	}
	about.Targets = append(about.Targets, urlTargets("what takes traces", "OTEL_EXPORTER_OTLP_ENDPOINT", s.tracesURL, "80")...)
	about.Targets = append(about.Targets, urlTargets("the NATS server", "THICKET_NATS_URL", s.NATSURL, "4222")...)
	for _, p := range s.Providers {
		about.Targets = append(about.Targets, urlTargets("the provider "+p.Name, "THICKET_PROVIDERS", p.Endpoint.URL, "80")...)
	}
	return about
}

// urlTargets are the hosts of URLs, separated by commas, without what is secret in
// them. Wrong ones were refused when they were read.
func urlTargets(what, setting, list, port string) (all []doctor.Target) {
	for raw := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(raw))
		if err != nil || u.Hostname() == "" {
			continue
		}
		if u.Scheme == "https" {
			port = "443"
		}
		all = append(all, doctor.Target{What: what, Setting: setting, Addr: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))})
	}
	return all
}

// registryTargets are registries to try.
func registryTargets(store *image.Store, registries []string) (all []doctor.Target) {
	for _, r := range registries {
		all = append(all, doctor.Target{What: "the registry", Addr: r, Try: func(ctx context.Context) error { return store.Reach(ctx, r) }})
	}
	return all
}

// examineNode looks at this machine, which is a node, for its gateway.
func examineNode(ctx context.Context, about doctor.Subject, store *image.Store, gateway string, question json.RawMessage) (json.RawMessage, error) {
	var q examination
	if err := json.Unmarshal(question, &q); err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "what is asked can't be read: %w", err)
	}
	_, own, _ := strings.Cut(gateway, "://")
	for _, t := range registryTargets(store, append([]string{own}, q.Registries[:min(len(q.Registries), maxRegistries)]...)) {
		if t.Addr == own {
			t.What = "the gateway's registry"
		}
		about.Targets = append(about.Targets, t)
	}
	return json.Marshal(doctor.Look(ctx, about))
}

// weakness is what is wrong with a password, "" if nothing that is obvious is.
func weakness(user, password string) string {
	switch {
	case strings.EqualFold(password, user), slices.Contains([]string{"admin", "password", "openfaas", "thicket", "changeme", "secret", "raspberry", "12345678"}, strings.ToLower(password)):
		return "is one of those that everybody tries first"
	case len(password) < 8:
		return "has fewer than 8 characters"
	}
	return ""
}
