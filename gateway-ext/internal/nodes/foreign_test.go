package nodes_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// add makes a stand-in a node, and waits until it counts.
func (g *gateway) add(name string, s *providertest.StandIn) {
	g.t.Helper()
	err := g.Add(g.t.Context(), nodes.AddRequest{Name: name, URL: s.URL, User: providertest.StandInUser, Password: providertest.StandInPassword})
	if err != nil {
		g.t.Fatal(err)
	}
	g.await(name, "ready")
}

// update applies a workload again and again with revisions that grow, while
// somebody calls, and returns how many calls there were and how many failed.
func (g *gateway) update(name string, from, to uint64, replicas int) (asked, failed int64) {
	g.t.Helper()
	f := faas.Name{Function: name, Namespace: faas.DefaultNamespace}
	ctx, cancel := context.WithCancel(g.t.Context())
	var a, b atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				code, body, err := g.table.Do(context.WithoutCancel(ctx), f, "/sleep?for=2ms")
				a.Add(1)
				if err != nil || code != http.StatusOK || body != "slept" {
					b.Add(1)
					g.t.Errorf("a call failed: %d %q %v", code, body, err)
					return
				}
			}
		})
	}
	for revision := from; revision <= to; revision++ {
		g.apply(providertest.Workload(name, revision, replicas))
		g.table.AwaitReady(g.t, f, revision, replicas)
	}
	cancel()
	callers.Wait()
	return a.Load(), b.Load()
}

// TestInterruptedUpdate: an update on a faasd stops what runs there first. Where
// there is another node nothing is seen of that, and the table doesn't hold a
// call; where there is none calls wait.
func TestInterruptedUpdate(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	t.Run("with an elsewhere", func(t *testing.T) {
		g := startGateway(t, images, providertest.NewTable(t), nil)
		faasd := providertest.NewStandIn(t, providertest.Faasd(), images)
		g.add("faasd", faasd)
		if err := g.Update(t.Context(), "nuc", nodes.Change{Cordoned: new(true)}); err != nil {
			t.Fatal(err)
		}
		f := g.apply(providertest.Workload("f", 1, 1))
		if r := g.table.AwaitReady(t, f, 1, 1)[0]; r.Node != "faasd" {
			t.Fatalf("it is on %s, want the node that isn't cordoned", r.Node)
		}
		if err := g.Update(t.Context(), "nuc", nodes.Change{Cordoned: new(false)}); err != nil {
			t.Fatal(err)
		}
		asked, failed := g.update("f", 2, 4, 1)
		t.Logf("three updates with a second node: %d calls, %d failed, none held", asked, failed)
		if failed > 0 || asked == 0 {
			t.Errorf("%d of %d calls failed", failed, asked)
		}
	})
	t.Run("two of them", func(t *testing.T) {
		g := startGateway(t, images, providertest.NewTable(t), nil)
		g.add("one", providertest.NewStandIn(t, providertest.Faasd(), images))
		g.add("two", providertest.NewStandIn(t, providertest.Faasd(), images))
		if err := g.Update(t.Context(), "nuc", nodes.Change{Cordoned: new(true)}); err != nil {
			t.Fatal(err)
		}
		f := g.apply(providertest.Workload("f", 1, 2))
		g.table.AwaitReady(t, f, 1, 2)
		if on := g.on(f); on["one"] != 1 || on["two"] != 1 {
			t.Fatalf("two replicas are on %v, want one on each", on)
		}
		asked, failed := g.update("f", 2, 4, 2)
		t.Logf("three updates of two faasd: %d calls, %d failed, none held", asked, failed)
		if failed > 0 || asked == 0 {
			t.Errorf("%d of %d calls failed", failed, asked)
		}
	})
	t.Run("without", func(t *testing.T) {
		table := providertest.NewTable(t)
		table.Holds = true
		g := startGateway(t, images, table, nil)
		g.add("faasd", providertest.NewStandIn(t, providertest.Faasd(), images))
		if err := g.Update(t.Context(), "nuc", nodes.Change{Cordoned: new(true)}); err != nil {
			t.Fatal(err)
		}
		f := g.apply(providertest.Workload("f", 1, 1))
		g.table.AwaitReady(t, f, 1, 1)
		asked, failed := g.update("f", 2, 4, 1)
		t.Logf("three updates with nowhere else: %d calls, %d failed, some held", asked, failed)
		if failed > 0 || asked == 0 {
			t.Errorf("%d of %d calls failed", failed, asked)
		}
	})
}

