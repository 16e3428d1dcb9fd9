package weather

import (
	"fmt"
	"net/url"
	"strings"
)

// maxZip bounds a postal code. The longest in use have 10 characters (Iran, the
// US with its extension); 12 leaves room for how people write them.
const maxZip = 12

// Query is a question, checked and in its one normal form: two ways to write
// the same place give equal queries. The zero value asks for nothing.
type Query struct {
	Zip     string // 1 to 12 of A-Z, 0-9, space and hyphen
	Country string // ISO 3166-1 alpha-2, upper case
	Units   Units
}

// Place returns what is asked about, without a name.
func (q Query) Place() Place { return Place{Zip: q.Zip, Country: q.Country} }

// InvalidError says which part of a question is wrong, in a sentence for the
// person who asked.
type InvalidError struct {
	Field  string // the parameter: zip, country, units; empty for the whole
	Detail string
}

// Error returns the sentence.
func (e *InvalidError) Error() string { return e.Detail }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Detail: fmt.Sprintf(format, args...)}
}

// ParseQuery reads zip, country and units from a query string, or zipCode and
// countryCode, as this application's ancestor called them. A missing country is
// the given default, missing units are metric. The error is an [*InvalidError].
func ParseQuery(raw, country string) (Query, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return Query{}, invalid("", "The query string cannot be read. Write ?zip=70569&country=DE.")
	}
	var q Query
	if q.Zip, err = parseZip(first(values, "zip", "zipCode")); err != nil {
		return Query{}, err
	}
	if given := strings.TrimSpace(first(values, "country", "countryCode")); given != "" {
		country = given
	}
	if q.Country, err = ParseCountry(country); err != nil {
		return Query{}, err
	}
	if q.Units, err = parseUnits(values.Get("units")); err != nil {
		return Query{}, err
	}
	return q, nil
}

// first returns the first of the named parameters that says something.
func first(values url.Values, names ...string) string {
	for _, name := range names {
		if v := values.Get(name); strings.TrimSpace(v) != "" {
			return v
		}
	}
	return ""
}

// parseZip returns a postal code in upper case with single spaces.
func parseZip(s string) (string, error) {
	// The bound comes first, so that no work is done on a long one. Twice the
	// bound leaves room for spaces that are about to go.
	if len(s) > 2*maxZip {
		return "", invalid("zip", "A zip code has at most %d characters.", maxZip)
	}
	zip := strings.Join(strings.Fields(s), " ")
	if zip == "" {
		return "", invalid("zip", "Which place? Give its zip code, such as 70569.")
	}
	if len(zip) > maxZip {
		return "", invalid("zip", "A zip code has at most %d characters.", maxZip)
	}
	for i, c := range []byte(zip) {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == ' ' || c == '-') && 0 < i && i < len(zip)-1:
		default:
			return "", invalid("zip", "A zip code has letters A-Z, digits, and spaces or hyphens between them.")
		}
	}
	return strings.ToUpper(zip), nil
}

func parseUnits(s string) (Units, error) {
	switch u := Units(strings.ToLower(strings.TrimSpace(s))); u {
	case "":
		return Metric, nil
	case Metric, Imperial:
		return u, nil
	default:
		return "", invalid("units", "Units are either metric or imperial.")
	}
}

// ParseCountry returns an ISO 3166-1 alpha-2 code in upper case. UK, which the
// standard keeps free for those who write it, becomes GB. The error is an
// [*InvalidError].
func ParseCountry(s string) (string, error) {
	code := strings.TrimSpace(s)
	// Two bytes first: there are letters that become A-Z only in upper case.
	if len(code) == 2 {
		code = strings.ToUpper(code)
	}
	if code == "UK" {
		code = "GB"
	}
	if len(code) != 2 || !strings.Contains(countries, " "+code+" ") {
		return "", invalid("country", "A country is two letters of ISO 3166, such as DE, GB or US.")
	}
	return code, nil
}

// countries are the officially assigned codes, and XK, which weather services
// use for Kosovo.
const countries = " " +
	"AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ " +
	"CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR " +
	"GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP " +
	"KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT " +
	"MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW " +
	"SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG " +
	"UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW "
