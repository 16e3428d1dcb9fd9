package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	wire "github.com/seed-780dceda/thicket/functions/discovery"
)

// request sends what a client with the password in its URL does.
func (g *thicket) request(method, path, body string, header ...string) (int, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth("admin", testPassword)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	code, _, answer := g.do(req)
	return code, answer
}

// registration is what a service on a port of this machine says of itself.
func registration(app, port string) string {
	return fmt.Sprintf(`{"instance":{"instanceId":"nuc:%s:%[2]s","hostName":"localhost","app":%[1]q,"ipAddr":"127.0.0.1","status":"UP",
		"port":{"$":%[2]s,"@enabled":"true"},"vipAddress":"x","leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90}}}`, app, port)
}

// TestRegisteredService is a service that knows Eureka and nothing of functions.
func TestRegisteredService(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "service ", r.Method, " ", r.URL.RequestURI())
	}))
	defer service.Close()
	u, err := url.Parse(service.URL)
	if err != nil {
		t.Fatal(err)
	}
	port := u.Port()

	dir := t.TempDir()
	g := start(t, dir, "THICKET_HOLD_TIME=500ms")
	g.deploy(g.probe())
	want := func(method, path, body string, code int, answer string, header ...string) {
		t.Helper()
		if got, text := g.request(method, path, body, append(header, "Content-Type", "application/json")...); got != code || !strings.Contains(text, answer) {
			t.Errorf("%s %s = %d %q, want %d %q", method, path, got, text, code, answer)
		}
	}

	if code, _, _ := g.get("/eureka/apps"); code != 401 {
		t.Errorf("GET /eureka/apps without the password = %d, want 401", code)
	}
	want("POST", "/eureka/apps/ORDERS", registration("ORDERS", port), 204, "")
	g.want("/function/orders/a?b=c", 200, "service GET /a?b=c")
	want("GET", "/eureka/apps", "", 200, "<name>ORDERS</name>")
	want("GET", "/eureka/apps/PROBE", "", 200, `"status":"UP"`, "Accept", "application/json")
	want("GET", "/system/discovery", "", 200, `"source":"eureka"`)

	want("POST", "/eureka/apps/PROBE", registration("PROBE", port), 409, "PROBE is the name of a function here")
	g.want("/function/probe", 200, "hello")
	want("POST", "/eureka/apps/SELF", registration("SELF", g.url[strings.LastIndexByte(g.url, ':')+1:]), 400, "is this gateway's own")
	want("POST", "/eureka/apps/X", strings.ReplaceAll(registration("X", port), "127.0.0.1", "169.254.169.254"), 400, "is link-local")
	want("POST", "/eureka/apps/ORDERS", registration("ORDERS", port), 403, "a page of another origin", "Sec-Fetch-Site", "cross-site")

	instance := "/eureka/apps/ORDERS/nuc:ORDERS:" + port
	want("PUT", instance+"/status?value=OUT_OF_SERVICE", "", 200, "")
	want("GET", "/function/orders", "", 503, "of its registered instances none is UP: 1 OUT_OF_SERVICE")
	want("DELETE", instance+"/status", "", 200, "")
	g.want("/function/orders/back", 200, "service GET /back")

	// It is known after a kill, before it was heard, and its heartbeat is taken.
	eventually(t, "it is on disk", func() bool {
		b, err := os.ReadFile(dir + "/discovery")
		return err == nil && strings.Contains(string(b), `"own":"UP"`) && strings.Contains(string(b), `"state":"ready"`)
	})
	g.kill()
	g = start(t, dir, "THICKET_HOLD_TIME=500ms")
	g.want("/function/orders/again", 200, "service GET /again")
	want("PUT", instance, "", 200, "")

	// Who deploys a function of that name gets it.
	d := g.probe()
	d.Service = "orders"
	g.deploy(d)
	eventually(t, "the function answers", func() bool {
		_, _, text := g.get("/function/orders")
		return text == "hello"
	})
	want("PUT", instance, "", 403, "ORDERS is a function")
	want("DELETE", "/eureka/apps/NOBODY/x", "", 404, "there is no instance")
}

