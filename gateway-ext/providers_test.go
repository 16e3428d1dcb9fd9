package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/providertest"
)

// standIns are what stands in for a faasd and for a Kubernetes with faas-netes.
func standIns(t *testing.T) (faasd, kube *providertest.StandIn) {
	t.Helper()
	images := providertest.NewImages(t, providertest.Program(t))
	images.AnyDigest = true
	return providertest.NewStandIn(t, providertest.Faasd(), images), providertest.NewStandIn(t, providertest.Netes(), images)
}

// passwordFile writes a password into a file.
func passwordFile(t *testing.T, password string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// caller asks for a function's path all the time, until stop, which fails the test
// if a call failed.
func (g *thicket) caller(path string) (stop func()) {
	done := make(chan struct{})
	var calling sync.WaitGroup
	asked, failed := 0, 0
	var longest time.Duration
	began := time.Now()
	calling.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			began := time.Now()
			res, err := http.Get(g.url + path)
			asked++
			longest = max(longest, time.Since(began))
			if err != nil {
				failed++
				g.t.Logf("a call failed: %v", err)
				return
			}
			if body, _ := io.ReadAll(io.LimitReader(res.Body, 4096)); res.StatusCode != http.StatusOK {
				failed++
				g.t.Logf("a call was answered %s %s", res.Status, body)
			}
			res.Body.Close()
		}
	})
	return func() {
		g.t.Helper()
		close(done)
		calling.Wait()
		g.t.Logf("%d calls in %s, %d failed, the longest took %s", asked, time.Since(began).Round(time.Millisecond), failed, longest.Round(time.Millisecond))
		if failed > 0 || asked == 0 {
			g.t.Errorf("%d of %d calls failed", failed, asked)
		}
	}
}

// describe is a node as the command shows it.
func (g *thicket) describe(node string) (s nodes.Status, text string) {
	g.t.Helper()
	text = g.operate("nodes", "describe", node)
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		g.t.Fatalf("%v: %s", err, text)
	}
	return s, text
}

