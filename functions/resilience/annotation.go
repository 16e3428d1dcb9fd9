package resilience

import (
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/spelling"
)

// prefix is what all annotations of the platform begin with.
const prefix = "thicket."

// The annotations of a policy.
const (
	keyTimeout    = prefix + "timeout"
	keyAttempts   = prefix + "attempts"
	keyBreaker    = prefix + "breaker"
	keySlow       = prefix + "slow"
	keyBulkhead   = prefix + "bulkhead"
	keyBalance    = prefix + "balance"
	keyFallback   = prefix + "fallback"
	keyStaleFresh = prefix + "stale.fresh"
	keyStaleFor   = prefix + "stale.for"
	keyStaleVary  = prefix + "stale.vary"
)

var keys = [...]string{
	keyTimeout, keyAttempts, keyBreaker, keySlow, keyBulkhead, keyBalance, keyFallback, keyStaleFresh, keyStaleFor, keyStaleVary,
}

// shown are annotations that the platform itself puts on what it lists. Who
// deploys what was listed sends them back, and they mean nothing then.
var shown = [...]string{prefix + "status", prefix + "digest"}

// elsewhere are annotations that other parts of the platform read and check, and
// that say nothing of what happens when a call goes wrong.
var elsewhere = [...]string{prefix + "discovery"}

// Asks says whether an annotation of this name, sound or not, asks for a policy:
// a function that has none of these has none. Which replica is asked is no such
// wish: it says nothing of what happens when that goes wrong.
func Asks(annotation string) bool { return isOurs(annotation) && annotation != keyBalance }

// isOurs says whether an annotation is one that [ParsePolicy] reads, or would if
// it were well written.
func isOurs(annotation string) bool {
	return strings.HasPrefix(annotation, prefix) && !slices.Contains(elsewhere[:], annotation) && !slices.Contains(shown[:], annotation)
}

const (
	fallbackForms = "stale, silent, function:NAME, static:TEXT, or fast for none"
	breakerForm   = `write off, observe, or a share of failed calls and the time looked back at, as in "50%/10s", with any of min=10, consecutive=5 (or off) and open=5s behind it`
	offWord       = "off"
)

