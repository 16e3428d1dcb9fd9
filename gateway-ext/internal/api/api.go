// Package api speaks the management half of the OpenFaaS REST API: everything
// below /system/, and /healthz. It reads what clients send, tells them in a
// sentence what is wrong with it, hands what is sound to the [Fleet], and turns
// each kind of error into one HTTP status. It decides nothing itself and
// remembers nothing.
//
// All of /system/ is behind HTTP Basic authentication ([Auth]), which other
// handlers of the gateway share; /healthz is open. Where OpenFaaS's own gateways
// disagree on a status code, the one that faas-cli accepts is sent.
package api

import (
	"cmp"
	"context"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Fleet is what the API asks and tells. Errors of a kind of package faas become
// the status of that kind, and if they are a [*faas.Error] their text is sent to
// the client; any other error is logged and answered 500.
//
// Declarations, names and secrets that arrive here have passed the checks of
// package faas, and their namespace is never empty. Slices that it returns
// belong to the caller. All methods may be called at the same time.
type Fleet interface {
	Deploy(context.Context, types.FunctionDeployment) error // ErrConflict if the function exists
	Update(context.Context, types.FunctionDeployment) error // ErrNotFound if it doesn't
	Delete(context.Context, faas.Name) error
	// why says on whose behalf: "set by hand".
	Scale(ctx context.Context, name faas.Name, replicas int, why string) error
	Functions(namespace string) []types.FunctionStatus
	Function(faas.Name) (types.FunctionStatus, error)

	// A secret's bytes are in RawValue; Value is empty. Secrets returns names
	// and namespaces alone.
	Secrets(namespace string) []types.Secret
	CreateSecret(context.Context, types.Secret) error
	UpdateSecret(context.Context, types.Secret) error
	DeleteSecret(ctx context.Context, namespace, name string) error

	Namespaces() []string
	Namespace(name string) (types.FunctionNamespace, error)
	CreateNamespace(context.Context, types.FunctionNamespace) error
	UpdateNamespace(context.Context, types.FunctionNamespace) error
	DeleteNamespace(ctx context.Context, name string) error

	// Logs yields until ctx ends, with Follow, and else until there are no more.
	Logs(context.Context, logs.Request) iter.Seq2[logs.Message, error]
}

// Config is what [New] needs.
type Config struct {
	Fleet Fleet

	// Auth guards /system/.
	Auth *Auth

	// Invocations returns how often a function was called, for lists. Nil
	// leaves what the fleet says.
	Invocations func(faas.Name) float64

	// Parts is what other parts of the platform serve below /system/, by the
	// patterns of a [http.ServeMux] with a method each. It is behind the password
	// too, and its errors become answers as the fleet's do.
	Parts map[string]func(http.ResponseWriter, *http.Request) error

	// Discovery is served below /system/discovery. Nil serves nothing there.
	Discovery *Discovery

	// Health returns nil while what is declared can be stored; it must be quick.
	// Nil stands for one that always can. Functions are called in either case,
	// so /healthz answers 200, with another text.
	Health func() error

	// MaxBody is the largest body in bytes that is read; more is answered 413.
	// 0 is 2 MiB: a secret of the largest size, sent as faas-cli does as text
	// and in base64 too.
	MaxBody int64

	// MaxStreams is how many log streams may be open at a time; more are
	// answered 429. 0 is 256.
	MaxStreams int

	// Version is what "faas-cli version" shows.
	Version types.VersionInfo

	// Registerer receives the metrics. Nil counts for nobody.
	Registerer prometheus.Registerer

	// Logger receives the causes of errors whose clients see only a status.
	Logger *slog.Logger
}

// Handler serves the API.
type Handler struct {
	cfg      Config
	streams  *streams // of logs
	watchers *streams // of replicas
	mux      *http.ServeMux
	cross    *http.CrossOriginProtection
}

// New returns the API over cfg.Fleet. It is to be mounted at "/system/" and at
// "/healthz".
func New(cfg Config) *Handler {
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 2<<20)
	h := &Handler{
		cfg:     cfg,
		streams: newStreams("log streams", cmp.Or(cfg.MaxStreams, 256)),
		mux:     http.NewServeMux(),
	}
	if d := cfg.Discovery; d != nil {
		h.watchers = newStreams("streams of replicas", cmp.Or(d.MaxStreams, 1024))
	}
	system := http.NewServeMux()
	allowed := map[string][]string{}
	routes := append(h.routes(), h.discoveryRoutes()...)
	for pattern, serve := range cfg.Parts {
		method, path, _ := strings.Cut(pattern, " ")
		routes = append(routes, route{method, path, serve})
	}
	for _, route := range routes {
		system.Handle(route.method+" "+route.path, h.handler(route.serve))
		allowed[route.path] = append(allowed[route.path], route.method)
	}
	for path, methods := range allowed {
		if slices.Contains(methods, http.MethodGet) {
			methods = append(methods, http.MethodHead)
		}
		slices.Sort(methods)
		system.Handle(path, methodNotAllowed(strings.Join(methods, ", ")))
	}
	system.Handle("/system/", h.handler(func(_ http.ResponseWriter, r *http.Request) error {
		return faas.Errorf(faas.ErrNotFound, "there is no %.100q in this API: functions, function, scale-function, secrets, namespaces, namespace, logs, info, alert, scaling, resilience, cache, discovery, nodes, placement, tokens and backup are below /system/", r.URL.Path)
	}))

	// A browser that has learnt the password sends it along with what any page
	// makes it send: what a page of another origin asks to change is refused.
	h.cross = http.NewCrossOriginProtection()
	h.cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusForbidden, "a page of another origin asked a browser to change something here: refused")
	}))
	h.mux.Handle("/system/", instrument(cfg.Registerer, h.admit(h.cross.Handler(system))))
	h.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		text := "OK\n"
		if h.cfg.Health != nil && h.cfg.Health() != nil {
			// Who has the password is told more when they change something.
			text = "degraded: functions are called, but what is declared now can't be stored: the disk is full or can't be written, or NATS is away\n"
		}
		_, _ = io.WriteString(w, text)
	})
	h.mux.Handle("/healthz", methodNotAllowed("GET, HEAD"))
	return h
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Guard returns a handler for what another part serves elsewhere than below
// /system/: behind the password, refused to pages of other origins, and with
// errors that become answers as the fleet's do.
func (h *Handler) Guard(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return h.cfg.Auth.Require(h.cross.Handler(h.handler(serve)))
}