// TestProviders is a gateway with a faasd and a Kubernetes as nodes.
func TestProviders(t *testing.T) {
	faasd, kube := standIns(t)
	faasd.Deploy(types.FunctionDeployment{Service: "figlet", Image: images(t) + "/probe:latest", EnvVars: map[string]string{"version": "figlet"}})
	at, err := url.Parse(kube.URL)
	if err != nil {
		t.Fatal(err)
	}
	at.User = url.UserPassword(providertest.StandInUser, providertest.StandInPassword)
	dir := t.TempDir()
	environ := []string{"THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc", "THICKET_PROVIDERS=kube=" + strings.ReplaceAll(at.String(), ",", "%2C"), "THICKET_LOG_LEVEL=DEBUG"}
	g := start(t, dir, environ...)

	file := passwordFile(t, providertest.StandInPassword)
	code, _, said := run(t, ".", []string{"THICKET_PASSWORD=" + testPassword}, "nodes", "add", "faasd", "--url", faasd.URL, "--password-file", passwordFile(t, "wrong"), "-g", g.url)
	if want := "node faasd: GET " + faasd.URL + "/system/functions was answered 401: it doesn't take the password of the user admin"; code == 0 || !strings.Contains(said, want) {
		t.Errorf("nodes add with a wrong password says %d %q, want %q", code, said, want)
	}
	out := g.operate("nodes", "add", "faasd", "--url", faasd.URL, "--user", providertest.StandInUser, "--password-file", file, "--label", "zone=cellar")
	for _, want := range []string{"faasd is faasd-ce: at most 1 replica of a function", "found there, not managed", "figlet.openfaas-fn"} {
		if !strings.Contains(out, want) {
			t.Errorf("nodes add says %q, want %q in it", out, want)
		}
	}
	eventually(t, "both are ready", func() bool { f := g.fleet(); return f["faasd"].State == "ready" && f["kube"].State == "ready" })
	s, text := g.describe("faasd")
	if s.Foreign.URL != faasd.URL || s.Foreign.User != providertest.StandInUser || s.Provider.MaxReplicas != 1 || len(s.Provider.Found) != 1 || strings.Contains(text, providertest.StandInPassword) {
		t.Errorf("nodes describe says %s", text)
	}

	// What no node can do is refused with why.
	_, err = g.client.Deploy(t.Context(), types.FunctionDeployment{
		Service: "sleepy", Image: images(t) + "/probe:latest", Constraints: []string{"node!=nuc"}, Labels: &map[string]string{"com.openfaas.scale.zero": "true"},
	})
	if want := "faas-netes-ce can't put a function to sleep"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Deploy() = %v, want %q", err, want)
	}

	// A secret, a namespace, and a function in it that has the secret.
	if _, err := g.client.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "dev"}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.CreateSecret(t.Context(), types.Secret{Name: "key", Namespace: "dev", Value: "sesame"}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.Deploy(t.Context(), types.FunctionDeployment{
		Service: "keeper", Namespace: "dev", Image: images(t) + "/probe:latest", Secrets: []string{"key"}, Constraints: []string{"node.labels.zone==cellar"},
	}); err != nil {
		t.Fatal(err)
	}
	var env map[string]string
	eventually(t, "the function in the namespace answers", func() bool {
		code, _, body := g.get("/function/keeper.dev/env")
		return code == http.StatusOK && json.Unmarshal([]byte(body), &env) == nil
	})
	if code, _, body := g.get("/function/keeper.dev/read?path=" + env["secret_mount_path"] + "/key"); code != http.StatusOK || body != "sesame" {
		t.Errorf("the function reads its secret: %d %q", code, body)
	}
	for k, v := range env {
		if strings.Contains(v, providertest.StandInPassword) {
			t.Errorf("the function has the provider's password in %s", k)
		}
	}
	if _, err := g.client.UpdateSecret(t.Context(), types.Secret{Name: "key", Namespace: "dev", Value: "open"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the secret's new value is there", func() bool {
		_, _, body := g.get("/function/keeper.dev/read?path=" + env["secret_mount_path"] + "/key")
		return body == "open"
	})

	// With nowhere else to be, calls wait while an update there has its gap.
	d := types.FunctionDeployment{Service: "alone", Image: images(t) + "/probe:latest", Constraints: []string{"node==faasd"}, EnvVars: map[string]string{"version": "v1"}}
	g.deploy(d)
	stop := g.caller("/function/alone/sleep?for=5ms")
	for i := 2; i <= 4; i++ {
		d.EnvVars["version"] = fmt.Sprint("v", i)
		if _, err := g.client.Update(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new revision answers", func() bool {
			code, _, body := g.get("/function/alone/")
			if code != http.StatusOK {
				t.Errorf("a call was answered %d %s", code, body)
			}
			return strings.HasSuffix(body, d.EnvVars["version"])
		})
	}
	stop()
	if err := g.client.DeleteFunction(t.Context(), "alone", "openfaas-fn"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone from the faasd", func() bool { _, ok := faasd.Functions()["alone"]; return !ok })

	g.spread(faasd, kube)
	g.adopted(faasd)

	// The gateway goes and comes back: all is as it was, and nothing was deployed.
	deploys := kube.Calls("POST /system/functions") + kube.Calls("PUT /system/functions") + faasd.Pulls()
	if code := g.stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	g.secretive()
	g = start(t, dir, environ...)
	g.ready("spread", 3)
	eventually(t, "the nodes are ready again", func() bool { f := g.fleet(); return f["faasd"].State == "ready" && f["kube"].State == "ready" })
	if n := kube.Calls("POST /system/functions") + kube.Calls("PUT /system/functions") + faasd.Pulls(); n != deploys {
		t.Errorf("%d deployments after the gateway's restart, want none", n-deploys)
	}
	if code, _, body := g.get("/function/keeper.dev/"); code != http.StatusOK {
		t.Errorf("after the gateway's restart the function answers %d %s", code, body)
	}

	// A drained one gives up what it has without a failed call, and is removed.
	d = g.spec()
	d.Constraints = nil
	if _, err := g.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	g.ready("spread", 3)
	stop = g.caller("/function/spread/sleep?for=5ms")
	g.operate("nodes", "drain", "kube")
	eventually(t, "the drained node is empty", func() bool { return g.fleet()["kube"].Replicas == 0 })
	g.ready("spread", 3)
	stop()
	g.operate("nodes", "drain", "faasd")
	g.operate("nodes", "remove", "faasd")
	if _, ok := g.fleet()["faasd"]; ok {
		t.Error("the faasd is still a node after it was removed")
	}
	g.secretive()
}

