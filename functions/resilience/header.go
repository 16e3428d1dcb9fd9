package resilience

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Header carries, from a caller to whom it calls, how long the caller still
// waits: a Go duration such as "850ms". OpenFaaS's watchdog reads the same one.
const Header = "X-Timeout"

const (
	// travel is what the next hop is told less than there is: its answer has to
	// come back.
	travel = 20 * time.Millisecond

	// longest bounds what a header may ask for, so that nothing overflows.
	longest = 24 * time.Hour
)

// SetHeader tells the next hop what is left of the context's deadline, less a
// little for the way back. A context without a deadline sets nothing, and leaves
// what is there.
func SetHeader(ctx context.Context, h http.Header) {
	end, ok := ctx.Deadline()
	if !ok {
		return
	}
	h.Set(Header, HeaderValue(time.Until(end)))
}

// HeaderValue is what [Header] says to the next hop when so much time is left: a
// little less, for the way back.
func HeaderValue(left time.Duration) string {
	left -= min(travel, left/10)
	return max(left.Truncate(time.Millisecond), time.Millisecond).String()
}

// FromHeader returns how long the caller waits, if it says so. A bare number is
// seconds, as OpenFaaS has it. What makes no sense is as if it weren't there: it
// is a wish, and no reason to refuse a call.
func FromHeader(h http.Header) (time.Duration, bool) {
	values := h[Header] // every call is looked at: it is canonical as it is
	if len(values) == 0 || values[0] == "" || len(values[0]) > 32 {
		return 0, false
	}
	s := values[0]
	d, err := time.ParseDuration(s)
	if err != nil {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return 0, false
		}
		d = time.Duration(n) * time.Second
	}
	if d <= 0 {
		return 0, false
	}
	return min(d, longest), true
}
