package eureka_test

import (
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// TestClient is a life with two services and a function, as two clients live it.
func TestClient(t *testing.T) {
	for _, asXML := range []bool{false, true} {
		t.Run(fmt.Sprint("xml ", asXML), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				weather := faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}
				a := newClient(w, "ORDERS", "192.168.1.20")
				a.asXML = asXML
				b := newClient(w, "BILLING", "192.168.1.21")
				a.fetch()
				a.register()
				b.register()
				w.replica("weather-1", weather, "10.0.0.5:8080", faas.Ready)
				a.fetch()
				equal(t, "a sees b", a.up("BILLING"), []string{"192.168.1.21:8080"})
				equal(t, "a sees the function", a.up("WEATHER"), []string{"10.0.0.5:8080"})
				equal(t, "the gateway sees b", w.route("billing"), []string{"192.168.1.21:8080"})

				// The function moves, b is restarted elsewhere and leaves an
				// operator's word behind.
				w.replica("weather-2", weather, "10.0.0.6:8080", faas.Ready)
				w.replica("weather-1", weather, "10.0.0.5:8080", faas.Draining)
				w.replica("weather-1", weather, "10.0.0.5:8080", faas.Gone)
				b.addr, b.dirty = "192.168.1.22", 2
				b.heartbeat()
				equal(t, "a heartbeat that is newer is answered 404", b.heard404, 1)
				b.ask("PUT", "apps/BILLING/"+b.id+"/status?value=OUT_OF_SERVICE", "")
				synctest.Wait()
				equal(t, "the gateway calls b", w.route("billing"), []string(nil))
				a.fetch()
				equal(t, "a calls b", a.up("BILLING"), []string(nil))
				equal(t, "a sees the function", a.up("WEATHER"), []string{"10.0.0.6:8080"})
				b.register()
				equal(t, "b's word counts less than an operator's", w.route("billing"), []string(nil))
				b.ask("DELETE", "apps/BILLING/"+b.id+"/status?value=UP", "")
				equal(t, "the gateway sees b", w.route("billing"), []string{"192.168.1.22:8080"})
				a.fetch()
				equal(t, "a sees b", a.up("BILLING"), []string{"192.168.1.22:8080"})
				equal(t, "fetches of all", a.full, 1)

				// Ten minutes of heartbeats, then b dies without a word.
				for range 20 {
					time.Sleep(30 * time.Second)
					a.heartbeat()
					b.heartbeat()
					a.fetch()
				}
				equal(t, "heartbeats answered 404", a.heard404+b.heard404, 1)
				w.setDead(true)
				died := time.Now()
				for len(a.up("BILLING")) > 0 && time.Since(died) < time.Hour {
					time.Sleep(10 * time.Second)
					a.heartbeat()
					a.fetch()
				}
				if took := time.Since(died); took > 110*time.Second {
					t.Errorf("a saw the dead b for %v: with Eureka it is up to 5 minutes, here 90 s and a fetch", took)
				}
				equal(t, "the gateway calls b", w.route("billing"), []string(nil))
				equal(t, "fetches of all", a.full, 1)

				// It comes back, and goes in good order.
				w.setDead(false)
				b.heartbeat()
				equal(t, "heartbeats answered 404", b.heard404, 2)
				a.fetch()
				equal(t, "a sees b", a.up("BILLING"), []string{"192.168.1.22:8080"})
				b.cancel()
				a.fetch()
				equal(t, "a sees b", a.up("BILLING"), []string(nil))

				// A client that misses the deltas finds out by the hashcode.
				for range 3 {
					b.register()
					time.Sleep(time.Minute)
					a.heartbeat()
				}
				time.Sleep(2 * time.Minute)
				a.heartbeat()
				b.heartbeat()
				a.fetch()
				equal(t, "a sees b after a while", a.up("BILLING"), []string{"192.168.1.22:8080"})
			})
		})
	}
}

// TestLoopback shows replicas on this machine's loopback to callers on it, and to
// others as instances that are not to be called: their loopback is another.
func TestLoopback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.replica("weather-1", faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}, "127.0.0.1:20000", faas.Ready)
		near, far := newClient(w, "A", "127.0.0.1"), newClient(w, "B", "192.168.1.20")
		near.from = "127.0.0.1:5000"
		for range 2 { // all, then a delta
			near.fetch()
			far.fetch()
			equal(t, "near", near.up("WEATHER"), []string{"127.0.0.1:20000"})
			equal(t, "far", far.up("WEATHER"), []string(nil))
			equal(t, "far", far.apps["WEATHER"]["weather-1"].Status, "OUT_OF_SERVICE")
		}
		equal(t, "fetches of all", []int{near.full, far.full}, []int{1, 1})

		// That of another node is nobody's.
		pi, err := w.table.Source("node", "pi-1", discovery.Lease{Suspect: time.Minute, Gone: time.Hour}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer pi.Close()
		pi.Observe(faas.Replica{ID: "weather-2", Function: faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}, Node: "pi-1", Addr: netip.MustParseAddrPort("127.0.0.1:20001"), State: faas.Ready, Since: time.Now()})
		synctest.Wait()
		near.fetch()
		equal(t, "near", near.up("WEATHER"), []string{"127.0.0.1:20000"})
		equal(t, "near", near.apps["WEATHER"]["weather-2"].Status, "OUT_OF_SERVICE")
	})
}

