package proxy

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/seed-780dceda/thicket/functions/spelling"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

const (
	functionPrefix = "/function/"
	asyncPrefix    = "/async-function/"
)

// target is what a call's path asks for.
type target struct {
	name  faas.Name
	f     *function // nil if it wasn't called before, or is spelled in an unusual way
	async bool
	path  string // what the function gets: escaped as it came, begins with "/"
}

// parseTarget reads "/function/name[.namespace][/path]". It looks at the path as
// it was sent, where "%2F" is not "/".
func parseTarget(u *url.URL, known *functions) (target, error) {
	raw := u.RawPath // is set when the usual escaping of Path would be another
	if raw == "" {
		raw = u.EscapedPath()
	}
	rest, ok := strings.CutPrefix(raw, functionPrefix)
	var t target
	if !ok {
		if rest, t.async = strings.CutPrefix(raw, asyncPrefix); !t.async {
			return target{}, faas.Errorf(faas.ErrNotFound, "nothing is at this path: a function is at %sNAME", functionPrefix)
		}
	}
	segment, path := rest, "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		segment, path = rest[:i], rest[i:]
	}
	if segment == "" {
		return target{}, faas.Errorf(faas.ErrNotFound, "the path names no function: write %sNAME", functionPrefix)
	}
	t.path = escape(path)
	if t.f = known.spelled(segment); t.f != nil {
		t.name = t.f.name
		return t, nil
	}
	name, err := url.PathUnescape(segment)
	if err != nil {
		return target{}, faas.Errorf(faas.ErrInvalid, "function name %.70q: %w", segment, err)
	}
	if t.name, err = faas.ParseName(name); err != nil {
		return target{}, err
	}
	return t, nil
}

// escape percent-encodes the bytes that RFC 3986 (3.3) does not allow in a path
// and leaves all else as it is, so that [url.URL.EscapedPath] returns it
// unchanged. Without it one stray '"' would have it encode the path anew, and
// an escaped slash elsewhere in the path would become a slash.
func escape(path string) string {
	const allowed = "-._~!$&'()*+,;=:@%/[]"
	ok := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(allowed, c) >= 0
	}
	bad := 0
	for i := range len(path) {
		if !ok(path[i]) {
			bad++
		}
	}
	if bad == 0 {
		return path
	}
	b := make([]byte, 0, len(path)+2*bad)
	for i := range len(path) {
		if c := path[i]; ok(c) {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "%%%02X", c)
		}
	}
	return string(b)
}

// callID returns the client's id for the call, or a new UUID if there is none or
// it is nothing to put into headers and logs.
func callID(h http.Header) string {
	const longest = 128
	given := ""
	if v := h["X-Call-Id"]; len(v) > 0 {
		given = v[0]
	}
	ok := given != "" && len(given) <= longest
	for i := 0; ok && i < len(given); i++ {
		ok = '!' <= given[i] && given[i] <= '~'
	}
	if ok {
		return given
	}
	// An id is no secret, it is written into logs and headers. What it must not
	// do is come again, and the runtime's generator is ChaCha8, seeded by the
	// system.
	var u [16]byte
	binary.NativeEndian.PutUint64(u[:], rand.Uint64())
	binary.NativeEndian.PutUint64(u[8:], rand.Uint64())
	u[6] = u[6]&0x0f | 0x40 // version 4, RFC 9562
	u[8] = u[8]&0x3f | 0x80
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 36)
	for i, b := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text = append(text, '-')
		}
		text = append(text, digits[b>>4], digits[b&15])
	}
	return string(text)
}

// functions are those that were called. Who looks for one takes no lock and
// allocates nothing: the map is replaced, never changed. Who changes it holds
// [Proxy.compiling].
type functions struct {
	bySpelling atomic.Pointer[map[string]*function] // as paths have it: "name.namespace", and "name" in the default namespace
}

// spelled returns the function that a path's segment names, or nil.
func (fs *functions) spelled(segment string) *function {
	if m := fs.bySpelling.Load(); m != nil {
		return (*m)[segment]
	}
	return nil
}

// named returns the function of that name, or nil.
func (fs *functions) named(name faas.Name) *function {
	if name.Namespace == faas.DefaultNamespace {
		return fs.spelled(name.Function)
	}
	return fs.spelled(name.String())
}

// all yields each function once.
func (fs *functions) all(yield func(*function) bool) {
	m := fs.bySpelling.Load()
	if m == nil {
		return
	}
	for spelling, f := range *m {
		if spelling == f.name.Function && f.name.Namespace == faas.DefaultNamespace {
			continue
		}
		if !yield(f) {
			return
		}
	}
}

// set puts a function in place of the one of that name; nil takes it away.
func (fs *functions) set(name faas.Name, f *function) {
	next := make(map[string]*function)
	if m := fs.bySpelling.Load(); m != nil {
		maps.Copy(next, *m)
	}
	spellings := []string{name.String()}
	if name.Namespace == faas.DefaultNamespace {
		spellings = append(spellings, name.Function)
	}
	for _, s := range spellings {
		if f == nil {
			delete(next, s)
		} else {
			next[s] = f
		}
	}
	fs.bySpelling.Store(&next)
}

// unknown is the answer for a function that is not declared.
func (p *Proxy) unknown(name faas.Name) error {
	text := fmt.Sprintf("there is no function %s", name)
	if p.cfg.Names != nil {
		if near := nearest(name, p.cfg.Names()); len(near) > 0 {
			text += ": did you mean " + strings.Join(near, " or ") + "?"
		}
	}
	return &refusal{code: http.StatusNotFound, text: text}
}

// nearest returns up to three names that name may be a slip of, the nearest
// first: the same name in another namespace, or few letters different.
func nearest(name faas.Name, all []faas.Name) []string {
	const most = 3
	type near struct {
		name     string
		distance int
	}
	var found []near
	far := 1 + len(name.Function)/4 // letters that may differ
	for _, o := range all {
		d := spelling.Distance(name.Function, o.Function, far)
		if d > far {
			continue
		}
		short := o.Function
		if o.Namespace != faas.DefaultNamespace {
			short = o.String()
		}
		if o.Namespace != name.Namespace {
			d += far // before all that are in the right place
		}
		found = append(found, near{short, d})
	}
	slices.SortFunc(found, func(a, b near) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.name, b.name)
	})
	var names []string
	for _, n := range found[:min(most, len(found))] {
		names = append(names, n.name)
	}
	return names
}
