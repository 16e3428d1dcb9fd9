package weather_test

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/weather"
)

func simulated(t *testing.T, q weather.Query) weather.Report {
	t.Helper()
	r, err := weather.Simulation{}.Report(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSimulationIsSteadyWithinTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		first := simulated(t, stuttgart)
		time.Sleep(time.Hour - time.Nanosecond)
		sameReport(t, simulated(t, stuttgart), first)
		if first.Source != weather.SourceSimulated {
			t.Errorf("source = %q, want it labelled %q", first.Source, weather.SourceSimulated)
		}
		changed := 0
		for range 24 {
			time.Sleep(time.Hour)
			if next := simulated(t, stuttgart); next.Temperature != first.Temperature {
				changed++
			}
		}
		if changed < 12 {
			t.Errorf("the temperature differs in %d of 24 hours, want most", changed)
		}
	})
}

func TestSimulationSpeaksBothUnits(t *testing.T) {
	q := stuttgart
	metric := simulated(t, q)
	q.Units = weather.Imperial
	imperial := simulated(t, q)
	if want := metric.Temperature*9/5 + 32; math.Abs(imperial.Temperature-want) > 0.2 {
		t.Errorf("%.1f °C is %.1f °F, want %.1f", metric.Temperature, imperial.Temperature, want)
	}
	if want := metric.Wind.Speed / 0.44704; math.Abs(imperial.Wind.Speed-want) > 0.2 {
		t.Errorf("%.1f m/s is %.1f mph, want %.1f", metric.Wind.Speed, imperial.Wind.Speed, want)
	}
	if metric.Conditions != imperial.Conditions {
		t.Errorf("conditions are %v in metric and %v in imperial", metric.Conditions, imperial.Conditions)
	}
}

func TestSimulationKnowsNoPlaceOfZeros(t *testing.T) {
	for _, zip := range []string{"0", "00000", "00000-0000"} {
		_, err := weather.Simulation{}.Report(t.Context(), weather.Query{Zip: zip, Country: "DE", Units: weather.Metric})
		if !errors.Is(err, weather.ErrUnknownPlace) {
			t.Errorf("Report(%s) error = %v, want %v", zip, err, weather.ErrUnknownPlace)
		}
	}
}

// TestSimulationIsPlausible walks a year in several climates.
func TestSimulationIsPlausible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight of 2000-01-01 UTC
		countries := []string{"DE", "FI", "SG", "AU", "ZW"}
		var north struct{ summer, winter float64 }
		skies := map[weather.Sky]int{}
		for hour := 0; hour < 366*24; hour += 5 {
			for i, country := range countries {
				r := simulated(t, weather.Query{Zip: fmt.Sprint(10000 + 7*i), Country: country, Units: weather.Metric})
				usable(t, r)
				skies[r.Conditions.Sky]++
				if r.Temperature < -45 || r.Temperature > 48 {
					t.Fatalf("%s: %.1f °C at %s", country, r.Temperature, r.ObservedAt)
				}
				if *r.Humidity < 20 || *r.Humidity > 100 || *r.Pressure < 950 || *r.Pressure > 1060 || r.Wind.Speed < 0 || r.Wind.Speed > 30 {
					t.Fatalf("%s: humidity %v, pressure %v, wind %v", country, *r.Humidity, *r.Pressure, r.Wind)
				}
				if *r.Wind.Direction < 0 || *r.Wind.Direction > 360 {
					t.Fatalf("%s: wind from %v", country, *r.Wind.Direction)
				}
				if r.Conditions.Sky == weather.Snow && r.Temperature > 3 {
					t.Fatalf("%s: snow at %.1f °C", country, r.Temperature)
				}
				if local := r.ObservedAt.Hour(); country == "DE" && (local == 12 || local == 0) && r.Conditions.Night != (local == 0) {
					t.Fatalf("night at %s: %t", r.ObservedAt, r.Conditions.Night)
				}
				if country == "DE" {
					switch r.ObservedAt.Month() {
					case time.July:
						north.summer += r.Temperature
					case time.January:
						north.winter += r.Temperature
					}
				}
			}
			time.Sleep(5 * time.Hour)
		}
		if north.summer < north.winter+15*31*24/5 {
			t.Errorf("July is %.0f degree-hours and January %.0f, want summer in the north", north.summer, north.winter)
		}
		for _, sky := range []weather.Sky{weather.Clear, weather.PartlyCloudy, weather.Cloudy, weather.Rain, weather.Snow} {
			if skies[sky] == 0 {
				t.Errorf("a year without %s: %v", sky, skies)
			}
		}
	})
}
