package proxy

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/http1"
)

// outgoing is the request that a replica gets. It is made of the client's, whose
// header is not changed: what is ours is written in place of it.
type outgoing struct {
	http1.Outgoing
	own [12]http1.Field // what Own has
}

// set sends a field in place of the client's of that name, which is canonical. An
// empty value takes it away.
func (o *outgoing) set(name, value string) {
	o.Own = append(o.Own, http1.Field{Name: name, Value: value})
}

// prepare makes the replica's request of the client's.
func (a *attempt) prepare() {
	c, r, o := a.call, a.call.r, &a.out
	o.Outgoing = http1.Outgoing{
		Method: r.Method,
		Prefix: a.to.Path,
		Path:   c.target.path,
		// As it came, also if it is nothing that Go would parse.
		Query: r.URL.RawQuery, HasQuery: r.URL.ForceQuery || r.URL.RawQuery != "",
		Host:      a.to.host,
		Header:    r.Header,
		Own:       o.own[:0],
		Now:       a.now,
		Deadline:  a.end,
		Replay:    resilience.Idempotent(r.Method, r.Header),
		TrailerOK: len(r.Header["Te"]) > 0 && http1.HasToken(r.Header["Te"], "trailers"),
		Inform:    c.inform,
	}
	if len(r.Header["Upgrade"]) > 0 && http1.HasToken(r.Header["Connection"], "Upgrade") {
		o.Upgrade = strings.Join(r.Header["Upgrade"], ", ")
	}
	if b := c.body; b != nil {
		if b.kept != nil {
			o.Ready = b.kept
		} else {
			o.Body, o.Length, o.Trailer, o.Interrupt = b, r.ContentLength, r.Trailer, b.interrupt
			o.Replay = false
			o.Expect = len(r.Header["Expect"]) > 0 && strings.EqualFold(r.Header["Expect"][0], "100-continue")
		}
	}

	o.set("X-Call-Id", c.id)
	o.set("X-Start-Time", c.startTime)
	o.set("X-Served-By", "")
	a.forwarded()
	a.to.trace.inject(o)
	if c.f.asked || !c.callerEnd.IsZero() {
		o.set(resilience.Header, resilience.HeaderValue(time.Until(a.end)))
	}
}

// forwarded tells the replica who asked, for what and how. A proxy before this one
// knows better what the client asked for, so its words are kept; whom we got the
// request from is added to its list.
//
// The X-Forwarded fields are always sent, as functions expect them. Forwarded (RFC
// 7239) says the same; it is sent on, with our element, if there is one.
func (a *attempt) forwarded() {
	r, o := a.call.r, &a.out
	by, host, proto := peer(r.RemoteAddr), r.Host, "http"
	if r.TLS != nil {
		proto = "https"
	}
	switch before := r.Header["X-Forwarded-For"]; {
	case by == "":
	case len(before) == 0:
		o.set("X-Forwarded-For", by)
	default:
		o.set("X-Forwarded-For", strings.Join(before, ", ")+", "+by)
	}
	if len(r.Header["X-Forwarded-Host"]) == 0 {
		o.set("X-Forwarded-Host", host)
	}
	if len(r.Header["X-Forwarded-Proto"]) == 0 {
		o.set("X-Forwarded-Proto", proto)
	}
	if before := r.Header["Forwarded"]; len(before) > 0 {
		o.set("Forwarded", strings.Join(before, ", ")+", "+element(by, host, proto))
	}
}

// element is our part of Forwarded: what we were asked, and by whom.
func element(by, host, proto string) string {
	if addr, err := netip.ParseAddr(by); err != nil {
		by = "unknown" // RFC 7239, section 6.2
	} else if addr.Is6() {
		by = `"[` + by + `]"` // section 6
	}
	return "for=" + by + `;host="` + quoted.Replace(host) + `";proto=` + proto
}

var quoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// peer is the address in "address:port", or "".
func peer(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	return host
}
