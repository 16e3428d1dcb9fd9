//go:build kube

package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/openfaas/go-sdk"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// TestWeather is the whole way: from nothing to a weather app that is asked while
// what it stands on is taken away.
func TestWeather(t *testing.T) {
	c := newCluster(t)
	say("cluster of %d machines (%s), namespace %s, deploy/kubernetes/%s, image %s", len(c.machines), c.platforms(), c.namespace, c.variant, c.image)
	c.volume()
	c.apply()
	f := &fleet{cluster: c, client: &http.Client{Timeout: 20 * time.Second}}
	t.Cleanup(func() { _ = f.connect(nil) }) // it has no error then
	f.reconnect()

	began := time.Now()
	nodes := f.await("all nodes have joined", func() bool {
		have := f.ready()
		for name := range c.nodePods() {
			if !slices.Contains(have, name) {
				return false
			}
		}
		return len(have) >= 2
	}).ready()
	say("%d nodes have joined: %s (%s after the gateway was ready)", len(nodes), strings.Join(nodes, ", "), since(began))

	f.deploy()
	question := "/function/weather-consumer?zip=70569&country=DE"
	f.await("the weather is told", func() bool { return told(f.get(question)) == fresh })
	f.spread()

	f.loseGateway(question)
	f.loseNode(question, "told to end", 60)
	f.loseNode(question, "killed", 1)
}

// loseGateway takes the gateway's pod away.
func (f *fleet) loseGateway(question string) {
	f.t.Helper()
	before := f.running()
	began := time.Now()
	f.must("delete", "pod", "gateway-0", "--grace-period=1", "--wait=false")
	f.await("the gateway is gone", func() bool { code, _ := f.get("/healthz"); return code == 0 })
	f.reconnect()
	f.await("the weather is told again", func() bool { return told(f.get(question)) == fresh })
	say("gateway's pod killed: the weather is told again %s later", since(began))
	f.await("all replicas are in its books", func() bool { return len(f.running()) >= len(before) })
	after := f.running()
	for id, on := range before {
		if after[id] != on {
			f.t.Errorf("replica %s of %s is not there any more (%v): it should have gone on without the gateway", id, on, after)
		}
	}
	functions := f.functions()
	say("it knows %s without a deploy, and the same %d replicas go on", strings.Join(functions, " and "), len(after))
	if len(functions) != 2 {
		f.t.Errorf("declared are %v, want both functions", functions)
	}
}

// loseNode takes the pod of one of our nodes away while functions are called.
func (f *fleet) loseNode(question, how string, grace int) {
	f.t.Helper()
	victim := slices.Max(f.ready())
	old := f.nodePods()[victim]
	if old == "" {
		f.t.Fatalf("node %s has no pod: %v", victim, f.nodePods())
	}
	l := f.load(question, 20)
	began := time.Now()
	f.must("delete", "pod", old, fmt.Sprintf("--grace-period=%d", grace), "--wait=false")
	f.await("another pod is that node", func() bool {
		pod := f.nodePods()[victim]
		return pod != "" && pod != old && slices.Contains(f.ready(), victim) && f.addr(victim) == f.podIP(pod)
	})
	back := since(began)
	f.spread()
	all := since(began)
	asked, failed, stale := l.end()
	say("node's pod %s: its successor is node %s after %s, two replicas on two nodes after %s; %d calls meanwhile, %d failed, %d from memory", how, victim, back, all, asked, failed, stale)
	if asked == 0 || grace > 1 && failed > 0 {
		f.t.Errorf("%d of %d calls failed", failed, asked)
	}
	l = f.load(question, 20)
	f.await("a hundred calls", func() bool { return l.count() >= 100 })
	asked, failed, stale = l.end()
	say("once settled: %d calls, %d failed, %d from memory", asked, failed, stale)
	if failed > 0 || stale > 0 {
		f.t.Errorf("once settled %d of %d calls failed, %d were answered from memory", failed, asked, stale)
	}
}

// fleet is the gateway as its clients see it.
type fleet struct {
	*cluster
	client *http.Client

	mu     sync.Mutex // guards below
	url    string
	cancel context.CancelFunc
}

// connect takes another way to the gateway, in place of the one before.
func (f *fleet) connect(way func(context.Context) (string, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
	if way == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	port, err := way(ctx)
	if err != nil {
		cancel()
		return err
	}
	f.url, f.cancel = "http://127.0.0.1:"+port, cancel
	return nil
}

// reconnect finds a way to the gateway, also if it isn't there yet.
func (f *fleet) reconnect() {
	f.t.Helper()
	f.await("the gateway answers", func() bool {
		if f.connect(f.forward) != nil {
			return false
		}
		code, _ := f.get("/healthz")
		return code == http.StatusOK
	})
}

func (f *fleet) at() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.url
}

// await waits for something that takes as long as it takes.
func (f *fleet) await(what string, is func() bool) *fleet {
	f.t.Helper()
	for deadline := time.Now().Add(4 * time.Minute); !is(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: not within four minutes", what)
		}
	}
	return f
}

