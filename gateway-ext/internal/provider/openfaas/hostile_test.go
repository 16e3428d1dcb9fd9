package openfaas_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// TestHostile: a provider that answers wrongly, slowly, without end or not at all
// is lost with a sentence, and is a node again as soon as it answers; what runs
// there is as it was.
func TestHostile(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Faasd(), images)
	table := providertest.NewTable(t)
	c := connect(t, s.URL, table)
	<-c.beats
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 1)); err != nil {
		t.Fatal(err)
	}
	before := table.AwaitReady(t, named("f"), 1, 1)[0]
	for _, h := range []struct {
		name, want string
		serve      http.HandlerFunc
	}{
		{"garbage", `was answered with what no OpenFaaS answers: "???`, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte{0, 1, 2, 0xff}) }},
		{"another JSON", "what no OpenFaaS answers: \"{\\\"a\\\": 1}\"", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"a": 1}`) }},
		{"401", "it doesn't take the password of the user admin", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }},
		{"500", `was answered 500: "out of memory goroutine 1"`, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "out of memory\ngoroutine 1", http.StatusInternalServerError)
		}},
		{"never", "no answer within 2.5s", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"slowly", "its answer had not ended after 2.5s", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, "[")
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		}},
		{"endlessly", "was answered with more than 8 MiB", func(w http.ResponseWriter, _ *http.Request) {
			line := []byte("[" + strings.Repeat(`{"name":"a"},`, 1000))
			for range 5000 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}},
		{"hangs up", "EOF", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
		}},
	} {
		t.Run(h.name, func(t *testing.T) {
			s.Spoil(h.serve)
			var err error
			providertest.Await(t, "it is lost for the right reason", func() bool {
				select {
				case err = <-c.lost:
				default:
				}
				return err != nil && strings.Contains(err.Error(), h.want)
			})
			t.Log(err)
			if strings.Contains(err.Error(), providertest.StandInPassword) {
				t.Errorf("the password is in %v", err)
			}
			s.Spoil(nil)
			for len(c.beats) > 0 {
				<-c.beats
			}
			<-c.beats
			if r := table.AwaitReady(t, named("f"), 1, 1)[0]; r.ID != before.ID {
				t.Errorf("the replica is another: %s, and was %s", r.ID, before.ID)
			}
		})
	}
}

// TestListsOfStrangers: names that are none, numbers that can't be and missing
// fields do no harm.
func TestListsOfStrangers(t *testing.T) {
	list := `[{}, {"name":"../../etc"}, {"name":"UPPER"}, {"name":"` + strings.Repeat("a", 300) + `"}, {"name":"fine","namespace":"","replicas":18446744073709551615,"availableReplicas":18446744073709551615},` +
		`{"name":"ours","annotations":{"com.thicket.fleet":"us","com.thicket.revision":"no number"},"replicas":3}]`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/deep/below/system/functions":
			io.WriteString(w, list)
		case r.URL.Path == "/deep/below/system/info":
			io.WriteString(w, `{"provider":{"provider":"some\u0000thing\nelse","orchestration":""},"arch":"riscv64"}`)
		case strings.HasPrefix(r.URL.Path, "/deep/below/system/function/"):
			io.WriteString(w, `{"name":"ours","availableReplicas":2}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	c := connect(t, srv.URL+"/deep/below/", providertest.NewTable(t))
	m := <-c.beats
	if m.Version != "somethingelse" {
		t.Errorf("it calls itself %q, want what can be printed of it", m.Version)
	}
	caps, ok := c.Capabilities()
	if !ok || caps.Secrets || caps.MakeNamespaces || !caps.Zero || caps.MaxReplicas != 0 || len(caps.Platforms) != 0 {
		t.Errorf("Capabilities() = %+v, want what was seen, and trust in all else", caps)
	}
	found := c.Found()
	if len(found) != 1 || found[0].Name != "fine" || found[0].Namespace != faas.DefaultNamespace {
		t.Errorf("Found() = %+v, want the one that has a name", found)
	}
	if w := c.Wanted(); len(w) != 1 || w[named("ours")].Replicas != 3 {
		t.Errorf("Wanted() = %+v, want ours", w)
	}
}

// TestNumbers: a provider that says yes to a number and does another is believed
// in what it does.
func TestNumbers(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	q := providertest.Netes()
	q.Name, q.MaxReplicas = "some-provider", 2
	s := providertest.NewStandIn(t, q, images)
	table := providertest.NewTable(t)
	c := connect(t, s.URL, table)
	<-c.beats
	if caps, _ := c.Capabilities(); caps.MaxReplicas != 0 || !caps.Zero {
		t.Errorf("Capabilities() = %+v of a provider of no known name, want trust", caps)
	}
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 4)); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "it is known that 2 are the most", func() bool { caps, _ := c.Capabilities(); return caps.MaxReplicas == 2 })
	table.AwaitReady(t, named("f"), 1, 2)
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 3)); !errors.Is(err, faas.ErrInvalid) {
		t.Errorf("Apply() of 3 = %v, want %v", err, faas.ErrInvalid)
	}
	// It refuses 0, and is believed in that, too: the function goes instead.
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 0)); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "it is not there", func() bool { return len(s.Functions()) == 0 })
	providertest.Await(t, "it is known that none can sleep", func() bool { caps, _ := c.Capabilities(); return !caps.Zero })
}

