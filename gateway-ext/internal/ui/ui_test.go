package ui_test

import (
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/ui"
)

const reason = "thicket.status"

// config returns a fleet of four functions, one in each state.
func config() ui.Config {
	fn := func(name, namespace string, wanted, ready uint64, why string) types.FunctionStatus {
		s := types.FunctionStatus{Name: name, Namespace: namespace, Image: "lab/" + name + ":1", Replicas: wanted, AvailableReplicas: ready}
		if why != "" {
			s.Annotations = &map[string]string{reason: why}
		}
		return s
	}
	return ui.Config{
		Functions: func() []types.FunctionStatus {
			pinned := fn("pinned", "", 1, 1, "")
			pinned.Image += "@sha256:" + strings.Repeat("0a", 32)
			return []types.FunctionStatus{
				pinned, fn("waking", "lab", 2, 1, ""), fn("asleep", "openfaas-fn", 0, 0, ""),
				fn("broken", "openfaas-fn", 1, 0, `no image for linux/arm64 <script>alert(1)</script>`),
			}
		},
		Replicas: func() []ui.Replica {
			return []ui.Replica{
				{Replica: faas.Replica{ID: "pinned-x1", Function: faas.Name{Function: "pinned", Namespace: "openfaas-fn"}, Node: "nuc", Addr: netip.MustParseAddrPort("127.0.0.1:4000"), Zone: "shelf-2", State: faas.Ready, Since: time.Now().Add(-3 * time.Minute)}, InFlight: 7, Latency: 12345 * time.Microsecond, Ejected: 9500 * time.Millisecond},
				{Replica: faas.Replica{ID: "waking-x2", Node: "pi-3", State: faas.Starting, Since: time.Now(), Reason: "exit code 2"}, Suspect: true, LastSeen: time.Now().Add(-7 * time.Second)},
				{Replica: faas.Replica{ID: "spring:8081", Function: faas.Name{Function: "orders", Namespace: "openfaas-fn"}, Node: "spring", Addr: netip.MustParseAddrPort("10.0.0.9:8081"), State: faas.Ready, Since: time.Now()}, Service: "eureka", Latency: 2 * time.Millisecond},
				{Replica: faas.Replica{ID: "spring:8082", Function: faas.Name{Function: "orders", Namespace: "openfaas-fn"}, Node: "spring", State: faas.Starting, Since: time.Now()}, Service: "eureka", Suspect: true},
			}
		},
		Nodes: func() []ui.Node {
			return []ui.Node{
				{Name: "nuc", State: "ready", Replicas: 1, Platform: "linux/amd64", Version: "v1", Memory: 32 << 30, MemoryFree: 20 << 30, DiskFree: 100 << 30},
				{Name: "pi-3", State: "gone", Marks: []string{"draining"}, Reason: "it was last heard of at <b>22:25:41</b>", Platform: "linux/arm/v7", Version: "v1", Addr: "10.0.0.3:8091", Labels: map[string]string{"zone": "shelf-1", "disk": "ssd"}, Memory: 880 << 20, MemoryFree: 610 << 20, DiskFree: 999 << 20},
				{Name: "cluster", State: "suspect", Addr: "10.0.0.4:8080", Notes: []string{"its clock is an hour ahead"}},
			}
		},
		Loads: func(yield func(faas.Name, faas.Load)) {
			yield(faas.Name{Function: "pinned", Namespace: "openfaas-fn"}, faas.Load{InFlight: 7, Started: uint64(time.Now().Unix()) * 5 / 2})
			yield(faas.Name{Function: "orders", Namespace: "openfaas-fn"}, faas.Load{InFlight: 2, Started: uint64(time.Now().Unix()) * 1500})
		},
		Decisions: func() []ui.Decision {
			ago := func(d time.Duration, function, sentence string, times int) ui.Decision {
				return ui.Decision{Function: function, At: time.Now().Add(-d), Times: times, Sentence: sentence}
			}
			all := []ui.Decision{
				ago(3*time.Second, "asleep.openfaas-fn", "no call for 5m: asleep", 1),
				ago(12*time.Second, "pinned.openfaas-fn", "7 in flight over 6 s, target 7 each: 1 replica", 3),
			}
			for i := range 10 {
				all = append(all, ago(time.Duration(i+1)*time.Minute, "pinned.openfaas-fn", fmt.Sprintf("older %d", i), 1))
			}
			return all
		},
		Invocations:      func(n faas.Name) float64 { return 1234567 },
		ReasonAnnotation: reason,
		Addresses:        []ui.Address{{Name: "Registry", URL: "pi:8080"}, {Name: "Metrics", URL: "http://pi:8080/metrics", Note: "for Prometheus"}},
		User:             "admin",
		PasswordFile:     "/var/lib/thicket/password",
		Version:          "1.2.3",
		Logger:           slog.New(slog.DiscardHandler),
	}
}

