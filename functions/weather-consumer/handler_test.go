package function_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
	function "github.com/seed-780dceda/thicket/functions/weather-consumer"
)

const asBrowser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

// gateway is a gateway with a producer behind it, which can be changed.
type gateway struct {
	*httptest.Server
	producer atomic.Pointer[http.HandlerFunc]
	asked    atomic.Pointer[http.Request]
}

func newGateway(t *testing.T, producer http.HandlerFunc) *gateway {
	g := &gateway{}
	g.producer.Store(&producer)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.asked.Store(r)
		if r.URL.Path != "/function/weather-producer.openfaas-fn" {
			http.Error(w, "no such function", http.StatusNotFound)
			return
		}
		(*g.producer.Load())(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) become(producer http.HandlerFunc) { g.producer.Store(&producer) }

// reporting answers with a report on what was asked, changed by change.
func reporting(change ...func(*weather.Report)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		report := weather.Report{
			Place: weather.Place{Zip: r.FormValue("zip"), Country: r.FormValue("country"), Name: "Stuttgart"},
			Units: weather.Units(r.FormValue("units")),
			Observation: &weather.Observation{
				Temperature: -4.4, FeelsLike: new(-9.0), Humidity: new(87.0), Pressure: new(1009.4),
				Wind:       &weather.Wind{Speed: 10, Direction: new(350.0), Gust: new(15.0)},
				Conditions: weather.Conditions{Sky: weather.Snow, Description: "light snow"},
				ObservedAt: time.Date(2026, 1, 15, 13, 45, 0, 0, time.FixedZone("", 3600)),
				Source:     weather.SourceOpenMeteo,
			},
			ServedBy: "producer-1",
		}
		for _, f := range change {
			f(&report)
		}
		weather.WriteJSON(w, report)
	}
}

func broken(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-OpenFaaS-Internal", "proxy")
	http.Error(w, "No endpoints available for: weather-producer.", http.StatusServiceUnavailable)
}

func consumer(t *testing.T, gateway string, more map[string]string) http.Handler {
	t.Helper()
	environ := map[string]string{"gateway_url": gateway, "THICKET_REPLICA": "consumer-1", "weather_fresh": "0"}
	maps.Copy(environ, more)
	cfg, err := weather.Settings[function.Config](list(environ))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	h, err := function.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return h
}

func ask(t *testing.T, h http.Handler, target, accept string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "GET", target, nil)
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	r.Header.Set("X-Call-Id", "call-7")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// answer is what JSON readers get.
type answer struct {
	weather.Report
	Consumer string `json:"consumer"`
}

func jsonAnswer(t *testing.T, h http.Handler, target string) answer {
	t.Helper()
	w := ask(t, h, target, "application/json")
	var a answer
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
		t.Fatalf("GET %s = %d %s (%v), want 200 and a report", target, w.Code, w.Body, err)
	}
	return a
}

// page returns the page; it fails unless the status is right and the page keeps
// the rules that hold for every page.
func page(t *testing.T, h http.Handler, target string, status int) string {
	t.Helper()
	w := ask(t, h, target, asBrowser)
	text := w.Body.String()
	if w.Code != status || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("GET %s = %d %s, want a page with %d:\n%s", target, w.Code, w.Header().Get("Content-Type"), status, text)
	}
	style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(text)
	if style == nil {
		t.Fatal("the page has no style")
	}
	hash := sha256.Sum256([]byte(style[1]))
	policy := w.Header().Get("Content-Security-Policy")
	if want := "style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"; !strings.Contains(policy, want) || !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("Content-Security-Policy = %q, want %q in it", policy, want)
	}
	for _, bad := range []string{`<script`, ` style="`, ` onclick`, `src="`, `action=`, `href="/`, `url(`, `ZgotmplZ`, `<no value>`} {
		if strings.Contains(text, bad) {
			t.Errorf("GET %s: the page has %q in it", target, bad)
		}
	}
	for _, head := range []string{"Vary", "X-Content-Type-Options", "Referrer-Policy"} {
		if w.Header().Get(head) == "" {
			t.Errorf("GET %s: no %s", target, head)
		}
	}
	return text
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	shown := html.UnescapeString(text)
	for _, want := range wants {
		if !strings.Contains(text, want) && !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, text[strings.Index(text, "<main>"):])
		}
	}
}