// secretive fails the test if the providers' password is in what the gateway has
// logged or stored.
func (g *thicket) secretive() {
	g.t.Helper()
	if strings.Contains(g.logged(), providertest.StandInPassword) {
		g.t.Error("the providers' password is in the log")
	}
	_ = filepath.Walk(g.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() || info.Size() > 16<<20 {
			return nil // it is gone, or an image
		}
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), providertest.StandInPassword) {
			g.t.Errorf("the providers' password is in %s", path)
		}
		return nil
	})
}

// spec is the function that is spread over the providers.
func (g *thicket) spec() types.FunctionDeployment {
	return types.FunctionDeployment{
		Service: "spread", Image: images(g.t) + "/probe:latest", Constraints: []string{"node!=nuc"}, EnvVars: map[string]string{"version": "v1"},
		Labels: &map[string]string{"com.openfaas.scale.min": "2"}, // and nothing that follows the load
	}
}

// spread deploys a function with replicas on all nodes, calls it, updates it under
// load, scales it and reads its logs.
func (g *thicket) spread(faasd, kube *providertest.StandIn) {
	t := g.t
	t.Helper()
	d := g.spec()
	g.deploy2(d)
	if n := len(faasd.Functions()) + len(kube.Functions()); n != 4 { // figlet, keeper, and spread twice
		t.Errorf("there are %v and %v, want spread on both", faasd.Functions(), kube.Functions())
	}

	// Path, query and body arrive as they were sent.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/function/spread/log?lines=1&text=said+by+us", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Call-Id", "call-1")
	if code, h, body := g.do(req); code != http.StatusOK || h.Get("X-Call-Id") != "call-1" {
		t.Errorf("a POST is answered %d %v %s", code, h, body)
	}
	seen := make(map[string]bool)
	eventually(t, "both replicas answer", func() bool {
		_, _, body := g.get("/function/spread/")
		seen[body] = true
		return len(seen) == 2
	})

	// An update on a faasd has a gap, which nobody sees.
	stop := g.caller("/function/spread/sleep?for=5ms")
	for i := 2; i <= 4; i++ {
		d.EnvVars["version"] = fmt.Sprint("v", i)
		if _, err := g.client.Update(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all replicas are of the new revision", func() bool {
			for _, s := range []*providertest.StandIn{faasd, kube} {
				if f, ok := s.Functions()["spread"]; ok && f.EnvVars["version"] != d.EnvVars["version"] {
					return false
				}
			}
			_, _, body := g.get("/function/spread/")
			return strings.HasSuffix(body, d.EnvVars["version"])
		})
	}
	stop()

	if err := g.client.ScaleFunction(t.Context(), "spread", "openfaas-fn", 3); err != nil {
		t.Fatal(err)
	}
	g.ready("spread", 3)
	if f := g.fleet(); f["nuc"].Replicas != 0 || f["faasd"].Replicas != 2 || f["kube"].Replicas != 2 { // with keeper
		t.Errorf("the replicas are on %+v, want one of spread on the faasd and two on the cluster", f)
	}

	// The logs are those of both, with the node and the replica.
	on := make(map[string]bool)
	eventually(t, "the logs have lines of both nodes", func() bool {
		lines, err := g.client.GetLogs(t.Context(), "spread", "openfaas-fn", false, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		var last logs.Message
		for m := range lines {
			if node, replica, ok := strings.Cut(m.Instance, "/"); ok && replica != "" && m.Text == "listening" {
				on[node] = true
			}
			if m.Timestamp.Before(last.Timestamp) {
				t.Errorf("%v comes after %v", m, last)
			}
			last = m
		}
		return on["faasd"] && on["kube"]
	})
}