func get(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

var (
	tags   = regexp.MustCompile(`<[^>]*>`)
	spaces = regexp.MustCompile(`\s+`)
)

// text returns what a person reads of a page.
func text(page string) string {
	_, page, _ = strings.Cut(page, "<body>")
	return html.UnescapeString(spaces.ReplaceAllString(tags.ReplaceAllString(page, " "), " "))
}

func TestPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that ages are what they are
		w := get(ui.New(config()), "GET", "http://pi:8080/ui/")
		if w.Code != 200 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
			t.Fatalf("GET /ui/ = %d %q", w.Code, w.Header().Get("Content-Type"))
		}
		page := text(w.Body.String())
		for _, want := range []string{
			"Thicket http://pi:8080 4 functions 1 of 3 ready 1 of 2 replicas ready 1 of 3 nodes ready 1 service 1 in trouble as of",
			"pinned ready 1 of 1 7 – 1\u202f234\u202f567 lab/pinned:1 @sha256:0a0a0a0a0a0a… 7 in flight over 6 s, target 7 each: 1 replica 12 s ago , 3 times older 0 1 min ago older 1",
			"older 3 4 min ago waking", // and no more
			"no call for 5m: asleep 3 s ago broken",
			"waking .lab starting 1 of 2",
			"asleep asleep 0 of 0",
			"broken trouble 0 of 1 0 – 1\u202f234\u202f567 lab/broken:1 no image for linux/arm64 <script>alert(1)</script>",
			"pinned-x1 ready left out 3 min 7 12 ms 127.0.0.1:4000 nuc · shelf-2 it does worse than its siblings, and gets nothing for another 10 s",
			"waking-x2 starting suspect 0 s 0 – – pi-3 exit code 2 who tells of it was last heard 7 s ago, so it gets less",
			"orders by eureka · 1 of 2 ready · 2 in flight Instance",
			"spring:8081 ready 0 s 0 2.0 ms 10.0.0.9:8081 spring spring:8082 starting suspect 0 s 0 – – spring nobody has told of it since the gateway started, so it gets less",
			"nuc ready 1 amd64 20 GiB of 32 GiB 100 GiB v1 this gateway",
			"pi-3 disk=ssd zone=shelf-1 gone draining 0 arm/v7 610 MiB of 880 MiB 999 MiB v1 10.0.0.3:8091 it was last heard of at <b>22:25:41</b>",
			"cluster suspect 0 – – – – 10.0.0.4:8080 its clock is an hour ahead",
			"Registry pi:8080 Metrics http://pi:8080/metrics for Prometheus",
			"export OPENFAAS_URL=http://pi:8080 faas-cli login --username admin --password-stdin < /var/lib/thicket/password",
			"Thicket 1.2.3",
		} {
			if !strings.Contains(page, want) {
				t.Errorf("the page doesn't say %q:\n%s", want, page)
			}
		}
		for _, want := range []string{`href="../function/pinned"`, `href="../function/waking.lab"`, `<a href="http://pi:8080/metrics">`} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("the page has no %s", want)
			}
		}
		if strings.Contains(w.Body.String(), "<script>") {
			t.Error("a function's reason is not escaped")
		}
	})
}

// A rate needs two looks.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := ui.New(config())
		look := func(what, pinned, orders string) {
			t.Helper()
			page := text(get(h, "GET", "/ui/").Body.String())
			for _, want := range []string{"pinned ready 1 of 1 7 " + pinned + " 1\u202f234", "2 in flight " + orders + "Instance"} {
				if !strings.Contains(page, want) {
					t.Errorf("%s: the page doesn't say %q:\n%s", what, want, page)
				}
			}
		}
		look("at first", "–", "")
		time.Sleep(time.Second)
		look("too soon", "–", "")
		time.Sleep(3 * time.Second)
		look("after 4 s", "2.5", "· 1\u202f500 calls/s ")
		time.Sleep(time.Second)
		look("another who looks", "2.5", "· 1\u202f500 calls/s ")
		time.Sleep(time.Hour)
		look("long after", "–", "")
	})
}

