package eureka_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery/eureka"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// world is a registry over a table, with their loops running.
type world struct {
	t        *testing.T
	table    *discovery.Table
	registry *eureka.Registry
	log      bytes.Buffer

	mu       sync.Mutex // guards below
	declared map[faas.Name]*faas.Function
	changed  []faas.Name
	dead     bool // nobody answers probes
}

// newWorld is to be called in a bubble.
func newWorld(t *testing.T, change ...func(*eureka.Config)) *world {
	return openWorld(t, "", change...)
}

func openWorld(t *testing.T, path string, change ...func(*eureka.Config)) *world {
	w := &world{t: t, declared: map[faas.Name]*faas.Function{}}
	log := slog.New(slog.NewTextHandler(&w.log, nil))
	w.table = discovery.Open(discovery.Config{Path: path, Logger: log, Probe: func(context.Context, discovery.Target) discovery.Answer {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.dead {
			return discovery.Refused
		}
		return discovery.Answered
	}})
	w.declare("weather", faas.DefaultNamespace, "ghcr.io/you/weather:1")
	cfg := eureka.Config{
		Table: w.table, Logger: log,
		Declared: func(n faas.Name) *faas.Function {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.declared[n]
		},
		Changed: func(n faas.Name) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.changed = append(w.changed, n)
		},
		Check: func(d types.FunctionDeployment) error {
			if (*d.Annotations)["thicket.timeout"] == "soon" {
				return faas.Errorf(faas.ErrInvalid, "soon is no time")
			}
			return nil
		},
		Own: func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("192.168.1.1:8080") },
	}
	for _, c := range change {
		c(&cfg)
	}
	w.registry = eureka.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.table.Run(ctx) })
	wg.Go(func() { _ = w.registry.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

func (w *world) declare(name, namespace, image string) faas.Name {
	n := faas.Name{Function: name, Namespace: namespace}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.declared[n] = &faas.Function{FunctionDeployment: types.FunctionDeployment{Service: name, Namespace: namespace, Image: image}}
	return n
}

func (w *world) setDead(dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = dead
}

// replica has the table told of a function's replica.
func (w *world) replica(id string, name faas.Name, addr string, s faas.State) {
	w.table.Observe(faas.Replica{
		ID: id, Function: name, Revision: 7, Node: "nuc", Zone: "shelf-1",
		Addr: netip.MustParseAddrPort(addr), State: s, Since: time.Now(),
	})
	synctest.Wait()
}

// ask sends a request from this machine.
func (w *world) ask(method, target, body string, header ...string) *httptest.ResponseRecorder {
	return w.askFrom("127.0.0.1:50000", method, target, body, header...)
}

func (w *world) askFrom(from, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr = from
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.serve(rec, r)
	return rec
}

// serve answers as the gateway does, which has one map from errors to statuses.
func (w *world) serve(rec http.ResponseWriter, r *http.Request) {
	err := w.registry.Serve(rec, r)
	if err == nil {
		return
	}
	code := 500
	for kind, c := range map[error]int{
		faas.ErrInvalid: 400, faas.ErrForbidden: 403, faas.ErrNotFound: 404, faas.ErrConflict: 409, faas.ErrTooLarge: 413, faas.ErrOverloaded: 429,
	} {
		if errors.Is(err, kind) {
			code = c
		}
	}
	rec.WriteHeader(code)
	_, _ = io.WriteString(rec, err.Error())
}

// register registers one of the fixtures in testdata, or what is changed in it.
func (w *world) register(app, file string, replace ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	body := strings.NewReplacer(replace...).Replace(read(w.t, file))
	return w.ask("POST", "/eureka/apps/"+app, body, "Content-Type", "application/"+strings.TrimPrefix(filepath.Ext(file), "."))
}

func (w *world) registered() {
	w.t.Helper()
	for _, r := range []*httptest.ResponseRecorder{w.register("ORDERS-API", "register-spring.json"), w.register("BILLING", "register-netflix.xml")} {
		if r.Code != 204 {
			w.t.Fatalf("register = %d %s", r.Code, r.Body)
		}
	}
	synctest.Wait()
}

func (w *world) route(name string) (addrs []string) {
	for _, e := range w.table.Route(faas.Name{Function: name, Namespace: faas.DefaultNamespace}).Endpoints {
		addrs = append(addrs, e.Addr.String())
	}
	return addrs
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGolden holds what is sent, byte for byte, in both formats. The time is that
// of every bubble: the beginning of 2000.
func TestGolden(t *testing.T) {
	for _, tt := range []struct{ file, target string }{
		{"apps", "/eureka/apps/"},
		{"delta", "/eureka/apps/delta"},
		{"application", "/eureka/apps/orders-api"},
		{"application-function", "/eureka/v2/apps/WEATHER"},
		{"instance", "/eureka/apps/ORDERS-API/nas:orders-api:8080"},
		{"instance-by-id", "/eureka/v2/instances/billing-1.lan"},
		{"vip", "/eureka/vips/billing-v2"},
		{"svip", "/eureka/svips/billing-tls"},
		{"overrides", "/eureka/serverinfo/statusoverrides"},
		{"status", "/eureka/status"},
	} {
		for _, format := range []string{"json", "xml"} {
			t.Run(tt.file+"."+format, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.replica("weather-abc", w.declare("weather", faas.DefaultNamespace, "ghcr.io/you/weather:1"), "127.0.0.1:20000", faas.Ready)
					w.replica("weather-def", w.declare("weather", "lab", ""), "10.0.0.5:8080", faas.Starting)
					w.registered()
					if r := w.ask("PUT", "/eureka/apps/ORDERS-API/nas:orders-api:8080/status?value=OUT_OF_SERVICE", ""); r.Code != 200 {
						t.Fatalf("override = %d %s", r.Code, r.Body)
					}
					if r := w.register("GONE", "register-spring.json", "ORDERS-API", "GONE"); r.Code != 204 {
						t.Fatalf("register = %d %s", r.Code, r.Body)
					}
					if r := w.ask("DELETE", "/eureka/apps/GONE/nas:orders-api:8080", ""); r.Code != 200 {
						t.Fatalf("cancel = %d %s", r.Code, r.Body)
					}
					synctest.Wait()
					r := w.ask("GET", tt.target, "", "Accept", "application/"+format)
					if typ := r.Header().Get("Content-Type"); r.Code != 200 || typ != "application/"+format {
						t.Fatalf("GET %s = %d %q: %s", tt.target, r.Code, typ, r.Body)
					}
					// A line for each element, so that a difference can be read.
					got := strings.NewReplacer("><", ">\n<", `,"`, ",\n\"", `{"`, "{\n\"").Replace(r.Body.String())
					path := filepath.Join("testdata", tt.file+"."+format)
					if *update {
						if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
							t.Fatal(err)
						}
					}
					if want := read(t, tt.file+"."+format); got != want {
						t.Errorf("GET %s =\n%s\nwant\n%s", tt.target, got, want)
					}
				})
			})
		}
	}
}

