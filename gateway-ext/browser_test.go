package main_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/openfaas/faas-provider/types"
)

var update = flag.Bool("update", false, "write the screenshots in docs/ anew")

// browser starts Debian's Chromium, without a window, for one test.
func browser(t *testing.T) context.Context {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("no browser: install Debian's package chromium, as make test does")
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // it asks only this machine, and CI runs as root
		chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(time.Minute),
	)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	// The browser lives as long as the context it is started with, so it is
	// started before there is a deadline.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal("start the browser:", err)
	}
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// screenshot saves what the browser shows among the test's artifacts, and in
// docs/ too if the test runs with -update and docs is set.
func screenshot(t *testing.T, ctx context.Context, name, docs string) {
	t.Helper()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatalf("screenshot %s: %v", name, err)
	}
	paths := []string{filepath.Join(t.ArtifactDir(), name+".png")}
	if *update && docs != "" {
		paths = append(paths, filepath.Join("..", "docs", docs))
	}
	for _, path := range paths {
		if err := os.WriteFile(path, png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// openMeteo answers like the weather service, until it is broken.
func openMeteo(t *testing.T) (url string, broken *atomic.Bool) {
	t.Helper()
	broken = new(atomic.Bool)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/search", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("name") != "70569" {
			fmt.Fprint(w, `{"generationtime_ms":0.5}`)
			return
		}
		fmt.Fprint(w, `{"results":[{"id":2825297,"name":"Stuttgart","latitude":48.78232,"longitude":9.17702,"elevation":252.0,
			"feature_code":"PPLA","country_code":"DE","timezone":"Europe/Berlin","population":589793,"postcodes":["70173","70569"],
			"country":"Germany","admin1":"Baden-Württemberg"}],"generationtime_ms":0.9}`)
	})
	mux.HandleFunc("GET /v1/forecast", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"latitude":48.78,"longitude":9.18,"generationtime_ms":0.06,"utc_offset_seconds":7200,"timezone":"Europe/Berlin",
			"timezone_abbreviation":"GMT+2","elevation":252.0,"current_units":{"time":"unixtime","temperature_2m":"°C"},
			"current":{"time":%d,"interval":900,"temperature_2m":21.4,"relative_humidity_2m":56,"apparent_temperature":20.8,"is_day":1,
			"weather_code":2,"pressure_msl":1017.3,"wind_speed_10m":3.1,"wind_direction_10m":240,"wind_gusts_10m":6.9}}`, time.Now().Unix())
	})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			http.Error(w, "broken as the test wants it", http.StatusBadGateway)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, broken
}

// TestWeatherInABrowser uses the weather page as a person would, from healthy
// to stale to unreachable.
func TestWeatherInABrowser(t *testing.T) {
	g := start(t, t.TempDir())
	service, broken := openMeteo(t)
	for _, name := range []string{"weather-producer", "weather-consumer"} {
		g.deploy(types.FunctionDeployment{Service: name, Image: images(t) + "/" + name + ":latest", EnvVars: map[string]string{
			"openmeteo_url": service, "openmeteo_geocoding_url": service,
			"weather_rest":  "1ms", // a service that is well again is asked again at once
			"weather_fresh": "0",   // and one that is broken too
		}})
	}
	ctx := browser(t)

	// ask types a zip code, presses Enter, and returns the new page's text.
	ask := func(zip string) string {
		t.Helper()
		err := chromedp.Do(ctx,
			chromedp.Evaluate[chromedp.Void](`document.body.dataset.old = "yes"; document.querySelector("#zip").value = ""`),
			chromedp.SendKeys(chromedp.CSS("#zip"), zip+"\n"),
			chromedp.WaitReady(chromedp.CSS("body:not([data-old])")),
		)
		if err != nil {
			t.Fatalf("ask for %s: %v", zip, err)
		}
		text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
		if err != nil {
			t.Fatalf("ask for %s: %v", zip, err)
		}
		return text
	}
	want := func(page, text string) {
		t.Helper()
		if !strings.Contains(page, text) {
			t.Errorf("the page has no %q:\n%s", text, page)
		}
	}

	if err := chromedp.Do(ctx,
		chromedp.EmulateViewport(1100, 960),
		chromedp.Navigate(g.url+"/function/weather-consumer"),
		chromedp.WaitVisible(chromedp.CSS("#zip")),
	); err != nil {
		t.Fatal(err)
	}
	screenshot(t, ctx, "start", "")

	page := ask("70569")
	want(page, "Stuttgart")
	want(page, "21")
	if strings.Contains(page, "CAUTION") {
		t.Errorf("a fresh report is called stale:\n%s", page)
	}
	screenshot(t, ctx, "fresh", "weather.png")

	want(ask("00000"), "No weather service knows the zip code 00000 in DE")
	screenshot(t, ctx, "unknown", "")

	broken.Store(true)
	want(ask("70569"), "CAUTION - Response out of date!")
	screenshot(t, ctx, "stale", "weather-stale.png")

	if err := g.client.DeleteFunction(t.Context(), "weather-producer", "openfaas-fn"); err != nil {
		t.Fatal(err)
	}
	want(ask("70569"), "CAUTION - Response out of date, producer unreachable!")
	screenshot(t, ctx, "unreachable", "")

	// The same page on a phone, in the dark.
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile)); err != nil {
		t.Fatal(err)
	}
	dark := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, dark); err != nil {
		t.Fatal(err)
	}
	screenshot(t, ctx, "phone", "")
	wide, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`))
	if err != nil {
		t.Fatal(err)
	}
	if wide {
		t.Error("the page is wider than a phone")
	}
}

// TestDashboardInABrowser looks at the page of the platform itself.
func TestDashboardInABrowser(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	ctx := browser(t)
	if err := chromedp.Do(ctx,
		chromedp.EmulateViewport(1100, 800),
		chromedp.Navigate(strings.Replace(g.url, "://", "://admin:"+strings.ReplaceAll(testPassword, " ", "%20")+"@", 1)+"/"),
		chromedp.WaitVisible(chromedp.CSS("main")),
	); err != nil {
		t.Fatal(err)
	}
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"probe", g.host(), "ready"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
	screenshot(t, ctx, "dashboard", "dashboard.png")
}