func TestConsumerAsksTheProducerByName(t *testing.T) {
	g := newGateway(t, reporting())
	a := jsonAnswer(t, consumer(t, g.URL, nil), "/?zip=70569&units=imperial")
	if a.Temperature != -4.4 || a.ServedBy != "producer-1" || a.Consumer != "consumer-1" || a.Stale || a.Units != weather.Imperial {
		t.Errorf("answer = %+v", a)
	}
	asked := g.asked.Load()
	if asked.URL.RawQuery != "country=DE&units=imperial&zip=70569" {
		t.Errorf("asked %q", asked.URL.RawQuery)
	}
	if got := asked.Header.Get("X-Call-Id"); got != "call-7" {
		t.Errorf("X-Call-Id = %q, want it passed on", got)
	}
	if left, err := time.ParseDuration(asked.Header.Get("X-Timeout")); err != nil || left <= 0 || left > 5*time.Second {
		t.Errorf("X-Timeout = %q, want what is left of 5s", asked.Header.Get("X-Timeout"))
	}
}

func TestConsumerFindsTheGateway(t *testing.T) {
	g := newGateway(t, reporting())
	for _, test := range []struct{ gateway, openfaas string }{{g.URL, "http://127.0.0.1:1"}, {"", g.URL}} {
		h := consumer(t, test.gateway, map[string]string{"OPENFAAS_URL": test.openfaas})
		if a := jsonAnswer(t, h, "/?zip=70569"); a.Empty() {
			t.Errorf("with gateway_url=%q and OPENFAAS_URL=%q: %+v", test.gateway, test.openfaas, a)
		}
	}
	cfg, err := weather.Settings[function.Config](nil)
	if err != nil || cfg.Gateway.Host != "" || cfg.OpenFaaS.String() != "http://gateway.openfaas:8080" {
		t.Errorf("the default gateway is %v, %v", cfg.OpenFaaS, err)
	}
}

func TestPageOrJSON(t *testing.T) {
	h := consumer(t, newGateway(t, reporting()).URL, nil)
	for _, test := range []struct {
		query, accept, want string
	}{
		{"", "", "application/json"},
		{"", "*/*", "application/json"},
		{"", asBrowser, "text/html; charset=utf-8"},
		{"", "text/html", "text/html; charset=utf-8"},
		{"", "TEXT/HTML;Level=1", "text/html; charset=utf-8"},
		{"", "text/*", "text/html; charset=utf-8"},
		{"", "application/json", "application/json"},
		{"", "application/json, text/html;q=0.9", "application/json"},
		{"", "application/json;q=0.5, text/html;q=0.9", "text/html; charset=utf-8"},
		{"", "text/html;q=0, */*;q=0.1", "application/json"},
		{"", "text/html;q=nonsense", "application/json"},
		{"", "application/problem+json, text/html;q=0.1", "application/json"},
		{"", ",,;;", "application/json"},
		{"&format=json", asBrowser, "application/json"},
		{"&format=html", "", "text/html; charset=utf-8"},
	} {
		w := ask(t, h, "/?zip=70569"+test.query, test.accept)
		if got := w.Header().Get("Content-Type"); got != test.want || w.Code != 200 {
			t.Errorf("Accept %q, query %q: %d %s, want %s", test.accept, test.query, w.Code, got, test.want)
		}
	}
}

func TestPageShowsTheWeather(t *testing.T) {
	h := consumer(t, newGateway(t, reporting()).URL, nil)
	contains(t, page(t, h, "/", 200), "<h1>Weather</h1>", `<label for="zip">`, `<label for="country">`, `<html lang="en">`)
	text := page(t, h, "/?zip=70569&country=DE&units=metric", 200)
	contains(t, text,
		"<title>−4 °C in Stuttgart · Weather</title>", "Stuttgart</h2>", "light snow", "feels like −9°", "13:45", "UTC+01:00",
		"36 km/h", "N wind", "87 %", "1009 hPa", "Open-Meteo", "just now", "<code>producer-1</code>", "<code>consumer-1</code>",
		`value="70569"`, `value="DE"`, `href="?country=DE&amp;format=json&amp;units=metric&amp;zip=70569"`, "sky snow")
	if strings.Contains(text, "CAUTION") || strings.Contains(text, "Simulated") {
		t.Error("a fresh report looks stale or simulated")
	}
	contains(t, page(t, h, "/?zip=70569&units=imperial", 200), "°F</span>", "10 mph", `value="imperial" checked`)
}