// deploy2 deploys a function and waits for its two replicas.
func (g *thicket) deploy2(d types.FunctionDeployment) {
	g.t.Helper()
	if _, err := g.client.Deploy(g.t.Context(), d); err != nil {
		g.t.Fatal(err)
	}
	g.ready(d.Service, 2)
}

// adopted takes over what was found.
func (g *thicket) adopted(faasd *providertest.StandIn) {
	g.t.Helper()
	if code, _, _ := g.get("/function/figlet/"); code != http.StatusNotFound {
		g.t.Errorf("a function that isn't the fleet's is answered %d, want 404", code)
	}
	if out := g.operate("nodes", "adopt", "faasd", "figlet"); !strings.Contains(out, "figlet.openfaas-fn is the fleet's now") {
		g.t.Errorf("nodes adopt says %q", out)
	}
	eventually(g.t, "the adopted function answers", func() bool {
		code, _, body := g.get("/function/figlet/")
		return code == http.StatusOK && (strings.HasSuffix(body, " figlet") || body != "")
	})
	eventually(g.t, "nothing is found there any more", func() bool {
		s, _ := g.describe("faasd")
		return len(s.Provider.Found) == 0
	})
}

// TestThicketAsNode is a gateway that is another's node.
func TestThicketAsNode(t *testing.T) {
	attic := start(t, t.TempDir(), "THICKET_NODE=attic-1")
	g := start(t, t.TempDir(), "THICKET_NODE=nuc")
	code, _, said := run(t, ".", []string{"THICKET_PASSWORD=" + testPassword}, "nodes", "add", "me", "--url", g.url, "--password-file", passwordFile(t, testPassword), "-g", g.url)
	if want := "is this gateway itself"; code == 0 || !strings.Contains(said, want) {
		t.Errorf("nodes add of itself says %d %q, want %q", code, said, want)
	}
	g.operate("nodes", "add", "attic", "--url", attic.url, "--password-file", passwordFile(t, testPassword))
	if s, text := g.describe("attic"); s.Provider == nil || s.Provider.Capabilities == nil || s.Provider.MaxReplicas != 0 || !s.Provider.Zero || s.Provider.Provider != "thicket" {
		t.Errorf("nodes describe says %s", text)
	}
	d := types.FunctionDeployment{
		Service: "probe", Image: images(t) + "/probe:latest", Constraints: []string{"node==attic"}, EnvVars: map[string]string{"answer": "hello"},
		Labels:      &map[string]string{"com.openfaas.scale.min": "3", "com.openfaas.scale.max": "3"},
		Annotations: &map[string]string{"thicket.attempts": "2"},
	}
	if _, err := g.client.Deploy(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	g.ready("probe", 3)
	if code, _, body := g.get("/function/probe"); code != http.StatusOK || body != "hello" {
		t.Errorf("the function on the other gateway answers %d %q", code, body)
	}
	st, err := attic.client.GetFunction(t.Context(), "probe", "openfaas-fn")
	if err != nil || st.Replicas != 3 {
		t.Errorf("the other gateway has %+v, %v, want 3 replicas", st, err)
	}
	stop := g.caller("/function/probe")
	d.EnvVars["answer"] = "hello again"
	if _, err := g.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the update is there", func() bool { _, _, body := g.get("/function/probe"); return body == "hello again" })
	stop()
	if err := g.client.ScaleFunction(t.Context(), "probe", "openfaas-fn", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it sleeps there", func() bool {
		st, err := attic.client.GetFunction(t.Context(), "probe", "openfaas-fn")
		return err == nil && st.Replicas == 0
	})
	began := time.Now()
	if code, _, body := g.get("/function/probe"); code != http.StatusOK || body != "hello again" {
		t.Errorf("a call that wakes it is answered %d %q", code, body)
	}
	t.Logf("a function that sleeps on another gateway answered after %s", time.Since(began).Round(time.Millisecond))
}
