package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Auth is the one pair of user and password that may change anything. It is
// shared by all handlers that ask for it: the API, the page, pushes to the
// registry.
//
// Passwords are compared in constant time. A source of requests (an IPv4
// address, an IPv6 /64) may be wrong 20 times at once, and then once a second;
// in between it is answered 429, even to the right password, so that guessing
// takes time. Requests without any password don't count, and this machine itself
// never waits: behind a proxy here, anybody could make everybody wait. Such a
// proxy has to bound guessing itself.
type Auth struct {
	user, password [sha256.Size]byte
	open           bool // false: there is no password, so nobody may enter
	failures       failures
}

// NewAuth returns an Auth for one user. With an empty user or password nobody is
// authorised.
func NewAuth(user, password string) *Auth {
	return &Auth{
		user:     sha256.Sum256([]byte(user)),
		password: sha256.Sum256([]byte(password)),
		open:     user != "" && password != "",
	}
}

// Authorized says whether r carries the user's name and password. It is false
// for a source that has to wait, whatever r carries.
func (a *Auth) Authorized(r *http.Request) bool {
	ok, _ := a.check(r)
	return ok
}

// Require returns a handler that serves next to who is authorised, and asks
// others for a password as OpenFaaS does.
func (a *Auth) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok, wait := a.check(r)
		switch {
		case ok:
			next.ServeHTTP(w, r)
		case wait > 0:
			seconds := int(wait/time.Second) + 1
			w.Header().Set("Retry-After", strconv.Itoa(seconds))
			answer(w, http.StatusTooManyRequests, "too many wrong passwords from this address: wait "+strconv.Itoa(seconds)+" s")
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="Restricted"`)
			answer(w, http.StatusUnauthorized, "invalid credentials")
		}
	})
}

// check also returns how long the source has to wait before it may try.
func (a *Auth) check(r *http.Request) (ok bool, wait time.Duration) {
	user, password, ok := r.BasicAuth()
	if !ok {
		return false, 0
	}
	source, local := sourceOf(r)
	now := time.Now()
	if wait := a.failures.wait(source, now); wait > 0 && !local {
		return false, wait
	}
	// Hashes have one length, so the time tells nothing about the lengths.
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	same := subtle.ConstantTimeCompare(u[:], a.user[:]) & subtle.ConstantTimeCompare(p[:], a.password[:])
	if same == 1 && a.open {
		return true, 0
	}
	if !local {
		a.failures.add(source, now)
	}
	return false, 0
}

// sourceOf returns the network that a request comes from, as small as one
// stranger's usually is, and whether that is this machine. What a proxy says in
// a header is not believed.
func sourceOf(r *http.Request) (source netip.Prefix, local bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}, false // a server on something else than IP: all are one
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	source, _ = addr.Prefix(bits) // has an error for more bits than there are
	return source, addr.IsLoopback()
}

const (
	failureCost  = time.Second      // what one failure costs a source
	failureBurst = 20 * time.Second // what it may owe before it has to wait
	failureTable = 2048             // sources in one generation
)

// failures knows how much time each source owes. A source is in debt until the
// time that stands in the table: each failure moves it on. There are two
// generations of sources, so that the table is bounded: when the young one is
// full the old one is forgotten.
type failures struct {
	mu         sync.Mutex // guards below
	young, old map[netip.Prefix]time.Time
}

// wait returns how long a source has to wait until it owes no more than it may.
func (f *failures) wait(source netip.Prefix, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	until := f.until(source)
	if until.Before(now) { // it owes nothing; it may never have been seen
		return 0
	}
	return until.Sub(now) + failureCost - failureBurst
}

// add notes a failure.
func (f *failures) add(source netip.Prefix, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	until := f.until(source)
	if until.Before(now) {
		until = now
	}
	if _, known := f.young[source]; f.young == nil || !known && len(f.young) >= failureTable {
		f.old, f.young = f.young, map[netip.Prefix]time.Time{}
	}
	f.young[source] = until.Add(failureCost)
}

// until must be called with mu held.
func (f *failures) until(source netip.Prefix) time.Time {
	if t, ok := f.young[source]; ok {
		return t
	}
	return f.old[source]
}
