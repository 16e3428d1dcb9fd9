// Package weather is what the two weather functions share: a place as people
// ask for it, the report they get, the services that know the weather, and the
// [Guard] that gives the last good answer when a service fails.
//
// A [Query] is parsed from what a stranger typed, bounded and normalised, so
// that everything behind [ParseQuery] may trust it and use it as a key. A
// [Source] answers queries: [OpenWeatherMap], [OpenMeteo] and [Simulation] are
// sources, and so is a producer seen from the consumer, and a Guard itself.
//
// Three kinds of error cross this package's border: [*InvalidError] (the
// question is wrong), [ErrUnknownPlace] (the answer is that there is no such
// place) and everything else (the source failed). Only the last kind is worth
// a second try or an old answer.
//
// Everything here is safe for concurrent use and reads no environment. Only a
// Guard starts goroutines, and its Close waits for them.
package weather

import (
	"context"
	"errors"
	"time"
)

// Source answers one query. It returns [ErrUnknownPlace] when it is certain
// that there is no such place; any other error says that the source failed.
type Source interface {
	Report(ctx context.Context, q Query) (Report, error)
}

// ErrUnknownPlace is an answer, not a failure: the service looked, and there is
// no such place.
var ErrUnknownPlace = errors.New("no weather service knows this place")

// Place is where a report is about.
type Place struct {
	Zip     string `json:"zip"`
	Country string `json:"country"`        // ISO 3166-1 alpha-2, upper case
	Name    string `json:"name,omitempty"` // as the service calls it; empty if it has no name for it
}

// Report is the weather at one place, and how far to trust it. A report without
// an [Observation] is an empty one: nothing is known, and Message says why.
type Report struct {
	Place Place `json:"place"`
	Units Units `json:"units"`

	*Observation

	// Stale marks an answer that was remembered because a fresh one could not
	// be had. AgeSeconds is how long ago the service gave it, whoever remembered
	// it on the way, and also for reports that aren't stale; nobody's clock is
	// believed for it.
	Stale      bool  `json:"stale"`
	AgeSeconds int64 `json:"age_seconds"`

	// Message is for people: the reason when the report is stale or empty.
	Message string `json:"message"`

	// ServedBy is the producer's replica that gave this report.
	ServedBy string `json:"served_by,omitempty"`
}

// Empty reports whether nothing is known about the weather.
func (r Report) Empty() bool { return r.Observation == nil }

// Observation is what was measured, in the units that the report names: degrees
// Celsius and metres per second, or degrees Fahrenheit and miles per hour;
// pressure is in hectopascals and humidity in percent either way. What a
// service didn't say is nil.
type Observation struct {
	Temperature float64    `json:"temperature"`
	FeelsLike   *float64   `json:"feels_like,omitempty"`
	Humidity    *float64   `json:"humidity,omitempty"`
	Pressure    *float64   `json:"pressure,omitempty"` // at sea level
	Wind        *Wind      `json:"wind,omitempty"`
	Conditions  Conditions `json:"conditions"`

	// ObservedAt is when it was measured, with the place's own offset from UTC.
	ObservedAt time.Time `json:"observed_at"`

	// Source is one of the Source… constants.
	Source string `json:"source"`
}

// Where an observation comes from, as reports name it.
const (
	SourceOpenWeatherMap = "openweathermap"
	SourceOpenMeteo      = "open-meteo"
	SourceSimulated      = "simulated" // invented; never shown without saying so
)

// Wind is a speed and the direction it blows from.
type Wind struct {
	Speed     float64  `json:"speed"`
	Direction *float64 `json:"direction,omitempty"` // degrees clockwise from north
	Gust      *float64 `json:"gust,omitempty"`
}

// Conditions is the sky in a word that a page can draw and a text for people.
type Conditions struct {
	Sky         Sky    `json:"sky"`
	Description string `json:"description"`
	Night       bool   `json:"night"`
}

// Sky is one of a dozen kinds of weather; each service has a hundred codes
// which become these.
type Sky string

// The kinds of sky.
const (
	Clear        Sky = "clear"
	PartlyCloudy Sky = "partly-cloudy"
	Cloudy       Sky = "cloudy"
	Fog          Sky = "fog"
	Drizzle      Sky = "drizzle"
	Rain         Sky = "rain"
	Sleet        Sky = "sleet"
	Snow         Sky = "snow"
	Thunderstorm Sky = "thunderstorm"
	Storm        Sky = "storm"
	Unknown      Sky = "unknown" // a code that is newer than this program
)

// Units is a system of units.
type Units string

// The systems of units.
const (
	Metric   Units = "metric"   // °C, m/s, hPa
	Imperial Units = "imperial" // °F, mph, hPa
)
