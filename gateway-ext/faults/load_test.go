//go:build faults && linux

package faults_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// class is what became of a call.
type class int

const (
	good   class = iota // what the function says now
	old                 // what it said before, and the answer says so
	told                // the platform's own error, with when to come again
	failed              // any other error, or no answer
	wrong               // looks good, and isn't
	classes
)

// String returns a word for tables.
func (c class) String() string {
	return [...]string{"good", "stale", "refused", "failed", "wrong"}[c]
}

// sample is one call.
type sample struct {
	due     time.Duration // since the load began: when it was to begin
	began   time.Duration // and when it did
	latency time.Duration // from when it was due, until all of the answer was read
	class   class
	status  int
	replica string
	note    string
	age     time.Duration // as the answer has it
}

// load is calls at a constant rate, from a fixed seed.
type load struct {
	url   func(n int, r *rand.Rand) string
	rate  int           // calls a second
	still time.Duration // how long a caller waits; 2 s if it is 0
	judge judge         // of the answers; byKey if it is nil

	began   time.Time
	done    sync.WaitGroup
	cancel  context.CancelFunc
	mu      sync.Mutex             // guards below
	next    time.Duration          // when the next call is due
	open    map[time.Duration]bool // when those were due that aren't answered
	samples []sample
}

// caller is who calls: browsers and programs, each for itself. What is at the
// other end is on this machine, so connections are many.
func newCaller() *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 1024,
		DisableCompression:  true,
		IdleConnTimeout:     time.Second,
	}}
}

// flight is longer than a call takes while all is well: what is due so shortly
// before something breaks may be on the way when it does.
const flight = 100 * time.Millisecond

// warm is how many keys there are that are called before anything breaks.
const warm = 20

// keys returns the URL of calls of a function by its consumers, for keys that
// were called before.
func (w *world) keys(function string) func(int, *rand.Rand) string {
	return func(_ int, r *rand.Rand) string {
		return w.key(function, r.IntN(warm))
	}
}

// key returns the URL of one of them.
func (w *world) key(function string, n int) string {
	return fmt.Sprintf("%s/function/%s?to=%s&key=warm-%d", w.url, consumer, function, n)
}

// newKeys returns the same for keys that nobody has ever called.
func (w *world) newKeys(function, of string) func(int, *rand.Rand) string {
	return func(n int, _ *rand.Rand) string {
		return fmt.Sprintf("%s/function/%s?to=%s&key=%s-%d", w.url, consumer, function, of, n)
	}
}

// begin starts the load. It goes on until end.
func (l *load) begin(seed uint64) *load { return l.beginAt(seed, time.Now()) }

// beginAt is the same for loads that begin together.
func (l *load) beginAt(seed uint64, now time.Time) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.began, l.open = cancel, now, make(map[time.Duration]bool)
	if l.still == 0 {
		l.still = 2 * time.Second
	}
	if l.judge == nil {
		l.judge = byKey
	}
	l.done.Go(func() { l.run(ctx, rand.New(rand.NewPCG(seed, 2016))) })
	return l
}