// get asks as an operator. The code is 0 if nobody answers.
func (f *fleet) get(path string) (code int, body string) {
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.at()+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	req.SetBasicAuth("admin", f.password)
	res, err := f.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// read is get of JSON; false if there is none now.
func (f *fleet) readAt(path string, into any) bool {
	code, body := f.get(path)
	return code == http.StatusOK && json.Unmarshal([]byte(body), into) == nil
}

// ready lists the nodes that are there, without the gateway's own machine.
func (f *fleet) ready() (names []string) {
	for _, n := range f.nodes() {
		if n.State == "ready" && !n.Local {
			names = append(names, n.Name)
		}
	}
	return names
}

type node struct {
	Name, State, Addr string
	Local             bool
}

func (f *fleet) nodes() (all []node) {
	f.readAt("/system/nodes", &all)
	return all
}

// addr is where the gateway reaches a node.
func (f *fleet) addr(name string) string {
	for _, n := range f.nodes() {
		if n.Name == name {
			host, _, _ := strings.Cut(n.Addr, ":")
			return host
		}
	}
	return ""
}

func (f *fleet) podIP(pod string) string {
	return strings.TrimSpace(f.must("get", "pod", pod, "-o", "jsonpath={.status.podIP}"))
}

// running is where each ready replica is, by its id.
func (f *fleet) running() map[string]string {
	var s wire.Snapshot
	f.readAt("/system/discovery", &s)
	all := make(map[string]string)
	for _, r := range s.Replicas {
		if r.State == "ready" && !r.Suspect {
			all[r.ID] = r.Function.Function + " on " + r.Node
		}
	}
	return all
}

// functions lists what is declared.
func (f *fleet) functions() []string {
	var all []struct{ Name string }
	f.readAt("/system/functions", &all)
	var names []string
	for _, fn := range all {
		names = append(names, fn.Name)
	}
	return names
}

// spread waits until each function has two replicas, on two nodes.
func (f *fleet) spread() {
	f.t.Helper()
	f.await("two replicas of each function, on two nodes", func() bool {
		on := make(map[string][]string)
		for _, where := range f.running() {
			name, node, _ := strings.Cut(where, " on ")
			if slices.Contains(on[name], node) {
				return false
			}
			on[name] = append(on[name], node)
		}
		return len(on["weather-consumer"]) == 2 && len(on["weather-producer"]) == 2
	})
}

// deploy builds the weather app into the gateway's own registry, and deploys it
// with the client that OpenFaaS's users have.
func (f *fleet) deploy() {
	f.t.Helper()
	began := time.Now()
	build := exec.Command(program, "build", "-f", "stack.yml", "--push", "--platforms", f.platforms())
	build.Dir = "../.."
	host := strings.TrimPrefix(f.at(), "http://")
	build.Env = append(os.Environ(), "THICKET_REGISTRY="+host, "THICKET_PASSWORD="+f.password)
	if out, err := build.CombinedOutput(); err != nil {
		f.t.Fatalf("build: %v\n%s", err, out)
	}
	say("weather app built and pushed through kubectl port-forward in %s", since(began))
	u, err := url.Parse(f.at())
	if err != nil {
		f.t.Fatal(err)
	}
	stack, err := image.ReadStack("../../stack.yml", func(name string) string {
		// As the gateway and its nodes find it: their own port 8080.
		return map[string]string{"THICKET_REGISTRY": "127.0.0.1:8080", "WEATHER_SIMULATE": "true", "WEATHER_FRESH": "0"}[name]
	})
	if err != nil {
		f.t.Fatal(err)
	}
	client := sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: f.password}, f.client)
	began = time.Now()
	for _, name := range stack.Names() {
		d, err := stack.Deployment(name)
		if err != nil {
			f.t.Fatal(err)
		}
		(*d.Labels)["com.openfaas.scale.min"] = "2"
		if code, err := client.Deploy(f.t.Context(), d); err != nil || code >= 300 {
			f.t.Fatalf("deploy %s: %d %v", name, code, err)
		}
	}
	f.spread()
	say("deployed by go-sdk: two replicas of each function, on two nodes, after %s", since(began))
}

// load is calls at a constant rate, each on its own.
type load struct {
	stop  chan struct{}
	calls sync.WaitGroup

	mu                   sync.Mutex // guards below
	asked, failed, stale int
	why                  map[string]int
	t                    *testing.T
}

// What became of a question.
const (
	failed = iota
	stale  // answered from memory
	fresh
)

// told reads the consumer's answer, which is a polite one in any case.
func told(code int, body string) int {
	var report struct {
		Temperature *float64
		Stale       bool
	}
	switch {
	case code != http.StatusOK || json.Unmarshal([]byte(body), &report) != nil || report.Temperature == nil:
		return failed
	case report.Stale:
		return stale
	}
	return fresh
}

func (f *fleet) load(path string, rate int) *load {
	l := &load{stop: make(chan struct{}), why: make(map[string]int), t: f.t}
	l.calls.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			l.calls.Go(func() {
				code, body := f.get(path)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.asked++
				switch told(code, body) {
				case stale:
					l.stale++
				case failed:
					l.failed++
					l.why[fmt.Sprintf("%d %.200s", code, body)]++
				}
			})
		}
	})
	return l
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// end stops the calls and says what became of them.
func (l *load) end() (asked, failed, stale int) {
	close(l.stop)
	l.calls.Wait()
	for why, n := range l.why {
		l.t.Logf("%d calls: %s", n, why)
	}
	return l.asked, l.failed, l.stale
}