// ParsePolicy reads a policy from a function's annotations; what they don't say
// is as in [DefaultPolicy].
//
//	thicket.timeout      5s, or 5s/2s: the whole call, and each attempt
//	thicket.attempts     1 to 3
//	thicket.breaker      50%/10s, with any of min=10 consecutive=5 open=5s; observe before it or alone; or off
//	thicket.slow         2s, or 2s/80%: calls that take longer are slow, and so many of them open the breaker; or off
//	thicket.bulkhead     64, or 64/10ms: calls at the same time to a replica, and the wait for a place; or off
//	thicket.balance      p2c, round-robin and others: which replica is asked, see [balance.Parse]
//	thicket.fallback     stale, function:NAME, and at the end silent or static:TEXT; or fast
//	thicket.stale.fresh  10s: so old an answer is given without a call; or off
//	thicket.stale.for    6h: so much older one is given when the call fails
//	thicket.stale.vary   Accept,Accept-Language: request headers that make it another answer; or off
//
// An error has a line for every mistake, each with what is allowed. Annotations
// of others are not looked at, but one that begins with "thicket." and is none
// of these is a mistake, for it would silently do nothing.
func ParsePolicy(annotations map[string]string) (Policy, error) {
	p := DefaultPolicy()
	var m mistakes
	fallbackUnread := false
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !isOurs(key) {
			continue
		}
		value := strings.TrimSpace(annotations[key])
		set, ok := setters[key]
		switch {
		case !ok:
			m.add(short60(key), "there is no such annotation: did you mean %s?", nearest(key))
		case value == "":
			m.add(key, "it is empty: write a value, or leave it out")
		default:
			// What can't be read is as if it were not there, so that all the rest
			// can be looked at, too.
			next := p
			if err := set(&next, value); err != nil {
				m.add(key, "%.60q %w", value, err)
				fallbackUnread = fallbackUnread || key == keyFallback
			} else {
				p = next
			}
		}
	}
	for _, key := range [...]string{keyStaleFresh, keyStaleFor, keyStaleVary} {
		if _, ok := annotations[key]; ok && !p.Keeps() && !fallbackUnread {
			m.add(key, "it has no effect without stale answers: add %s: stale", keyFallback)
		}
	}
	p.validate(&m)
	if err := m.err(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

var setters = map[string]func(*Policy, string) error{
	keyTimeout: func(p *Policy, s string) (err error) {
		whole, each, two := strings.Cut(s, "/")
		p.Timeout, err = positive(whole)
		if err == nil && two {
			p.Attempt, err = positive(each)
		}
		return orForm(err, `is no time: write a duration such as "5s", or "5s/2s" for the whole call and each attempt`)
	},
	keyAttempts: func(p *Policy, s string) (err error) {
		p.Attempts, err = strconv.Atoi(s)
		return orForm(err, "is no number: write 1, 2 or 3")
	},
	keyBreaker: (*Policy).setBreaker,
	keySlow: func(p *Policy, s string) (err error) {
		if s == offWord {
			return nil
		}
		limit, rate, two := strings.Cut(s, "/")
		p.Breaker.Slow, err = positive(limit)
		if err == nil && two {
			p.Breaker.SlowCalls, err = percent(rate)
		}
		return orForm(err, `is no time: write a duration such as "2s", or "2s/80%" for the share of slow calls that opens the breaker, or off`)
	},
	keyBulkhead: func(p *Policy, s string) (err error) {
		if s == offWord {
			p.Bulkhead = BulkheadPolicy{}
			return nil
		}
		limit, wait, two := strings.Cut(s, "/")
		p.Bulkhead.Limit, err = count(limit)
		if err == nil && two {
			p.Bulkhead.Wait, err = positive(wait)
		}
		return orForm(err, `is no number of calls: write a number such as "64", or "64/10ms" for a wait, or off`)
	},
	keyBalance: func(p *Policy, s string) (err error) {
		p.Balance, err = balance.Parse(s)
		return err
	},
	keyFallback: (*Policy).setFallback,
	keyStaleFresh: func(p *Policy, s string) (err error) {
		if s == offWord {
			return nil
		}
		p.Stale.Fresh, err = positive(s)
		return orForm(err, `is no time: write a duration such as "10s", or off`)
	},
	keyStaleFor: func(p *Policy, s string) (err error) {
		p.Stale.For, err = positive(s)
		return orForm(err, `is no time: write a duration such as "6h"`)
	},
	keyStaleVary: func(p *Policy, s string) error {
		p.Stale.Vary = nil
		if s == offWord {
			return nil
		}
		for name := range strings.SplitSeq(s, ",") {
			if len(p.Stale.Vary) > maxVary {
				break // Validate says that they are too many
			}
			p.Stale.Vary = append(p.Stale.Vary, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
		return nil
	},
}

func (p *Policy) setBreaker(s string) error {
	words := strings.Fields(s)
	if s == offWord {
		p.Breaker.Mode = ModeOff
		return nil
	}
	if words[0] == "observe" {
		p.Breaker.Mode = ModeObserve
		words = words[1:]
	}
	for i, word := range words {
		var err error
		name, value, named := strings.Cut(word, "=")
		switch {
		case !named && i == 0:
			rate, window, two := strings.Cut(word, "/")
			p.Breaker.Failures, err = percent(rate)
			if err == nil && two {
				p.Breaker.Window, err = positive(window)
			}
		case name == "min":
			p.Breaker.MinCalls, err = count(value)
		case name == "consecutive" && value == offWord:
			p.Breaker.Consecutive = -1
		case name == "consecutive":
			p.Breaker.Consecutive, err = count(value)
		case name == "open":
			p.Breaker.Open, err = positive(value)
			p.Breaker.MaxOpen = max(p.Breaker.MaxOpen, p.Breaker.Open)
		default:
			err = errForm
		}
		if err != nil {
			return orForm(err, "is no breaker: "+breakerForm)
		}
	}
	return nil
}

func (p *Policy) setFallback(s string) error {
	p.Fallback = nil
	if s == "fast" {
		return nil
	}
	for rest, more := s, true; more && len(p.Fallback) <= maxFallbacks; {
		// A text may have commas, so it goes to the end.
		if text, ok := strings.CutPrefix(strings.TrimSpace(rest), "static:"); ok {
			p.Fallback = append(p.Fallback, FallbackPolicy{FallbackStatic, text})
			break
		}
		var word string
		word, rest, more = strings.Cut(rest, ",")
		word = strings.TrimSpace(word)
		name, isFunction := strings.CutPrefix(word, "function:")
		switch {
		case word == "stale":
			p.Fallback = append(p.Fallback, FallbackPolicy{Kind: FallbackStale})
		case word == "silent":
			p.Fallback = append(p.Fallback, FallbackPolicy{Kind: FallbackSilent})
		case isFunction:
			p.Fallback = append(p.Fallback, FallbackPolicy{FallbackFunction, name})
		default:
			return errors.New("has a word that is no fallback: write, with commas between them, " + fallbackForms)
		}
	}
	return nil
}

// Annotations writes the whole policy as annotations, with what was left to the
// defaults: what is in force. ParsePolicy reads the same policy from them, but
// for what has no annotation.
func (p Policy) Annotations() map[string]string {
	a := map[string]string{
		keyAttempts: strconv.Itoa(p.Attempts),
		keyBreaker:  p.Breaker.annotation(),
		keySlow:     offWord,
		keyBulkhead: offWord,
		keyBalance:  p.Balance.String(),
		keyFallback: "fast",
	}
	if p.Timeout > 0 {
		a[keyTimeout] = Short(p.Timeout)
		if p.Attempt > 0 {
			a[keyTimeout] += "/" + Short(p.Attempt)
		}
	}
	if b := p.Breaker; b.Slow > 0 {
		a[keySlow] = Short(b.Slow) + "/" + share(b.SlowCalls)
	}
	if b := p.Bulkhead; b.Limit > 0 {
		a[keyBulkhead] = strconv.Itoa(b.Limit)
		if b.Wait > 0 {
			a[keyBulkhead] += "/" + Short(b.Wait)
		}
	}
	if len(p.Fallback) > 0 {
		var words []string
		for _, f := range p.Fallback {
			words = append(words, f.String())
		}
		a[keyFallback] = strings.Join(words, ",")
	}
	if p.Keeps() {
		a[keyStaleFresh], a[keyStaleFor], a[keyStaleVary] = offWord, Short(p.Stale.For), offWord
		if p.Stale.Fresh > 0 {
			a[keyStaleFresh] = Short(p.Stale.Fresh)
		}
		if len(p.Stale.Vary) > 0 {
			a[keyStaleVary] = strings.Join(p.Stale.Vary, ",")
		}
	}
	return a
}

func (p BreakerPolicy) annotation() string {
	if p.Mode == ModeOff {
		return offWord
	}
	p.fill()
	s := share(p.Failures) + "/" + Short(p.Window) + " min=" + strconv.Itoa(p.MinCalls)
	if p.Consecutive > 0 {
		s += " consecutive=" + strconv.Itoa(p.Consecutive)
	} else {
		s += " consecutive=" + offWord
	}
	s += " open=" + Short(p.Open)
	if p.Mode == ModeObserve {
		s = "observe " + s
	}
	return s
}

// errForm is a mistake whose sentence the caller knows.
var errForm = errors.New("malformed")

func orForm(err error, sentence string) error {
	if err != nil {
		return errors.New(sentence)
	}
	return nil
}

// positive reads a duration above 0.
func positive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, errForm
	}
	return d, nil
}

// count reads a number from 1.
func count(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 {
		return 0, errForm
	}
	return int(n), nil
}

// percent reads "50%" as 0.5. It keeps four digits of it, so that what is
// written is what is read again.
func percent(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, "%")
	if !ok {
		return 0, errForm
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f >= 0.01 && f <= 1e6) {
		return 0, errForm
	}
	return math.Round(f*100) / 1e4, nil
}

func share(f float64) string {
	return strconv.FormatFloat(math.Round(f*1e4)/100, 'f', -1, 64) + "%"
}

// Short writes "6h" where [time.Duration.String] writes "6h0m0s", as people would.
func Short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func short60(s string) string {
	if len(s) > 60 {
		return strconv.QuoteToASCII(s[:60]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// nearest returns the known annotation with the fewest letters different, or all
// of them if it is none of them by far.
func nearest(key string) string {
	const far = 6
	if near := spelling.Nearest(key, keys[:], far); near != "" {
		return near
	}
	return list(keys[:])
}

// list writes "a, b or c".
func list(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