func (l *load) run(ctx context.Context, r *rand.Rand) {
	client := newCaller()
	defer client.CloseIdleConnections()
	var calls sync.WaitGroup
	defer calls.Wait()
	every := time.Second / time.Duration(l.rate)
	for n := 0; ; n++ {
		due := time.Duration(n) * every
		timer := time.NewTimer(time.Until(l.began.Add(due)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		url := l.url(n, r)
		l.mu.Lock()
		l.next, l.open[due] = due+every, true
		l.mu.Unlock()
		calls.Go(func() {
			began := time.Since(l.began)
			s := ask(client, url, l.still, l.judge)
			s.due, s.began, s.latency = due, began, time.Since(l.began)-due
			l.mu.Lock()
			defer l.mu.Unlock()
			l.samples = append(l.samples, s)
			delete(l.open, due)
		})
	}
}

// answered says whether all calls are that were due before a time.
func (l *load) answered(before time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for due := range l.open {
		if due < before {
			return false
		}
	}
	return l.next >= before
}

// at returns how long the load has been going on.
func (l *load) at() time.Duration { return time.Since(l.began) }

// end stops the load, waits for the calls that are under way, and returns all.
func (l *load) end() samples {
	l.cancel()
	l.done.Wait()
	slices.SortFunc(l.samples, func(a, b sample) int { return int(a.due - b.due) })
	return l.samples
}

// call makes one call of the victim, and judges the answer.
func call(client *http.Client, url string, still time.Duration) sample {
	return ask(client, url, still, byKey)
}

// judge says what a good answer is worth.
type judge func(s *sample, resp *http.Response, body []byte)

// ask makes one call, and judges the answer.
func ask(client *http.Client, url string, still time.Duration, judge judge) sample {
	ctx, cancel := context.WithTimeout(context.Background(), still)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return sample{class: failed, note: err.Error()}
	}
	resp, err := client.Do(req)
	if err != nil {
		return sample{class: failed, note: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	s := sample{class: good, status: resp.StatusCode, note: string(body[:min(len(body), 200)])}
	switch {
	case err != nil && s.status == http.StatusOK && !errors.Is(err, context.DeadlineExceeded):
		s.class, s.note = wrong, "the answer broke off: "+err.Error()
		return s
	case err != nil:
		s.class, s.note = failed, err.Error()
		return s
	case s.status >= 500 && resp.Header.Get("Retry-After") != "":
		s.class = told
		return s
	case s.status >= 400:
		s.class = failed
		return s
	}
	judge(&s, resp, body)
	return s
}

// byKey is a judge of what the victim answers.
func byKey(s *sample, resp *http.Response, body []byte) {
	var answer struct{ Key, Replica string }
	if err := json.Unmarshal(body, &answer); err != nil || answer.Key != resp.Request.URL.Query().Get("key") {
		s.class = wrong
		return
	}
	s.replica, s.note = answer.Replica, ""
	seconds, err := strconv.Atoi(resp.Header.Get("Age"))
	s.age = time.Duration(seconds) * time.Second
	if strings.Contains(resp.Header.Get("Cache-Status"), "detail=stale") {
		if s.class = old; err != nil {
			s.class, s.note = wrong, "a stale answer without its age"
		}
	}
}

// samples are calls, by when they were due.
type samples []sample

// between returns those due from one time until another.
func (ss samples) between(from, to time.Duration) (part samples) {
	for _, s := range ss {
		if s.due >= from && s.due < to {
			part = append(part, s)
		}
	}
	return part
}

// after returns those due from a time on.
func (ss samples) after(from time.Duration) samples { return ss.between(from, time.Hour) }

// number counts those of classes.
func (ss samples) number(of ...class) (n float64) {
	for _, s := range ss {
		if slices.Contains(of, s.class) {
			n++
		}
	}
	return n
}

// bad counts those that nobody can use.
func (ss samples) bad() float64 { return ss.number(told, failed, wrong) }

// quantile returns a latency in ms: 0.99 for p99, 1 for the longest.
func (ss samples) quantile(q float64) float64 {
	if len(ss) == 0 {
		return 0
	}
	ls := make([]time.Duration, len(ss))
	for i, s := range ss {
		ls[i] = s.latency
	}
	slices.Sort(ls)
	i := min(int(q*float64(len(ls))), len(ls)-1)
	return float64(ls[i].Microseconds()) / 1000
}

// oldest returns the greatest age of an answer.
func (ss samples) oldest() (age time.Duration) {
	for _, s := range ss {
		age = max(age, s.age)
	}
	return age
}

// String summarizes, for logs.
func (ss samples) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d calls:", len(ss))
	for c := range classes {
		if n := ss.number(c); n > 0 {
			fmt.Fprintf(&b, " %.0f %s,", n, c)
		}
	}
	fmt.Fprintf(&b, " p50 %.1f ms, p99 %.1f ms, longest %.1f ms", ss.quantile(0.5), ss.quantile(0.99), ss.quantile(1))
	var late time.Duration
	for _, s := range ss {
		late = max(late, s.began-s.due)
	}
	fmt.Fprintf(&b, "; begun at most %v late", late.Round(100*time.Microsecond))
	seen := map[string]int{}
	for _, s := range ss {
		if s.note != "" {
			seen[fmt.Sprintf("%s %d %s", s.class, s.status, s.note)]++
		}
	}
	shown := 0
	for note, n := range seen {
		if shown++; shown > 4 {
			break
		}
		fmt.Fprintf(&b, "\n\t%d times %s", n, strings.TrimSpace(note))
	}
	return b.String()
}
