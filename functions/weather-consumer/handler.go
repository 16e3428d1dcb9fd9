// Package function is weather-consumer: the page that people open and the JSON
// that programs ask. It calls weather-producer by its name through the gateway,
// never by an address, and gives the last good answer, marked stale, when the
// producer cannot be reached.
//
//	GET /                                    the page with an empty form
//	GET /?zip=70569&country=DE&units=metric  the page or JSON, by Accept
//	GET /?zip=70569&format=json              JSON, for links: they send no Accept
//
// It lives below a path such as /function/weather-consumer, with or without a
// slash at its end, so every link in the page is a query string alone.
package function

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"sync"

	"github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/functions/weather"
)

// Config is the function's settings, read from its environment.
type Config struct {
	weather.Common

	// Gateway is where functions are called. Thicket says it to its functions;
	// faasd and Kubernetes don't, and both resolve the default. gateway_url wins
	// over OPENFAAS_URL, since the latter is also what people set for faas-cli.
	Gateway  weather.BaseURL `env:"gateway_url"`
	OpenFaaS weather.BaseURL `env:"OPENFAAS_URL" envDefault:"http://gateway.openfaas:8080"`

	// Direct has the producer's replicas called without the hop through the
	// gateway, where the platform says where they are: under Thicket, with the
	// annotation thicket.discovery. Else all goes through the gateway.
	Direct    bool `env:"weather_direct" envDefault:"false"`
	Discovery discovery.Config

	// Producer is the name of the function that is asked, in this function's own
	// namespace.
	Producer string `env:"weather_producer" envDefault:"weather-producer"`

	// Function is what this function is called. One of another name shares
	// nothing with it.
	Function string `env:"OPENFAAS_NAME" envDefault:"weather-consumer"`

	// Timeout bounds one call of the producer, including its waking up. It has
	// to fit into the function's own exec_timeout.
	Timeout weather.Wait `env:"weather_timeout" envDefault:"5s"`

	// Rest is how long a producer that failed three times in a row is left alone,
	// while old answers are given at once.
	Rest weather.Wait `env:"weather_rest" envDefault:"3s"`
}

// Handle answers one request.
func Handle(w http.ResponseWriter, r *http.Request) { handler().ServeHTTP(w, r) }

// handler is made once, by the first request, from the environment.
var handler = sync.OnceValue(func() http.Handler {
	log := slog.Default()
	cfg, err := weather.Settings[Config](os.Environ())
	var h http.Handler
	if err == nil {
		cfg.Log = log
		h, err = New(cfg)
	}
	if err != nil {
		log.Error("weather-consumer has wrong settings and answers nothing", "err", err)
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			weather.NewProblem(http.StatusInternalServerError, "", "The function's settings are wrong. Its log says which.").Write(w)
		})
	}
	return h
})

// New returns the function as a handler.
func New(cfg Config) (*Consumer, error) {
	producer, err := newProducer(cfg)
	if err != nil {
		return nil, err
	}
	guard := cfg.Guard(cfg.Function, cfg.Timeout, cfg.Rest)
	guard.Source = producer
	guard.Name = cfg.Producer
	guard.Origin = []string{cfg.Producer} // not where the gateway is: that may differ from node to node
	guard.StaleMessage = weather.MessageUnreachable
	source, err := weather.NewGuard(guard)
	if err != nil {
		return nil, errors.Join(err, producer.Close())
	}
	return &Consumer{
		source:   source,
		producer: producer,
		country:  string(cfg.Country),
		replica:  weather.ReplicaName(cfg.Replica),
		log:      cfg.Log,
	}, nil
}

// Consumer is the function as a handler.
type Consumer struct {
	source   *weather.Guard
	producer *producer // behind source
	country  string    // the default
	replica  string
	log      *slog.Logger
}

// answer is what JSON readers get: the producer's report, and who passed it on.
type answer struct {
	weather.Report
	Consumer string `json:"consumer"`
}

// Close ends what the handler does beside answering, and waits for it.
func (c *Consumer) Close() error { return errors.Join(c.source.Close(), c.producer.Close()) }

// ServeHTTP answers one request.
func (c *Consumer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !weather.Answerable(w, r) {
		return
	}
	// Two forms of one resource: whoever stores an answer must keep them apart.
	w.Header().Set("Vary", "Accept")
	if wantsPage(r) {
		c.page(w, r)
		return
	}
	q, err := weather.ParseQuery(r.URL.RawQuery, c.country)
	var report weather.Report
	if err == nil {
		report, err = c.source.Report(weather.RequestContext(r), q)
	}
	switch {
	case err == nil:
		weather.WriteJSON(w, answer{Report: report, Consumer: c.replica})
	case r.Context().Err() != nil: // nobody is listening any more
	default:
		c.problem(r, q, err).Write(w)
	}
}

// problem is what a stranger is told of err; the log is told the rest.
func (c *Consumer) problem(r *http.Request, q weather.Query, err error) weather.Problem {
	problem := weather.ProblemOf(q, err)
	if problem.Status >= 500 {
		c.log.ErrorContext(r.Context(), "no answer", "err", err)
	}
	return problem
}
