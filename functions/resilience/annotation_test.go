package resilience_test

import (
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/balance"
	"github.com/seed-780dceda/thicket/functions/resilience"
)

func TestParsePolicy(t *testing.T) {
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		change      func(*resilience.Policy) // of the default
	}{
		{"nil", nil, func(*resilience.Policy) {}},
		{"others' annotations", map[string]string{"topic": "cron", "prometheus.io/scrape": "true"}, func(*resilience.Policy) {}},
		{"what the platform shows", map[string]string{"thicket.status": "image is missing", "thicket.digest": "sha256:00"}, func(*resilience.Policy) {}},
		{"timeout", map[string]string{"thicket.timeout": "5s"}, func(p *resilience.Policy) { p.Timeout = 5 * time.Second }},
		{"timeout of each attempt", map[string]string{"thicket.timeout": " 1s/300ms "}, func(p *resilience.Policy) {
			p.Timeout, p.Attempt = time.Second, 300*time.Millisecond
		}},
		{"attempts", map[string]string{"thicket.attempts": "1"}, func(p *resilience.Policy) { p.Attempts = 1 }},
		{"breaker off", map[string]string{"thicket.breaker": "off"}, func(p *resilience.Policy) { p.Breaker.Mode = resilience.ModeOff }},
		{"breaker", map[string]string{"thicket.breaker": "25%/30s"}, func(p *resilience.Policy) {
			p.Breaker.Failures, p.Breaker.Window = 0.25, 30*time.Second
		}},
		{"breaker's rate alone", map[string]string{"thicket.breaker": "12.5%"}, func(p *resilience.Policy) { p.Breaker.Failures = 0.125 }},
		{"breaker, all of it", map[string]string{"thicket.breaker": "observe 50%/10s min=20 consecutive=off open=2m"}, func(p *resilience.Policy) {
			p.Breaker.Mode, p.Breaker.MinCalls, p.Breaker.Consecutive = resilience.ModeObserve, 20, -1
			p.Breaker.Open, p.Breaker.MaxOpen = 2*time.Minute, 2*time.Minute
		}},
		{"breaker, a part", map[string]string{"thicket.breaker": "consecutive=3"}, func(p *resilience.Policy) { p.Breaker.Consecutive = 3 }},
		{"breaker, only looking", map[string]string{"thicket.breaker": "observe"}, func(p *resilience.Policy) { p.Breaker.Mode = resilience.ModeObserve }},
		{"slow", map[string]string{"thicket.slow": "2s"}, func(p *resilience.Policy) { p.Breaker.Slow = 2 * time.Second }},
		{"slow and how many", map[string]string{"thicket.slow": "2s/60%"}, func(p *resilience.Policy) {
			p.Breaker.Slow, p.Breaker.SlowCalls = 2*time.Second, 0.6
		}},
		{"bulkhead", map[string]string{"thicket.bulkhead": "64"}, func(p *resilience.Policy) { p.Bulkhead.Limit = 64 }},
		{"bulkhead with a wait", map[string]string{"thicket.bulkhead": "8/10ms"}, func(p *resilience.Policy) {
			p.Bulkhead = resilience.BulkheadPolicy{Limit: 8, Wait: 10 * time.Millisecond}
		}},
		{"balance", map[string]string{"thicket.balance": "consistent-hash header=x-user"}, func(p *resilience.Policy) {
			p.Balance, _ = balance.Parse("consistent-hash header=X-User")
		}},
		{"no bulkhead", map[string]string{"thicket.bulkhead": "off"}, func(p *resilience.Policy) { p.Bulkhead = resilience.BulkheadPolicy{} }},
		{"fail fast", map[string]string{"thicket.fallback": "fast"}, func(*resilience.Policy) {}},
		{"stale, then silent", map[string]string{"thicket.fallback": "stale, silent"}, func(p *resilience.Policy) {
			p.Fallback = []resilience.FallbackPolicy{{Kind: resilience.FallbackStale}, {Kind: resilience.FallbackSilent}}
		}},
		{"function, then a text with commas", map[string]string{"thicket.fallback": `function:backup.openfaas-fn,static:{"a":1,"b":2}`}, func(p *resilience.Policy) {
			p.Fallback = []resilience.FallbackPolicy{{resilience.FallbackFunction, "backup.openfaas-fn"}, {resilience.FallbackStatic, `{"a":1,"b":2}`}}
		}},
		{"stale", map[string]string{"thicket.fallback": "stale", "thicket.stale.fresh": "10s", "thicket.stale.for": "1h", "thicket.stale.vary": "accept, x-tenant"}, func(p *resilience.Policy) {
			p.Fallback = []resilience.FallbackPolicy{{Kind: resilience.FallbackStale}}
			p.Stale = resilience.StalePolicy{Fresh: 10 * time.Second, For: time.Hour, Vary: []string{"Accept", "X-Tenant"}}
		}},
		{"stale, the same for all", map[string]string{"thicket.fallback": "stale", "thicket.stale.fresh": "off", "thicket.stale.vary": "off"}, func(p *resilience.Policy) {
			p.Fallback = []resilience.FallbackPolicy{{Kind: resilience.FallbackStale}}
			p.Stale.Vary = nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := resilience.DefaultPolicy()
			tt.change(&want)
			got, err := resilience.ParsePolicy(tt.annotations)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("ParsePolicy() = %+v, %v, want %+v", got, err, want)
			}
			again, err := resilience.ParsePolicy(got.Annotations())
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("from %v: %+v, %v, want %+v", got.Annotations(), again, err, got)
			}
		})
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	for _, tt := range []struct {
		key, value string
		want       string // in the error
	}{
		{"thicket.timeout", "5", `thicket.timeout: "5" is no time: write a duration such as "5s"`},
		{"thicket.timeout", "-1s", "is no time"},
		{"thicket.timeout", "", "thicket.timeout: it is empty: write a value, or leave it out"},
		{"thicket.timeout", "48h", "thicket.timeout: 48h0m0s is out of range: write a duration from 0s to 24h"},
		{"thicket.timeout", "2s/5s", `an attempt may take 5s and the whole call only 2s: write the longer one first, as in "5s/2s"`},
		{"thicket.attempts", "four", `thicket.attempts: "four" is no number: write 1, 2 or 3`},
		{"thicket.attempts", "4", "thicket.attempts: 4 is out of range: write a number from 1 to 3"},
		{"thicket.attempts", "0", "out of range"},
		{"thicket.breaker", "on", `thicket.breaker: "on" is no breaker: write off, observe, or a share of failed calls and the time looked back at, as in "50%/10s"`},
		{"thicket.breaker", "50", "is no breaker"},
		{"thicket.breaker", "50%/10s min=0", "is no breaker"},
		{"thicket.breaker", "50%/10s max=5", "is no breaker"},
		{"thicket.breaker", "min=5 50%/10s", "is no breaker"},
		{"thicket.breaker", "off 50%/10s", "is no breaker"},
		{"thicket.breaker", "0%", "is no breaker"},
		{"thicket.breaker", "NaN%", "is no breaker"},
		{"thicket.breaker", "150%", "thicket.breaker: 150% is out of range: write a share of calls from 1% to 100%"},
		{"thicket.breaker", "50%/10ms", "thicket.breaker (window): 10ms is out of range: write a duration from 1s to 1h"},
		{"thicket.breaker", "forced-open", "is no breaker"},
		{"thicket.slow", "fast", "thicket.slow: \"fast\" is no time"},
		{"thicket.bulkhead", "0", "thicket.bulkhead: \"0\" is no number of calls"},
		{"thicket.bulkhead", "1000000", "out of range: write a number from 1 to 100000, or off"},
		{"thicket.bulkhead", "8/1h", "thicket.bulkhead (wait): 1h0m0s is out of range"},
		{"thicket.balance", "least-request", `thicket.balance: "least-request" is no rule: did you mean least-requests?`},
		{"thicket.balanse", "random", `did you mean thicket.balance?`},
		{"thicket.fallback", "cache", `thicket.fallback: "cache" has a word that is no fallback: write, with commas between them, stale, silent, function:NAME, static:TEXT, or fast for none`},
		{"thicket.fallback", "fast,silent", "no fallback"},
		{"thicket.fallback", "stale,stale", `"stale" is there twice`},
		{"thicket.fallback", "silent,stale", `nothing after "silent" is ever reached`},
		{"thicket.fallback", "function:No_Name", `"No_Name" is no function's name`},
		{"thicket.fallback", "static:" + strings.Repeat("x", 5000), "the static answer has 5000 bytes: write at most 4096"},
		{"thicket.stale.for", "6h", "thicket.stale.for: it has no effect without stale answers: add thicket.fallback: stale"},
		{"thicket.timeot", "5s", `"thicket.timeot": there is no such annotation: did you mean thicket.timeout?`},
		{"thicket.stale", "5s", "did you mean thicket.s"},
		{"thicket.Attempts", "1", "did you mean thicket.attempts?"},
		{"thicket.completely.different", "1", "did you mean thicket.timeout, thicket.attempts, "},
	} {
		t.Run(tt.key+"="+tt.value[:min(len(tt.value), 20)], func(t *testing.T) {
			_, err := resilience.ParsePolicy(map[string]string{tt.key: tt.value})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	stale := map[string]string{"thicket.fallback": "stale"}
	for key, values := range map[string]map[string]string{
		"thicket.stale.vary": {"Accept,Accept": "twice", "A B": "no header's name", ",": "no header's name", "Cookie": "is for one person", strings.Repeat("A,", 40): "too many"},
		"thicket.stale.for":  {"0": "is no time", "10000h": "out of range"},
		"thicket.slow":       {"10s": "no call can take 10s, since thicket.timeout ends it after 5s"},
	} {
		for value, want := range values {
			a := maps.Clone(stale)
			a["thicket.timeout"] = "5s"
			a[key] = value
			if _, err := resilience.ParsePolicy(a); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s=%s: error %v, want one with %q", key, value, err, want)
			}
		}
	}
}

func TestParsePolicySaysAllMistakes(t *testing.T) {
	_, err := resilience.ParsePolicy(map[string]string{
		"thicket.timeout": "soon", "thicket.attempts": "many", "thicket.breaker": "yes", "thicket.slo": "1s", "thicket.stale.for": "1h",
	})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 5 {
		t.Errorf("%d lines, want one for each of 5 mistakes:\n%v", len(lines), err)
	}
	// What can be read and is out of range is said at the same time, and what
	// can't be read has no consequences.
	_, err = resilience.ParsePolicy(map[string]string{
		"thicket.timeout": "48h", "thicket.attempts": "many", "thicket.breaker": "1%/soon", "thicket.bulkhead": "1000000",
		"thicket.fallback": "sttale", "thicket.stale.for": "1h",
	})
	if err == nil {
		t.Fatal("no error")
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 5 {
		t.Errorf("%d lines, want one for each of 5 mistakes:\n%v", len(lines), err)
	}
	bad := resilience.Policy{
		Timeout: -1, Attempts: 9,
		Breaker:  resilience.BreakerPolicy{Mode: resilience.ModeForcedOpen, Failures: 2},
		Bulkhead: resilience.BulkheadPolicy{Limit: -1},
		Budget:   resilience.BudgetPolicy{Ratio: 7},
		Fallback: []resilience.FallbackPolicy{{Kind: 99}},
	}
	if lines := strings.Split(bad.Validate().Error(), "\n"); len(lines) != 7 {
		t.Errorf("%d lines, want one for each of 7 mistakes:\n%v", len(lines), bad.Validate())
	}
}

// A policy that was read is sound, and can be written and read again as the same.
func FuzzParsePolicy(f *testing.F) {
	f.Add("thicket.breaker", "observe 33.33%/10s min=3 consecutive=4 open=7s", "thicket.slow", "1s/50%")
	f.Add("thicket.fallback", "stale,function:a.b,static:,x, y", "thicket.stale.vary", "accept,x-a")
	f.Add("thicket.timeout", "1h/1ns", "thicket.bulkhead", "3/1us")
	f.Add("thicket.timeot", "\x00", "thicket.", "")
	f.Add("thicket.breaker", "1e1%/1h observe", "thicket.attempts", "+3")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		p, err := resilience.ParsePolicy(map[string]string{k1: v1, k2: v2})
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a word")
			}
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("it read what is wrong: %v", err)
		}
		again, err := resilience.ParsePolicy(p.Annotations())
		if err != nil {
			t.Fatalf("it doesn't read what it writes, %v: %v", p.Annotations(), err)
		}
		if !p.Keeps() {
			again.Stale = p.Stale // not written, since it has no effect
		}
		if !reflect.DeepEqual(p, again) {
			t.Fatalf("%+v was read again as %+v", p, again)
		}
		if _, err := resilience.New(resilience.Config{Name: "f", Policy: p}); err != nil {
			t.Fatalf("no chain of it: %v", err)
		}
	})
}