func TestPageOfNothing(t *testing.T) {
	page := text(get(ui.New(ui.Config{
		Functions: func() []types.FunctionStatus { return nil },
		URL:       "https://thicket.example",
		User:      "admin",
		Logger:    slog.New(slog.DiscardHandler),
	}), "GET", "/ui/").Body.String())
	for _, want := range []string{"0 functions as of", "No functions yet.", "export OPENFAAS_URL=https://thicket.example faas-cli login --username admin --password-stdin faas-cli list"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page doesn't say %q:\n%s", want, page)
		}
	}
	if strings.Contains(page, "Nodes") || strings.Contains(page, "Replicas") || strings.Contains(page, "Services") {
		t.Errorf("the page lists replicas, but there are none:\n%s", page)
	}
}

func TestPageIsBounded(t *testing.T) {
	cfg := config()
	cfg.MaxRows = 10
	cfg.Functions = func() (list []types.FunctionStatus) {
		for i := range 1000 {
			list = append(list, types.FunctionStatus{Name: fmt.Sprint("fn-", i), Image: "x"})
		}
		return list
	}
	cfg.Replicas = func() []ui.Replica {
		list := make([]ui.Replica, 2000)
		for i := range list[1000:] {
			list[1000+i].Service, list[1000+i].Function.Function = "eureka", fmt.Sprint("service-", i%100)
		}
		return list
	}
	cfg.Nodes = func() []ui.Node { return make([]ui.Node, 300) }
	w := get(ui.New(cfg), "GET", "/ui/")
	page := text(w.Body.String())
	for _, want := range []string{"1000 functions", "0 of 300 nodes ready", "The first 10 of 300 are shown. gateway-ext nodes tells all.", "0 of 1000 replicas ready", "The first 10 of 1000 are shown. faas-cli list tells all.", "The first 10 of 1000 are shown. Services", "100 services", "The first 10 of 100 are shown. Addresses"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page doesn't say %q:\n%s", want, page)
		}
	}
	if n := strings.Count(w.Body.String(), "<tr>"); n != 3+30+10+100 {
		t.Errorf("the page has %d rows, want those of 10 functions, 10 nodes, 10 replicas and 10 services with 10 instances, and 13 heads", n)
	}
}

// TestPolicy holds the page to what it allows itself: all that it loads is from
// here and exists, and nothing is inline.
func TestPolicy(t *testing.T) {
	h := ui.New(config())
	w := get(h, "GET", "/ui/")
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("Content-Security-Policy = %q, want it to have %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("Content-Security-Policy = %q", policy)
	}
	page := w.Body.String()
	if inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son\w+=|<script>`).FindString(page); inline != "" {
		t.Errorf("the page has %q inline", inline)
	}
	loaded := regexp.MustCompile(`(?:src|link[^>]* href)="([^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(loaded) < 3 {
		t.Fatalf("the page loads %q", loaded)
	}
	for _, match := range loaded {
		w := get(h, "GET", "/ui/"+match[1])
		if w.Code != 200 || w.Body.Len() == 0 || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("GET %s = %d with %d bytes", match[1], w.Code, w.Body.Len())
		}
		r := httptest.NewRequest("GET", "/ui/"+match[1], nil)
		r.Header.Set("If-None-Match", w.Header().Get("ETag"))
		again := httptest.NewRecorder()
		if h.ServeHTTP(again, r); again.Code != 304 {
			t.Errorf("GET %s again = %d, want 304", match[1], again.Code)
		}
	}
}

func TestElsewhere(t *testing.T) {
	h := ui.New(config())
	for target, want := range map[string]int{"/ui/nothing": 404, "/ui/page.html": 404, "/ui/assets/": 404, "/ui/../x": 307} {
		if w := get(h, "GET", target); w.Code != want {
			t.Errorf("GET %s = %d, want %d", target, w.Code, want)
		}
	}
	if w := get(h, "POST", "/ui/"); w.Code != 405 {
		t.Errorf("POST /ui/ = %d, want 405", w.Code)
	}
}

func TestOrigin(t *testing.T) {
	h := ui.New(config())
	r := httptest.NewRequest("GET", "http://thicket.example/ui/", nil)
	r.Header.Set("X-Forwarded-Proto", "https")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if !strings.Contains(w.Body.String(), "OPENFAAS_URL=https://thicket.example\n") {
		t.Error("the page behind a proxy with TLS tells another address")
	}
}
