package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/functions/discovery"
)

// newBeat ticks as often as a gateway's stream does at least.
func newBeat(ctx context.Context) <-chan time.Time {
	tick := time.NewTicker(discovery.Heartbeat)
	context.AfterFunc(ctx, tick.Stop)
	return tick.C
}

// open returns a client of the gateway that has heard all there is.
func open(t testing.TB, g *gateway, change ...func(*discovery.Config)) *discovery.Client {
	t.Helper()
	cfg := discovery.Config{
		URL: "http://" + gatewayAddr + discovery.Path, Token: "token",
		Node: "here", Name: "consumer-1", Dial: g.dial, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := discovery.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	synctest.Wait()
	return c
}

const address = "http://producer.openfaas-fn/"

// get returns the status and the text of an answer.
func get(t testing.TB, c *discovery.Client, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	code, text, err := do(c, r)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return code, text
}

func do(c *discovery.Client, r *http.Request) (int, string, error) {
	resp, err := c.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func wantText(t testing.TB, c *discovery.Client, want string) {
	t.Helper()
	if code, text := get(t, c, address); code != 200 || text != want {
		t.Errorf("GET = %d %q, want %q", code, text, want)
	}
}

const throughGateway = "through the gateway"

// Everything that may happen to replicas decides where calls go.
func TestCallsGoWhereReplicasAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		c := open(t, g)
		wantText(t, c, throughGateway) // none is known

		one := g.replica(1, func(r *discovery.Replica) { r.State = discovery.StateStarting })
		synctest.Wait()
		wantText(t, c, throughGateway)

		g.become(one, discovery.StateReady)
		synctest.Wait()
		wantText(t, c, "producer-1")

		g.replica(2)
		synctest.Wait()
		seen := map[string]int{}
		for range 200 {
			_, text := get(t, c, address)
			seen[text]++
		}
		if len(seen) != 2 || seen["producer-1"] < 20 || seen["producer-2"] < 20 {
			t.Errorf("200 calls went to %v, want both replicas", seen)
		}

		g.become(one, discovery.StateDraining)
		synctest.Wait()
		for range 50 {
			wantText(t, c, "producer-2")
		}
		g.become(one, discovery.StateGone)
		synctest.Wait()
		wantText(t, c, "producer-2")

		through := g.through()
		g.mu.Lock()
		g.replicas = map[string]discovery.Replica{}
		e := g.event(discovery.EventSnapshot, discovery.Snapshot{})
		for s := range g.streams {
			s <- e
		}
		g.mu.Unlock()
		synctest.Wait()
		wantText(t, c, throughGateway) // it sleeps
		if g.through() != through+1 {
			t.Errorf("%d calls went through the gateway, want 1", g.through()-through)
		}
	})
}

func TestAddressesOfOtherMachinesAreNotTaken(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*discovery.Replica)
		direct bool
	}{
		{"loopback here", func(*discovery.Replica) {}, true},
		{"loopback elsewhere", func(r *discovery.Replica) { r.Node = "there" }, false},
		{"elsewhere", func(r *discovery.Replica) {
			r.Node, r.Addr = "there", addrPort("10.0.0.7:80")
		}, true},
		{"no address", func(r *discovery.Replica) { r.Addr = addrPort("0.0.0.0:80") }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(newWorld(t))
				g.replica(1, test.change)
				c := open(t, g)
				want := throughGateway
				if test.direct {
					want = "producer-1"
				}
				wantText(t, c, want)
			})
		})
	}
}