// Drain ends all streams, and refuses new ones, so that a server that is
// shutting down doesn't wait for them: pass it to
// [http.Server.RegisterOnShutdown].
func (h *Handler) Drain() {
	h.streams.drain()
	if h.watchers != nil {
		h.watchers.drain()
	}
}

type route struct {
	method, path string
	serve        func(http.ResponseWriter, *http.Request) error
}

func (h *Handler) routes() []route {
	return []route{
		{"GET", "/system/functions", h.listFunctions},
		{"POST", "/system/functions", h.deploy},
		{"PUT", "/system/functions", h.update},
		{"DELETE", "/system/functions", h.deleteFunction},
		{"GET", "/system/function/{name}", h.function},
		{"POST", "/system/scale-function/{name}", h.scale},
		{"GET", "/system/secrets", h.listSecrets},
		{"POST", "/system/secrets", h.createSecret},
		{"PUT", "/system/secrets", h.updateSecret},
		{"DELETE", "/system/secrets", h.deleteSecret},
		{"GET", "/system/namespaces", h.listNamespaces},
		{"GET", "/system/namespace/{name}", h.namespace},
		{"POST", "/system/namespace/{$}", h.createNamespace}, // as faas-cli does
		{"POST", "/system/namespace/{name}", h.createNamespace},
		{"PUT", "/system/namespace/{name}", h.updateNamespace},
		{"DELETE", "/system/namespace/{name}", h.deleteNamespace},
		{"GET", "/system/logs", h.logs},
		{"GET", "/system/info", h.info},
		{"GET", "/system/telemetry", h.telemetry},
		{"POST", "/system/alert", h.alert},
	}
}