func TestPageSaysThatItIsSimulated(t *testing.T) {
	h := consumer(t, newGateway(t, reporting(func(r *weather.Report) {
		r.Source, r.Place.Name = weather.SourceSimulated, ""
	})).URL, nil)
	contains(t, page(t, h, "/?zip=70569", 200), "70569, DE</h2>", "Simulated: not the real weather", "<dd>Simulated</dd>")
}

func TestStaleFromTheProducersMemory(t *testing.T) {
	h := consumer(t, newGateway(t, reporting(func(r *weather.Report) {
		r.Stale, r.AgeSeconds, r.Message = true, 7380, weather.MessageStale
	})).URL, nil)
	contains(t, page(t, h, "/?zip=70569", 200), `class="caution"`, "<strong>CAUTION - Response out of date!</strong>", "2 hours old", "<title>Out of date: ")
	if a := jsonAnswer(t, h, "/?zip=70569"); !a.Stale || a.Message != "CAUTION - Response out of date!" || a.AgeSeconds != 7380 {
		t.Errorf("answer = %+v, want it passed on", a)
	}
}

func TestStaleFromTheConsumersMemory(t *testing.T) {
	const words = "CAUTION - Response out of date, producer unreachable!"
	ways := map[string]http.HandlerFunc{
		"the gateway knows no replica": broken,
		"the gateway doesn't know it": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-OpenFaaS-Internal", "proxy")
			http.Error(w, "error finding function", http.StatusNotFound)
		},
		"a problem of the gateway": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-OpenFaaS-Internal", "proxy")
			weather.NewProblem(http.StatusNotFound, "", "no such function").Write(w)
		},
		"not JSON":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"an error":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"place":`)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat(" ", 1<<20)) },
		"another place's answer": reporting(func(r *weather.Report) {
			r.Place.Country = "US"
		}),
		"an empty report": reporting(func(r *weather.Report) {
			r.Observation, r.Message = nil, weather.MessageEmpty
		}),
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, reporting())
			h := consumer(t, g.URL, map[string]string{"weather_rest": "1ms"})
			jsonAnswer(t, h, "/?zip=70569")
			g.become(way)
			a := jsonAnswer(t, h, "/?zip=70569")
			if !a.Stale || a.Message != words || a.Temperature != -4.4 || a.Consumer != "consumer-1" {
				t.Errorf("answer = %+v, want the remembered one", a)
			}
			contains(t, page(t, h, "/?zip=70569", 200), "<strong>"+words+"</strong>", "<mark>")
			if a := jsonAnswer(t, h, "/?zip=10115"); !a.Empty() || a.Message == "" || a.Stale {
				t.Errorf("answer for another place = %+v, want an empty one with a message", a)
			}
			contains(t, page(t, h, "/?zip=10115", 200), "No weather report can be had right now", "Ask again")
			g.become(reporting())
			a = jsonAnswer(t, h, "/?zip=70569")
			for end := time.Now().Add(10 * time.Second); a.Stale && time.Now().Before(end); {
				a = jsonAnswer(t, h, "/?zip=70569") // until the rest is over
			}
			if a.Stale {
				t.Errorf("answer = %+v, want a fresh one", a)
			}
		})
	}
}

func TestUnreachableGateway(t *testing.T) {
	g := newGateway(t, reporting())
	h := consumer(t, g.URL, nil)
	jsonAnswer(t, h, "/?zip=70569")
	g.Close()
	if a := jsonAnswer(t, h, "/?zip=70569"); !a.Stale || a.Message != weather.MessageUnreachable {
		t.Errorf("answer = %+v, want the remembered one", a)
	}
}

// A producer that hangs costs three callers the deadline and others nothing.
func TestHangingProducer(t *testing.T) {
	g := newGateway(t, reporting())
	h := consumer(t, g.URL, map[string]string{"weather_timeout": "300ms", "weather_rest": "1h"})
	jsonAnswer(t, h, "/?zip=70569")
	var calls atomic.Int64
	g.become(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		<-r.Context().Done()
	})
	for range 10 {
		if a := jsonAnswer(t, h, "/?zip=70569"); !a.Stale {
			t.Errorf("answer = %+v, want the remembered one", a)
		}
	}
	if n := calls.Load(); n != 3 {
		t.Errorf("the producer was asked %d times, want 3", n)
	}
}

func TestProblems(t *testing.T) {
	g := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.FormValue("zip") {
		case "99999":
			weather.NewProblem(http.StatusNotFound, "zip", "No.").Write(w)
		default: // a newer producer may be stricter than this consumer
			weather.NewProblem(http.StatusBadRequest, "zip", "Not one of ours.").Write(w)
		}
	})
	h := consumer(t, g.URL, nil)
	for _, test := range []struct {
		query  string
		status int
		field  string
		shown  string
	}{
		{"zip=", 400, "zip", "Which place?"},
		{"zip=1%22%3E%3Cscript%3Ealert(1)%3C/script%3E", 400, "zip", "A zip code has"},
		{"zip=70569&country=XX", 400, "country", "two letters of ISO 3166"},
		{"zip=70569&units=kelvin", 400, "units", "either metric or imperial"},
		{"zip=99999", 404, "zip", "No weather service knows the zip code 99999 in DE."},
		{"zip=12345", 400, "zip", "Not one of ours."},
	} {
		text := page(t, h, "/?"+test.query, test.status)
		contains(t, text, test.shown, "<title>Error: ")
		if test.field != "units" {
			contains(t, text, `aria-invalid="true"`, fmt.Sprintf(`id="%s-problem"`, test.field))
		}
		w := ask(t, h, "/?"+test.query, "application/json")
		var p weather.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		if w.Code != test.status || p.Status != test.status || p.Field != test.field || w.Header().Get("Content-Type") != weather.ContentTypeProblem {
			t.Errorf("%s: %d %+v", test.query, w.Code, p)
		}
	}
	if w := ask(t, h, "/", ""); w.Code != 400 {
		t.Errorf("JSON without a zip code = %d, want 400", w.Code)
	}
	if w := ask(t, h, "/favicon.ico", asBrowser); w.Code != 404 {
		t.Errorf("another path = %d, want 404", w.Code)
	}
	contains(t, page(t, h, "/?zip=%ff&country="+strings.Repeat("x", 5000), 400), "A zip code has")
}

// FuzzPage looks for anything typed that reaches the page unescaped.
func FuzzPage(f *testing.F) {
	f.Add("zip=%3Cscript%3E&country=%22onfocus%3D&units=%27", asBrowser)
	f.Add("zip=70569&format=json", "text/html;q=1e-9")
	cfg := function.Config{
		Common:  weather.Common{Country: "DE", Remember: 1, RememberFor: 1, Replica: "r", Log: slog.New(slog.DiscardHandler)},
		Timeout: 1, Rest: 1,
	}
	if err := cfg.OpenFaaS.UnmarshalText([]byte("http://127.0.0.1:1")); err != nil {
		f.Fatal(err)
	}
	cfg.Producer = "weather-producer"
	h, err := function.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, query, accept string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.URL.RawQuery = query
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Errorf("%q = %d", query, w.Code)
		}
		text := strings.ToLower(w.Body.String())
		if strings.Contains(text, "<script") || strings.Count(text, "<input") > 4 || strings.Contains(text, "zgotmplz") {
			t.Errorf("%q is shown as\n%s", query, text)
		}
	})
}

// list is an environment as os.Environ gives it.
func list(environ map[string]string) []string {
	var all []string
	for name, value := range environ {
		all = append(all, name+"="+value)
	}
	return all
}