// Who is near, quick and well gets more.
func TestReplicasAreNotAlike(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*discovery.Replica)
		answer func(w http.ResponseWriter)
		least  float64 // share of the other replica, in percent
		most   float64
	}{
		{"alike", nil, nil, 30, 70},
		{"on another machine", func(r *discovery.Replica) { r.Node, r.Addr = "there", addrPort("10.0.0.7:80") }, nil, 0, 35}, // while the near one is free
		{"slow", nil, func(http.ResponseWriter) { time.Sleep(50 * time.Millisecond) }, 0, 15},
		{"failing fast", nil, func(w http.ResponseWriter) { w.WriteHeader(500) }, 0, 15},
		{"asks to be left alone", nil, func(w http.ResponseWriter) { w.Header().Set("Retry-After", "20"); w.WriteHeader(503) }, 0, 5},
		{"suspect", func(r *discovery.Replica) { r.Suspect = true }, nil, 5, 40},
		{"new", func(r *discovery.Replica) { r.Age = 0 }, nil, 1, 45},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(newWorld(t))
				g.replica(1)
				var changes []func(*discovery.Replica)
				if test.change != nil {
					changes = append(changes, test.change)
				}
				two := g.replica(2, changes...)
				if test.answer != nil {
					g.kill(two.Addr.String())
					g.serve(two.Addr.String(), func(w http.ResponseWriter, _ *http.Request) { test.answer(w) })
				}
				c := open(t, g)
				var mu sync.Mutex
				var calls, there float64
				var callers sync.WaitGroup
				for range 4 {
					callers.Go(func() {
						for range 250 {
							r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
							if err != nil {
								t.Error(err)
								return
							}
							resp, err := c.RoundTrip(r)
							if err != nil {
								t.Error(err)
								return
							}
							resp.Body.Close()
							mu.Lock()
							if calls++; resp.Header.Get(discovery.HeaderReplica) == two.ID {
								there++
							}
							mu.Unlock()
							time.Sleep(10 * time.Millisecond)
						}
					})
				}
				callers.Wait()
				if share := 100 * there / calls; share < test.least || share > test.most {
					t.Errorf("it got %.1f %% of %.0f calls, want %.0f to %.0f", share, calls, test.least, test.most)
				} else {
					t.Logf("it got %.1f %% of %.0f calls", share, calls)
				}
			})
		})
	}
}

// A replica dies, and the gateway hasn't noticed yet.
func TestDeadReplicasFailNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		one, two := g.replica(1), g.replica(2)
		c := open(t, g)
		for range 20 {
			get(t, c, address)
		}
		g.kill(one.Addr.String())
		for range 100 {
			wantText(t, c, "producer-2")
		}
		g.kill(two.Addr.String())
		for range 100 {
			wantText(t, c, throughGateway)
		}
	})
}

// Another process has got the address of a replica that is gone.
func TestAddressOfSomebodyElseIsNotTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		one := g.replica(1)
		c := open(t, g)
		wantText(t, c, "producer-1")
		g.kill(one.Addr.String())
		g.serve(one.Addr.String(), answering("other-7"))
		wantText(t, c, throughGateway)
	})
}

func TestStreamThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		c := open(t, g)
		wantText(t, c, "producer-1")

		g.stop()
		time.Sleep(9 * time.Second)
		wantText(t, c, "producer-1") // the last that is known is good enough

		time.Sleep(2 * time.Second)
		r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if code, text, err := do(c, r); err == nil {
			t.Fatalf("GET = %d %s without a gateway, and with a table that is too old: want an error", code, text)
		}
		if took := time.Since(begun); took < 4*time.Second || took > 5*time.Second {
			t.Errorf("waited %s for the gateway, want 5 s", took)
		}

		// A call that waits for the gateway is answered when it is back.
		time.AfterFunc(2*time.Second, g.start)
		if code, _ := get(t, c, address); code != 200 {
			t.Errorf("GET = %d after the gateway came back", code)
		}
		time.Sleep(3 * time.Second)
		wantText(t, c, "producer-1")
	})
}

// A gateway that holds the connection and says nothing is as bad as none.
func TestSilentStreamIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.mute = true
		g.replica(1)
		c := open(t, g)
		wantText(t, c, throughGateway)
		g.mu.Lock()
		g.mute = false
		g.mu.Unlock()
		time.Sleep(4 * discovery.Heartbeat)
		wantText(t, c, "producer-1")
	})
}

