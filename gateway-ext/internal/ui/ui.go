// Package ui is the page that a person sees at /ui/: which functions there are,
// whether they are well, how much they are called and why they have as many
// replicas as they have; the machines of the fleet; which replicas run where, and what
// calls have taught about them; services that registered themselves; the addresses, and how to log in. It
// is HTML from this server alone and works without JavaScript; with it, the page
// keeps itself fresh. It changes nothing.
//
// The page tells images and addresses, so it belongs behind a password: the
// handler asks for none itself.
package ui

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

//go:embed assets
var assets embed.FS

// Config is what [New] needs.
type Config struct {
	// Functions returns the functions of all namespaces, sorted as they are to
	// be shown.
	Functions func() []types.FunctionStatus

	// Replicas returns all replicas that are not gone, sorted as they are to be
	// shown. Nil shows none.
	Replicas func() []Replica

	// Nodes returns the machines of the fleet, sorted as they are to be shown.
	// Nil, or one alone, shows none.
	Nodes func() []Node

	// Invocations returns how often a function was called. Nil leaves what
	// Functions says.
	Invocations func(faas.Name) float64

	// Loads yields what functions, and services, are asked for. Nil shows nothing
	// of it.
	Loads func(yield func(faas.Name, faas.Load))

	// Decisions returns why functions have as many replicas as they have, the
	// newest first. Nil shows none.
	Decisions func() []Decision

	// ReasonAnnotation names the annotation that says why a function isn't
	// well.
	ReasonAnnotation string

	// URL is the gateway's address as clients know it, "http://pi:8080". Empty
	// takes the one that the browser used.
	URL string

	// Addresses are shown below the gateway's own: the registry's, the metrics'.
	Addresses []Address

	// User is whom faas-cli logs in as, and PasswordFile where the password is
	// on this machine; empty if it isn't in a file.
	User, PasswordFile string

	// Version is shown in the footer.
	Version string

	// MaxRows is how many functions, nodes and replicas are shown; of more
	// the page says how many there are. 0 is 500.
	MaxRows int

	// Logger is told of what can't be shown.
	Logger *slog.Logger
}

// Replica is a replica, or one instance of a service that registered itself, and
// what is known of it.
type Replica struct {
	faas.Replica
	InFlight int64 // requests that it is answering

	// Service says who told of it if it is no function's: "eureka".
	Service string

	Suspect  bool      // who told of it is silent
	LastSeen time.Time // when that one was last heard

	Latency time.Duration // of calls lately; 0 if unknown
	Ejected time.Duration // how long it is still left out for doing worse than others
}

// Decision is why a function has as many replicas as it has.
type Decision struct {
	Function string // with its namespace
	At       time.Time
	Times    int // how often it was made in a row
	Sentence string
}

// Address is something that can be reached.
type Address struct {
	Name string // "Registry"
	URL  string // "127.0.0.1:8080"; it becomes a link if it is a URL of http
	Note string // what it is for, in a few words
}

// Link says whether the address is one that a browser opens.
func (a Address) Link() bool {
	return strings.HasPrefix(a.URL, "http://") || strings.HasPrefix(a.URL, "https://")
}

