package balance

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-780dceda/thicket/functions/spelling"
)

// kind is the rule's name.
type kind uint8

const (
	p2c kind = iota
	roundRobin
	weightedResponseTime
	leastRequests
	availabilityFiltering
	zonePreference
	random
	consistentHash
)

var kindNames = [...]string{
	"p2c", "round-robin", "weighted-response-time", "least-requests", "availability-filtering", "zone-preference", "random", "consistent-hash",
}

// elsewhereNamed is what others call these rules, in lower case and without what
// is not a letter or a digit.
var elsewhereNamed = map[string]kind{
	"default": p2c, "poweroftwo": p2c, "poweroftwochoices": p2c, "peakewma": p2c, "ewma": p2c,
	"rr": roundRobin, "roundrobinrule": roundRobin,
	"weightedresponsetimerule": weightedResponseTime, "responsetimeweighted": weightedResponseTime,
	"bestavailable": leastRequests, "bestavailablerule": leastRequests, "leastconn": leastRequests, "leastconnections": leastRequests, "leastrequest": leastRequests,
	"availabilityfilteringrule": availabilityFiltering,
	"zoneavoidance":             zonePreference, "zoneavoidancerule": zonePreference, "zoneaware": zonePreference,
	"randomrule": random,
	"hash":       consistentHash, "iphash": consistentHash, "ringhash": consistentHash, "maglev": consistentHash, "sticky": consistentHash,
}

// The rule's own words.
const (
	byHeader = "header="
	byQuery  = "query="
	byActive = "active="

	maxActive = 100_000
	maxName   = 64 // bytes of a header's or query parameter's name
)

// Rule is how one of several replicas is picked. The zero Rule is the default.
// Rules can be compared; [Parse] reads one.
type Rule struct {
	kind   kind
	header string // that consistent-hash goes by, in its canonical form
	query  string // or this
	active int    // calls in flight from which availability-filtering passes a replica over; 0 is never
}

// Parse reads a rule:
//
//	p2c                              the default: of two at random the one with the lower latency × calls in flight
//	round-robin                      one after the other
//	weighted-response-time           the quicker the more often
//	least-requests                   the one with the fewest calls in flight
//	availability-filtering [active=N] one after the other, but for those with N calls in flight
//	zone-preference                  those of the same zone one after the other, while they are well and not too slow
//	random                           any
//	consistent-hash header=NAME      the same one for the same value of a header
//	consistent-hash query=NAME       or of a query parameter
//
// An error says what is wrong and what to write.
func Parse(s string) (Rule, error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return Rule{}, fmt.Errorf("names no rule: write one of %s", list())
	}
	var r Rule
	i := slices.Index(kindNames[:], words[0])
	if i < 0 {
		return Rule{}, unknownRule(words[0])
	}
	r.kind = kind(i)
	for _, word := range words[1:] {
		if err := r.set(word); err != nil {
			return Rule{}, err
		}
	}
	if r.kind == consistentHash && r.header == "" && r.query == "" {
		return Rule{}, errors.New(`says not what to go by: write for example "consistent-hash header=X-User" or "consistent-hash query=user"`)
	}
	return r, nil
}

// set reads what stands behind the rule's name.
func (r *Rule) set(word string) error {
	header, isHeader := strings.CutPrefix(word, byHeader)
	query, isQuery := strings.CutPrefix(word, byQuery)
	active, isActive := strings.CutPrefix(word, byActive)
	switch {
	case r.kind == consistentHash && (isHeader || isQuery):
		if r.header != "" || r.query != "" {
			return fmt.Errorf("has %.40q besides: consistent-hash goes by one header or one query parameter", word)
		}
		if isHeader && isToken(header) {
			r.header = textproto.CanonicalMIMEHeaderKey(header)
		} else if isQuery && isToken(query) {
			r.query = query
		} else {
			return fmt.Errorf("has %.80q, which is no name: write for example header=X-User or query=user", word)
		}
		return nil
	case r.kind == availabilityFiltering && isActive && r.active == 0:
		n, err := strconv.ParseUint(active, 10, 31)
		if err != nil || n < 1 || n > maxActive {
			return fmt.Errorf("has %.40q: write a number of calls from 1 to %d, as in active=20", word, maxActive)
		}
		r.active = int(n)
		return nil
	}
	switch r.kind {
	case consistentHash:
		return fmt.Errorf("has %.40q behind its name: write header=NAME or query=NAME", word)
	case availabilityFiltering:
		return fmt.Errorf("has %.40q behind its name: only active=N may stand there, once", word)
	}
	return fmt.Errorf("has %.40q behind its name: %s takes nothing", word, r.kind)
}

func unknownRule(word string) error {
	plain := strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return -1
	}, strings.ToLower(word[:min(len(word), maxName)]))
	near := ""
	if k, ok := elsewhereNamed[plain]; ok {
		near = kindNames[k]
	} else {
		far := 1 + len(plain)/3
		for _, name := range kindNames {
			if d := spelling.Distance(plain, strings.ReplaceAll(name, "-", ""), far); d <= far {
				near, far = name, d-1
			}
		}
	}
	if near != "" {
		return fmt.Errorf("is no rule: did you mean %s? There are %s", near, list())
	}
	return fmt.Errorf("is no rule: write one of %s", list())
}

// list writes the rules' names.
func list() string {
	last := len(kindNames) - 1
	return strings.Join(kindNames[:last], ", ") + " and " + kindNames[last]
}

// isToken says whether s may be a header's name, RFC 9110 (5.6.2), which is also
// all that a query parameter's name needs.
func isToken(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return true
}

// String returns the rule's name.
func (k kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// String writes what [Parse] reads.
func (r Rule) String() string {
	switch {
	case r.header != "":
		return r.kind.String() + " " + byHeader + r.header
	case r.query != "":
		return r.kind.String() + " " + byQuery + r.query
	case r.active > 0:
		return r.kind.String() + " " + byActive + strconv.Itoa(r.active)
	}
	return r.kind.String()
}

// looksAround says whether the rule prefers what is near.
func (r Rule) looksAround() bool { return r.kind == p2c || r.kind == zonePreference }

// Key returns what a request is picked by: the same for the same value of the
// header or the query parameter that the rule names, in every process. It is 0
// for a request without it, which is then picked for as by the default rule, and
// for all requests if the rule goes by nothing. It allocates nothing.
func (r Rule) Key(h http.Header, rawQuery string) uint64 {
	switch {
	case r.header != "":
		if v := h[r.header]; len(v) > 0 && v[0] != "" {
			return hash(v[0])
		}
	case r.query != "":
		return queryHash(rawQuery, r.query)
	}
	return 0
}