func TestRequests(t *testing.T) {
	const orders = "/eureka/apps/ORDERS-API/nas:orders-api:8080"
	for _, tt := range []struct {
		name, method, target, body string
		code                       int
		answer                     string
	}{
		{"heartbeat", "PUT", orders + "?status=UP&lastDirtyTimestamp=946684799500", "", 200, ""},
		{"heartbeat in lower case, escaped", "PUT", "/eureka/v2/apps/orders-api/nas%3Aorders-api%3A8080", "", 200, ""},
		{"heartbeat of one who is older", "PUT", orders + "?lastDirtyTimestamp=1", "", 200, ""},
		{"heartbeat of one who has changed", "PUT", orders + "?lastDirtyTimestamp=946684799501", "", 404, "has changed since it registered: register it again"},
		{"heartbeat with nonsense", "PUT", orders + "?lastDirtyTimestamp=today", "", 400, "write milliseconds since 1970"},
		{"heartbeat of a stranger", "PUT", "/eureka/apps/ORDERS-API/other", "", 404, `there is no instance "other" of "ORDERS-API": register it`},
		{"heartbeat of a function", "PUT", "/eureka/apps/WEATHER/weather-abc", "", 403, "WEATHER is a function: it is deployed, scaled and removed with faas-cli"},
		{"cancel", "DELETE", orders, "", 200, ""},
		{"cancel a stranger", "DELETE", "/eureka/apps/ORDERS-API/other", "", 404, "there is no instance"},
		{"cancel a function", "DELETE", "/eureka/apps/WEATHER/weather-abc", "", 403, "is a function"},
		{"override", "PUT", orders + "/status?value=DOWN", "", 200, ""},
		{"override with nonsense", "PUT", orders + "/status?value=BUSY", "", 400, `status "BUSY" is none of UP, DOWN`},
		{"override with nothing", "PUT", orders + "/status", "", 400, "parameter value"},
		{"override a function", "PUT", "/eureka/apps/WEATHER/weather-abc/status?value=DOWN", "", 403, "is a function"},
		{"restore", "DELETE", orders + "/status", "", 200, ""},
		{"restore as nonsense", "DELETE", orders + "/status?value=x", "", 400, "parameter value"},
		{"metadata", "PUT", orders + "/metadata?weight=3&color=blue", "", 200, ""},
		{"metadata of a stranger", "PUT", "/eureka/apps/X/y/metadata?a=b", "", 404, "register it"},
		{"metadata too long", "PUT", orders + "/metadata?a=" + strings.Repeat("x", 5000), "", 400, "metadata has 3 entries with"},
		{"metadata that is no policy", "PUT", orders + "/metadata?thicket.timeout=soon", "", 400, "soon is no time"},
		{"unknown application", "GET", "/eureka/apps/NOBODY", "", 404, `there is no application "NOBODY"`},
		{"unknown instance", "GET", "/eureka/apps/ORDERS-API/x", "", 404, `there is no instance "x"`},
		{"unknown id", "GET", "/eureka/instances/x", "", 404, `there is no instance "x"`},
		{"unknown vip", "GET", "/eureka/vips/x", "", 404, `nobody has the virtual address "x"`},
		{"vip of a function", "GET", "/eureka/vips/weather", "", 200, "<vipAddress>weather</vipAddress>"},
		{"svip of a function", "GET", "/eureka/svips/weather", "", 404, "nobody has"},
		{"peers", "POST", "/eureka/peerreplication/batch/", "{}", 501, "has no peers"},
		{"groups", "PUT", "/eureka/asg/x/status", "", 501, "knows no groups"},
		{"overview", "GET", "/eureka/", "", 200, "<applications>3</applications>"},
		{"nothing", "GET", "/eureka/nothing", "", 404, "there is no \"/eureka/nothing\" in Eureka's interface"},
		{"too deep", "GET", "/eureka/apps/a/b/c/d", "", 404, "in Eureka's interface"},
		{"wrong method", "PATCH", orders, "", 405, "use DELETE, GET, PUT"},
		{"head", "HEAD", "/eureka/apps", "", 200, ""},
		{"register nothing", "POST", "/eureka/apps/X", "", 400, "the body is no instance"},
		{"register no XML", "POST", "/eureka/apps/X", "<a/>", 400, "the body is no instance"},
		{"register another", "POST", "/eureka/apps/X", "<instance><app>Y</app></instance>", 400, `field app is "Y", but the path names "X"`},
		{"register too much", "POST", "/eureka/apps/X", strings.Repeat("x", 70000), 413, "larger than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.replica("weather-abc", faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}, "127.0.0.1:20000", faas.Ready)
				w.registered()
				r := w.ask(tt.method, tt.target, tt.body)
				if r.Code != tt.code || !strings.Contains(r.Body.String(), tt.answer) {
					t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, r.Code, r.Body, tt.code, tt.answer)
				}
				if tt.code == 405 && r.Header().Get("Allow") != "DELETE, GET, PUT" {
					t.Errorf("Allow = %q", r.Header().Get("Allow"))
				}
			})
		})
	}
}