// While nothing happens the comments keep the table fresh.
func TestQuietStreamStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		c := open(t, g)
		time.Sleep(time.Hour)
		wantText(t, c, "producer-1")
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.began != 1 {
			t.Errorf("%d streams in an hour, want 1", g.began)
		}
	})
}

func TestWrongTokenIsNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		var log strings.Builder
		c := open(t, g, func(cfg *discovery.Config) {
			cfg.Token, cfg.Log = "wrong", slog.New(slog.NewTextHandler(&log, nil))
		})
		wantText(t, c, throughGateway)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		n := strings.Count(log.String(), "thicket.discovery")
		if n < 10 || n > 50 {
			t.Errorf("asked about %d times in 10 minutes, want each half a minute:\n%s", n, log.String())
		}
		if strings.Contains(log.String(), "wrong") {
			t.Error("the log gives the token away")
		}
	})
}

// The gateway's addresses of functions, and what it does with others.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		echo := func(who string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, who, " ", r.URL.RequestURI()) }
		}
		r := g.replica(1)
		g.kill(r.Addr.String())
		g.serve(r.Addr.String(), echo("direct"))
		g.function = echo("gateway")
		c := open(t, g)
		for _, test := range []struct{ url, want string }{
			{"http://producer.openfaas-fn", "direct /"},
			{"http://producer.openfaas-fn/a%2Fb/c;d?x=1&y=a;b", "direct /a%2Fb/c;d?x=1&y=a;b"},
			{"http://producer/?", "direct /?"},
			{"http://gateway:8080/function/producer", "direct /"},
			{"http://gateway:8080/function/producer/", "direct /"},
			{"http://gateway:8080/function/producer.openfaas-fn/a//b%20c?q", "direct /a//b%20c?q"},
			{"http://other.openfaas-fn/a%2Fb?x", "gateway /function/other.openfaas-fn/a%2Fb?x"},
			{"http://producer.other/", "gateway /function/producer.other/"},
			{"http://gateway:8080/function/other", "gateway /function/other"},
			{"http://gateway:8080/function/Producer/", "gateway /function/Producer/"},
			{"http://gateway:8080/async-function/producer", "gateway /async-function/producer"},
			{"http://gateway:8080/healthz", "gateway /healthz"},
		} {
			if code, text := get(t, c, test.url); code != 200 || text != test.want {
				t.Errorf("GET %s = %d %s, want %s", test.url, code, text, test.want)
			}
		}
		for _, url := range []string{"https://producer.openfaas-fn/", "http://producer.openfaas-fn:80/", "http://www.example.com./", "http://Producer/", "http://10.0.0.1:80/"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := do(c, r); err == nil || !strings.Contains(err.Error(), "is no function") {
				t.Errorf("GET %s: %v, want that it is no function", url, err)
			}
		}
	})
}

// What a function gets is what the gateway would have told it, too.
func TestHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		r := g.replica(1)
		g.kill(r.Addr.String())
		got := make(chan *http.Request, 2)
		g.serve(r.Addr.String(), func(w http.ResponseWriter, r *http.Request) { got <- r })
		c := open(t, g)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Call-Id", "call-7")
		req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if id := resp.Header.Get(discovery.HeaderReplica); id != "producer-1" {
			t.Errorf("the answer says that %q gave it, want producer-1", id)
		}
		if len(req.Header) != 2 || resp.Request != req {
			t.Errorf("the caller's request was changed: %v", req.Header)
		}
		in := <-got
		for key, want := range map[string]string{
			"X-Call-Id": "call-7", "X-Timeout": "1.98s", "X-Forwarded-Host": "producer.openfaas-fn", "X-Forwarded-Proto": "http",
			"X-Thicket-Replica": "producer-1", "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			"X-Start-Time": fmt.Sprint(time.Now().UnixNano()),
		} {
			if in.Header.Get(key) != want {
				t.Errorf("%s: %q, want %q", key, in.Header.Get(key), want)
			}
		}
		get(t, c, address)
		if in = <-got; len(in.Header.Get("X-Call-Id")) < 20 || in.Header.Get("X-Timeout") != "" {
			t.Errorf("a call without an id and a deadline got %v", in.Header)
		}
	})
}