// TestDiscovery is a function that asks where others are, as it finds out how to
// in its environment.
func TestDiscovery(t *testing.T) {
	g := start(t, t.TempDir())
	d := g.probe()
	d.Annotations = &map[string]string{"thicket.discovery": "maybe"}
	if _, err := g.client.Deploy(t.Context(), d); err == nil || !strings.Contains(err.Error(), "annotation thicket.discovery is") || !strings.Contains(err.Error(), "400") {
		t.Errorf("Deploy() = %v", err)
	}
	d.Annotations = &map[string]string{"thicket.discovery": "true"}
	g.deploy(d)

	environ := map[string]string{}
	for pid := range replicas(t, g.dir) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		for kv := range strings.SplitSeq(string(b), "\x00") {
			key, value, _ := strings.Cut(kv, "=")
			environ[key] = value
		}
	}
	if len(environ) == 0 {
		t.Skip("the environment of a process can't be read here")
	}
	base := environ["THICKET_DISCOVERY_URL"]
	if !strings.HasSuffix(base, wire.Path) || environ["THICKET_NODE"] == "" {
		t.Fatalf("the function's environment is %v", environ)
	}
	ask := func(method, url, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+environ["THICKET_DISCOVERY_TOKEN"])
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	var s wire.Snapshot
	resp := ask("GET", base, "")
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil || resp.StatusCode != 200 || len(s.Replicas) != 1 {
		t.Fatalf("GET %s = %d, %v: %+v", base, resp.StatusCode, err, s)
	}
	first := s.Replicas[0]
	if first.State != wire.StateReady || first.Function.Function != "probe" || first.ID != environ["THICKET_REPLICA"] || first.Node != environ["THICKET_NODE"] {
		t.Errorf("it is %+v", first)
	}
	direct := ask("GET", "http://"+first.Addr.String(), "")
	if b, err := io.ReadAll(direct.Body); err != nil || string(b) != "hello" {
		t.Errorf("called directly it says %q, %v", b, err)
	}
	if resp := ask("GET", g.url+"/system/functions", ""); resp.StatusCode != 401 {
		t.Errorf("with the token /system/functions answers %d, want 401", resp.StatusCode)
	}

	// Calls made directly are counted as others are.
	usage := `{"client":"me","seconds":1,"functions":[{"function":{"name":"probe","namespace":"openfaas-fn"},"started":12,"ended":[{"status":200,"calls":12,"seconds":0.1}]}]}`
	if resp := ask("POST", base+"/usage", usage); resp.StatusCode != 204 {
		t.Errorf("POST usage = %d", resp.StatusCode)
	}
	if f, err := g.client.GetFunction(t.Context(), "probe", "openfaas-fn"); err != nil || f.InvocationCount != 12 {
		t.Errorf("invocations = %v, %v, want 12", f.InvocationCount, err)
	}

	// The stream tells each step of an update, in order.
	events := bufio.NewScanner(ask("GET", base+"/events", "").Body)
	d.EnvVars = g.environment("new")
	if _, err := g.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	steps := map[string][]string{}
	name := ""
	for len(steps[first.ID]) < 2 && events.Scan() {
		if event, ok := strings.CutPrefix(events.Text(), "event: "); ok {
			name = event
		}
		data, ok := strings.CutPrefix(events.Text(), "data: ")
		if !ok || name != wire.EventReplica {
			continue
		}
		var r wire.Replica
		if err := json.Unmarshal([]byte(data), &r); err != nil {
			t.Fatal(err)
		}
		if r.ID == first.ID && r.State == wire.StateDraining && len(steps) == 0 {
			t.Error("the old one drains before there is a new one")
		}
		steps[r.ID] = append(steps[r.ID], r.State)
	}
	if got := strings.Join(steps[first.ID], " "); got != "draining gone" {
		t.Errorf("the old replica's steps are %q; all: %v", got, steps)
	}

	// Who asks no more has no access, on the streams to come.
	d.Annotations = nil
	if _, err := g.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is of no use", func() bool { return ask("GET", base, "").StatusCode == 403 })
}
