package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// holding starts calls that end when they are let, and waits until they are under
// way.
func (w *world) holding(n int, in <-chan string) (group *sync.WaitGroup, by []string) {
	w.t.Helper()
	group = new(sync.WaitGroup)
	for range n {
		group.Go(func() {
			req, err := http.NewRequestWithContext(w.t.Context(), "GET", w.url+"/function/echo", nil)
			if err != nil {
				w.t.Error(err)
				return
			}
			if res, err := noRedirects.Do(req); err == nil {
				res.Body.Close()
			}
		})
		by = append(by, <-in)
	}
	return group, by
}

// TestMaxInflight holds that a function's own bound is known: a replica that has
// so many calls is not asked, and when all have, callers get what the function
// would have said, whatever the rule.
func TestMaxInflight(t *testing.T) {
	for _, rule := range []string{"p2c", "round-robin", "weighted-response-time", "least-requests", "availability-filtering", "zone-preference", "random", "consistent-hash header=X-User"} {
		t.Run(rule, func(t *testing.T) {
			w := newWorld(t, nil)
			f := &faas.Function{Digest: "sha256:1", Revision: 1}
			f.EnvVars = map[string]string{"max_inflight": "2"}
			w.declareAs(echo, f, "balance", rule)
			let, in := make(chan struct{}), make(chan string, 10)
			for _, id := range []string{"a", "b"} {
				w.serve(id, func(http.ResponseWriter, *http.Request) {
					in <- id
					<-let
				})
			}
			group, by := w.holding(4, in)
			if text := strings.Join(by, ""); strings.Count(text, "a") != 2 || strings.Count(text, "b") != 2 {
				t.Errorf("calls went to %v, want two to each", by)
			}
			res, text := w.do("GET", "/function/echo", "")
			if res.StatusCode != 429 || res.Header.Get("Retry-After") == "" || !strings.Contains(text, "max_inflight allows, 2 at each replica") {
				t.Errorf("answer = %d %q with all full", res.StatusCode, text)
			}
			close(let)
			group.Wait()
			if res, _ := w.do("GET", "/function/echo", ""); res.StatusCode != 200 {
				t.Errorf("code = %d when there is room again", res.StatusCode)
			}
		})
	}
}

// TestBulkheadWait holds that who may wait for a place gets the first that is free.
func TestBulkheadWait(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("bulkhead", "1/30s", "attempts", "1")
	let, in := make(chan struct{}), make(chan string, 10)
	w.serve("a", func(http.ResponseWriter, *http.Request) {
		in <- "a"
		<-let
	})
	group, _ := w.holding(1, in)
	done := make(chan int, 1)
	go func() {
		res, _ := w.do("GET", "/function/echo", "")
		done <- res.StatusCode
	}()
	eventually(t, "the second waits", func() bool { return w.table.Replicas()[0].InFlight == 2 })
	close(let)
	group.Wait()
	if code := <-done; code != 200 {
		t.Errorf("who waited got %d", code)
	}
}

// TestConsistentHash holds that the same user gets the same replica.
func TestConsistentHash(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("balance", "consistent-hash header=X-User")
	for i := range 4 {
		id := fmt.Sprintf("r%d", i)
		w.serve(id, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, id) })
	}
	ask := func(user string) string {
		_, text := w.do("GET", "/function/echo", "", "X-User", user)
		return text
	}
	seen := map[string]bool{}
	for u := range 30 {
		user := fmt.Sprintf("user-%d", u)
		first := ask(user)
		seen[first] = true
		for range 3 {
			if again := ask(user); again != first {
				t.Fatalf("%s got %s, then %s", user, first, again)
			}
		}
	}
	if len(seen) != 4 {
		t.Errorf("30 users are at %v only", seen)
	}
}

// TestSlowReplica holds that the default rule learns from calls, that operators
// see what it has learnt, and that it comes with no policy.
func TestSlowReplica(t *testing.T) {
	w := newWorld(t, nil)
	w.declare("balance", "p2c")
	var slow atomic.Int64
	w.serve("slow", func(http.ResponseWriter, *http.Request) {
		slow.Add(1)
		time.Sleep(50 * time.Millisecond)
	})
	w.serve("quick", func(http.ResponseWriter, *http.Request) {})
	eventually(t, "both are known", func() bool {
		w.do("GET", "/function/echo", "")
		for _, r := range w.state().Replicas {
			if r.Balance.Latency == "" {
				return false
			}
		}
		return true
	})
	before := slow.Load()
	for range 60 {
		w.do("GET", "/function/echo", "")
	}
	// Both have just begun, so that chance says who takes part. By turns it would
	// be 30.
	if n := slow.Load() - before; n > 20 {
		t.Errorf("%d of 60 calls went to the slow one", n)
	}
	s := w.state()
	if s.Asked || s.Policy["thicket.balance"] != "p2c" || s.Policy["thicket.attempts"] != "1" {
		t.Errorf("state %+v, want the rule and no policy", s)
	}
	for _, r := range s.Replicas {
		d, err := time.ParseDuration(r.Balance.Latency)
		if err != nil || r.ID == "slow" && d < 50*time.Millisecond || r.Balance.Weight < 0.1 || r.Balance.Weight > 1 {
			t.Errorf("replica %+v, %v", r, err)
		}
	}
}