// part is a body that can be read once.
type part struct {
	io.Reader
	closed int
}

func (p *part) Close() error { p.closed++; return nil }

func TestWhatIsSentAgain(t *testing.T) {
	post := func(body io.ReadCloser) *http.Request {
		r, err := http.NewRequest("POST", address, body)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, test := range []struct {
		name    string
		request func() *http.Request
		dies    bool // after it has read the request, else before it listens
		want    string
		sent    int
	}{
		{"GET, refused", func() *http.Request { return post(nil) }, false, "2 ", 1},
		{"POST, refused", func() *http.Request { return post(&part{Reader: strings.NewReader("hello")}) }, false, "2 hello", 1},
		{"POST with a body that is there again, refused", func() *http.Request {
			r, _ := http.NewRequest("POST", address, strings.NewReader("hello"))
			return r
		}, false, "2 hello", 1},
		{"GET, broken off", func() *http.Request { r := post(nil); r.Method = "GET"; return r }, true, "2 ", 2},
		{"POST, broken off", func() *http.Request { return post(&part{Reader: strings.NewReader("hello")}) }, true, "", 1},
		{"POST that may be repeated, broken off", func() *http.Request {
			r, _ := http.NewRequest("POST", address, strings.NewReader("hello"))
			r.Header.Set("Idempotency-Key", "k")
			return r
		}, true, "2 hello", 2},
		{"POST that might be repeated, and can't", func() *http.Request {
			r := post(&part{Reader: strings.NewReader("hello")})
			r.Header.Set("Idempotency-Key", "k")
			return r
		}, true, "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(newWorld(t))
				one := g.replica(1)
				c := open(t, g)
				g.kill(one.Addr.String())
				var mu sync.Mutex
				sent := 0
				if test.dies {
					g.serve(one.Addr.String(), func(w http.ResponseWriter, r *http.Request) {
						io.ReadAll(r.Body)
						mu.Lock()
						sent++
						mu.Unlock()
						// The next that is asked is another one.
						g.replica(2)
						g.kill("127.0.0.1:1002")
						g.serve("127.0.0.1:1002", func(w http.ResponseWriter, r *http.Request) {
							mu.Lock()
							sent++
							mu.Unlock()
							b, _ := io.ReadAll(r.Body)
							fmt.Fprintf(w, "2 %s", b)
						})
						g.become(one, discovery.StateDraining)
						time.Sleep(time.Millisecond)
						panic(http.ErrAbortHandler)
					})
				} else {
					g.function = func(w http.ResponseWriter, r *http.Request) {
						mu.Lock()
						sent++
						mu.Unlock()
						b, _ := io.ReadAll(r.Body)
						fmt.Fprintf(w, "2 %s", b)
					}
				}
				r := test.request()
				code, text, err := do(c, r.WithContext(t.Context()))
				switch {
				case test.want == "" && err == nil:
					t.Errorf("answered %d %q, want an error: it was sent, and isn't safe to send again", code, text)
				case test.want != "" && (err != nil || text != test.want):
					t.Errorf("answered %d %q, %v, want %q", code, text, err, test.want)
				}
				synctest.Wait()
				if sent != test.sent {
					t.Errorf("a function got it %d times, want %d", sent, test.sent)
				}
				if p, ok := r.Body.(*part); ok && p.closed == 0 {
					t.Error("the body was never closed")
				}
			})
		})
	}
}