// TestStatus holds what a status does to the route, and to what the proxy says.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		orders := faas.Name{Function: "orders", Namespace: faas.DefaultNamespace}
		if _, _, ok := w.registry.Known(orders); ok {
			t.Error("Known() = true before anybody registered")
		}
		c := newClient(w, "ORDERS", "192.168.1.20")
		ids := map[string]bool{}
		for _, tt := range []struct {
			status string
			routed bool
			reason string
		}{
			{"STARTING", false, "of its registered instances none is UP: 1 STARTING"},
			{"UP", true, ""},
			{"OUT_OF_SERVICE", false, "of its registered instances none is UP: 1 OUT_OF_SERVICE"},
			{"UP", true, ""},
			{"DOWN", false, "of its registered instances none is UP: 1 DOWN"},
			{"STARTING", false, "of its registered instances none is UP: 1 STARTING"},
			{"UNKNOWN", false, "of its registered instances none is UP: 1 UNKNOWN"},
			{"UP", true, ""},
		} {
			c.status = tt.status
			c.register()
			if got := len(w.route("orders")) == 1; got != tt.routed {
				t.Errorf("%s: routed = %v", tt.status, got)
			}
			wanted, reason, ok := w.registry.Known(orders)
			if wanted != 1 || reason != tt.reason || !ok {
				t.Errorf("%s: Known() = %d, %q, %v, want 1, %q, true", tt.status, wanted, reason, ok, tt.reason)
			}
			if tt.routed {
				id := w.table.Route(orders).Endpoints[0].ID
				if ids[id] {
					t.Errorf("the id %s is used again", id)
				}
				ids[id] = true
			}
		}
		// The same again changes nothing.
		e := w.table.Route(orders).Endpoints[0]
		c.register()
		if w.table.Route(orders).Endpoints[0] != e {
			t.Error("to register again is another replica")
		}
		c.cancel()
		if _, _, ok := w.registry.Known(orders); ok || len(w.table.Replicas()) != 0 {
			t.Errorf("after the cancel it is known, or %v", w.table.Replicas())
		}
		if n := len(w.changed); n == 0 || w.changed[n-1] != orders {
			t.Errorf("changed = %v", w.changed)
		}
		// One that speaks TLS only is for others, and not for the gateway.
		body := strings.NewReplacer("ORDERS-API", "ORDERS", `"$": 8080, "@enabled": "true"`, `"$": 8080, "@enabled": "false"`, `"$": 443, "@enabled": "false"`, `"$": 443, "@enabled": "true"`).Replace(read(t, "register-spring.json"))
		if r := w.ask("POST", "/eureka/apps/ORDERS", body, "Content-Type", "application/json"); r.Code != 204 {
			t.Fatal(r.Body)
		}
		if _, reason, ok := w.registry.Known(orders); !ok || !strings.Contains(reason, "TLS only") || len(w.route("orders")) != 0 {
			t.Errorf("Known() = %q, %v; the route has %v", reason, ok, w.route("orders"))
		}
	})
}

// TestDeclared has a function take the name of a service.
func TestDeclared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := newClient(w, "ORDERS", "192.168.1.20")
		c.register()
		orders := w.declare("orders", faas.DefaultNamespace, "orders:1")
		w.registry.Declare(orders)
		if len(w.route("orders")) != 0 || len(w.registry.Names()) != 0 {
			t.Errorf("the service is there still: %v", w.route("orders"))
		}
		if r := c.ask("PUT", "apps/ORDERS/"+c.id, ""); r.Code != 403 {
			t.Errorf("heartbeat = %d %s", r.Code, r.Body)
		}
		w.replica("orders-1", orders, "10.0.0.5:8080", faas.Ready)
		c.fetch()
		equal(t, "the application is the function", c.up("ORDERS"), []string{"10.0.0.5:8080"})
		w.registry.Declare(faas.Name{Function: "nobody", Namespace: faas.DefaultNamespace})
	})
}

