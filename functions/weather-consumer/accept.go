package function

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// wantsPage decides between the page and JSON: what ?format= says, since a link
// sends no Accept of its own, else what Accept prefers. Programs that say
// nothing, or that everything will do, get JSON; browsers name text/html.
func wantsPage(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return false
	case "html":
		return true
	}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	page := quality(accept, "text", "html")
	return page > 0 && page > max(
		quality(accept, "application", "json"),
		quality(accept, "application", "problem+json"))
}

// quality is how much Accept wants a media type, from 0 to 1. The most specific
// range that matches decides (RFC 9110, section 12.5.1), and the best of those
// that are equally specific. A range that cannot be read is no range.
func quality(accept, kind, subtype string) float64 {
	best, specific := 0.0, 0
	for text := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(text)
		if err != nil {
			continue
		}
		rank := 0
		switch media {
		case kind + "/" + subtype:
			rank = 3
		case kind + "/*":
			rank = 2
		case "*/*":
			rank = 1
		default:
			continue
		}
		q := 1.0
		if given, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(given, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		if rank > specific || rank == specific && q > best {
			best, specific = q, rank
		}
	}
	return best
}
