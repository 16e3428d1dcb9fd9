package function_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
	function "github.com/seed-780dceda/thicket/functions/weather-producer"
)

const (
	owmGood  = `{"weather":[{"id":500,"main":"Rain","description":"light rain","icon":"10d"}],"main":{"temp":9.5,"feels_like":7.1,"pressure":1004,"humidity":93},"wind":{"speed":5.1,"deg":250},"dt":1732298400,"timezone":3600,"name":"Stuttgart","cod":200}`
	search   = `{"results":[{"name":"Stuttgart","latitude":48.78,"longitude":9.17,"country_code":"DE","postcodes":["70569"]}]}`
	forecast = `{"utc_offset_seconds":3600,"current":{"time":1732298400,"temperature_2m":5.1,"weather_code":3,"is_day":1}}`
)

// config is the settings from an environment, all services being vendor.
func config(t *testing.T, vendor string, more map[string]string) function.Config {
	t.Helper()
	environ := map[string]string{
		"openweathermap_url":      vendor,
		"openmeteo_url":           vendor,
		"openmeteo_geocoding_url": vendor,
		"secret_mount_path":       t.TempDir(),
		"THICKET_REPLICA":         "producer-1",
		"weather_fresh":           "0",
	}
	maps.Copy(environ, more)
	cfg, err := weather.Settings[function.Config](list(environ))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	return cfg
}

func producer(t *testing.T, cfg function.Config) http.Handler {
	t.Helper()
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

// fakeVendor is both services; broken makes it answer 500 to everything.
type fakeVendor struct {
	*httptest.Server
	broken atomic.Bool
	asked  atomic.Pointer[http.Request]
}

func newVendor(t *testing.T) *fakeVendor {
	v := &fakeVendor{}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.asked.Store(r)
		if v.broken.Load() {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		switch r.URL.Path {
		case "/data/2.5/weather":
			io.WriteString(w, owmGood)
		case "/v1/search":
			if r.FormValue("name") != "70569" {
				io.WriteString(w, `{"generationtime_ms":0.3}`)
				return
			}
			io.WriteString(w, search)
		case "/v1/forecast":
			io.WriteString(w, forecast)
		}
	}))
	t.Cleanup(v.Close)
	return v
}

func ask(t *testing.T, h http.Handler, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, nil))
	return w
}

func report(t *testing.T, h http.Handler, target string) weather.Report {
	t.Helper()
	w := ask(t, h, "GET", target)
	var r weather.Report
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != 200 {
		t.Fatalf("GET %s = %d %s (%v), want 200 and a report", target, w.Code, w.Body, err)
	}
	return r
}

func TestProducerReports(t *testing.T) {
	v := newVendor(t)
	h := producer(t, config(t, v.URL, nil))
	for _, target := range []string{"/?zip=70569", "/?zipCode=70569&countryCode=de", "?zip=70569&country=DE&units=metric"} {
		r := report(t, h, "/"+strings.TrimPrefix(target, "/"))
		if r.Temperature != 5.1 || r.Source != weather.SourceOpenMeteo || r.Stale || r.ServedBy != "producer-1" || r.Place.Name != "Stuttgart" {
			t.Errorf("GET %s = %+v", target, r)
		}
	}
	w := ask(t, h, "GET", "/?zip=70569")
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type = %q", got)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q", got)
	}
	// The names that other programs rely on.
	var fields map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"place", "units", "temperature", "conditions", "observed_at", "source", "stale", "age_seconds", "message", "served_by"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("the report has no %q: %s", name, w.Body)
		}
	}
}

func TestProducerAsksOpenWeatherMapWithAKey(t *testing.T) {
	v := newVendor(t)
	cfg := config(t, v.URL, nil)
	if err := os.WriteFile(filepath.Join(cfg.Secrets, "openweathermap-api-key"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := report(t, producer(t, cfg), "/?zip=70569")
	if r.Source != weather.SourceOpenWeatherMap || r.Temperature != 9.5 || r.Conditions.Sky != weather.Rain {
		t.Errorf("report = %+v, want OpenWeatherMap's", r)
	}
	if got := v.asked.Load().FormValue("appid"); got != "s3cret" {
		t.Errorf("the key sent is %q, want it without its newline", got)
	}
}

func TestProducerAnswersProblems(t *testing.T) {
	h := producer(t, config(t, newVendor(t).URL, nil))
	for _, test := range []struct {
		method, target string
		status         int
		field          string
	}{
		{"GET", "/", 400, "zip"},
		{"GET", "/?zip=", 400, "zip"},
		{"GET", "/?zip=1%27%20OR%201=1", 400, "zip"},
		{"GET", "/?zip=70569&country=Germany", 400, "country"},
		{"GET", "/?zip=70569&units=kelvin", 400, "units"},
		{"GET", "/?zip=99999", 404, "zip"},
		{"POST", "/?zip=99999", 404, "zip"},
		{"GET", "/elsewhere?zip=70569", 404, ""},
		{"DELETE", "/?zip=70569", 405, ""},
	} {
		w := ask(t, h, test.method, test.target)
		var p weather.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Errorf("%s %s: %v in %s", test.method, test.target, err, w.Body)
		}
		if w.Code != test.status || p.Status != test.status || p.Field != test.field || p.Detail == "" || p.Title != http.StatusText(test.status) {
			t.Errorf("%s %s = %d %+v, want %d about %q", test.method, test.target, w.Code, p, test.status, test.field)
		}
		if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s %s: Content-Type = %q", test.method, test.target, got)
		}
	}
}

func TestProducerRemembers(t *testing.T) {
	v := newVendor(t)
	h := producer(t, config(t, v.URL, nil))
	report(t, h, "/?zip=70569")
	v.broken.Store(true)
	r := report(t, h, "/?zip=70569")
	if !r.Stale || r.Message != "CAUTION - Response out of date!" || r.Temperature != 5.1 || r.ServedBy != "producer-1" {
		t.Errorf("report = %+v, want the remembered one with the original's words", r)
	}
	if r := report(t, h, "/?zip=70570"); !r.Empty() || r.Message == "" || r.Stale {
		t.Errorf("report of another place = %+v, want an empty one with a message", r)
	}
	v.broken.Store(false)
	if r := report(t, h, "/?zip=70569"); r.Stale || r.Message != "" {
		t.Errorf("report = %+v, want a fresh one", r)
	}
}

func TestProducerSimulatesWhereItMay(t *testing.T) {
	v := newVendor(t)
	unreachable := v.URL
	v.Close()
	h := producer(t, config(t, unreachable, map[string]string{"weather_simulate": "true"}))
	if r := report(t, h, "/?zip=70569"); r.Source != "simulated" || r.Stale {
		t.Errorf("report = %+v, want a simulated one", r)
	}
	h = producer(t, config(t, unreachable, nil))
	if r := report(t, h, "/?zip=70569"); !r.Empty() {
		t.Errorf("report = %+v, want an empty one: nothing allows the simulation", r)
	}
}

func TestSettings(t *testing.T) {
	cfg, err := weather.Settings[function.Config]([]string{"openmeteo_url=", "weather_timeout=4"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.OpenMeteo.String() != "https://api.open-meteo.com" || cfg.OpenWeatherMap.String() != "https://api.openweathermap.org" ||
		cfg.Country != "DE" || time.Duration(cfg.Timeout) != 4*time.Second || cfg.Simulate || time.Duration(cfg.Fresh) != time.Minute {
		t.Errorf("settings = %+v", cfg)
	}
	_, err = weather.Settings[function.Config]([]string{
		"openmeteo_url=ftp://x", "weather_timeout=-1s", "weather_country=Germany", "weather_remember=1e9", "weather_simulate=perhaps", "weather_fresh=-1",
	})
	if err == nil {
		t.Fatal("wrong settings pass")
	}
	for _, want := range []string{`openmeteo_url: "ftp://x"`, `weather_timeout: "-1s"`, "weather_country: A country is two letters", `weather_remember: "1e9"`, `weather_fresh: "-1"`, "weather_simulate: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %s in it: all mistakes at once", err, want)
		}
	}
}

// What New is told of together makes no sense, though each setting does.
func TestNewRefuses(t *testing.T) {
	for _, test := range []struct{ setting, value, want string }{
		{"weather_fresh", "25h", "fresh must be the shorter time"},
		{"weather_remember_for", "200h", "168h0m0s is the longest"},
		{"THICKET_REDIS_URL", "http://127.0.0.1", "unknown scheme"},
	} {
		h, err := function.New(config(t, "http://127.0.0.1:1", map[string]string{test.setting: test.value}))
		if err == nil {
			h.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New() with %s=%s: error = %v, want %q in it", test.setting, test.value, err, test.want)
		}
	}
}

// A secret that is there and can't be read is a mistake, not a missing key.
func TestUnreadableKeyIsAMistake(t *testing.T) {
	cfg := config(t, "http://127.0.0.1:1", nil)
	if err := os.Mkdir(filepath.Join(cfg.Secrets, "openweathermap-api-key"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := function.New(cfg); err == nil || !strings.Contains(err.Error(), "openweathermap-api-key") {
		t.Errorf("New() error = %v, want one about the secret", err)
	}
}

// list is an environment as os.Environ gives it.
func list(environ map[string]string) []string {
	var all []string
	for name, value := range environ {
		all = append(all, name+"="+value)
	}
	return all
}
