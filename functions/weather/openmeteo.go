package weather

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// OpenMeteo asks open-meteo.com, which needs no key: first where the zip code
// is, then what the weather is there.
type OpenMeteo struct {
	Geocoding *url.URL // https://geocoding-api.open-meteo.com
	Forecast  *url.URL // https://api.open-meteo.com
	Client    *http.Client
}

// meteoPlaces is the part of v1/search that is used. No match is an object
// without results. See https://open-meteo.com/en/docs/geocoding-api.
type meteoPlaces struct {
	Results []meteoPlace `json:"results"`
}

type meteoPlace struct {
	Name      string   `json:"name"`
	Latitude  float64  `json:"latitude"`
	Longitude float64  `json:"longitude"`
	Country   string   `json:"country_code"`
	Postcodes []string `json:"postcodes"`
}

// meteoForecast is the part of v1/forecast that is used. See
// https://open-meteo.com/en/docs.
type meteoForecast struct {
	Offset  int `json:"utc_offset_seconds"`
	Current struct {
		Time        int64    `json:"time"` // Unix seconds, as asked for
		Temperature *float64 `json:"temperature_2m"`
		FeelsLike   *float64 `json:"apparent_temperature"`
		Humidity    *float64 `json:"relative_humidity_2m"`
		Pressure    *float64 `json:"pressure_msl"`
		WindSpeed   *float64 `json:"wind_speed_10m"`
		WindFrom    *float64 `json:"wind_direction_10m"`
		WindGust    *float64 `json:"wind_gusts_10m"`
		Code        *int     `json:"weather_code"` // WMO code table 4677, the part that Open-Meteo uses
		IsDay       *int     `json:"is_day"`
	} `json:"current"`
}

// Report asks for the weather at one place.
func (s OpenMeteo) Report(ctx context.Context, q Query) (Report, error) {
	place, err := s.find(ctx, q)
	if err != nil {
		return Report{}, err
	}
	u := s.Forecast.JoinPath("v1/forecast")
	params := url.Values{
		"latitude":  {strconv.FormatFloat(place.Latitude, 'f', 5, 64)},
		"longitude": {strconv.FormatFloat(place.Longitude, 'f', 5, 64)},
		"current": {"temperature_2m,relative_humidity_2m,apparent_temperature,is_day,weather_code," +
			"pressure_msl,wind_speed_10m,wind_direction_10m,wind_gusts_10m"},
		"timezone":        {"auto"},
		"timeformat":      {"unixtime"},
		"wind_speed_unit": {"ms"},
	}
	if q.Units == Imperial {
		params.Set("temperature_unit", "fahrenheit")
		params.Set("wind_speed_unit", "mph")
	}
	u.RawQuery = params.Encode()
	var answer meteoForecast
	if err := getJSON(ctx, s.Client, SourceOpenMeteo, u, &answer, meteoReason); err != nil {
		return Report{}, err
	}
	now := answer.Current
	observed, plausible := at(now.Time, answer.Offset)
	if now.Temperature == nil || now.Code == nil || !plausible {
		return Report{}, &ServiceError{Service: SourceOpenMeteo, Err: errors.New("its answer has no weather in it")}
	}
	where := q.Place()
	where.Name = place.Name
	sky, description := wmo(*now.Code)
	return Report{
		Place: where,
		Units: q.Units,
		Observation: &Observation{
			Temperature: *now.Temperature,
			FeelsLike:   now.FeelsLike,
			Humidity:    now.Humidity,
			Pressure:    now.Pressure,
			Wind:        windOf(now.WindSpeed, now.WindFrom, now.WindGust),
			Conditions:  Conditions{Sky: sky, Description: description, Night: now.IsDay != nil && *now.IsDay == 0},
			ObservedAt:  observed,
			Source:      SourceOpenMeteo,
		},
	}, nil
}

// find looks a zip code up. The service matches loosely, by names of places
// too, so only a place that lists the zip code is taken. Great Britain's and
// Canada's are listed by their first half alone, which is tried second.
func (s OpenMeteo) find(ctx context.Context, q Query) (meteoPlace, error) {
	names := []string{q.Zip}
	if half, _, cut := strings.Cut(q.Zip, " "); cut {
		names = append(names, half)
	}
	for _, name := range names {
		u := s.Geocoding.JoinPath("v1/search")
		u.RawQuery = url.Values{
			"name":        {name},
			"countryCode": {q.Country},
			"count":       {"10"},
			"language":    {"en"},
			"format":      {"json"},
		}.Encode()
		var answer meteoPlaces
		if err := getJSON(ctx, s.Client, SourceOpenMeteo, u, &answer, meteoReason); err != nil {
			return meteoPlace{}, err
		}
		for _, place := range answer.Results {
			if place.Country == q.Country && slices.ContainsFunc(place.Postcodes, func(code string) bool {
				return strings.EqualFold(code, name)
			}) {
				if math.Abs(place.Latitude) > 90 || math.Abs(place.Longitude) > 180 {
					return meteoPlace{}, &ServiceError{Service: SourceOpenMeteo, Err: errors.New("its answer has a place that is not on earth")}
				}
				return place, nil
			}
		}
	}
	return meteoPlace{}, ErrUnknownPlace
}

// meteoReason reads {"error": true, "reason": "…"}.
func meteoReason(body []byte) string {
	var answer struct {
		Reason string `json:"reason"`
	}
	json.Unmarshal(body, &answer) // no reason is a fine answer
	return excerpt(answer.Reason)
}

// wmo sorts and names the weather codes of Open-Meteo.
func wmo(code int) (Sky, string) {
	switch code {
	case 0:
		return Clear, "clear sky"
	case 1:
		return PartlyCloudy, "mainly clear"
	case 2:
		return PartlyCloudy, "partly cloudy"
	case 3:
		return Cloudy, "overcast"
	case 45:
		return Fog, "fog"
	case 48:
		return Fog, "depositing rime fog"
	case 51:
		return Drizzle, "light drizzle"
	case 53:
		return Drizzle, "drizzle"
	case 55:
		return Drizzle, "dense drizzle"
	case 56, 57:
		return Sleet, "freezing drizzle"
	case 61:
		return Rain, "slight rain"
	case 63:
		return Rain, "rain"
	case 65:
		return Rain, "heavy rain"
	case 66, 67:
		return Sleet, "freezing rain"
	case 71:
		return Snow, "slight snow fall"
	case 73:
		return Snow, "snow fall"
	case 75:
		return Snow, "heavy snow fall"
	case 77:
		return Snow, "snow grains"
	case 80:
		return Rain, "slight rain showers"
	case 81:
		return Rain, "rain showers"
	case 82:
		return Rain, "violent rain showers"
	case 85, 86:
		return Snow, "snow showers"
	case 95:
		return Thunderstorm, "thunderstorm"
	case 96, 99:
		return Thunderstorm, "thunderstorm with hail"
	}
	return Unknown, "unknown"
}