// TestRegister holds what is refused, and with what words.
func TestRegister(t *testing.T) {
	ip := func(addr string) []string { return []string{"192.168.1.20", addr} }
	for _, tt := range []struct {
		name    string
		replace []string
		from    string // "" is this machine
		code    int
		answer  string
	}{
		{"as it is", nil, "", 204, ""},
		{"from elsewhere", nil, "192.168.1.20:5000", 204, ""},
		{"over IPv6", ip("fd00::20"), "", 204, ""},
		{"this machine", ip("127.0.0.1"), "", 204, ""},
		{"this machine, from elsewhere", ip("127.0.0.1"), "192.168.1.20:5000", 400, "is a loopback address, and the caller is on another machine"},
		{"this machine in IPv6, from elsewhere", ip("::1"), "192.168.1.20:5000", 400, "is a loopback address"},
		{"this machine, mapped, from elsewhere", ip("::ffff:127.0.0.1"), "192.168.1.20:5000", 400, "is a loopback address"},
		{"another loopback, from elsewhere", ip("127.9.9.9"), "192.168.1.20:5000", 400, "is a loopback address"},
		{"link", ip("169.254.169.254"), "", 400, "is link-local, and is never called from here"},
		{"link, mapped", ip("::ffff:169.254.169.254"), "", 400, "is link-local"},
		{"link in IPv6", ip("fe80::1"), "", 400, "is link-local"},
		{"link with zone", ip("fe80::1%eth0"), "", 400, "field ipAddr"},
		{"link through NAT64", ip("64:ff9b::a9fe:a9fe"), "", 400, "stands for an IPv4 address"},
		{"link through 6to4", ip("2002:a9fe:a9fe::1"), "", 400, "stands for an IPv4 address"},
		{"link, compatible", ip("::a9fe:a9fe"), "", 400, "stands for an IPv4 address"},
		{"a cloud's metadata", ip("fd00:ec2::254"), "", 400, "is that of a cloud's metadata service"},
		{"any", ip("0.0.0.0"), "", 400, "is no address of one host"},
		{"nowhere", ip("0.1.2.3"), "", 400, "is no address of one host"},
		{"all", ip("255.255.255.255"), "", 400, "is no address of one host"},
		{"many", ip("224.0.0.1"), "", 400, "is no address of one host"},
		{"the gateway", ip("192.168.1.1"), "", 400, "ipAddr 192.168.1.1 with port 8080 is this gateway's own"},
		{"a name", ip("nas.lan"), "", 400, `field ipAddr is "nas.lan": write the address`},
		{"octal", ip("0300.0250.1.20"), "", 400, "field ipAddr"},
		{"no address", ip(""), "", 400, "field ipAddr"},
		{"no port", []string{`"$": 8080, "@enabled": "true"`, `"$": 8080, "@enabled": "false"`}, "", 400, "neither port nor securePort is enabled"},
		{"port 0", []string{`"$": 8080`, `"$": 0`}, "", 400, "field port is 0: write 1 to 65535"},
		{"port 70000", []string{`"$": 8080`, `"$": 70000`}, "", 400, "field port is 70000"},
		{"port as text", []string{`"$": 8080, "@enabled": "true"`, `"$": "8080", "@enabled": true`}, "", 204, ""},
		{"port as nonsense", []string{`"$": 8080`, `"$": "http"`}, "", 400, "is no whole number"},
		{"over TLS only", []string{`"$": 8080, "@enabled": "true"`, `"$": 8080, "@enabled": "false"`, `"$": 443, "@enabled": "false"`, `"$": 443, "@enabled": "true"`}, "", 204, ""},
		{"a function's name", []string{"ORDERS-API", "WEATHER"}, "", 409, "WEATHER is the name of a function here: give the service another spring.application.name, or remove the function weather"},
		{"a function's name in lower case", []string{"ORDERS-API", "weather"}, "", 409, "is the name of a function"},
		{"the name of a function in another namespace", []string{"ORDERS-API", "weather.lab"}, "", 409, "remove the function weather.lab"},
		{"a function's long name", []string{"ORDERS-API", "weather.openfaas-fn"}, "", 409, "remove the function weather.openfaas-fn"},
		{"a name that no function can have", []string{"ORDERS-API", "ORDERS_API.V2"}, "", 204, ""},
		{"a long name", []string{"ORDERS-API", strings.Repeat("A", 64)}, "", 400, "an application's name has 1 to 63"},
		{"a wrong name", []string{"ORDERS-API", "A%20B"}, "", 400, "an application's name has 1 to 63"},
		{"a wrong status", []string{`"UP"`, `"WELL"`}, "", 400, `status "WELL" is none of`},
		{"a long id", []string{"nas:orders-api:8080", strings.Repeat("x", 300)}, "", 400, "field instanceId"},
		{"an id with a slash", []string{"nas:orders-api:8080", "../x"}, "", 400, "field instanceId"},
		{"a long URL", []string{"http://nas.lan:8080/", "http://" + strings.Repeat("x", 600)}, "", 400, "field homePageUrl is longer than 512 bytes"},
		{"a line break", []string{"http://nas.lan:8080/", `http://nas\n`}, "", 400, "field homePageUrl is longer than 512 bytes, or has control characters"},
		{"large metadata", []string{`"shelf-1"`, `"` + strings.Repeat("x", 5000) + `"`}, "", 400, "metadata"},
		{"nested metadata", []string{`"shelf-1"`, `{"a":1}`}, "", 400, `metadata "zone" is no text`},
		{"numbers as metadata", []string{`"shelf-1"`, `7`}, "", 204, ""},
		{"a policy", []string{`"zone"`, `"thicket.timeout": "5s", "zone"`}, "", 204, ""},
		{"a wrong policy", []string{`"zone"`, `"thicket.timeout": "soon", "zone"`}, "", 400, "soon is no time"},
		{"two mistakes", []string{"192.168.1.20", "x", `"UP"`, `"WELL"`}, "", 400, "\nfield ipAddr"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.declare("weather", "lab", "")
				body := strings.NewReplacer(tt.replace...).Replace(read(t, "register-spring.json"))
				app := "ORDERS-API"
				if len(tt.replace) > 1 && tt.replace[0] == app {
					app = tt.replace[1]
				}
				from := "127.0.0.1:5000"
				if tt.from != "" {
					from = tt.from
				}
				body = strings.ReplaceAll(body, "A%20B", "A B")
				r := w.askFrom(from, "POST", "/eureka/apps/"+app, body, "Content-Type", "application/json")
				if r.Code != tt.code || !strings.Contains(r.Body.String(), tt.answer) {
					t.Errorf("POST = %d %q, want %d %q", r.Code, r.Body, tt.code, tt.answer)
				}
				if got := len(w.registry.Names()); tt.code != 204 && (got != 0 || len(w.table.Replicas()) != 0) {
					t.Errorf("something is there though it was refused: %v, %v", w.registry.Names(), w.table.Replicas())
				}
			})
		})
	}
}

