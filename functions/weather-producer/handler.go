// Package function is weather-producer: it asks the weather services, trims
// their answer to a [weather.Report], and gives the last good one, marked stale,
// when they fail.
//
//	GET /?zip=70569&country=DE&units=metric
//
// The service is OpenWeatherMap if there is a key, else Open-Meteo, which needs
// none. Two answers are never old ones: 400 for a wrong question and 404 for a
// place that no service knows. Everything else that goes wrong is answered with
// 200 and a report that says how old it is, that it is simulated, or that it is
// empty, in this order. What one replica was answered all give, if there is a
// Redis to share.
package function

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/seed-780dceda/thicket/functions/weather"
)

// keyName is the secret that holds the key of OpenWeatherMap.
const keyName = "openweathermap-api-key"

// Config is the function's settings, read from its environment.
type Config struct {
	weather.Common

	// Where the services are, so that tests and demonstrations can break them.
	OpenWeatherMap weather.BaseURL `env:"openweathermap_url" envDefault:"https://api.openweathermap.org"`
	OpenMeteo      weather.BaseURL `env:"openmeteo_url" envDefault:"https://api.open-meteo.com"`
	Geocoding      weather.BaseURL `env:"openmeteo_geocoding_url" envDefault:"https://geocoding-api.open-meteo.com"`

	// Simulate allows invented weather, labelled as such, when the service
	// fails and no answer is remembered.
	Simulate bool `env:"weather_simulate" envDefault:"false"`

	// Timeout bounds one question to a service. It has to fit into the
	// function's own exec_timeout, and the consumer's weather_timeout.
	Timeout weather.Wait `env:"weather_timeout" envDefault:"3s"`

	// Rest is how long a service that failed three times in a row is left alone,
	// while old answers are given at once.
	Rest weather.Wait `env:"weather_rest" envDefault:"5s"`

	// Function is what this function is called. One of another name shares
	// nothing with it.
	Function string `env:"OPENFAAS_NAME" envDefault:"weather-producer"`

	// Secrets is the folder of the secrets. The one called
	// openweathermap-api-key is optional.
	Secrets string `env:"secret_mount_path" envDefault:"/var/openfaas/secrets"`
}

// Handle answers one request.
func Handle(w http.ResponseWriter, r *http.Request) { handler().ServeHTTP(w, r) }

// handler is made once, by the first request, from the environment.
var handler = sync.OnceValue(func() http.Handler {
	log := slog.Default()
	cfg, err := weather.Settings[Config](os.Environ())
	if err == nil {
		cfg.Log = log
		var h http.Handler
		if h, err = New(cfg); err == nil {
			return h
		}
	}
	log.Error("weather-producer has wrong settings and answers nothing", "err", err)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		weather.NewProblem(http.StatusInternalServerError, "", "The function's settings are wrong. Its log says which.").Write(w)
	})
})

// New returns the function as a handler.
func New(cfg Config) (*Producer, error) {
	key, err := readKey(cfg.Secrets)
	if err != nil {
		return nil, err
	}
	client := weather.NewClient()
	guard := cfg.Guard(cfg.Function, cfg.Timeout, cfg.Rest)
	guard.Source = weather.OpenMeteo{Geocoding: &cfg.Geocoding.URL, Forecast: &cfg.OpenMeteo.URL, Client: client}
	guard.Name = weather.SourceOpenMeteo
	guard.Origin = []string{weather.SourceOpenMeteo, cfg.Geocoding.String(), cfg.OpenMeteo.String()}
	guard.StaleMessage = weather.MessageStale
	if key != "" {
		guard.Source = weather.OpenWeatherMap{Base: &cfg.OpenWeatherMap.URL, Key: key, Client: client}
		guard.Name = weather.SourceOpenWeatherMap
		guard.Origin = []string{weather.SourceOpenWeatherMap, cfg.OpenWeatherMap.String()}
	}
	if cfg.Simulate {
		guard.Simulation = weather.Simulation{}
	}
	guarded, err := weather.NewGuard(guard)
	if err != nil {
		return nil, err
	}
	return &Producer{
		source:  guarded,
		country: string(cfg.Country),
		replica: weather.ReplicaName(cfg.Replica),
		log:     cfg.Log,
	}, nil
}

// Producer is the function as a handler.
type Producer struct {
	source  *weather.Guard
	country string // the default
	replica string
	log     *slog.Logger
}

// Close ends what the handler does beside answering, and waits for it.
func (p *Producer) Close() error { return p.source.Close() }

// ServeHTTP answers one request.
func (p *Producer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !weather.Answerable(w, r) {
		return
	}
	q, err := weather.ParseQuery(r.URL.RawQuery, p.country)
	var report weather.Report
	if err == nil {
		report, err = p.source.Report(weather.RequestContext(r), q)
	}
	switch {
	case err == nil:
		report.ServedBy = p.replica
		weather.WriteJSON(w, report)
	case r.Context().Err() != nil: // nobody is listening any more
	default:
		problem := weather.ProblemOf(q, err)
		if problem.Status >= 500 {
			p.log.ErrorContext(r.Context(), "no answer", "err", err)
		}
		problem.Write(w)
	}
}

// readKey reads the key of OpenWeatherMap. Without one it is empty.
func readKey(secrets string) (string, error) {
	text, err := os.ReadFile(filepath.Join(secrets, keyName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the secret %s: %w", keyName, err)
	}
	return strings.TrimSpace(string(text)), nil // echo leaves a newline behind
}
