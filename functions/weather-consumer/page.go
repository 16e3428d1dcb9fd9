package function

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/seed-780dceda/thicket/functions/weather"
)

var (
	//go:embed page.html
	pageText string
	//go:embed icons.html
	iconsText string
	//go:embed style.css
	styleText string
)

// page is the parsed page and the policy under which browsers show it.
type page struct {
	template *template.Template
	policy   string
}

// newPage parses the page. The style is inside the page and allowed by its
// hash, so that one request shows everything and nothing else may style it;
// nothing at all may run.
var newPage = sync.OnceValue(func() page {
	hash := sha256.Sum256([]byte(styleText))
	return page{
		template: template.Must(template.Must(template.New("page").Parse(pageText)).Parse(iconsText)),
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'; " +
			"img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	}
})

// view is what the page shows.
type view struct {
	Style template.CSS
	Title string

	// What the form holds: what was typed, even if it is wrong.
	Zip, Country   string
	Imperial       bool
	DefaultCountry string
	Problem        *weather.Problem // what is wrong with it

	Result   *result
	Consumer string // this replica
}

// result is a report as people read it.
type result struct {
	weather.Report
	Heading     string
	Temperature string
	Unit        string
	FeelsLike   string
	Details     []detail
	Age         string
	Clock       string // on a clock at the place
	Zone        string
	SourceName  string
	SourceURL   string // empty for the simulation
	Simulated   bool
	JSON        template.URL
}

type detail struct {
	Icon, Label, Value string
	Degrees            int // where the wind's arrow points
}

// page answers with the page: 200 with a report, or with just the form if
// nothing was asked; else the status of what is wrong.
func (c *Consumer) page(w http.ResponseWriter, r *http.Request) {
	params := r.URL.Query()
	v := view{
		Style:          template.CSS(styleText),
		Title:          "Weather",
		Zip:            clip(params.Get("zip") + params.Get("zipCode")),
		Country:        clip(params.Get("country") + params.Get("countryCode")),
		Imperial:       strings.EqualFold(params.Get("units"), string(weather.Imperial)),
		DefaultCountry: c.country,
		Consumer:       c.replica,
	}
	status := http.StatusOK
	if params.Has("zip") || params.Has("zipCode") {
		q, err := weather.ParseQuery(r.URL.RawQuery, c.country)
		var report weather.Report
		if err == nil {
			report, err = c.source.Report(weather.RequestContext(r), q)
		}
		switch {
		case err == nil:
			v.Result = newResult(q, report)
			v.Title = v.Result.title()
		case r.Context().Err() != nil:
			return // nobody is listening any more
		default:
			problem := c.problem(r, q, err)
			v.Problem = &problem
			v.Title = "Error: " + problem.Title + " · Weather"
			status = problem.Status
		}
	}
	var body bytes.Buffer
	p := newPage()
	if err := p.template.Execute(&body, v); err != nil {
		c.problem(r, weather.Query{}, fmt.Errorf("render the page: %w", err)).Write(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("Content-Security-Policy", p.policy)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
	w.Write(body.Bytes()) // if it fails, the reader is gone and nobody is left to tell
}

// clip bounds what is shown again of what was typed.
func clip(s string) string {
	if runes := []rune(s); len(runes) > 40 {
		return string(runes[:40])
	}
	return s
}

func newResult(q weather.Query, report weather.Report) *result {
	r := &result{
		Report:  report,
		Heading: report.Place.Name,
		Age:     age(report),
		JSON: template.URL("?" + url.Values{
			"zip": {q.Zip}, "country": {q.Country}, "units": {string(q.Units)}, "format": {"json"},
		}.Encode()),
	}
	if r.Heading == "" {
		r.Heading = q.Zip + ", " + q.Country
	}
	if report.Empty() {
		return r
	}
	imperial := report.Units == weather.Imperial
	r.Unit = "°C"
	if imperial {
		r.Unit = "°F"
	}
	r.Temperature = whole(report.Temperature)
	if report.FeelsLike != nil {
		r.FeelsLike = whole(*report.FeelsLike)
	}
	if wind := report.Wind; wind != nil {
		r.Details = append(r.Details, windDetail(wind, imperial))
		if wind.Gust != nil {
			r.Details = append(r.Details, detail{Icon: "gust", Label: "Gusts", Value: speed(*wind.Gust, imperial)})
		}
	}
	if report.Humidity != nil {
		r.Details = append(r.Details, detail{Icon: "humidity", Label: "Humidity", Value: whole(*report.Humidity) + " %"})
	}
	if report.Pressure != nil {
		r.Details = append(r.Details, detail{Icon: "pressure", Label: "Pressure", Value: whole(*report.Pressure) + " hPa"})
	}
	r.Clock = report.ObservedAt.Format("15:04")
	r.Zone = "UTC" + report.ObservedAt.Format("-07:00")
	switch report.Source {
	case weather.SourceOpenWeatherMap:
		r.SourceName, r.SourceURL = "OpenWeatherMap", "https://openweathermap.org/"
	case weather.SourceOpenMeteo:
		r.SourceName, r.SourceURL = "Open-Meteo", "https://open-meteo.com/"
	case weather.SourceSimulated:
		r.SourceName, r.Simulated = "Simulated", true
	default:
		r.SourceName = report.Source
	}
	return r
}

func (r *result) title() string {
	if r.Empty() {
		return "No report for " + r.Heading + " · Weather"
	}
	title := r.Temperature + " " + r.Unit + " in " + r.Heading + " · Weather"
	if r.Stale {
		title = "Out of date: " + title
	}
	return title
}

func windDetail(wind *weather.Wind, imperial bool) detail {
	d := detail{Icon: "wind", Label: "Wind", Value: speed(wind.Speed, imperial)}
	if wind.Direction == nil {
		return d
	}
	from := math.Mod(math.Mod(*wind.Direction, 360)+360, 360)
	names := []string{"N", "NE", "E", "SE", "S", "SW", "W", "NW"}
	d.Label = names[int(math.Round(from/45))%8] + " wind"
	d.Icon, d.Degrees = "arrow", (int(from)+180)%360 // the arrow flies with the wind
	return d
}

// speed is in km/h, which metric readers know from the road, or in mph.
func speed(v float64, imperial bool) string {
	if imperial {
		return whole(v) + " mph"
	}
	return whole(v*3.6) + " km/h"
}

// whole is a number without decimals and with a real minus sign.
func whole(v float64) string {
	s := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	if s == "-0" {
		return "0"
	}
	return strings.Replace(s, "-", "\u2212", 1)
}

// age is how old a report is, in words.
func age(r weather.Report) string {
	units := []struct {
		name    string
		seconds int64
	}{{"day", 86400}, {"hour", 3600}, {"minute", 60}, {"second", 1}}
	for _, unit := range units {
		switch n := r.AgeSeconds / unit.seconds; {
		case n > 1:
			return fmt.Sprintf("%d %ss old", n, unit.name)
		case n == 1:
			return "1 " + unit.name + " old"
		}
	}
	if r.Stale {
		return "a moment old"
	}
	return "just now"
}

// FieldProblem is what is wrong with one field of the form; empty if it's not
// that one's fault.
func (v view) FieldProblem(field string) string {
	if v.Problem != nil && v.Problem.Field == field {
		return v.Problem.Detail
	}
	return ""
}

// OtherProblem is what is wrong and no field's fault.
func (v view) OtherProblem() string {
	if v.Problem != nil && v.Problem.Field != "zip" && v.Problem.Field != "country" && v.Problem.Field != "units" {
		return v.Problem.Detail
	}
	return ""
}

// icon is what the template "sky" draws.
type icon struct {
	Sky   weather.Sky
	Night bool
}

// Icon returns the icon of the sky.
func (r *result) Icon() (icon, error) {
	if r.Empty() {
		return icon{}, errors.New("an empty report has no icon")
	}
	return icon{Sky: r.Conditions.Sky, Night: r.Conditions.Night}, nil
}

// Scene is the class of the sky behind the report: one of the known ones,
// whatever a producer says.
func (r *result) Scene() string {
	switch sky := r.Conditions.Sky; sky {
	case weather.Clear, weather.PartlyCloudy:
		if r.Conditions.Night {
			return "night"
		}
		return string(sky)
	case weather.Cloudy, weather.Fog, weather.Drizzle, weather.Rain, weather.Sleet, weather.Snow, weather.Thunderstorm, weather.Storm:
		if r.Conditions.Night {
			return "dim " + string(sky)
		}
		return string(sky)
	}
	return "cloudy"
}
