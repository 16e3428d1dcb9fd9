package weather

import (
	"cmp"
	"errors"
	"fmt"
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