func TestService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := newClient(w, "ORDERS", "192.168.1.20")
		c.register()
		c.ask("PUT", "apps/ORDERS/"+c.id+"/metadata?thicket.timeout=5s&color=blue", "")
		f := w.registry.Service(faas.Name{Function: "orders", Namespace: faas.DefaultNamespace})
		if f == nil || f.Annotation("thicket.timeout") != "5s" || len(*f.Annotations) != 1 || f.Service != "orders" {
			t.Errorf("Service() = %+v", f)
		}
		for _, n := range []faas.Name{{Function: "orders", Namespace: "lab"}, {Function: "x", Namespace: faas.DefaultNamespace}} {
			if f := w.registry.Service(n); f != nil {
				t.Errorf("Service(%v) = %+v", n, f)
			}
			if _, _, ok := w.registry.Known(n); ok {
				t.Errorf("Known(%v) = true", n)
			}
		}
	})
}

// TestRestart keeps instances over a restart: their heartbeats are taken, and
// what an operator said stays.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "discovery")
	var a, b *client
	synctest.Test(t, func(t *testing.T) {
		w := openWorld(t, path)
		a, b = newClient(w, "ORDERS", "192.168.1.20"), newClient(w, "BILLING", "192.168.1.21")
		a.register()
		b.register()
		b.ask("PUT", "apps/BILLING/"+b.id+"/status?value=OUT_OF_SERVICE", "")
		newClient(w, "TAKEN", "192.168.1.22").register()
		time.Sleep(10 * time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		w := openWorld(t, path)
		a.w, b.w = w, w
		synctest.Wait()
		equal(t, "the route", w.route("orders"), []string{"192.168.1.20:8080"})
		if !w.table.Replicas()[0].Suspect {
			t.Error("it is trusted before it was heard")
		}
		a.heartbeat()
		b.heartbeat()
		synctest.Wait()
		equal(t, "heartbeats answered 404", a.heard404+b.heard404, 0)
		equal(t, "the route", w.route("orders"), []string{"192.168.1.20:8080"})
		equal(t, "what an operator said", w.route("billing"), []string(nil))
		for _, s := range w.table.Replicas() {
			if s.Function.Function == "orders" && s.Suspect {
				t.Error("it is suspect though it was heard")
			}
		}
		a.fetch()
		equal(t, "the hashcode", a.hashcode(), "OUT_OF_SERVICE_1_UP_2_")
		// One that comes back elsewhere is moved, not doubled.
		a.addr = "192.168.1.30"
		a.register()
		equal(t, "the route", w.route("orders"), []string{"192.168.1.30:8080"})
		time.Sleep(10 * time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		w := openWorld(t, path)
		w.setDead(true)
		for range 15 {
			a.w = w
			a.heartbeat()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		equal(t, "who was not heard and doesn't answer is gone", w.registry.Names(), []faas.Name{{Function: "orders", Namespace: faas.DefaultNamespace}})
	})
}

// TestCompact leaves out what only people read.
func TestCompact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.registered()
		full := w.ask("GET", "/eureka/apps", "", "Accept", "application/json").Body.String()
		compact := w.ask("GET", "/eureka/apps", "", "Accept", "application/json", "X-Eureka-Accept", "compact").Body.String()
		if !strings.Contains(full, "homePageUrl") || strings.Contains(compact, "PageUrl") || len(compact) >= len(full) || !strings.Contains(compact, `"ipAddr":"192.168.1.20"`) {
			t.Errorf("full:\n%s\ncompact:\n%s", full, compact)
		}
	})
}

// TestUnpacked sends more than is read, packed.
func TestUnpacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pack := func(s string) string {
			var b strings.Builder
			z := gzip.NewWriter(&b)
			_, err := io.WriteString(z, s)
			if err = cmp.Or(err, z.Close()); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		for _, tt := range []struct {
			body string
			code int
		}{
			{pack(read(t, "register-spring.json")), 204},
			{pack(strings.Repeat(" ", 1<<20)), 413},
			{pack(strings.Repeat(" ", 1000))[:20], 400},
			{"not packed", 400},
		} {
			if r := w.ask("POST", "/eureka/apps/ORDERS-API", tt.body, "Content-Type", "application/json", "Content-Encoding", "gzip"); r.Code != tt.code {
				t.Errorf("POST of %d packed bytes = %d %s, want %d", len(tt.body), r.Code, r.Body, tt.code)
			}
		}
	})
}

// TestBehind has more happen at once than a watcher may be behind.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		weather := faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}
		c := newClient(w, "A", "10.0.0.1")
		w.replica("weather-0", weather, "10.0.0.5:8080", faas.Ready)
		c.fetch()
		for i := range 1200 {
			for _, s := range []faas.State{faas.Ready, faas.Gone} {
				w.table.Observe(faas.Replica{ID: fmt.Sprint("r", i), Function: weather, Addr: w.table.Route(weather).Endpoints[0].Addr, State: s, Since: time.Now()})
			}
		}
		w.replica("weather-1", weather, "10.0.0.6:8080", faas.Ready)
		w.replica("weather-0", weather, "10.0.0.5:8080", faas.Gone)
		c.fetch()
		equal(t, "the function", c.up("WEATHER"), []string{"10.0.0.6:8080"})
		if n := len(c.apps["WEATHER"]); n != 1 {
			t.Errorf("%d instances, want 1", n)
		}
	})
}