// New returns the handler of the page, to be mounted at "/ui/".
func New(cfg Config) http.Handler {
	cfg.MaxRows = cmp.Or(cfg.MaxRows, 500)
	h := &handler{
		cfg:  cfg,
		page: template.Must(template.New("page.html").ParseFS(assets, "assets/page.html")),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ui/{$}", h.serve)
	mux.Handle("GET /ui/style.css", asset("style.css", "text/css; charset=utf-8"))
	mux.Handle("GET /ui/refresh.js", asset("refresh.js", "text/javascript; charset=utf-8"))
	mux.Handle("GET /ui/icon.svg", asset("icon.svg", "image/svg+xml"))
	return secure(mux)
}

// secure forbids a browser whatever the page doesn't need.
func secure(next http.Handler) http.Handler {
	const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// asset serves an embedded file, which browsers keep and ask about.
func asset(name, contentType string) http.Handler {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // it was there when this was compiled
	}
	sum := sha256.Sum256(content)
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
}

type handler struct {
	cfg   Config
	page  *template.Template
	rates rates
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	if err := h.page.Execute(&b, h.view(r)); err != nil {
		h.cfg.Logger.ErrorContext(r.Context(), "page not shown", "err", err)
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(b.Bytes()) // the browser is gone: nobody to tell
}

// view is what the template shows.
type view struct {
	Gateway      string
	Addresses    []Address
	User         string
	PasswordFile string
	Version      string
	Functions    []function
	Replicas     []replica
	Wanted       int // functions that shall run
	Well         int // of these, those that do
	Unwell       int // functions in trouble
	Total        int // functions, shown or not
	Services     []service
	Registered   int // services, shown or not
	Nodes        []node
	Machines     int // nodes, shown or not, of a fleet
	Up           int // of these, those that are ready
	Running      int // replicas, shown or not
	Ready        int // of these, those that are
	Now          string
}

type function struct {
	Name, Namespace string // Namespace is empty for the default
	Path            string // from the page to the function
	Image, Digest   string // Digest is the beginning of one, if Image is pinned
	FullImage       string
	State, Reason   string
	Wanted, Ready   uint64
	Invocations     string
	InFlight        int64
	Rate            string // calls in a second; empty if unknown
	Decisions       []decision
}

type decision struct {
	Sentence, At, Age string
	Times             int
}

// maxDecisions is how many decisions of a function are shown.
const maxDecisions = 5

type replica struct {
	ID, Node, Zone, Addr string
	State, Reason        string
	Since, Age           string
	InFlight             int64
	Latency              string // empty if unknown
	Suspect, Ejected     string // why it gets less than others; empty if it doesn't
}

// service is one that registered itself, with its instances.
type service struct {
	Name, Path string
	Kind       string // who told of it
	Instances  []replica
	Ready      int
	InFlight   int64
	Rate       string
}

func (h *handler) view(r *http.Request) *view {
	now := time.Now()
	v := &view{
		Gateway: cmp.Or(h.cfg.URL, origin(r)), Addresses: h.cfg.Addresses,
		User: h.cfg.User, PasswordFile: h.cfg.PasswordFile, Version: h.cfg.Version,
		Now: now.Format("15:04:05"),
	}
	loads := h.rates.now(h.cfg.Loads, now)
	decisions := h.decisions(now)
	functions := h.cfg.Functions()
	v.Total = len(functions)
	for _, s := range functions {
		f := h.function(s, loads, decisions)
		if f.State != "asleep" {
			v.Wanted++
		}
		switch f.State {
		case "ready":
			v.Well++
		case "trouble":
			v.Unwell++
		}
		if len(v.Functions) < h.cfg.MaxRows {
			v.Functions = append(v.Functions, f)
		}
	}
	if h.cfg.Nodes != nil {
		v.machines(h.cfg.Nodes(), h.cfg.MaxRows)
	}
	if h.cfg.Replicas == nil {
		return v
	}
	services := map[faas.Name]int{} // where in v.Services
	for _, rep := range h.cfg.Replicas() {
		if rep.Service != "" {
			v.serve(&rep, services, loads, now, h.cfg.MaxRows)
			continue
		}
		v.Running++
		if rep.State == faas.Ready {
			v.Ready++
		}
		if len(v.Replicas) < h.cfg.MaxRows {
			v.Replicas = append(v.Replicas, row(&rep, now))
		}
	}
	return v
}

// serve takes an instance of a service into the view.
func (v *view) serve(rep *Replica, at map[faas.Name]int, loads map[faas.Name]load, now time.Time, limit int) {
	i, known := at[rep.Function]
	if !known {
		i, v.Registered = v.Registered, v.Registered+1
		at[rep.Function] = i
		if i < limit {
			l := loads[rep.Function]
			name := short(rep.Function)
			v.Services = append(v.Services, service{Name: name, Path: "../function/" + name, Kind: rep.Service, InFlight: l.inFlight, Rate: l.rate})
		}
	}
	if i >= limit || len(v.Services[i].Instances) >= limit {
		return
	}
	s := &v.Services[i]
	s.Instances = append(s.Instances, row(rep, now))
	if rep.State == faas.Ready {
		s.Ready++
	}
}

func row(rep *Replica, now time.Time) replica {
	out := replica{
		ID: rep.ID, Node: rep.Node, Zone: rep.Zone, Addr: "–", // it has none yet
		State: rep.State.String(), Reason: rep.Reason,
		Since: rep.Since.UTC().Format(time.RFC3339), Age: age(now.Sub(rep.Since)),
		InFlight: rep.InFlight,
	}
	if rep.Addr.IsValid() {
		out.Addr = rep.Addr.String()
	}
	if rep.Latency > 0 {
		out.Latency = latency(rep.Latency)
	}
	if rep.Suspect {
		out.Suspect = "nobody has told of it since the gateway started, so it gets less"
		if !rep.LastSeen.IsZero() {
			out.Suspect = "who tells of it was last heard " + age(now.Sub(rep.LastSeen)) + " ago, so it gets less"
		}
	}
	if rep.Ejected > 0 {
		out.Ejected = "it does worse than its siblings, and gets nothing for another " + age(rep.Ejected+time.Second-1)
	}
	return out
}

func (h *handler) function(s types.FunctionStatus, loads map[faas.Name]load, decisions map[string][]decision) function {
	name := faas.Name{Function: s.Name, Namespace: cmp.Or(s.Namespace, faas.DefaultNamespace)}
	invocations := s.InvocationCount
	if h.cfg.Invocations != nil {
		invocations = h.cfg.Invocations(name)
	}
	l := loads[name]
	f := function{
		Name: s.Name, Path: "../function/" + short(name), FullImage: s.Image,
		Wanted: s.Replicas, Ready: s.AvailableReplicas, Invocations: grouped(invocations),
		InFlight: l.inFlight, Rate: l.rate, Decisions: decisions[name.String()],
	}
	f.Image, f.Digest, _ = strings.Cut(s.Image, "@sha256:")
	f.Digest = f.Digest[:min(len(f.Digest), 12)]
	if name.Namespace != faas.DefaultNamespace {
		f.Namespace = name.Namespace
	}
	if s.Annotations != nil {
		f.Reason = (*s.Annotations)[h.cfg.ReasonAnnotation]
	}
	switch {
	case f.Reason != "":
		f.State = "trouble"
	case f.Wanted == 0:
		f.State = "asleep"
	case f.Ready >= f.Wanted:
		f.State = "ready"
	default:
		f.State = "starting"
	}
	return f
}

// decisions returns the youngest decisions of each function.
func (h *handler) decisions(now time.Time) map[string][]decision {
	if h.cfg.Decisions == nil {
		return nil
	}
	all := make(map[string][]decision)
	for _, d := range h.cfg.Decisions() {
		if some := all[d.Function]; len(some) < maxDecisions {
			all[d.Function] = append(some, decision{
				Sentence: d.Sentence, At: d.At.UTC().Format(time.RFC3339), Age: age(now.Sub(d.At)), Times: d.Times,
			})
		}
	}
	return all
}

// short returns a name as people write it: without the default namespace.
func short(n faas.Name) string {
	if n.Namespace == faas.DefaultNamespace {
		return n.Function
	}
	return n.String()
}

// origin returns the address that the browser used.
func origin(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// age writes a duration as people say it.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(max(0, int(d/time.Second))) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + " days"
}

// latency writes a short time with as many digits as say something.
func latency(d time.Duration) string {
	unit, name := time.Millisecond, " ms"
	if d >= time.Second {
		unit, name = time.Second, " s"
	}
	f := float64(d) / float64(unit)
	digits := 0
	if f < 10 {
		digits = 1
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + name
}

// grouped writes a count with a thin space between thousands.
func grouped(f float64) string {
	digits := strconv.FormatFloat(f, 'f', 0, 64)
	var parts []string
	for len(digits) > 3 {
		parts = append(parts, digits[len(digits)-3:])
		digits = digits[:len(digits)-3]
	}
	parts = append(parts, digits)
	slices.Reverse(parts)
	return strings.Join(parts, "\u202f")
}