// TestBehindProxy is a caller elsewhere, whose requests a proxy on this machine
// passes on.
func TestBehindProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		body := strings.ReplaceAll(read(t, "register-spring.json"), "192.168.1.20", "127.0.0.1")
		r := w.ask("POST", "/eureka/apps/ORDERS-API", body, "Content-Type", "application/json", "X-Forwarded-For", "203.0.113.7")
		if r.Code != 400 || !strings.Contains(r.Body.String(), "loopback") {
			t.Errorf("POST = %d %s", r.Code, r.Body)
		}
	})
}

func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *eureka.Config) { c.MaxInstances = 3 })
		for i := range 3 {
			if r := w.register(fmt.Sprint("A", i), "register-spring.json", "ORDERS-API", fmt.Sprint("A", i)); r.Code != 204 {
				t.Fatalf("register = %d %s", r.Code, r.Body)
			}
		}
		if r := w.register("B", "register-spring.json", "ORDERS-API", "B"); r.Code != 429 || !strings.Contains(r.Body.String(), "3 instances are registered, as many as are taken") {
			t.Errorf("one too many = %d %s", r.Code, r.Body)
		}
		if r := w.register("A1", "register-spring.json", "ORDERS-API", "A1"); r.Code != 204 {
			t.Errorf("one that is there, again = %d %s", r.Code, r.Body)
		}
		w.ask("DELETE", "/eureka/apps/A0/nas:orders-api:8080", "")
		if r := w.register("B", "register-spring.json", "ORDERS-API", "B"); r.Code != 204 {
			t.Errorf("after one left = %d %s", r.Code, r.Body)
		}
	})
}
