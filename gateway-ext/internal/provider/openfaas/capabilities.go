package openfaas

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	sdk "github.com/openfaas/go-sdk"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Capabilities are what a provider can do. They are found out by asking it, by
// what is known of those of its name, and, for what shows only in use, by what
// came of trying: a provider of another name is believed to be able to do
// everything until it has shown that it isn't.
type Capabilities struct {
	Provider      string `json:"provider"`      // as it calls itself: "faasd-ce"
	Orchestration string `json:"orchestration"` // "containerd", "kubernetes"
	Version       string `json:"version,omitempty"`

	// Platforms are those of its machines; empty where it is a cluster's own
	// business.
	Platforms []string `json:"platforms,omitempty"`

	MaxReplicas  int  `json:"maxReplicas,omitempty"`  // of one function; 0 is any number
	MaxFunctions int  `json:"maxFunctions,omitempty"` // of everybody; 0 is any number
	Zero         bool `json:"zero"`                   // a function can have no replicas and still be there
	Interrupts   bool `json:"interrupts"`             // an update stops what runs before the new is there

	CPU      bool `json:"cpu"`      // limits of CPU are kept
	Requests bool `json:"requests"` // requests have a meaning
	ReadOnly bool `json:"readOnly"` // readOnlyRootFilesystem has

	Secrets        bool     `json:"secrets"`
	Logs           bool     `json:"logs"`
	Namespaces     []string `json:"namespaces"`     // that there are
	MakeNamespaces bool     `json:"makeNamespaces"` // there can be others
}

// The names by which providers are known.
const (
	faasd    = "faasd"
	netesCE  = "faas-netes-ce"
	thicket  = "thicket"
	fewer    = 5  // replicas that a faas-netes CE gives a function
	handful  = 15 // functions that it takes
	netes    = "faas-netes"
	operator = "openfaas-operator"
)

// known fills in what is known of providers of this name.
func (c *Capabilities) known() {
	c.Zero, c.CPU, c.Requests, c.ReadOnly = true, true, true, true
	name := strings.ToLower(c.Provider)
	switch {
	case strings.HasPrefix(name, faasd), c.Orchestration == "containerd":
		c.MaxReplicas, c.Zero, c.Interrupts = 1, false, true
		c.CPU, c.Requests, c.ReadOnly = false, false, false
	case name == netesCE:
		c.MaxReplicas, c.MaxFunctions, c.Zero = fewer, handful, false
	}
}

// cluster says whether what is behind it is more than one machine.
func (c *Capabilities) cluster() bool {
	return c.Orchestration == "kubernetes" || c.Provider == thicket
}

// Lacks says in sentences what it can't hold functions to, for who looks at the
// node.
func (c Capabilities) Lacks() []string {
	var all []string
	add := func(is bool, format string, args ...any) {
		if is {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	add(c.MaxReplicas > 0, "at most %s of a function", count(c.MaxReplicas, "replica"))
	add(c.MaxFunctions > 0, "at most %s", count(c.MaxFunctions, "function"))
	add(!c.Zero, "no function sleeps there: one with no replicas is removed, and deployed again")
	add(c.Interrupts, "an update stops the old before the new is there: calls wait meanwhile, or go elsewhere")
	add(!c.CPU, "limits of CPU are not kept")
	add(!c.Requests, "requests of memory and CPU have no meaning")
	add(!c.ReadOnly, "readOnlyRootFilesystem has no meaning")
	add(!c.Secrets, "it keeps no secrets")
	add(!c.Logs, "it shows no logs")
	add(!c.MakeNamespaces && len(c.Namespaces) > 0, "only the namespace %s", strings.Join(c.Namespaces, ", "))
	return all
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Excludes says why a function can't run there whatever else runs, or "".
func (c Capabilities) Excludes(f *faas.Function) string {
	is := c.Provider
	switch {
	case !c.Zero && f.Label(faas.LabelScaleZero) == "true":
		return fmt.Sprintf("%s can't put a function to sleep, and the label %s asks for that", is, faas.LabelScaleZero)
	case !c.Secrets && len(f.Secrets) > 0:
		return fmt.Sprintf("%s keeps no secrets, and the function needs %s", is, f.Secrets[0])
	case !c.namespace(f.Namespace):
		return fmt.Sprintf("%s has no namespace %s, and none can be made there", is, f.Namespace)
	}
	return ""
}

// namespace says whether a function can be in a namespace.
func (c Capabilities) namespace(name string) bool {
	return c.MakeNamespaces || len(c.Namespaces) == 0 || name == faas.DefaultNamespace || slices.Contains(c.Namespaces, name)
}

// Try finds out what is at an endpoint, and at which address. Its error is a sentence that says what
// was tried and what came back.
func Try(ctx context.Context, e Endpoint) (Capabilities, netip.AddrPort, error) {
	l, err := newLine(e)
	if err != nil {
		return Capabilities{}, netip.AddrPort{}, err
	}
	defer l.close()
	c, err := l.probe(ctx, quick)
	addr, _ := l.where()
	return c, addr, err
}

// probe asks for all that can be asked for without changing anything.
func (l *line) probe(ctx context.Context, limit time.Duration) (Capabilities, error) {
	var c Capabilities
	// The list first: it needs the password, and every provider has one.
	if _, err := l.list(ctx, limit, ""); err != nil {
		if s := statusOf(err); s != 0 && s != http.StatusUnauthorized && s != http.StatusForbidden {
			return c, faas.Errorf(faas.ErrInvalid, "it doesn't speak OpenFaaS: %w", err)
		}
		return c, err
	}
	var info sdk.SystemInfo
	if err := l.ask(ctx, limit, func(ctx context.Context) (err error) { info, err = l.sdk.GetInfo(ctx); return err }); err != nil {
		return c, fmt.Errorf("it lists functions, but doesn't say what it is: %w", err)
	}
	c.Provider = tidy(info.Provider.Provider, "a provider without a name")
	c.Orchestration = tidy(info.Provider.Orchestration, "")
	c.Version = tidy(cmp.Or(info.Provider.Version.Release, info.Version.Release), "")
	c.known()
	if !c.cluster() {
		if p := platform(info.Arch); p != "" {
			c.Platforms = []string{p}
		}
	}
	has := func(path string, out any) bool {
		return l.ask(ctx, limit, func(ctx context.Context) error { return l.do(ctx, http.MethodGet, path, nil, nil, out) }) == nil
	}
	if !has("/system/namespaces", &c.Namespaces) || len(c.Namespaces) == 0 {
		c.Namespaces = []string{faas.DefaultNamespace}
	}
	if len(c.Namespaces) > maxNamespaces {
		c.Namespaces = c.Namespaces[:maxNamespaces]
	}
	c.MakeNamespaces = has("/system/namespace/"+c.Namespaces[0], nil)
	c.Secrets = has("/system/secrets", nil)
	c.Logs = true // until it has said that there are none
	return c, context.Cause(ctx)
}

// maxNamespaces is how many of a provider's namespaces are looked at.
const maxNamespaces = 100

// tidy is a name that a stranger gave itself, short and printable.
func tidy(s, otherwise string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return cmp.Or(strings.TrimSpace(s[:min(len(s), 64)]), otherwise)
}

// platform is what OCI calls a machine that uname names so.
func platform(arch string) string {
	switch arch {
	case "x86_64", "amd64":
		return "linux/amd64"
	case "aarch64", "arm64":
		return "linux/arm64"
	case "armv7l", "armhf", "arm":
		return "linux/arm/v7"
	case "armv6l":
		return "linux/arm/v6"
	}
	return ""
}
