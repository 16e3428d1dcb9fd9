package weather_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/functions/weather"
)

func ExampleParseQuery() {
	q, err := weather.ParseQuery("zip=sw1a++1aa&country=uk", "DE")
	fmt.Println(q, err)
	_, err = weather.ParseQuery("zip=70569;drop", "DE")
	fmt.Println(err)
	// Output:
	// {SW1A 1AA GB metric} <nil>
	// The query string cannot be read. Write ?zip=70569&country=DE.
}

func TestParseQuery(t *testing.T) {
	for _, test := range []struct {
		raw   string
		want  weather.Query
		field string // of the error, if one is wanted
	}{
		{raw: "zip=70569", want: weather.Query{Zip: "70569", Country: "DE", Units: weather.Metric}},
		{raw: "zip=70569&country=&units=", want: weather.Query{Zip: "70569", Country: "DE", Units: weather.Metric}},
		{raw: "zip=10001&country=us&units=Imperial", want: weather.Query{Zip: "10001", Country: "US", Units: weather.Imperial}},
		{raw: "zipCode=8001&countryCode=CH", want: weather.Query{Zip: "8001", Country: "CH", Units: weather.Metric}},
		{raw: "zip=8001&zipCode=9&country=CH&countryCode=AT", want: weather.Query{Zip: "8001", Country: "CH", Units: weather.Metric}},
		{raw: "zip=&zipCode=8001", want: weather.Query{Zip: "8001", Country: "DE", Units: weather.Metric}},
		{raw: "zip=+sw1a++1aa+&country=GB", want: weather.Query{Zip: "SW1A 1AA", Country: "GB", Units: weather.Metric}},
		{raw: "zip=1234567890-1", want: weather.Query{Zip: "1234567890-1", Country: "DE", Units: weather.Metric}},
		{raw: "zip=12345-6789&country=%20us%20", want: weather.Query{Zip: "12345-6789", Country: "US", Units: weather.Metric}},
		{raw: "zip=1&country=UK", want: weather.Query{Zip: "1", Country: "GB", Units: weather.Metric}},
		{raw: "", field: "zip"},
		{raw: "zip=", field: "zip"},
		{raw: "zip=%20%09", field: "zip"},
		{raw: "zip=12345678901234", field: "zip"},
		{raw: "zip=" + strings.Repeat("1", 1<<20), field: "zip"},
		{raw: "zip=1%00", field: "zip"},
		{raw: "zip=70569,US", field: "zip"},
		{raw: "zip=..%2F..", field: "zip"},
		{raw: "zip=-1", field: "zip"},
		{raw: "zip=1-", field: "zip"},
		{raw: "zip=%EF%BC%91%EF%BC%92", field: "zip"}, // full-width digits
		{raw: "zip=<script>", field: "zip"},
		{raw: "zip=%C5%BF1", field: "zip"}, // a letter that becomes S in upper case
		{raw: "zip=1&country=D", field: "country"},
		{raw: "zip=1&country=XX", field: "country"},
		{raw: "zip=1&country=E%20", field: "country"},
		{raw: "zip=1&country=D%20DE", field: "country"},
		{raw: "zip=1&country=%C5%BFE", field: "country"}, // a letter that becomes S in upper case
		{raw: "zip=1&country=Germany", field: "country"},
		{raw: "zip=1&units=kelvin", field: "units"},
		{raw: "zip=%zz", field: ""},
		{raw: "zip=1;country=DE", field: ""},
	} {
		name := test.raw[:min(len(test.raw), 40)]
		t.Run(name, func(t *testing.T) {
			got, err := weather.ParseQuery(test.raw, "DE")
			if test.want != (weather.Query{}) {
				if err != nil || got != test.want {
					t.Errorf("ParseQuery() = %q, %v, want %q", got, err, test.want)
				}
				return
			}
			wrong, ok := errors.AsType[*weather.InvalidError](err)
			if !ok || wrong.Field != test.field || wrong.Detail == "" {
				t.Errorf("ParseQuery() = %q, %v, want an *InvalidError about %q", got, err, test.field)
			}
		})
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("70569", "DE", "metric")
	f.Add("SW1A 1AA", "uk", "IMPERIAL")
	f.Add(" \t1-2 ", "\u017fe", "\x00")
	f.Fuzz(func(t *testing.T, zip, country, units string) {
		raw := url.Values{"zip": {zip}, "country": {country}, "units": {units}}.Encode()
		q, err := weather.ParseQuery(raw, "DE")
		if err != nil {
			if _, ok := errors.AsType[*weather.InvalidError](err); !ok {
				t.Fatalf("ParseQuery(%q) error = %T, want an *InvalidError", raw, err)
			}
			return
		}
		const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
		if len(q.Zip) < 1 || len(q.Zip) > 12 || strings.Trim(q.Zip, letters+"0123456789 -") != "" {
			t.Errorf("ParseQuery(%q) lets the zip code %q pass", raw, q.Zip)
		}
		if len(q.Country) != 2 || strings.Trim(q.Country, letters) != "" {
			t.Errorf("ParseQuery(%q) lets the country %q pass", raw, q.Country)
		}
		again, err := weather.ParseQuery(url.Values{"zip": {q.Zip}, "country": {q.Country}, "units": {string(q.Units)}}.Encode(), "US")
		if err != nil || again != q {
			t.Errorf("ParseQuery of the normal form = %q, %v, want %q", again, err, q)
		}
	})
}