// TestCapabilities: what no node can do is refused with each one's reason, and
// replicas go where there is room for them.
func TestCapabilities(t *testing.T) {
	g, images := newFleet(t)
	g.add("faasd", providertest.NewStandIn(t, providertest.Faasd(), images))
	g.add("kube", providertest.NewStandIn(t, providertest.Netes(), images))
	s, err := g.Node("faasd")
	if err != nil || s.Provider == nil || s.Provider.Capabilities == nil || s.Provider.MaxReplicas != 1 || s.Provider.Zero || !strings.Contains(s.Provider.Cannot, "at most 1 replica of a function") {
		t.Errorf("Node() = %+v, %v, want what it can do", s.Provider, err)
	}
	w := providertest.Workload("sleepy", 1, 1)
	w.Function.Labels = &map[string]string{faas.LabelScaleZero: "true"}
	w.Function.Constraints = []string{"node!=nuc"}
	err = g.Possible(t.Context(), &w.Function)
	for _, want := range []string{"faasd: faasd-ce can't put a function to sleep, and the label com.openfaas.scale.zero asks for that", "kube: faas-netes-ce can't", "nuc: node!=nuc is asked for"} {
		if err == nil || !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("Possible() = %v, want %q in it", err, want)
		}
	}
	w.Function.Constraints = nil
	if err := g.Possible(t.Context(), &w.Function); err != nil {
		t.Errorf("Possible() = %v, want none: this machine can", err)
	}
	elsewhere := providertest.Workload("elsewhere", 1, 1)
	elsewhere.Function.Namespace = "dev"
	elsewhere.Function.Constraints = []string{"node==kube"}
	if err := g.Possible(t.Context(), &elsewhere.Function); err == nil || !strings.Contains(err.Error(), "faas-netes-ce has no namespace dev") {
		t.Errorf("Possible() = %v, want that the cluster has no such namespace", err)
	}

	w = providertest.Workload("many", 1, 3)
	w.Function.Constraints = []string{"node!=nuc"}
	f := g.apply(w)
	g.table.AwaitReady(t, f, 1, 3)
	if on := g.on(f); on["faasd"] != 1 || on["kube"] != 2 {
		t.Errorf("3 replicas are on %v, want 1 on the faasd and the others on the cluster", on)
	}
	// One that all nodes together can't run is what it can, with the reason.
	w.Function.Replicas, w.Function.Constraints = 3, []string{"node==faasd"}
	w.Function.Revision = 2
	g.apply(w)
	providertest.Await(t, "the reason says that there is no room", func() bool {
		st, _ := g.Status(f)
		return strings.Contains(st.Reason, "it runs at most 1 of a function")
	})
}

