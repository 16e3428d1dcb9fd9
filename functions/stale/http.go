package stale

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// KeyFor returns the key of a request to a function, and whether the request may
// be answered from the cache at all: GET and HEAD without a body may, unless
// they ask for a range, for another protocol or not to be stored, or carry a
// Cookie, whose answer may be anybody's. Those that carry Authorization have
// keys of their own.
//
// The path is what the function sees. The query's order counts only among
// values of one name. Vary are the request's headers that answers depend on, as
// the function's owner says; a Cookie named there may be cached.
//
// A load for such a key must not send on the request's conditions (If-…):
// [Result.Serve] meets them, for every caller their own.
func KeyFor(r *http.Request, function, revision, path string, vary []string) (Key, bool) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead,
		r.ContentLength != 0 || len(r.TransferEncoding) > 0,
		r.Header.Get("Range") != "", r.Header.Get("Upgrade") != "":
		return Key{}, false
	case r.Header.Get("Cookie") != "" && !names(vary, "Cookie"):
		return Key{}, false
	}
	if _, noStore := directives(r.Header)["no-store"]; noStore {
		return Key{}, false
	}
	kind := r.Method
	if r.Header.Get("Authorization") != "" {
		kind += "+authorization"
	}
	parts := make([]string, 0, 3+2*len(vary))
	parts = append(parts, kind, path, normalised(r.URL.RawQuery))
	for _, name := range vary {
		name = textproto.CanonicalMIMEHeaderKey(name)
		value := strings.Join(r.Header.Values(name), ",")
		if name == "Host" {
			value = r.Host
		}
		parts = append(parts, name, value)
	}
	return NewKey(function, revision, parts...), true
}

