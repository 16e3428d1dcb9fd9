//go:build faults && linux

package faults_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"
	"github.com/openfaas/go-sdk/stack"
)

// The functions of the fleet, and how often they are called each second.
const (
	patient   = "patient" // asks for a deadline and for attempts
	plain     = "plain"   // asks for nothing
	weather   = "weather-consumer"
	eachRate  = 40
	wRate     = 5
	deadline  = 5 * time.Second
	fleetWait = 20 * time.Second // how long callers wait
)

// functions are all that are called, by somebody or by another.
var functions = []string{patient, plain, weather, "weather-producer"}

// The bounds of issue 5 in seconds.
const (
	suspectBound = 3 * time.Second
	goneBound    = 8 * time.Second
	againBound   = 10 * time.Second
	rebuildBound = time.Second
)

// fleet is a gateway on one host and nodes on six.
type fleet struct {
	*lan
	*proof
	nuc   *host
	g     *gateway
	loads []*load
	hurt  []string // nodes that were broken already
}

// joinLine is what "gateway-ext token" prints.
var joinLine = regexp.MustCompile(`(?m)^gateway-ext node --join (\S+) --token (\S+)$`)

// TestFleet ("make fleet") is the story of a NUC and six Pis, told in one go while
// the functions are called all the time.
func TestFleet(t *testing.T) {
	names := []string{"nuc", "pi-1", "pi-2", "pi-3", "pi-4", "pi-5", "pi-6"}
	l := newLAN(t, names...)
	f := &fleet{lan: l, proof: &proof{t: t, began: time.Now()}, nuc: l.hosts["nuc"]}
	t.Cleanup(f.end)
	f.join(names[1:])
	f.deploy()
	f.begin()

	s := f.step("all is well")
	f.pass(3 * time.Second)
	s.within("watched for", 3*time.Second, 0)
	s.answered(f.since(), 0)

	f.lose("kill -9 of all on a node", (*host).cutPower, func(h *host) { h.node() })
	f.lose("freeze a node (SIGSTOP)", func(h *host) { h.signal(syscall.SIGSTOP) }, func(h *host) { h.signal(syscall.SIGCONT) })
	f.lose("cut a node off (iptables DROP)", func(h *host) { h.wire("-A", "-j", "DROP") }, func(h *host) { h.wire("-D", "-j", "DROP") })
	f.update()
	f.shaky()
	f.restart("stop the gateway and start it (SIGTERM)", syscall.SIGTERM)
	f.restart("kill the gateway and start it (SIGKILL)", syscall.SIGKILL)
	f.handOver()
	f.drain()
	f.remove()

	for _, load := range f.loads {
		load.end()
	}
	if t.Failed() {
		return
	}
	if *page != "" {
		if err := f.write(*page); err != nil {
			t.Error(err)
		}
		return
	}
	fmt.Println("\n" + f.table())
}