// TestFound: what was there is shown, left alone, and adopted when that is asked
// for; what has the name of a declared function is not touched.
func TestFound(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	faasd := providertest.NewStandIn(t, providertest.Faasd(), images)
	for _, name := range []string{"figlet", "clash"} {
		faasd.Deploy(types.FunctionDeployment{Service: name, Image: "registry.test:5000/" + name + ":latest", EnvVars: map[string]string{"version": "theirs"}})
	}
	var g *gateway
	var declared []types.FunctionDeployment
	g = startGateway(t, images, providertest.NewTable(t), nil, func(c *nodes.Config) {
		c.Known = func(name faas.Name) bool { return name.Function == "clash" }
		c.Declare = func(ctx context.Context, d types.FunctionDeployment) error {
			declared = append(declared, d)
			w := providertest.Workload(d.Service, 7, 1)
			w.Function.EnvVars = d.EnvVars
			return g.Apply(ctx, w)
		}
	})
	g.apply(providertest.Workload("clash", 1, 1))
	g.add("faasd", faasd)
	providertest.Await(t, "both are shown", func() bool { s, _ := g.Node("faasd"); return s.Provider != nil && len(s.Provider.Found) == 2 })
	s, _ := g.Node("faasd")
	for _, f := range s.Provider.Found {
		if !strings.HasPrefix(f.Note, "found there, not managed") || strings.Contains(f.Note, "name of a function") != (f.Name == "clash") {
			t.Errorf("found %+v, want it marked as not managed", f)
		}
	}
	clash := faas.Name{Function: "clash", Namespace: faas.DefaultNamespace}
	if e, err := g.Explain(clash); err != nil || !strings.Contains(e.String(), "faasd excluded: there is a function of this name already, which is not this fleet's") {
		t.Errorf("Explain() = %v, %v, want that the node is excluded", e, err)
	}
	done, err := g.Adopt(t.Context(), "faasd", nil)
	if err != nil || len(done) != 2 || done[0].Adopted || !strings.Contains(done[0].Why, "in this fleet already: it was not touched") || !done[1].Adopted {
		t.Errorf("Adopt() = %+v, %v, want figlet and not clash", done, err)
	}
	if len(declared) != 1 || declared[0].Service != "figlet" || declared[0].EnvVars["version"] != "theirs" {
		t.Errorf("declared %+v, want figlet as it was there", declared)
	}
	figlet := faas.Name{Function: "figlet", Namespace: faas.DefaultNamespace}
	r := g.table.AwaitReady(t, figlet, 7, 1)[0]
	if r.Node != "faasd" {
		t.Logf("figlet is on %s now", r.Node)
	}
	if got := g.table.Get(t, figlet, "/"); !strings.HasSuffix(got, "theirs") {
		t.Errorf("figlet answers %q, want what it did before", got)
	}
	if d := faasd.Functions()["clash"]; d.Annotations != nil {
		t.Errorf("clash is %+v at the faasd, want it untouched", d)
	}
	if _, err := g.Adopt(t.Context(), "faasd", []string{"nothing"}); !errors.Is(err, faas.ErrNotFound) {
		t.Errorf("Adopt(nothing) = %v, want %v", err, faas.ErrNotFound)
	}
	if _, err := g.Adopt(t.Context(), "nuc", nil); !errors.Is(err, faas.ErrInvalid) {
		t.Errorf("Adopt at this machine = %v, want %v", err, faas.ErrInvalid)
	}
}

// TestProviderStays: a provider is a node after a restart of the gateway, with
// its password, which is in no record and in no answer; what runs there is taken
// back as it is, and what nobody declares any more is removed.
func TestProviderStays(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	kube := providertest.NewStandIn(t, providertest.Netes(), images)
	store := &memory{}
	g := startGateway(t, images, providertest.NewTable(t), store)
	g.add("kube", kube)
	only := func(name string, revision uint64, n int) faas.Name {
		w := providertest.Workload(name, revision, n)
		w.Function.Constraints = []string{"node==kube"}
		return g.apply(w)
	}
	kept, forgotten := only("kept", 3, 2), only("forgotten", 1, 1)
	g.table.AwaitReady(t, kept, 3, 2)
	g.table.AwaitReady(t, forgotten, 1, 1)
	for key, value := range store.all() {
		if strings.Contains(string(value), providertest.StandInPassword) {
			t.Errorf("%s has the password", key)
		}
	}
	deploys := kube.Calls("POST /system/functions") + kube.Calls("PUT /system/functions")
	g.stop()

	g = startGateway(t, images, providertest.NewTable(t), store)
	g.await("kube", "ready")
	only("kept", 3, 2)
	g.table.AwaitReady(t, kept, 3, 2)
	providertest.Await(t, "what nobody declares is removed", func() bool { _, ok := kube.Functions()["forgotten"]; return !ok })
	if n := kube.Calls("POST /system/functions") + kube.Calls("PUT /system/functions"); n != deploys {
		t.Errorf("%d deployments after the restart, want none: it runs as it is", n-deploys)
	}
	if err := g.Dismiss(t.Context(), "kube"); err != nil {
		t.Fatal(err)
	}
	if _, ok := kube.Functions()["kept"]; ok {
		t.Error("what it ran for the fleet is still there")
	}
	for key := range store.all() {
		if strings.Contains(key, "kube") {
			t.Errorf("%s is still kept", key)
		}
	}
}