// When all answers break off, repeats stay a share of the calls.
func TestRepeatsHaveABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		var mu sync.Mutex
		sent := 0
		for n := 1; n <= 3; n++ {
			r := g.replica(n)
			g.kill(r.Addr.String())
			g.serve(r.Addr.String(), func(http.ResponseWriter, *http.Request) {
				mu.Lock()
				sent++
				mu.Unlock()
				panic(http.ErrAbortHandler)
			})
		}
		g.function = func(http.ResponseWriter, *http.Request) {
			mu.Lock()
			sent++
			mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		c := open(t, g)
		const calls = 500
		for range calls {
			r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := do(c, r); err == nil {
				t.Fatal("an answer from a function all of whose replicas break off")
			}
		}
		if sent < calls || sent > calls*6/5 {
			t.Errorf("%d calls were sent %d times, want a tenth more at most", calls, sent)
		}
	})
}

func TestCallerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		r := g.replica(1)
		g.kill(r.Addr.String())
		left := make(chan struct{})
		g.serve(r.Addr.String(), func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(left)
		})
		c := open(t, g)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := do(c, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("GET: %v, want deadline exceeded", err)
		}
		<-left
		time.Sleep(2 * time.Second)
		if sum, _ := g.heard(producer); sum.Started != 1 || len(sum.Ended) != 1 || sum.Ended[0].Status != http.StatusGatewayTimeout {
			t.Errorf("told %+v, want one that ended with 504", sum)
		}
		if n := g.through(); n != 0 {
			t.Errorf("%d calls went through the gateway for nobody", n)
		}
	})
}

// What was called is told once a second, and nothing of it is lost or told twice.
func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		r := g.replica(1)
		g.kill(r.Addr.String())
		g.serve(r.Addr.String(), func(w http.ResponseWriter, r *http.Request) {
			d, _ := time.ParseDuration(r.URL.Query().Get("sleep"))
			time.Sleep(d)
			if r.URL.Query().Has("bad") {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprint(w, "done")
		})
		c := open(t, g)
		begun := time.Now()
		var calls sync.WaitGroup
		for i := range 10 {
			calls.Go(func() {
				url := address + "?sleep=3500ms"
				if i == 0 {
					url += "&bad"
				}
				get(t, c, url)
			})
		}
		time.Sleep(2500 * time.Millisecond)
		sum, _ := g.heard(producer)
		if sum.Started != 10 || sum.InFlight != 10 || len(sum.Ended) != 0 || sum.Busy < 19.9 || sum.Busy > 20.1 {
			t.Errorf("after 2 reports: %+v, want 10 in flight that were busy for 20 s", sum)
		}
		g.mu.Lock()
		g.deaf = true
		g.mu.Unlock()
		calls.Wait()
		time.Sleep(5 * time.Second)
		g.mu.Lock()
		g.deaf = false
		g.mu.Unlock()
		time.Sleep(2 * time.Second)
		sum, seconds := g.heard(producer)
		if sum.Started != 10 || sum.InFlight != 0 || sum.Busy < 34.9 || sum.Busy > 35.1 {
			t.Errorf("at the end: %+v, want 10 that were busy for 35 s", sum)
		}
		ended := map[int]discovery.Ended{}
		for _, e := range sum.Ended {
			had := ended[e.Status]
			ended[e.Status] = discovery.Ended{Calls: had.Calls + e.Calls, Seconds: had.Seconds + e.Seconds}
		}
		if ended[200].Calls != 9 || ended[500].Calls != 1 || ended[200].Seconds < 31.4 || ended[200].Seconds > 31.6 {
			t.Errorf("ended: %v, want 9 with 200 after 3.5 s each and one with 500", ended)
		}
		if elapsed := time.Since(begun).Seconds(); seconds > elapsed || seconds < 7 {
			t.Errorf("periods of %.1f s were told in %.1f s", seconds, elapsed)
		}
		g.mu.Lock()
		told := len(g.usage)
		g.mu.Unlock()
		time.Sleep(time.Minute)
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.usage) != told {
			t.Errorf("%d reports of nothing", len(g.usage)-told)
		}
	})
}

