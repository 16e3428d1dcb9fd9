package weather_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

const (
	searchPath   = "/v1/search"
	forecastPath = "/v1/forecast"
)

func openMeteo(t *testing.T, v *vendor) weather.OpenMeteo {
	return weather.OpenMeteo{Geocoding: v.base(t), Forecast: v.base(t), Client: weather.NewClient()}
}

func TestOpenMeteoReadsAnAnswer(t *testing.T) {
	v := newVendor(t, map[string][]reply{
		searchPath:   {{status: 200, file: "openmeteo/search.json"}},
		forecastPath: {{status: 200, file: "openmeteo/forecast.json"}},
	})
	got, err := openMeteo(t, v).Report(t.Context(), stuttgart)
	if err != nil {
		t.Fatal(err)
	}
	sameReport(t, got, weather.Report{
		Place: weather.Place{Zip: "70569", Country: "DE", Name: "Stuttgart"},
		Units: weather.Metric,
		Observation: &weather.Observation{
			Temperature: 5.1, FeelsLike: new(1.9), Humidity: new(84.0), Pressure: new(1009.4),
			Wind:       &weather.Wind{Speed: 3.4, Direction: new(238.0), Gust: new(7.6)},
			Conditions: weather.Conditions{Sky: weather.Rain, Description: "slight rain", Night: true},
			ObservedAt: observed, Source: weather.SourceOpenMeteo,
		},
	})
	asked := v.asked()
	if len(asked) != 2 {
		t.Fatalf("asked %v, want the search and the forecast", asked)
	}
	if q := asked[0].Query(); q.Get("name") != "70569" || q.Get("countryCode") != "DE" {
		t.Errorf("searched %v, want 70569 in DE", q)
	}
	if q := asked[1].Query(); q.Get("latitude") != "48.78232" || q.Get("longitude") != "9.17702" || q.Get("wind_speed_unit") != "ms" || q.Has("temperature_unit") {
		t.Errorf("asked the forecast for %v", q)
	}
}

func TestOpenMeteoAsksForImperialUnits(t *testing.T) {
	v := newVendor(t, map[string][]reply{
		searchPath:   {{status: 200, file: "openmeteo/search.json"}},
		forecastPath: {{status: 200, file: "openmeteo/forecast.json"}},
	})
	q := stuttgart
	q.Units = weather.Imperial
	got, err := openMeteo(t, v).Report(t.Context(), q)
	if err != nil || got.Units != weather.Imperial {
		t.Fatalf("Report() = %v, %v", got.Units, err)
	}
	asked := v.asked()[1].Query()
	if asked.Get("temperature_unit") != "fahrenheit" || asked.Get("wind_speed_unit") != "mph" {
		t.Errorf("asked the forecast for %v", asked)
	}
}

// Great Britain's codes are listed by their first half.
func TestOpenMeteoFindsTheFirstHalfOfACode(t *testing.T) {
	v := newVendor(t, map[string][]reply{
		searchPath:   {{status: 200, file: "openmeteo/search-none.json"}, {status: 200, file: "openmeteo/search-gb.json"}},
		forecastPath: {{status: 200, file: "openmeteo/forecast.json"}},
	})
	got, err := openMeteo(t, v).Report(t.Context(), weather.Query{Zip: "SW1A 1AA", Country: "GB", Units: weather.Metric})
	if err != nil || got.Place != (weather.Place{Zip: "SW1A 1AA", Country: "GB", Name: "London"}) {
		t.Errorf("Report() = %+v, %v, want London", got.Place, err)
	}
}

func TestOpenMeteoTellsAnswersFromFailures(t *testing.T) {
	found := reply{status: 200, file: "openmeteo/search.json"}
	for _, test := range []struct {
		name             string
		search, forecast reply
		refusal
	}{
		{name: "unknown place", search: reply{status: 200, file: "openmeteo/search-none.json"}, refusal: refusal{unknown: true}},
		{name: "only similar places", search: reply{status: 200, file: "openmeteo/search-other.json"}, refusal: refusal{unknown: true}},
		{name: "search: too many", search: reply{status: 429, file: "openmeteo/toomany.json", retryAfter: "60"}, refusal: refusal{status: 429, retryAfter: time.Minute, text: "limit exceeded"}},
		{name: "search: error", search: reply{status: 503, file: "openmeteo/error.json"}, refusal: refusal{status: 503, text: "overloaded"}},
		{name: "search: not JSON", search: reply{status: 200, file: "notjson.html"}, refusal: refusal{text: "read its answer"}},
		{name: "forecast: too many", search: found, forecast: reply{status: 429, file: "openmeteo/toomany.json"}, refusal: refusal{status: 429, text: "limit exceeded"}},
		{name: "forecast: error", search: found, forecast: reply{status: 502, file: "notjson.html"}, refusal: refusal{status: 502, text: "Bad Gateway"}},
		{name: "forecast: truncated", search: found, forecast: reply{status: 200, file: "openmeteo/truncated.json"}, refusal: refusal{text: "read its answer"}},
		{name: "forecast: no weather", search: found, forecast: reply{status: 200, body: `{"current":{"time":1732298400}}`}, refusal: refusal{text: "no weather in it"}},
		{name: "forecast: not found is a failure", search: found, forecast: reply{status: 404, body: `{"error":true,"reason":"Not Found"}`}, refusal: refusal{status: 404, text: "Not Found"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVendor(t, map[string][]reply{searchPath: {test.search}, forecastPath: {test.forecast}})
			report, err := openMeteo(t, v).Report(t.Context(), stuttgart)
			test.check(t, weather.SourceOpenMeteo, report, err)
		})
	}
}

func FuzzOpenMeteo(f *testing.F) {
	search, forecast := golden(f, "openmeteo/search.json"), golden(f, "openmeteo/forecast.json")
	f.Add(search, forecast)
	f.Add(golden(f, "openmeteo/search-none.json"), forecast)
	f.Add(search, golden(f, "openmeteo/truncated.json"))
	f.Add([]byte(`{"results":[{"country_code":"DE","postcodes":["70569"],"latitude":1e300}]}`), []byte(`{"current":{"time":4102444800,"temperature_2m":-0,"weather_code":77777}}`))
	f.Fuzz(func(t *testing.T, search, forecast []byte) {
		base := &url.URL{Scheme: "http", Host: "vendor"}
		source := weather.OpenMeteo{Geocoding: base, Forecast: base, Client: &http.Client{Transport: byPath{searchPath: search, forecastPath: forecast}}}
		if report, err := source.Report(t.Context(), stuttgart); err == nil {
			usable(t, report)
		}
	})
}