// end stops all that runs.
func (f *fleet) end() {
	for _, load := range f.loads {
		load.cancel()
	}
	var all sync.WaitGroup
	for _, h := range f.hosts {
		if h != f.nuc {
			h.signal(syscall.SIGCONT)
			all.Go(h.stop)
		}
	}
	if f.g != nil {
		f.g.end()
	}
	all.Wait()
	if f.proof.t.Failed() && f.g != nil {
		logs := map[string]string{"the gateway": f.g.logged()}
		for _, name := range f.hurt {
			logs[name] = f.hosts[name].logged()
		}
		for who, log := range logs {
			lines := strings.Split(log, "\n")
			f.proof.t.Logf("the end of the log of %s:\n%s", who, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	}
}

// serve starts the gateway on its host.
func (f *fleet) serve() {
	f.proof.t.Helper()
	g, err := bootOn(f.nuc.start, program, f.nuc.dir, "THICKET_ADDR=:8080", "THICKET_NODE=nuc", "WEATHER_SIMULATE=true")
	if err != nil {
		f.proof.t.Fatal(err)
	}
	g.url = "http://" + f.nuc.addr + ":8080"
	u, err := url.Parse(g.url)
	if err != nil {
		f.proof.t.Fatal(err)
	}
	g.client = sdk.NewClient(u, &sdk.BasicAuth{Username: "admin", Password: testPassword}, &http.Client{Timeout: time.Minute})
	f.g = g
}

// join starts the gateway, and has each of the others join with one command.
func (f *fleet) join(nodes []string) {
	t := f.proof.t
	s := f.step("six machines join, with one command each")
	f.serve()
	line := joinLine.FindStringSubmatch(f.g.command(t, "token", "--note", "the shelf"))
	if line == nil {
		t.Fatal("gateway-ext token prints no command to join with")
	}
	began := time.Now()
	for i, name := range nodes {
		f.hosts[name].node("--join", line[1], "--token", line[2], "--label", fmt.Sprintf("zone=shelf-%d", 1+i%2), "--label", "kind=pi")
	}
	f.until("all are ready", func() bool { return f.ready() == len(nodes)+1 })
	s.within("until all are ready", time.Since(began), 0)
}

// ready counts the nodes that are.
func (f *fleet) ready() (n int) {
	for _, state := range f.g.states() {
		if state == "ready" {
			n++
		}
	}
	return n
}

var (
	two   = &map[string]string{"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "2"}
	onPis = []string{"node.labels.kind==pi"}
)

// takes is the environment of a function whose calls take so long.
func takes(latency string) map[string]string {
	return map[string]string{"metrics_port": "0", "FAULTS_LATENCY": latency}
}

// patient is the function that asks for a policy.
func (f *fleet) patient(latency string) types.FunctionDeployment {
	return types.FunctionDeployment{
		Service: patient, Image: "127.0.0.1:8080/victim:latest", EnvVars: takes(latency), Labels: two, Constraints: onPis,
		Annotations: &map[string]string{"thicket.timeout": deadline.String(), "thicket.attempts": "3"},
	}
}

// deploy builds and deploys the weather app and the functions that are called.
func (f *fleet) deploy() {
	t := f.proof.t
	s := f.step("deploy four functions, with two replicas each")
	registry := f.nuc.addr + ":8080"
	for _, file := range []string{"testdata/stack.yml", "../../stack.yml"} {
		if err := buildImages(registry, file); err != nil {
			t.Fatal(err)
		}
	}
	all := []types.FunctionDeployment{
		f.patient("10ms"),
		{Service: plain, Image: "127.0.0.1:8080/victim:latest", EnvVars: takes("10ms"), Labels: two, Constraints: onPis},
	}
	t.Setenv("WEATHER_SIMULATE", "true")
	t.Setenv("WEATHER_FRESH", "0")
	t.Setenv("OPENMETEO_URL", "http://127.0.0.1:9")
	t.Setenv("OPENMETEO_GEOCODING_URL", "http://127.0.0.1:9")
	services, err := stack.ParseYAMLFile("../../stack.yml", "", "", true)
	if err != nil {
		t.Fatal(err)
	}
	for name, fn := range services.Functions {
		d := types.FunctionDeployment{Service: name, Image: fn.Image, EnvVars: fn.Environment, Labels: two, Annotations: fn.Annotations}
		if fn.Limits != nil {
			d.Limits = &types.FunctionResources{Memory: fn.Limits.Memory, CPU: fn.Limits.CPU}
		}
		all = append(all, d)
	}
	began := time.Now()
	for _, d := range all {
		if _, err := f.g.client.Deploy(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	f.until("all are ready", f.whole)
	s.within("until all replicas are ready", time.Since(began), 0)
	used, shared := map[string]bool{}, 0
	for _, name := range functions {
		on := map[string]bool{}
		for _, r := range f.g.places(name) {
			used[r.Node], on[r.Node] = true, true
		}
		if len(on) < 2 {
			shared++
		}
	}
	s.exactly("functions with both replicas on one node", shared, 0)
	s.say("nodes that run something", "", fmt.Sprint(len(used)))
}

// begin begins to call.
func (f *fleet) begin() {
	began := time.Now()
	victim := func(name string) func(int, *rand.Rand) string {
		return func(n int, _ *rand.Rand) string {
			return fmt.Sprintf("%s/function/%s?key=%d", f.g.url, name, n)
		}
	}
	report := f.g.url + "/function/" + weather + "?zip=70569&country=DE"
	f.loads = []*load{
		(&load{url: victim(patient), rate: eachRate, still: fleetWait}).beginAt(1, began),
		(&load{url: victim(plain), rate: eachRate, still: fleetWait}).beginAt(2, began),
		(&load{url: func(int, *rand.Rand) string { return report }, rate: wRate, still: fleetWait, judge: byReport}).beginAt(3, began),
	}
}

// byReport is a judge of the weather app's answers.
func byReport(s *sample, _ *http.Response, body []byte) {
	var report struct {
		Temperature *float64
		Stale       bool
	}
	switch err := json.Unmarshal(body, &report); {
	case err != nil || report.Temperature == nil:
		s.class = wrong
	case report.Stale:
		s.class, s.note = old, ""
	default:
		s.note = ""
	}
}

// pass lets time pass in which functions are called.
func (f *fleet) pass(d time.Duration) { time.Sleep(d) }

// until waits for a condition, and returns how long that took.
func (f *fleet) until(what string, ok func() bool) time.Duration {
	f.proof.t.Helper()
	began := time.Now()
	eventually(f.proof.t, what, ok)
	return time.Since(began)
}

// since returns the calls that were due since it was last called, once all of them
// are answered. Their times are of loads that began together.
func (f *fleet) since() (all samples) {
	f.proof.t.Helper()
	for _, l := range f.loads {
		due := l.at()
		f.until("calls are answered", func() bool { return l.answered(due) })
		l.mu.Lock()
		var rest samples
		for _, s := range l.samples {
			if s.due < due {
				all = append(all, s)
			} else {
				rest = append(rest, s)
			}
		}
		l.samples = rest
		l.mu.Unlock()
	}
	return all
}

// victim returns a node that runs a replica of the functions called and was not
// broken before.
func (f *fleet) victim() *host {
	f.proof.t.Helper()
	rs := append(f.g.places(patient, plain), f.g.places(functions...)...)
	for _, again := range []bool{false, true} {
		for _, r := range rs {
			if r.Node != "nuc" && (again || !slices.Contains(f.hurt, r.Node)) {
				f.hurt = append(f.hurt, r.Node)
				return f.hosts[r.Node]
			}
		}
	}
	f.proof.t.Fatal("no node runs anything")
	return nil
}

// whole says whether every function has two replicas that are ready.
func (f *fleet) whole() bool {
	n := map[string]int{}
	for _, r := range f.g.places(functions...) {
		n[r.Function.Function]++
	}
	for _, name := range functions {
		if n[name] < 2 {
			return false
		}
	}
	return true
}

// lose breaks a node in some way, and mends it.
func (f *fleet) lose(what string, how, mend func(*host)) {
	h := f.victim()
	s := f.step(what)
	s.say("the node, and its replicas of the functions called", "", fmt.Sprintf("%s, %d", h.name, f.on(h.name)))
	met := f.met()
	began := time.Now()
	how(h)
	f.until(h.name+" is suspect", func() bool { st := f.g.states()[h.name]; return st == "suspect" || st == "gone" })
	s.within("suspect after", time.Since(began), suspectBound)
	f.until(h.name+" is gone", func() bool { return f.g.states()[h.name] == "gone" })
	gone := time.Now()
	s.within("gone after", gone.Sub(began), goneBound)
	f.until("replicas are elsewhere", f.whole)
	s.within("its replicas ready elsewhere, after that", time.Since(gone), againBound)
	s.say("attempts that met the dead node", "", fmt.Sprintf("%.0f", f.met()-met))
	f.pass(time.Second)
	s.answered(f.since(), 0)

	s = f.step("… and bring it back")
	began = time.Now()
	mend(h)
	f.until(h.name+" is back", func() bool { return f.g.states()[h.name] == "ready" })
	s.within("taken back after", time.Since(began), 0)
	f.pass(2 * time.Second)
	s.answered(f.since(), 0)
}

// update deploys a function anew while a node that runs it is frozen, which must be
// told of it like the others.
func (f *fleet) update() {
	t := f.proof.t
	f.until("all is well", func() bool { return f.ready() == 7 && f.whole() })
	s := f.step("update a function while one of its nodes is frozen")
	h := f.hosts[f.g.places(patient)[0].Node]
	before := f.g.places(patient)[0].Revision
	h.signal(syscall.SIGSTOP)
	began := time.Now()
	if _, err := f.g.client.Update(t.Context(), f.patient("20ms")); err != nil {
		t.Error(err)
	}
	s.within("taken after", time.Since(began), suspectBound)
	f.until("the update is there", func() bool {
		n := 0
		for _, r := range f.g.places(patient) {
			if r.Node != h.name && r.Revision > before {
				n++
			}
		}
		return n >= 2
	})
	s.within("replicas of it ready elsewhere after", time.Since(began), goneBound+againBound)
	h.signal(syscall.SIGCONT)
	f.until(h.name+" is back", func() bool { return f.g.states()[h.name] == "ready" })
	f.pass(time.Second)
	s.answered(f.since(), 0)
}

// on counts the ready replicas on a node.
func (f *fleet) on(node string) (n int) {
	for _, r := range f.g.places(functions...) {
		if r.Node == node {
			n++
		}
	}
	return n
}

// met counts the attempts that failed or took too long, of all functions.
func (f *fleet) met() (n float64) {
	for _, name := range functions {
		n += f.g.events(f.proof.t, name, "failure") + f.g.events(f.proof.t, name, "timeout")
	}
	return n
}

// shaky has a node lose a tenth of its packets.
func (f *fleet) shaky() {
	h := f.victim()
	s := f.step("lose 10 % of a node's packets, both ways, for 10 s")
	s.say("the node, and its replicas of the functions called", "", fmt.Sprintf("%s, %d", h.name, f.on(h.name)))
	rule := []string{"-m", "statistic", "--mode", "random", "--probability", "0.1", "-j", "DROP"}
	h.wire("-A", rule...)
	gone := 0
	was := "ready"
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); f.pass(100 * time.Millisecond) {
		now := f.g.states()[h.name]
		if now == "gone" && was != "gone" {
			gone++
		}
		was = now
	}
	h.wire("-D", rule...)
	s.exactly("how often it was taken for gone", gone, 0)
	f.until("it is ready", func() bool { return f.g.states()[h.name] == "ready" && f.whole() })
	s.answered(f.since(), 0)
}

// ids are the replicas on the nodes, which the gateway's end doesn't concern.
func (f *fleet) ids() (ids []string) {
	for _, r := range f.g.places(functions...) {
		if r.Node != "nuc" {
			ids = append(ids, r.Node+" "+r.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// restart ends the gateway and starts it again.
func (f *fleet) restart(what string, sig syscall.Signal) {
	t := f.proof.t
	f.until("all is well", func() bool { return f.ready() == 7 && f.whole() })
	s := f.step(what)
	before := f.ids()
	from := time.Now()
	f.g.cmd.Process.Signal(sig)
	select {
	case <-f.g.exited:
	case <-time.After(time.Minute):
		t.Fatal("the gateway doesn't end")
	}
	f.serve()
	up := time.Now()
	var after []string
	f.until("the gateway knows what runs where", func() bool {
		after = f.ids()
		return len(after) >= len(before)
	})
	s.within("until it knows where all replicas on nodes are", time.Since(up), rebuildBound)
	s.say("it was away for", "", seconds(up.Sub(from)))
	kept := 0
	for _, id := range before {
		if slices.Contains(after, id) {
			kept++
		}
	}
	s.exactly("replicas on nodes that are what they were", kept, len(before))
	f.until("all is well", func() bool { return f.ready() == 7 && f.whole() })
	f.pass(4 * time.Second) // what is decided after the start shows by then
	still := 0
	for _, id := range f.ids() {
		if slices.Contains(before, id) {
			still++
		}
	}
	s.exactly("and after that", still, len(before))
	s.apart(f.since(), from, up, f.loads[0].began)
}

// apart closes a step in which the gateway was away: what nobody could connect
// for, or was cut off with the gateway, is no failed call of a function.
func (s *step) apart(all samples, from, up, began time.Time) {
	s.p.t.Helper()
	var rest samples
	away := 0
	for _, c := range all {
		start, end := began.Add(c.began), began.Add(c.due+c.latency)
		if c.class == failed && c.status == 0 && start.Before(up) && end.After(from) {
			away++
			continue
		}
		rest = append(rest, c)
	}
	s.answered(rest, away)
}

// handOver restarts the gateway in place.
func (f *fleet) handOver() {
	f.until("all is well", func() bool { return f.ready() == 7 && f.whole() })
	s := f.step("restart the gateway in place (SIGUSR2)")
	before := f.ids()
	starts := f.g.starts.Load()
	began := time.Now()
	if err := f.g.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		f.proof.t.Fatal(err)
	}
	f.until("it has started", func() bool { return f.g.starts.Load() > starts })
	s.within("until it has started", time.Since(began), 0)
	var after []string
	s.within("until it knows where all replicas on nodes are", f.until("the gateway knows what runs where", func() bool {
		after = f.ids()
		return len(after) >= len(before)
	}), rebuildBound)
	kept := 0
	for _, id := range before {
		if slices.Contains(after, id) {
			kept++
		}
	}
	s.exactly("replicas on nodes that are what they were", kept, len(before))
	f.until("all is well", func() bool { return f.ready() == 7 && f.whole() })
	s.answered(f.since(), 0)
}

// drain has a node moved empty.
func (f *fleet) drain() {
	h := f.victim()
	s := f.step("drain a node")
	s.say("the node, and its replicas of the functions called", "", fmt.Sprintf("%s, %d", h.name, f.on(h.name)))
	began := time.Now()
	f.g.command(f.proof.t, "nodes", "drain", h.name)
	f.until("it is empty", func() bool { return f.on(h.name) == 0 && f.whole() })
	s.within("empty, its replicas ready elsewhere, after", time.Since(began), againBound)
	f.pass(time.Second)
	s.answered(f.since(), 0)
	f.g.command(f.proof.t, "nodes", "uncordon", h.name)
}

// remove takes a node out of the fleet.
func (f *fleet) remove() {
	h := f.victim()
	s := f.step("remove a node")
	s.say("the node, and its replicas of the functions called", "", fmt.Sprintf("%s, %d", h.name, f.on(h.name)))
	began := time.Now()
	f.g.command(f.proof.t, "nodes", "remove", h.name)
	f.until("replicas are elsewhere", func() bool { _, there := f.g.states()[h.name]; return !there && f.whole() })
	s.within("its replicas ready elsewhere, after", time.Since(began), againBound)
	f.pass(time.Second)
	s.answered(f.since(), 0)
}
