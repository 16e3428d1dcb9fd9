package weather

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Settings reads a struct with env tags from an environment, as os.Environ
// gives it. The error tells every mistake, by the name of its variable.
func Settings[T any](environ []string) (T, error) {
	settings, err := env.ParseAsWithOptions[T](env.Options{Environment: env.ToMap(environ)})
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		return settings, err
	}
	for i, err := range all.Errors {
		if wrong, ok := errors.AsType[env.ParseError](err); ok {
			if field, ok := reflect.TypeFor[T]().FieldByName(wrong.Name); ok {
				name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
				all.Errors[i] = fmt.Errorf("setting %s: %w", name, wrong.Err)
			}
		}
	}
	return settings, errors.Join(all.Errors...)
}

// Common is the settings that the weather functions have in common. What has
// another default in each stands in their own.
type Common struct {
	// Country is meant by a question that names none.
	Country Country `env:"weather_country" envDefault:"DE"`

	// Fresh is how long a report is given again without asking; for as long
	// after that it is given while a younger one is asked for. 0 asks every time.
	Fresh Span `env:"weather_fresh" envDefault:"60s"`

	// Remember is how many reports are remembered in this process, RememberFor
	// how old they may get.
	Remember    Count `env:"weather_remember" envDefault:"1000"`
	RememberFor Wait  `env:"weather_remember_for" envDefault:"24h"`

	// Redis is where all replicas share what they remember. Thicket gives it to
	// its functions; without it each replica remembers for itself.
	Redis string `env:"THICKET_REDIS_URL"`

	// Namespace is where the function is.
	Namespace string `env:"OPENFAAS_NAMESPACE" envDefault:"openfaas-fn"`

	// Replica is what the function says who answered; the host's name if it is
	// empty.
	Replica string `env:"THICKET_REPLICA"`

	// Log is where the function logs; the template adds the call id.
	Log *slog.Logger `env:"-"`
}

// Guard returns what is common to the guards of these functions: timeout bounds
// one question, and rest is how long who failed three times in a row is left
// alone.
func (c *Common) Guard(function string, timeout, rest Wait) GuardConfig {
	return GuardConfig{
		Function:    function + "." + c.Namespace,
		Deadline:    time.Duration(timeout),
		Rest:        time.Duration(rest),
		Fresh:       time.Duration(c.Fresh),
		Remember:    int(c.Remember),
		RememberFor: time.Duration(c.RememberFor),
		RedisURL:    c.Redis,
		Log:         c.Log,
	}
}

// BaseURL is where a service is, as a setting: http or https, a host, perhaps a
// path in front of the service's own.
type BaseURL struct{ url.URL }

// UnmarshalText parses a setting.
func (b *BaseURL) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is no base URL: write https://host or http://host:port", excerpt(string(text)))
	}
	b.URL = *u
	return nil
}

// Country is a country as a setting.
type Country string

// UnmarshalText parses a setting.
func (c *Country) UnmarshalText(text []byte) error {
	code, err := ParseCountry(string(text))
	*c = Country(code)
	return err
}

// Wait is a positive duration as a setting: "3s", or "3" as OpenFaaS has it.
type Wait time.Duration

// UnmarshalText parses a setting.
func (w *Wait) UnmarshalText(text []byte) error {
	d, err := parseDuration(string(text))
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is no duration above 0: write 3s or 500ms", excerpt(string(text)))
	}
	*w = Wait(d)
	return nil
}

// Span is a duration as a setting that may also be 0.
type Span time.Duration

// UnmarshalText parses a setting.
func (p *Span) UnmarshalText(text []byte) error {
	d, err := parseDuration(string(text))
	if err != nil || d < 0 {
		return fmt.Errorf("%q is no duration: write 60s, or 0 for none", excerpt(string(text)))
	}
	*p = Span(d)
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = time.ParseDuration(s + "s")
	}
	return d, err
}

// Count is a positive number as a setting.
type Count int

// UnmarshalText parses a setting.
func (c *Count) UnmarshalText(text []byte) error {
	var n int
	if _, err := fmt.Sscanf(string(text), "%d", &n); err != nil || fmt.Sprint(n) != string(text) || n < 1 || n > 1_000_000 {
		return fmt.Errorf("%q is no number from 1 to 1000000", excerpt(string(text)))
	}
	*c = Count(n)
	return nil
}

// ReplicaName is what a replica calls itself: what the platform says, else the
// name of its machine or container.
func ReplicaName(given string) string {
	host, _ := os.Hostname() // no name is a fine answer
	return cmp.Or(given, host, "unnamed")
}