// A call counts once, whoever refused it before, and not at all if it went through
// the gateway in the end, which counts it itself.
func TestUsageCountsCallsAndNotAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		one, two := g.replica(1), g.replica(2)
		c := open(t, g)
		g.kill(one.Addr.String())
		for range 50 {
			wantText(t, c, "producer-2")
			time.Sleep(100 * time.Millisecond)
		}
		g.kill(two.Addr.String())
		for range 50 {
			wantText(t, c, throughGateway)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		sum, _ := g.heard(producer)
		var ended uint64
		for _, e := range sum.Ended {
			ended += e.Calls
		}
		if sum.Started != 50 || ended != 50 || sum.InFlight != 0 {
			t.Errorf("told %+v, want 50 calls", sum)
		}
	})
}

// A gateway that is away for long is not told of all that was meanwhile.
func TestUsageIsNotKeptForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		c := open(t, g)
		g.deaf = true
		for range 60 {
			wantText(t, c, "producer-1")
			time.Sleep(time.Minute)
		}
		g.mu.Lock()
		g.deaf = false
		g.mu.Unlock()
		wantText(t, c, "producer-1")
		time.Sleep(2 * time.Second)
		if sum, seconds := g.heard(producer); sum.Started < 1 || sum.Started > 7 || seconds > 330 {
			t.Errorf("told %+v of %.0f s, want the last minutes", sum, seconds)
		}
	})
}

// The calls of the last moment are told, too.
func TestCloseTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		c := open(t, g)
		wantText(t, c, "producer-1")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if sum, _ := g.heard(producer); sum.Started != 1 || sum.InFlight != 0 {
			t.Errorf("told %+v, want one call", sum)
		}
		wantText(t, c, throughGateway)
	})
}

func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		r := g.replica(1)
		g.kill(r.Addr.String())
		g.serve(r.Addr.String(), func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(conn, rw)
		})
		c := open(t, g)
		req, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		conn, ok := resp.Body.(io.ReadWriteCloser)
		if !ok || resp.StatusCode != 101 {
			t.Fatalf("answered %d with a body that can't be written", resp.StatusCode)
		}
		fmt.Fprint(conn, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "ping" {
			t.Errorf("read %q, %v", b, err)
		}
		conn.Close()
		time.Sleep(1500 * time.Millisecond)
		if sum, _ := g.heard(producer); sum.InFlight != 0 || len(sum.Ended) != 1 || sum.Ended[0].Status != 101 {
			t.Errorf("told %+v, want one that ended with 101", sum)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  discovery.Config
		want string
	}{
		{"nothing", discovery.Config{}, "thicket.discovery"},
		{"no address", discovery.Config{URL: "gateway:8080"}, "write http://host:port"},
		{"another path", discovery.Config{URL: "http://gateway:8080/system"}, "must end in /system/discovery"},
		{"no gateway", discovery.Config{Gateway: "ftp://x"}, "write http://host:port"},
		{"before the beginning", discovery.Config{Gateway: "http://x", Stale: -1}, "below 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Log = slog.New(slog.DiscardHandler)
			if _, err := discovery.New(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New() = %v, want %q", err, test.want)
			}
		})
	}
}

// Elsewhere than under Thicket all goes through the gateway.
func TestWithoutDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(newWorld(t))
		g.replica(1)
		c := open(t, g, func(cfg *discovery.Config) { cfg.URL, cfg.Gateway = "", "http://"+gatewayAddr+"/" })
		wantText(t, c, throughGateway)
		time.Sleep(time.Minute)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.began != 0 || len(g.usage) != 0 {
			t.Error("asked for what there isn't")
		}
	})
}