// TestAddRefused: what is no OpenFaaS provider is refused with what was tried and
// what came back, and the fleet is as it was.
func TestAddRefused(t *testing.T) {
	g, images := newFleet(t)
	good := providertest.NewStandIn(t, providertest.Faasd(), images)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>It works!</html>")) }))
	t.Cleanup(page.Close)
	moved := httptest.NewServer(http.RedirectHandler("https://elsewhere.example/", http.StatusMovedPermanently))
	t.Cleanup(moved.Close)
	none := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(none.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	g.add("there", good)
	const user, password = providertest.StandInUser, providertest.StandInPassword
	for _, c := range []struct {
		name string
		q    nodes.AddRequest
		kind error
		want string
	}{
		{"nothing listens", nodes.AddRequest{Name: "n", URL: closed.URL, User: user, Password: password}, faas.ErrUnavailable, "GET " + closed.URL + "/system/functions: connect: connection refused"},
		{"no such host", nodes.AddRequest{Name: "n", URL: "http://nothing.invalid:8080"}, faas.ErrUnavailable, "there is no host nothing.invalid"},
		{"wrong password", nodes.AddRequest{Name: "n", URL: good.URL, User: user, Password: "wrong"}, faas.ErrForbidden, "GET " + good.URL + "/system/functions was answered 401: it doesn't take the password of the user admin"},
		{"no password", nodes.AddRequest{Name: "n", URL: good.URL}, faas.ErrForbidden, "was answered 401: it asks for a user and a password, and none were given"},
		{"a page", nodes.AddRequest{Name: "n", URL: page.URL, User: user, Password: password}, faas.ErrUnavailable, `was answered with what no OpenFaaS answers: "<html>It works!</html>"`},
		{"not found", nodes.AddRequest{Name: "n", URL: none.URL}, faas.ErrInvalid, "it doesn't speak OpenFaaS: GET " + none.URL + `/system/functions was answered 404: "404 page not found"`},
		{"moved", nodes.AddRequest{Name: "n", URL: moved.URL}, faas.ErrInvalid, `was answered 301, which leads to "https://elsewhere.example/": give the URL that it leads to`},
		{"TLS where there is none", nodes.AddRequest{Name: "n", URL: "https" + strings.TrimPrefix(good.URL, "http")}, faas.ErrUnavailable, "it doesn't speak TLS (first record does not look like a TLS handshake): write http:// if that is meant"},
		{"no URL", nodes.AddRequest{Name: "n", URL: "192.168.1.20:8080"}, faas.ErrInvalid, "is not a provider's URL: write it as http://192.168.1.20:8080"},
		{"a password in the URL", nodes.AddRequest{Name: "n", URL: "http://admin:geheim@nothing.invalid"}, faas.ErrInvalid, "a provider's URL has no user, password or query"},
		{"a bad name", nodes.AddRequest{Name: "N!", URL: good.URL}, faas.ErrInvalid, "the node's name"},
		{"a name that is taken", nodes.AddRequest{Name: "nuc", URL: good.URL, User: user, Password: password}, faas.ErrConflict, "there is a node nuc already"},
		{"twice", nodes.AddRequest{Name: "n", URL: good.URL + "/", User: user, Password: password}, faas.ErrConflict, "is the node there already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := g.Add(t.Context(), c.q)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Add() = %v\nwant %q, of kind %v", err, c.want, c.kind)
			}
			if err != nil && (strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), password)) {
				t.Errorf("Add() = %v, which has the password in it", err)
			}
		})
	}
	if n := len(g.List()); n != 2 {
		t.Errorf("there are %d nodes, want the 2 from before", n)
	}
}

// TestProvidersSetting: providers of the settings are nodes for as long as they
// are there.
func TestProvidersSetting(t *testing.T) {
	images := providertest.NewImages(t, providertest.Program(t))
	s := providertest.NewStandIn(t, providertest.Netes(), images)
	store := &memory{}
	with := func(c *nodes.Config) {
		c.Providers = []nodes.Provider{{Name: "kube", Endpoint: openfaas.Endpoint{URL: s.URL, User: providertest.StandInUser, Password: providertest.StandInPassword}}}
	}
	g := startGateway(t, images, providertest.NewTable(t), store, with)
	g.await("kube", "ready")
	if err := g.Update(t.Context(), "kube", nodes.Change{Labels: map[string]*string{"zone": new("cellar")}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Dismiss(t.Context(), "kube"); err == nil || !strings.Contains(err.Error(), "THICKET_PROVIDERS") {
		t.Errorf("Dismiss() = %v, want that the setting says so", err)
	}
	g.stop()
	g = startGateway(t, images, providertest.NewTable(t), store, with)
	g.await("kube", "ready")
	if st, _ := g.Node("kube"); st.Labels["zone"] != "cellar" {
		t.Errorf("its labels are %v after a restart, want that of before", st.Labels)
	}
	g.stop()
	g = startGateway(t, images, providertest.NewTable(t), store)
	if _, err := g.Node("kube"); !errors.Is(err, faas.ErrNotFound) {
		t.Errorf("Node() = %v without the setting, want %v", err, faas.ErrNotFound)
	}
}
