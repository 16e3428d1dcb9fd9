package weather

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"strings"
	"time"
)

// Simulation invents weather for demonstrations where no service can be
// reached. It is plausible for the season, the hour and the country's latitude,
// the same for one place within one hour whoever computes it, and always says
// that it is [SourceSimulated]. It knows every zip code but those of zeros
// alone, so that an unknown place can be demonstrated too.
type Simulation struct{}

// Report invents the weather of this hour.
func (Simulation) Report(_ context.Context, q Query) (Report, error) {
	if strings.Trim(q.Zip, "0 -") == "" {
		return Report{}, ErrUnknownPlace
	}
	return simulate(q, time.Now()), nil
}

func simulate(q Query, now time.Time) Report {
	climate, known := climates[q.Country]
	if !known {
		climate.latitude = noise(q, "latitude", 0)*110 - 50 // 50°S to 60°N, where people live
		climate.offset = int(noise(q, "offset", 0)*23) - 11
	}
	hour := now.Truncate(time.Hour)
	local := hour.In(time.FixedZone("", climate.offset*3600))
	clock := float64(local.Hour())
	latitude := climate.latitude + 4*noise(q, "place", 0) - 2

	// The weather comes and goes with the pressure, which wanders from day to
	// day and is interpolated in between; a little of it is local.
	days := float64(hour.Unix()) / 86400
	pressure := 1014 + 20*wander(q, "pressure", days/1.7)
	moisture := wander(q, "moisture", days/1.3)
	wet := (1014-pressure)/20 + moisture // about -1.5 (fine) to 1.5 (foul)

	// 27 °C on average at the equator, 10 at 48 degrees, below 0 at 65. Summer
	// is in late July, and half a year later in the south.
	season := math.Cos(2 * math.Pi * (float64(local.YearDay()) - 205) / 365.25)
	if latitude < 0 {
		season = -season
	}
	temperature := 27 - 0.0075*latitude*latitude +
		0.2*math.Abs(latitude)*season +
		4*wander(q, "air", days/2.3)

	// Warmest at three in the afternoon; clouds flatten the day.
	swing := 4 - 2.5*min(max(wet+0.5, 0), 1)
	temperature += swing * math.Cos(2*math.Pi*(clock-15)/24)

	wind := 2 + 3.5*math.Abs(wet) + 2*noise(q, "wind", hour.Unix())
	humidity := min(max(68+22*wet-1.5*swing*math.Cos(2*math.Pi*(clock-15)/24), 25), 99)
	direction := math.Mod(360+240+120*wander(q, "direction", days/0.9), 360)
	daylight := 6 + 2*season*math.Abs(latitude)/60 // hours either side of one o'clock, nearly noon by the sun
	sky, description := simulatedSky(wet, temperature, wind, noise(q, "sky", hour.Unix()))

	feels := apparent(temperature, humidity, wind)
	if q.Units == Imperial {
		temperature, feels = temperature*9/5+32, feels*9/5+32
		wind *= 3600 / 1609.344
	}
	return Report{
		Place: q.Place(),
		Units: q.Units,
		Observation: &Observation{
			Temperature: round(temperature, 1),
			FeelsLike:   new(round(feels, 1)),
			Humidity:    new(round(humidity, 0)),
			Pressure:    new(round(pressure, 0)),
			Wind:        &Wind{Speed: round(wind, 1), Direction: new(round(direction, 0)), Gust: new(round(wind*1.6, 1))},
			Conditions: Conditions{
				Sky:         sky,
				Description: description,
				Night:       math.Abs(clock-12.5) > daylight,
			},
			ObservedAt: local,
			Source:     SourceSimulated,
		},
	}
}

// simulatedSky is the sky for how wet the air is.
func simulatedSky(wet, celsius, wind, luck float64) (Sky, string) {
	switch {
	case wet < -0.45:
		return Clear, "clear sky"
	case wet < -0.05:
		return PartlyCloudy, "scattered clouds"
	case wet < 0.35 && wind < 4 && celsius > -2 && celsius < 12 && luck < 0.35:
		return Fog, "fog"
	case wet < 0.35:
		return Cloudy, "overcast clouds"
	case celsius < -0.5:
		return Snow, "light snow"
	case celsius < 1.5:
		return Sleet, "sleet"
	case wet > 0.75 && celsius > 18 && luck < 0.6:
		return Thunderstorm, "thunderstorm"
	case wet > 0.7:
		return Rain, "moderate rain"
	case luck < 0.4:
		return Drizzle, "light drizzle"
	}
	return Rain, "light rain"
}

// apparent is how an air temperature feels: the wind chill of the North
// American and British services in the cold, the humidity's share of Steadman's
// shade formula in the heat, the temperature itself in between.
func apparent(celsius, humidity, wind float64) float64 {
	switch {
	case celsius <= 10 && wind > 1.34: // 4.8 km/h, below which there is no chill
		v := math.Pow(wind*3.6, 0.16)
		return 13.12 + 0.6215*celsius - 11.37*v + 0.3965*celsius*v
	case celsius >= 20:
		vapour := humidity / 100 * 6.105 * math.Exp(17.27*celsius/(237.7+celsius)) // hPa
		return celsius + 0.33*vapour - 0.70*wind - 4
	}
	return celsius
}

// noise is a number of [0,1), always the same for the same place, name and
// step.
func noise(q Query, name string, step int64) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s|%s|%s|%d", q.Country, q.Zip, name, step)
	// FNV leaves the high bits of like inputs alike; this mixes them.
	x := h.Sum64()
	x = (x ^ x>>32) * 0x9e3779b97f4a7c15
	x ^= x >> 29
	return float64(x>>11) / (1 << 53)
}

// wander is a number of (-1,1) that moves smoothly with position, between
// values of noise at whole positions.
func wander(q Query, name string, position float64) float64 {
	floor := math.Floor(position)
	part := position - floor
	part = part * part * (3 - 2*part)
	a, b := noise(q, name, int64(floor)), noise(q, name, int64(floor)+1)
	return 2*(a+(b-a)*part) - 1
}

func round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale)/scale + 0 // -0 becomes 0
}

// climates are the middles of some countries, and their winter hours from UTC.
var climates = map[string]struct {
	latitude float64
	offset   int
}{
	"AR": {-34, -3}, "AT": {47, 1}, "AU": {-34, 10}, "BE": {51, 1}, "BR": {-15, -3}, "CA": {47, -5}, "CH": {47, 1},
	"CL": {-33, -4}, "CN": {33, 8}, "CZ": {50, 1}, "DE": {50, 1}, "DK": {56, 1}, "EG": {29, 2}, "ES": {40, 1},
	"FI": {61, 2}, "FR": {47, 1}, "GB": {52, 0}, "GR": {38, 2}, "HU": {47, 1}, "IE": {53, 0}, "IN": {21, 5},
	"IS": {64, 0}, "IT": {43, 1}, "JP": {36, 9}, "KE": {0, 3}, "KR": {37, 9}, "MX": {21, -6}, "NL": {52, 1},
	"NO": {60, 1}, "NZ": {-40, 12}, "PL": {52, 1}, "PT": {39, 0}, "RO": {45, 2}, "SE": {59, 1}, "SG": {1, 8},
	"TR": {39, 3}, "UA": {49, 2}, "US": {39, -5}, "ZA": {-29, 2},
}
