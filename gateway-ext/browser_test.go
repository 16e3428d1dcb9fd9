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
	"regexp"
	"strings"
	"sync"
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

// TestDashboardInABrowser looks at the page of the platform itself, with all that
// it can show.
func TestDashboardInABrowser(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc")
	join := joining.FindStringSubmatch(g.operate("token"))
	for _, name := range []string{"pi-1", "pi-2"} {
		node(t, name, t.TempDir(), "--join", join[1], "--token", join[2], "--node-name", name, "--label", "zone=shelf-1")
	}
	eventually(t, "both nodes are ready", func() bool {
		f := g.fleet()
		return f["pi-1"].State == "ready" && f["pi-2"].State == "ready"
	})
	g.operate("nodes", "cordon", "pi-2")
	for _, name := range []string{"weather-producer", "weather-consumer"} {
		g.deploy(types.FunctionDeployment{
			Service: name, Image: images(t) + "/" + name + ":latest",
			EnvVars: map[string]string{"weather_simulate": "true", "weather_fresh": "0", "openmeteo_url": "http://127.0.0.1:1", "openmeteo_geocoding_url": "http://127.0.0.1:1"},
		})
	}
	sleeper := g.probe()
	sleeper.Service = "resize"
	g.deploy(sleeper)
	if err := g.client.ScaleFunction(t.Context(), "resize", "openfaas-fn", 0); err != nil {
		t.Fatal(err)
	}
	g.ready("resize", 0)
	busy := g.probe()
	busy.Labels = &map[string]string{"com.openfaas.scale.type": "capacity", "com.openfaas.scale.target": "2", "com.openfaas.scale.max": "3"}
	g.deploy(busy)
	g.register(eurekaOrders)

	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	defer callers.Wait()
	defer cancel()
	for _, path := range []string{"probe?sleep=20ms", "probe?sleep=20ms", "probe?sleep=20ms", "probe?sleep=20ms", "probe?sleep=20ms", "weather-consumer?zip=70569&format=json"} {
		callers.Go(func() {
			for ctx.Err() == nil {
				if code, _, body := g.get("/function/" + path); code != 200 {
					t.Errorf("GET %s = %d %s", path, code, body)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(30 * time.Millisecond):
				}
			}
		})
	}

	tab := browser(t)
	if err := chromedp.Do(tab,
		chromedp.EmulateViewport(1100, 1680),
		chromedp.Navigate(strings.Replace(g.url, "://", "://admin:"+strings.ReplaceAll(testPassword, " ", "%20")+"@", 1)+"/"),
		chromedp.WaitVisible(chromedp.CSS("main")),
	); err != nil {
		t.Fatal(err)
	}
	// The page refreshes itself until it shows all. In the row of a busy function
	// are replicas, calls in flight and in a second; in those of replicas latencies.
	shows := regexp.MustCompile(`(?s)probe\s+ready\s+[23] of [23]\s+\d+\s+\d.*probe-\w+\s+ready\s+\d+ m?i?n?s?\s+\d+\s+[\d.]+ ms`)
	var text string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the page:\n%s", text)
		}
	})
	eventually(t, "the page shows the load, the decisions, what was learnt, and the service", func() bool {
		var err error
		if text, err = chromedp.Run(tab, chromedp.Text(chromedp.CSS("body"))); err != nil {
			t.Fatal(err)
		}
		return shows.MatchString(text) && strings.Contains(text, " in flight over ") && strings.Contains(text, "127.0.0.1:8081")
	})
	for _, want := range []string{"weather-producer", g.host(), "asleep", "1 service", "3 of 3 nodes ready"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
	screenshot(t, tab, "dashboard", "dashboard.png")

	// What was opened stays open while the page refreshes.
	if _, err := chromedp.Run(tab, chromedp.Evaluate[bool](`(() => {
		const d = document.querySelector("details"); if (!d) return false;
		d.querySelector("summary").focus(); d.open = true; d.dataset.old = "yes"; return true })()`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the page is fresh, and open where it was", func() bool {
		open, err := chromedp.Run(tab, chromedp.Evaluate[bool](`(() => {
			const d = document.querySelector("details");
			return !!d && d.open && !d.dataset.old && document.activeElement === d.querySelector("summary") })()`))
		if err != nil {
			t.Fatal(err)
		}
		return open
	})

	// The same page on a phone, in the dark.
	if err := chromedp.Do(tab, chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile)); err != nil {
		t.Fatal(err)
	}
	dark := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}}
	if _, err := chromedp.Call(tab, emulation.SetEmulatedMedia, dark); err != nil {
		t.Fatal(err)
	}
	screenshot(t, tab, "dashboard-phone", "")
	wide, err := chromedp.Run(tab, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`))
	if err != nil {
		t.Fatal(err)
	}
	if wide {
		t.Error("the page is wider than a phone")
	}
}

// eurekaOrders is a service as Spring registers it.
const eurekaOrders = `{"instance":{"instanceId":"spring:orders:8081","app":"ORDERS","hostName":"127.0.0.1","ipAddr":"127.0.0.1","status":"UP",
	"port":{"$":8081,"@enabled":"true"},"vipAddress":"orders","dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"}}}`

// register registers a service as its Eureka client would.
func (g *thicket) register(instance string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.url+"/eureka/apps/ORDERS", strings.NewReader(instance))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("admin", testPassword)
	if code, _, body := g.do(req); code != http.StatusNoContent {
		g.t.Fatalf("register = %d %s", code, body)
	}
}