// TestSomebodyElse: what others do at the provider is noticed: a function of ours
// that they delete comes again, a number that they set is set back.
func TestSomebodyElse(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Netes(), images)
	table := providertest.NewTable(t)
	c := connect(t, s.URL, table)
	<-c.beats
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 2)); err != nil {
		t.Fatal(err)
	}
	first := table.AwaitReady(t, named("f"), 1, 2)[0]
	ask(t, s.URL, http.MethodDelete, "/system/functions?namespace=openfaas-fn", `{"functionName":"f"}`)
	gone := table.AwaitGone(t, first.ID)
	if !strings.Contains(gone.Reason, "somebody else") {
		t.Errorf("it is gone because %q", gone.Reason)
	}
	table.AwaitReady(t, named("f"), 1, 2)
	ask(t, s.URL, http.MethodPost, "/system/scale-function/f?namespace=openfaas-fn", `{"serviceName":"f","replicas":5}`)
	scaled := s.Calls("POST /system/scale-function/f")
	providertest.Await(t, "the number is set back", func() bool { return s.Calls("POST /system/scale-function/f") > scaled })
	table.AwaitReady(t, named("f"), 1, 2)
}

func ask(t *testing.T, url, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(providertest.StandInUser, providertest.StandInPassword)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode/100 != 2 {
		t.Fatalf("%s %s is answered %s", method, path, res.Status)
	}
}

// TestTold: what a provider is told of a function is what it needs, and nothing
// of the fleet's own business.
func TestTold(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Faasd(), images)
	table := providertest.NewTable(t)
	c := connect(t, s.URL, table, func(c *openfaas.Config) { c.Registry = 8080 })
	<-c.beats
	w := providertest.Workload("f", 4, 1)
	w.Function.Namespace = "dev"
	w.Function.Image = "registry.test:5000/f:1.2"
	w.Function.Constraints = []string{"node.labels.zone==shelf-1"}
	w.Function.Labels = &map[string]string{"com.openfaas.scale.max": "9", "team": "a"}
	w.Function.Annotations = &map[string]string{"thicket.timeout": "5s", "topic": "t"}
	w.Secrets = map[string][]byte{"key": []byte("value")}
	if err := c.Apply(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	name := faas.Name{Function: "f", Namespace: "dev"}
	table.AwaitReady(t, name, 4, 1)
	d := s.Functions()["f"]
	if d.Image != "registry.test:5000/f@"+providertest.Digest || len(d.Constraints) != 0 || fmt.Sprint(*d.Labels) != "map[team:a]" || d.Namespace != "dev" {
		t.Errorf("it was told %+v", d)
	}
	a := *d.Annotations
	if a["topic"] != "t" || a["thicket.timeout"] != "" || a["com.thicket.fleet"] != "us" || a["com.thicket.revision"] != "4" {
		t.Errorf("its annotations are %v", a)
	}
	if got := s.Secrets(); fmt.Sprint(got) != "[dev/key]" {
		t.Errorf("its secrets are %v", got)
	}
	if err := c.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if got := s.Secrets(); len(got) != 0 {
		t.Errorf("after the function is gone its secrets are %v", got)
	}
}

// TestStrangersSecret: a secret that a function of somebody else uses is not
// overwritten.
func TestStrangersSecret(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Netes(), images)
	ask(t, s.URL, http.MethodPost, "/system/secrets", `{"name":"key","value":"theirs"}`)
	s.Deploy(types.FunctionDeployment{Service: "theirs", Image: "registry.test:5000/f", Secrets: []string{"key"}})
	c := connect(t, s.URL, providertest.NewTable(t))
	<-c.beats
	w := providertest.Workload("f", 1, 1)
	w.Secrets = map[string][]byte{"key": []byte("ours")}
	if err := c.Apply(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "the reason says whose secret it is", func() bool {
		st, _ := c.Status(named("f"))
		return strings.Contains(st.Reason, "the secret key is used there by theirs, which is not this fleet's")
	})
	// So is a function of the same name.
	if err := c.Apply(t.Context(), providertest.Workload("theirs", 1, 1)); err != nil {
		t.Fatal(err)
	}
	providertest.Await(t, "the reason says that there is one", func() bool {
		st, _ := c.Status(named("theirs"))
		return strings.Contains(st.Reason, "there is a function of this name already")
	})
	if err := c.Remove(t.Context(), named("theirs")); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Functions()["theirs"]; !ok || d.Annotations != nil {
		t.Errorf("theirs is %+v, %v: want it as it was", d, ok)
	}
}

// TestNoLogs: a provider that has no logs says so once.
func TestNoLogs(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Netes(), images)
	table := providertest.NewTable(t)
	c := connect(t, s.URL, table)
	<-c.beats
	if err := c.Apply(t.Context(), providertest.Workload("f", 1, 1)); err != nil {
		t.Fatal(err)
	}
	table.AwaitReady(t, named("f"), 1, 1)
	read := func() (err error) {
		for _, err = range c.Logs(t.Context(), logs.Request{Name: "f", Tail: -1}) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	c.stop()
	s.Spoil(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotImplemented) })
	if err := read(); err == nil || !strings.Contains(err.Error(), "501") {
		t.Errorf("Logs() = %v, want that it answered 501", err)
	}
	s.Spoil(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no json\n") })
	if err := read(); err == nil || !strings.Contains(err.Error(), "node nuc shows no logs") {
		t.Errorf("Logs() = %v, want that there are none", err)
	}
}
