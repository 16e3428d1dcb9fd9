package weather_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

const owmPath = "/data/2.5/weather"

var stuttgart = weather.Query{Zip: "70569", Country: "DE", Units: weather.Metric}

// observed is the instant in the answers kept as test data.
var observed = time.Unix(1732298400, 0).In(time.FixedZone("", 3600))

// sameReport compares what two reports say, wherever their time zones come from.
func sameReport(t *testing.T, got, want weather.Report) {
	t.Helper()
	g, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(g) != string(w) {
		t.Errorf("report\n got %s\nwant %s", g, w)
	}
}

func TestOpenWeatherMapReadsAnAnswer(t *testing.T) {
	v := newVendor(t, map[string][]reply{owmPath: {{status: 200, file: "openweathermap/good.json"}}})
	source := weather.OpenWeatherMap{Base: v.base(t), Key: "s3cret", Client: weather.NewClient()}
	got, err := source.Report(t.Context(), stuttgart)
	if err != nil {
		t.Fatal(err)
	}
	sameReport(t, got, weather.Report{
		Place: weather.Place{Zip: "70569", Country: "DE", Name: "Stuttgart"},
		Units: weather.Metric,
		Observation: &weather.Observation{
			Temperature: 4.62, FeelsLike: new(1.58), Humidity: new(87.0), Pressure: new(1009.0),
			Wind:       &weather.Wind{Speed: 3.6, Direction: new(240.0), Gust: new(7.72)},
			Conditions: weather.Conditions{Sky: weather.Cloudy, Description: "broken clouds", Night: true},
			ObservedAt: observed, Source: weather.SourceOpenWeatherMap,
		},
	})
	want := url.Values{"zip": {"70569,DE"}, "units": {"metric"}, "appid": {"s3cret"}}
	if asked := v.asked(); len(asked) != 1 || !reflect.DeepEqual(asked[0].Query(), want) {
		t.Errorf("asked %v, want once with %v", asked, want)
	}
}

func TestOpenWeatherMapTellsAnswersFromFailures(t *testing.T) {
	for _, test := range []struct {
		name  string
		reply reply
		refusal
	}{
		{name: "unknown place", reply: reply{status: 404, file: "openweathermap/unknown.json"}, refusal: refusal{unknown: true}},
		{name: "invalid zip", reply: reply{status: 400, file: "openweathermap/invalid.json"}, refusal: refusal{unknown: true}},
		{name: "bad key", reply: reply{status: 401, file: "openweathermap/badkey.json"}, refusal: refusal{status: 401, text: "Invalid API key"}},
		{name: "too many", reply: reply{status: 429, file: "openweathermap/toomany.json"}, refusal: refusal{status: 429, text: "temporary blocked"}},
		{name: "too many, with a time", reply: reply{status: 429, file: "openweathermap/toomany.json", retryAfter: "17"}, refusal: refusal{status: 429, retryAfter: 17 * time.Second}},
		{name: "error", reply: reply{status: 500, file: "openweathermap/error.json"}, refusal: refusal{status: 500, text: "Internal error"}},
		{name: "a proxy's error", reply: reply{status: 502, file: "notjson.html"}, refusal: refusal{status: 502, text: "Bad Gateway"}},
		{name: "truncated", reply: reply{status: 200, file: "openweathermap/truncated.json"}, refusal: refusal{text: "read its answer"}},
		{name: "not JSON", reply: reply{status: 200, file: "notjson.html"}, refusal: refusal{text: "read its answer"}},
		{name: "nothing", reply: reply{status: 200}, refusal: refusal{text: "read its answer"}},
		{name: "JSON without weather", reply: reply{status: 200, body: `{"cod":200}`}, refusal: refusal{text: "no weather in it"}},
		{name: "milliseconds for seconds", reply: reply{status: 200, body: strings.Replace(string(golden(t, "openweathermap/good.json")), "1732298400", "1732298400000000", 1)}, refusal: refusal{text: "no weather in it"}},
		{name: "endless", reply: reply{status: 200, body: strings.Repeat(" ", 1<<20)}, refusal: refusal{text: "more than"}},
		{name: "redirect", reply: reply{status: 302}, refusal: refusal{status: 302}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVendor(t, map[string][]reply{owmPath: {test.reply}})
			source := weather.OpenWeatherMap{Base: v.base(t), Key: "s3cret", Client: weather.NewClient()}
			report, err := source.Report(t.Context(), stuttgart)
			test.check(t, weather.SourceOpenWeatherMap, report, err)
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error = %q, which gives the key away", err)
			}
		})
	}
}

func TestSlowServiceIsLeftAtTheDeadline(t *testing.T) {
	v := newVendor(t, map[string][]reply{owmPath: {{hang: true}}})
	source := weather.OpenWeatherMap{Base: v.base(t), Key: "s3cret", Client: weather.NewClient()}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := source.Report(ctx, stuttgart)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Report() error = %v, want deadline exceeded", err)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error = %q, which gives the key away", err)
	}
}

func TestUnreachableServiceGivesNoKeyAway(t *testing.T) {
	v := newVendor(t, nil)
	base := v.base(t)
	v.Close()
	source := weather.OpenWeatherMap{Base: base, Key: "s3cret", Client: weather.NewClient()}
	_, err := source.Report(t.Context(), stuttgart)
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("Report() error = %v, want one without the key", err)
	}
}

// usable fails if a report that a source gave can't be used: every source's
// report has to have weather in it and has to be written and read as JSON.
func usable(t *testing.T, r weather.Report) {
	t.Helper()
	if r.Empty() || r.Conditions.Sky == "" || r.Source == "" {
		t.Fatalf("a report without weather: %+v", r)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("a report that cannot be written: %v", err)
	}
	var again weather.Report
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatalf("a report that cannot be read again: %v", err)
	}
	sameReport(t, again, r)
}

func FuzzOpenWeatherMap(f *testing.F) {
	for _, file := range []string{"good.json", "unknown.json", "badkey.json", "truncated.json"} {
		f.Add(golden(f, "openweathermap/"+file))
	}
	f.Add([]byte(`{"weather":[{"id":-1}],"main":{"temp":1e308},"dt":1e9,"timezone":-999999}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		source := weather.OpenWeatherMap{Base: &url.URL{Scheme: "http", Host: "vendor"}, Client: &http.Client{Transport: byPath{owmPath: body}}}
		if report, err := source.Report(t.Context(), stuttgart); err == nil {
			usable(t, report)
		}
	})
}