func FuzzRegister(f *testing.F) {
	f.Add("application/json", `{"instance":{"instanceId":"a","hostName":"a","app":"A","ipAddr":"10.0.0.1","port":{"$":80,"@enabled":"true"}}}`)
	f.Add("application/xml", `<instance><hostName>a</hostName><app>A</app><ipAddr>10.0.0.1</ipAddr><port enabled="true">80</port><metadata><a>b</a></metadata></instance>`)
	f.Fuzz(func(t *testing.T, typ, body string) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			r := w.ask("POST", "/eureka/apps/A", body, "Content-Type", typ)
			if r.Code >= 500 {
				t.Errorf("POST = %d %s", r.Code, r.Body)
			}
			if r.Code != 204 {
				return
			}
			// What is taken can be read by others, in both formats.
			for _, c := range []*client{{w: w, from: "192.168.1.9:1"}, {w: w, from: "192.168.1.9:1", asXML: true}} {
				c.fetch()
				for _, a := range c.apps {
					for _, i := range a {
						if strings.HasPrefix(i.IPAddr, "169.254.") {
							t.Errorf("took %+v", i)
						}
					}
				}
			}
		})
	})
}

// TestBrokenDetail opens a registry over a table with instances of which nothing
// sound is known: they are left out.
func TestBrokenDetail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "discovery")
	details := []string{``, `{}`, `{"instance":null}`, `[]`, `{"instance":{"app":"A","hostName":"a","ipAddr":"169.254.169.254","port":{"$":1,"@enabled":"true"}}}`}
	synctest.Test(t, func(t *testing.T) {
		w := openWorld(t, path)
		for i, detail := range details {
			s, err := w.table.Source("eureka", fmt.Sprint("broken-", i), discovery.Lease{Suspect: time.Minute, Gone: time.Hour, Detail: []byte(detail)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			r := w.table.Replicas()
			s.Observe(faas.Replica{ID: fmt.Sprint("a-", len(r)), Function: faas.Name{Function: "a", Namespace: faas.DefaultNamespace},
				Addr: netip.MustParseAddrPort("10.0.0.1:80"), State: faas.Ready})
		}
		time.Sleep(10 * time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		w := openWorld(t, path)
		if n := strings.Count(w.log.String(), "is left out"); n != len(details) || len(w.registry.Names()) != 0 || len(w.table.Replicas()) != 0 {
			t.Errorf("%d are left out; names %v, replicas %v; logged\n%s", n, w.registry.Names(), w.table.Replicas(), w.log.String())
		}
	})
}

// TestConcurrent has everything happen at the same time, for the race detector,
// and for locks that would wait for one another.
func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.setDead(true)
		weather := faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				app := fmt.Sprint("APP-", n%3) // some share an application
				id := fmt.Sprint("host-", n)
				body := fmt.Sprintf(`{"instance":{"instanceId":%q,"hostName":%[1]q,"app":%q,"ipAddr":"10.0.0.%d","port":{"$":80,"@enabled":"true"},"leaseInfo":{"renewalIntervalInSecs":1,"durationInSecs":3}}}`, id, app, n+1)
				for i := range 12 {
					w.ask("POST", "/eureka/apps/"+app, body, "Content-Type", "application/json")
					w.ask("PUT", "/eureka/apps/"+app+"/"+id, "")
					w.ask("PUT", "/eureka/apps/"+app+"/"+id+"/status?value=OUT_OF_SERVICE", "")
					w.ask("GET", "/eureka/apps", "")
					w.ask("GET", "/eureka/apps/delta", "")
					w.registry.Known(faas.Name{Function: strings.ToLower(app), Namespace: faas.DefaultNamespace})
					w.registry.Service(faas.Name{Function: strings.ToLower(app), Namespace: faas.DefaultNamespace})
					r := faas.Replica{ID: fmt.Sprint("weather-", n, "-", i), Function: weather, Addr: netip.MustParseAddrPort("10.0.1.1:80")}
					for _, r.State = range []faas.State{faas.Ready, faas.Draining, faas.Gone} {
						w.table.Observe(r)
					}
					if i == n {
						time.Sleep(20 * time.Second) // its lease is over, and it is lost
					}
					w.ask("DELETE", "/eureka/apps/"+app+"/"+id, "")
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		c := newClient(w, "A", "10.0.0.1")
		c.fetch()
		equal(t, "who is left", c.hashcode(), "")
		equal(t, "replicas that are left", len(w.table.Replicas()), 0)
	})
}
