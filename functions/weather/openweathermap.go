package weather

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// OpenWeatherMap asks api.openweathermap.org for the current weather at a zip
// code, with the reader's own key.
type OpenWeatherMap struct {
	Base   *url.URL // https://api.openweathermap.org
	Key    string
	Client *http.Client
}

// owmAnswer is the part of data/2.5/weather that is used. See
// https://openweathermap.org/current#fields_json.
type owmAnswer struct {
	Weather []struct {
		ID          int    `json:"id"`
		Description string `json:"description"`
		Icon        string `json:"icon"` // "10n": the letter is d by day and n by night
	} `json:"weather"`
	Main struct {
		Temp      *float64 `json:"temp"`
		FeelsLike *float64 `json:"feels_like"`
		Pressure  *float64 `json:"pressure"` // at sea level
		Humidity  *float64 `json:"humidity"`
	} `json:"main"`
	Wind struct {
		Speed *float64 `json:"speed"`
		Deg   *float64 `json:"deg"`
		Gust  *float64 `json:"gust"`
	} `json:"wind"`
	Time     int64  `json:"dt"`       // Unix seconds
	Timezone int    `json:"timezone"` // seconds east of UTC
	Name     string `json:"name"`
}

// Report asks for the weather at one place.
func (s OpenWeatherMap) Report(ctx context.Context, q Query) (Report, error) {
	u := s.Base.JoinPath("data/2.5/weather")
	u.RawQuery = url.Values{
		"zip":   {q.Zip + "," + q.Country},
		"units": {string(q.Units)},
		"appid": {s.Key},
	}.Encode()
	var answer owmAnswer
	err := getJSON(ctx, s.Client, SourceOpenWeatherMap, u, &answer, owmReason)
	if failed, ok := errors.AsType[*ServiceError](err); ok {
		switch failed.Status {
		// The zip code is all that a request of ours can have wrong, so 400
		// ("invalid zip code") says the same as 404 ("city not found").
		case http.StatusNotFound, http.StatusBadRequest:
			return Report{}, ErrUnknownPlace
		}
	}
	if err != nil {
		return Report{}, err
	}
	observed, plausible := at(answer.Time, answer.Timezone)
	if answer.Main.Temp == nil || len(answer.Weather) == 0 || !plausible {
		return Report{}, &ServiceError{Service: SourceOpenWeatherMap, Err: errors.New("its answer has no weather in it")}
	}
	first := answer.Weather[0]
	place := q.Place()
	place.Name = answer.Name
	return Report{
		Place: place,
		Units: q.Units,
		Observation: &Observation{
			Temperature: *answer.Main.Temp,
			FeelsLike:   answer.Main.FeelsLike,
			Humidity:    answer.Main.Humidity,
			Pressure:    answer.Main.Pressure,
			Wind:        windOf(answer.Wind.Speed, answer.Wind.Deg, answer.Wind.Gust),
			Conditions: Conditions{
				Sky:         owmSky(first.ID),
				Description: first.Description,
				Night:       strings.HasSuffix(first.Icon, "n"),
			},
			ObservedAt: observed,
			Source:     SourceOpenWeatherMap,
		},
	}, nil
}

// owmReason reads {"cod":401, "message": "Invalid API key. …"}; cod is a number
// in some answers and a string in others, so it is left alone.
func owmReason(body []byte) string {
	var answer struct {
		Message string `json:"message"`
	}
	json.Unmarshal(body, &answer) // no message is a fine answer
	return excerpt(answer.Message)
}

// owmSky sorts https://openweathermap.org/weather-conditions.
func owmSky(id int) Sky {
	switch {
	case id >= 200 && id < 300:
		return Thunderstorm
	case id >= 300 && id < 400:
		return Drizzle
	case id == 511: // freezing rain
		return Sleet
	case id >= 500 && id < 600:
		return Rain
	case id >= 611 && id <= 616:
		return Sleet
	case id >= 600 && id < 700:
		return Snow
	case id == 771 || id == 781: // squalls, tornado
		return Storm
	case id >= 700 && id < 800:
		return Fog
	case id == 800:
		return Clear
	case id == 801 || id == 802:
		return PartlyCloudy
	case id == 803 || id == 804:
		return Cloudy
	}
	return Unknown
}

// windOf returns nil without a speed: a direction alone is no wind.
func windOf(speed, direction, gust *float64) *Wind {
	if speed == nil {
		return nil
	}
	return &Wind{Speed: *speed, Direction: direction, Gust: gust}
}

// at returns an instant with the place's own offset, and whether it is one that
// weather could have been observed at: a number that is off by a factor of a
// thousand isn't, nor can it be written as JSON. Offsets are whole minutes, as in
// JSON; one that no clock on earth shows is ignored.
func at(unix int64, offset int) (time.Time, bool) {
	t := time.Unix(unix, 0).UTC()
	if t.Year() < 2000 || t.Year() > 2999 {
		return time.Time{}, false
	}
	offset -= offset % 60
	if offset != 0 && offset > -18*3600 && offset < 18*3600 {
		t = t.In(time.FixedZone("", offset))
	}
	return t, true
}