// normalised returns the query with its names sorted. One that can't be parsed
// stays as it is: the function decides what it means.
func normalised(query string) string {
	if !strings.Contains(query, "&") {
		return query
	}
	pairs := strings.Split(query, "&")
	for _, p := range pairs {
		if _, err := url.QueryUnescape(p); err != nil {
			return query
		}
	}
	pairs = slices.DeleteFunc(pairs, func(p string) bool { return p == "" })
	slices.SortStableFunc(pairs, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	return strings.Join(pairs, "&")
}

// names says whether the list has the header's name.
func names(list []string, name string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
}

// directives are those of Cache-Control, in lower case.
func directives(h http.Header) map[string]string {
	var m map[string]string
	for _, line := range h.Values("Cache-Control") {
		for d := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
			if m == nil {
				m = make(map[string]string)
			}
			m[strings.ToLower(strings.TrimSpace(name))] = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return m
}

// Storable says whether an answer may be kept for others, by its status and
// headers; if not, the error says why. It is not if the status is another than
// 200, 203, 301, 404 and 410, if it sets a cookie, if it answers a request with
// Authorization and isn't declared public, if its Cache-Control or its Vary
// forbid it, or if it is encoded in a way that other callers may not know. Of
// Vary, what the key has is fine.
func Storable(r *http.Request, status int, h http.Header, vary []string) error {
	switch status {
	case http.StatusOK, http.StatusNonAuthoritativeInfo, http.StatusMovedPermanently, http.StatusNotFound, http.StatusGone:
	default:
		return fmt.Errorf("its status is %d", status)
	}
	if h.Get("Set-Cookie") != "" {
		return errors.New("it sets a cookie")
	}
	cc := directives(h)
	for _, d := range [...]string{"no-store", "private", "no-cache"} {
		if _, ok := cc[d]; ok {
			return fmt.Errorf("its Cache-Control says %s", d)
		}
	}
	for _, d := range [...]string{"s-maxage", "max-age"} {
		if v, ok := cc[d]; ok {
			if v == "0" {
				return fmt.Errorf("its Cache-Control says %s=0", d)
			}
			break
		}
	}
	if _, public := cc["public"]; !public && r.Header.Get("Authorization") != "" {
		return errors.New("it answers a request with Authorization and isn't declared public")
	}
	encoded := h.Get("Content-Encoding") != "" && !strings.EqualFold(h.Get("Content-Encoding"), "identity")
	if encoded && !names(vary, "Accept-Encoding") {
		return errors.New("it has a Content-Encoding, and Accept-Encoding is not among the headers that it varies by")
	}
	for _, line := range h.Values("Vary") {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			if name == "" || names(vary, name) || strings.EqualFold(name, "Accept-Encoding") && !encoded {
				continue
			}
			return fmt.Errorf("it varies by %.60q, which is not among the headers that the function is said to vary by", name)
		}
	}
	return nil
}

// ErrTooLarge says that a body is longer than what is kept.
var ErrTooLarge = errors.New("the answer is larger than what is cached")

// ReadEntry makes an entry of a [Storable] answer and reads its body. A body
// that breaks off, has another length than it said, or says that it is JSON and
// isn't, is an error: such an answer is a failure, and never kept.
//
// If there is more than limit bytes, the error is [ErrTooLarge], the entry is
// Private and its Body is what was read so far: who wants to send the answer on
// continues with resp.Body.
func ReadEntry(resp *http.Response, limit int) (Entry, error) {
	e := Entry{Status: resp.StatusCode, Header: storedHeader(resp.Header), Age: seconds(resp.Header.Get("Age"))}
	cc := directives(resp.Header)
	for _, d := range [...]string{"s-maxage", "max-age"} {
		if v, ok := cc[d]; ok {
			e.Fresh = seconds(v)
			break
		}
	}
	head := resp.Request != nil && resp.Request.Method == http.MethodHead
	if head {
		if resp.ContentLength >= 0 {
			e.Header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
		}
		return e, nil
	}
	if resp.ContentLength > int64(limit) {
		e.Private = true
		return e, ErrTooLarge
	}
	var b bytes.Buffer
	b.Grow(int(max(resp.ContentLength, 0)) + bytes.MinRead)
	n, err := io.Copy(&b, io.LimitReader(resp.Body, int64(limit)+1))
	e.Body = b.Bytes()
	switch {
	case err != nil:
		return Entry{}, fmt.Errorf("read the answer's body: %w", err)
	case n > int64(limit):
		e.Private = true
		return e, ErrTooLarge
	case resp.ContentLength >= 0 && n != resp.ContentLength:
		return Entry{}, fmt.Errorf("read the answer's body: %d of %d bytes: %w", n, resp.ContentLength, io.ErrUnexpectedEOF)
	}
	if isJSON(resp.Header) && !json.Valid(e.Body) {
		return Entry{}, errors.New("the answer says that it is JSON, and isn't")
	}
	return e, nil
}

// isJSON says whether a body is to be JSON that can be read as it is.
func isJSON(h http.Header) bool {
	if h.Get("Content-Encoding") != "" {
		return false
	}
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json"))
}

// seconds parses a header's seconds; what is none is 0.
func seconds(s string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// notStored are headers that concern one connection, one call or one age.
var notStored = [...]string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Age", "Cache-Status", "Content-Length",
	"X-Call-Id", "X-Start-Time", "X-Duration-Seconds", "X-Served-By", "Server-Timing",
}

// storedHeader copies what is kept of an answer's headers.
func storedHeader(h http.Header) http.Header {
	kept := h.Clone()
	if kept == nil {
		kept = make(http.Header)
	}
	for _, line := range h.Values("Connection") {
		for name := range strings.SplitSeq(line, ",") {
			kept.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range notStored {
		kept.Del(name)
	}
	return kept
}

// Mark sets Age and Cache-Status on an answer's headers. Cache is what this
// cache calls itself, a token of RFC 8941 as "thicket".
func (r *Result) Mark(h http.Header, cache string) {
	if r.Source != Passed && (r.Source != Miss || r.Age >= time.Second) {
		h.Set("Age", strconv.FormatInt(int64(r.Age/time.Second), 10))
	}
	h.Add("Cache-Status", r.CacheStatus(cache))
}

// CacheStatus returns the header of that name (RFC 9211): whether it was a hit
// or was forwarded and why, for how many seconds it is fresh (below 0: has not
// been), and the key, which purges it.
func (r *Result) CacheStatus(cache string) string {
	b := make([]byte, 0, 128)
	b = append(b, cache...)
	switch r.Source {
	case Hit, While:
		b = append(b, "; hit"...)
	case Failed:
		b = append(b, "; hit"...)
	case Miss:
		b = append(b, "; fwd=miss"...)
		if r.Stored {
			b = append(b, "; stored"...)
		}
		if r.Collapsed {
			b = append(b, "; collapsed"...)
		}
	case Passed:
		return string(append(b, "; fwd=bypass"...))
	}
	if r.Source != Miss || r.Stored {
		b = append(b, "; ttl="...)
		b = strconv.AppendInt(b, int64(r.TTL/time.Second), 10)
		b = append(b, `; key="`...)
		b = append(b, r.Key.String()...)
		b = append(b, '"')
	}
	switch {
	case r.Source.Stale():
		b = append(b, "; detail="...)
		b = append(b, r.Source.String()...)
	case r.Shared:
		b = append(b, "; detail=redis"...)
	}
	return string(b)
}

// Serve writes the answer with its headers and [Result.Mark], or 304 if the
// request has what the answer's ETag says.
func (r *Result) Serve(w http.ResponseWriter, req *http.Request, cache string) error {
	h := w.Header()
	for k, vs := range r.Header {
		h[k] = slices.Clone(vs)
	}
	r.Mark(h, cache)
	status := r.Status
	if status == 0 {
		status = http.StatusOK
	}
	if status == http.StatusOK && matches(req.Header, h.Get("Etag")) {
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if req.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	h.Set("Content-Length", strconv.Itoa(len(r.Body)))
	w.WriteHeader(status)
	_, err := w.Write(r.Body)
	return err
}

// matches says whether If-None-Match has the tag, by the weak comparison of RFC
// 9110, section 8.8.3.2.
func matches(h http.Header, etag string) bool {
	if etag == "" {
		return false
	}
	for _, line := range h.Values("If-None-Match") {
		for tag := range strings.SplitSeq(line, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == strings.TrimPrefix(etag, "W/") {
				return true
			}
		}
	}
	return false
}
