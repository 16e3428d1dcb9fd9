package proxy

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// fallbackHeader says that an answer was given in place of the function's.
const fallbackHeader = "X-Thicket-Fallback"

// replaceable says whether something else than a kept answer can be given for
// this call, whatever it is that failed.
func (c *call) replaceable() bool {
	if c.standIn {
		return false
	}
	for _, fb := range c.f.policy.Fallback {
		switch fb.Kind {
		case resilience.FallbackSilent, resilience.FallbackStatic:
			return true
		case resilience.FallbackFunction:
			if c.body == nil || c.body.kept != nil {
				return true
			}
		}
	}
	return false
}

// instead gives what the function's policy has for a call that failed with err.
// If that is nothing, it returns an error: err, or what took its place.
func (c *call) instead(err error) error {
	own, isOwn := errors.AsType[*ownAnswer](err)
	e, isRefusal := errors.AsType[*refusal](err)
	if c.standIn || c.r.Context().Err() != nil || !isOwn && (!isRefusal || !e.replaceable) {
		return err
	}
	for _, fb := range c.f.policy.Fallback {
		switch fb.Kind {
		case resilience.FallbackSilent:
			c.give(fb, http.StatusNoContent, "", "")
			return nil
		case resilience.FallbackStatic:
			kind := "text/plain; charset=utf-8"
			if json.Valid([]byte(fb.Value)) {
				kind = "application/json"
			}
			c.give(fb, http.StatusOK, kind, fb.Value)
			return nil
		case resilience.FallbackFunction:
			if c.call(fb) {
				return nil
			}
			c.note(resilience.FallbackFailed, "")
		case resilience.FallbackStale: // it had nothing, or err would not be here
		}
	}
	if isOwn {
		c.code = own.entry.Status
		h := c.w.Header()
		for k, v := range own.entry.Header {
			h[k] = slices.Clone(v)
		}
		c.mark(h)
		h.Set("Content-Length", strconv.Itoa(len(own.entry.Body)))
		c.w.WriteHeader(c.code)
		if c.r.Method != http.MethodHead {
			_, _ = c.w.Write(own.entry.Body) // the client is gone: nobody to tell
		}
		return nil
	}
	return err
}

// give answers with what was declared.
func (c *call) give(fb resilience.FallbackPolicy, code int, kind, body string) {
	c.code = code
	h := c.w.Header()
	c.mark(h)
	h.Set(fallbackHeader, fallbackName(fb))
	h.Set("Cache-Control", "no-store")
	if kind != "" {
		h.Set("Content-Type", kind)
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	c.w.WriteHeader(code)
	if c.r.Method != http.MethodHead {
		_, _ = io.WriteString(c.w, body) // the client is gone: nobody to tell
	}
	c.note(resilience.FallbackServed, "")
}

// fallbackName is what callers are told: not the text of a static answer.
func fallbackName(fb resilience.FallbackPolicy) string {
	switch fb.Kind {
	case resilience.FallbackSilent:
		return "silent"
	case resilience.FallbackStatic:
		return "static"
	case resilience.FallbackFunction:
		return "function:" + fb.Value
	}
	return "stale"
}

// call has another function answer, with its own policy but without what it
// would give in its own place. It returns false if there is no answer.
func (c *call) call(fb resilience.FallbackPolicy) bool {
	if c.body != nil && c.body.kept == nil {
		return false // some of it may be gone
	}
	name, err := faas.ParseName(fb.Value)
	if err != nil {
		return false // not reached: it was checked
	}
	other := newCall()
	other.p, other.w, other.r, other.id, other.callerEnd, other.trace = c.p, c.w, c.r, c.id, c.callerEnd, c.trace
	other.start, other.startTime = c.start, c.startTime
	other.target = target{name: name, path: c.target.path}
	other.f, other.body, other.repeatable, other.standIn = c.p.function(name), c.body, c.repeatable, true
	if other.f == nil || name == c.target.name {
		return false
	}
	h := c.w.Header()
	h.Set(fallbackHeader, fallbackName(fb))
	if err := other.carry(); err != nil {
		h.Del(fallbackHeader)
		return false
	}
	c.code = other.code
	c.note(resilience.FallbackServed, "")
	return true
}
