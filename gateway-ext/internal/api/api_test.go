package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

func TestRoutes(t *testing.T) {
	big := strings.Repeat("x", 3<<20)
	for _, tt := range []struct {
		name           string
		method, target string
		body           string
		code           int
		answer         string // part of it; for 2xx all of it
	}{
		{"list", "GET", "/system/functions?namespace=lab", "", 200, "[]\n"},
		{"list bad namespace", "GET", "/system/functions?namespace=Lab", "", 400, `namespace "Lab" is not a DNS label`},
		{"deploy", "POST", "/system/functions", `{"service":"new","image":"new:1","of tomorrow":[1]}`, 202, ""},
		{"deploy with alias", "POST", "/system/functions", `{"service":"new.openfaas-fn","image":"new:1"}`, 202, ""},
		{"deploy again", "POST", "/system/functions", `{"service":"weather","image":"weather:1"}`, 409, "function weather.openfaas-fn exists"},
		{"deploy nothing", "POST", "/system/functions", " \n", 400, "the body is empty: send a JSON object"},
		{"deploy null", "POST", "/system/functions", "null", 400, `the body is "null": send a JSON object`},
		{"deploy list", "POST", "/system/functions", "[]", 400, "malformed JSON at line 1, column 1: write an object, not a list"},
		{"deploy malformed", "POST", "/system/functions", "{\n  \"service\": \"x\",\n  \"image\": oops}", 400, "malformed JSON at line 3, column 12: invalid character 'o'"},
		{"deploy cut", "POST", "/system/functions", `{"service": "x"`, 400, "malformed JSON at line 1, column 15: unexpected end"},
		{"deploy two", "POST", "/system/functions", `{"service":"x"}{}`, 400, "malformed JSON at line 1, column 16: invalid character '{' after top-level value"},
		{"deploy wrong type", "POST", "/system/functions", "{\n\"limits\": {\"memory\": 128}}", 400, "malformed JSON at line 2, column 24, in field limits.memory: write a string, not a number"},
		{"deploy wrong list", "POST", "/system/functions", `{"secrets":"key"}`, 400, "in field secrets: write a list, not a string"},
		{"deploy wrong object", "POST", "/system/functions", `{"labels":true}`, 400, "in field labels: write an object, not true or false"},
		{"deploy wrong label", "POST", "/system/functions", `{"labels":{"com.openfaas.scale.min":1}}`, 400, "malformed JSON at line 1, column 37, in field labels: write a string, not a number"},
		{"deploy wrong flag", "POST", "/system/functions", `{"readOnlyRootFilesystem":"yes"}`, 400, "in field readOnlyRootFilesystem: write true or false, not a string"},
		{"deploy not text", "POST", "/system/functions", "{\"service\": \"ä\xff\"}", 400, "malformed JSON at line 1, column 15: not UTF-8"},
		{"deploy mistakes", "POST", "/system/functions", `{"service":"X","image":"Y Z"}`, 400, "function name \"X\" is not a DNS label: use a-z, 0-9 and \"-\" (not first or last)\nimage \"Y Z\" is not"},
		{"deploy too large", "POST", "/system/functions", big, 413, "the body is larger than 2097152 bytes"},
		{"update", "PUT", "/system/functions", `{"service":"weather","image":"weather:2"}`, 202, ""},
		{"update unknown", "PUT", "/system/functions", `{"service":"new","image":"new:2"}`, 404, "there is no function new.openfaas-fn"},
		{"update malformed", "PUT", "/system/functions", `{`, 400, "malformed JSON"},
		{"delete", "DELETE", "/system/functions", `{"functionName":"weather"}`, 202, ""},
		{"delete with namespace", "DELETE", "/system/functions?namespace=openfaas-fn", `{"functionName":"weather.openfaas-fn","namespace":"openfaas-fn"}`, 202, ""},
		{"delete unknown", "DELETE", "/system/functions", `{"functionName":"weather","namespace":"lab"}`, 404, "there is no function weather.lab"},
		{"delete by query", "DELETE", "/system/functions?namespace=lab", `{"functionName":"weather"}`, 404, "there is no function weather.lab"},
		{"delete contradiction", "DELETE", "/system/functions?namespace=lab", `{"functionName":"weather","namespace":"den"}`, 400, `"weather.den" names another namespace than "lab"`},
		{"delete no name", "DELETE", "/system/functions", `{}`, 400, "field functionName is missing"},
		{"delete malformed", "DELETE", "/system/functions", `x`, 400, "malformed JSON"},
		{"functions patch", "PATCH", "/system/functions", "", 405, "use DELETE, GET, HEAD, POST, PUT"},
		{"one unknown", "GET", "/system/function/nobody", "", 404, "there is no function nobody.openfaas-fn"},
		{"one elsewhere", "GET", "/system/function/weather?namespace=lab", "", 404, "there is no function weather.lab"},
		{"one bad name", "GET", "/system/function/Weather", "", 400, "not a DNS label"},
		{"one escaped", "GET", "/system/function/..%2f..%2fetc", "", 400, "not a DNS label"},
		{"one post", "POST", "/system/function/weather", "", 405, "use GET, HEAD"},
		{"scale", "POST", "/system/scale-function/weather", `{"serviceName":"weather","replicas":3}`, 202, ""},
		{"scale to none", "POST", "/system/scale-function/weather", `{"replicas":0}`, 202, ""},
		{"scale long name", "POST", "/system/scale-function/weather.openfaas-fn", `{"serviceName":"weather","namespace":"openfaas-fn","replicas":3}`, 202, ""},
		{"scale nothing", "POST", "/system/scale-function/weather", `{}`, 400, "field replicas is missing"},
		{"scale below none", "POST", "/system/scale-function/weather", `{"replicas":-1}`, 400, "in field replicas: write a whole number, not negative, not a number"},
		{"scale to many", "POST", "/system/scale-function/weather", `{"replicas":1001}`, 400, "field replicas is 1001: at most 1000 are allowed"},
		{"scale another", "POST", "/system/scale-function/weather", `{"serviceName":"other","replicas":1}`, 400, `field serviceName is "other", but the path names "weather"`},
		{"scale unknown", "POST", "/system/scale-function/nobody", `{"replicas":1}`, 404, "there is no function nobody"},
		{"secrets", "GET", "/system/secrets", "", 200, `[{"name":"key","namespace":"openfaas-fn"}]` + "\n"},
		{"secrets elsewhere", "GET", "/system/secrets?namespace=lab", "", 200, "[]\n"},
		{"secrets bad namespace", "GET", "/system/secrets?namespace=..", "", 400, "not a DNS label"},
		{"secret", "POST", "/system/secrets", `{"name":"new","value":"v"}`, 201, ""},
		{"secret raw", "POST", "/system/secrets", `{"name":"new","rawValue":"/////w=="}`, 201, ""},
		{"secret raw wrong", "POST", "/system/secrets", `{"name":"new","rawValue":"?"}`, 400, "base64"},
		{"secret again", "POST", "/system/secrets", `{"name":"key","value":"v"}`, 409, "secret key exists"},
		{"secret no name", "POST", "/system/secrets", `{"value":"v"}`, 400, "field name is missing"},
		{"secret no value", "POST", "/system/secrets", `{"name":"new"}`, 400, "secret new has no value"},
		{"secret bad name", "POST", "/system/secrets", `{"name":"../key","value":"v"}`, 400, `secret name "../key" is not a DNS name`},
		{"secret bad namespace", "POST", "/system/secrets", `{"name":"key","namespace":"../x","value":"v"}`, 400, "not a DNS label"},
		{"secret too large", "POST", "/system/secrets", `{"name":"new","value":"` + big[:600<<10] + `"}`, 413, "secret new has 614400 bytes, at most 524288"},
		{"secret update", "PUT", "/system/secrets", `{"name":"key","value":"v"}`, 200, ""},
		{"secret update unknown", "PUT", "/system/secrets", `{"name":"new","value":"v"}`, 404, "there is no secret new"},
		{"secret delete", "DELETE", "/system/secrets", `{"name":"key","namespace":"openfaas-fn"}`, 200, ""},
		{"secret delete by query", "DELETE", "/system/secrets?namespace=lab", `{"name":"key"}`, 404, "there is no secret key"},
		{"secret delete unknown", "DELETE", "/system/secrets", `{"name":"new"}`, 404, "there is no secret new"},
		{"namespaces", "GET", "/system/namespaces", "", 200, `["openfaas-fn"]` + "\n"},
		{"namespace", "GET", "/system/namespace/openfaas-fn", "", 200, `{"name":"openfaas-fn"}` + "\n"},
		{"namespace unknown", "GET", "/system/namespace/lab", "", 404, "there is no namespace lab"},
		{"namespace bad", "GET", "/system/namespace/L", "", 400, "not a DNS label"},
		{"namespace none", "GET", "/system/namespace/", "", 405, "use POST"},
		{"namespace create", "POST", "/system/namespace/", `{"name":"lab","labels":{"openfaas":"1"}}`, 201, ""},
		{"namespace create by path", "POST", "/system/namespace/lab", `{}`, 201, ""},
		{"namespace create again", "POST", "/system/namespace/", `{"name":"openfaas-fn"}`, 409, "namespace openfaas-fn exists"},
		{"namespace create bad", "POST", "/system/namespace/", `{"name":"a b","labels":{"":"x"}}`, 400, "namespace \"a b\" is not a DNS label: use a-z, 0-9 and \"-\" (not first or last)\nlabel \"\": a key has"},
		{"namespace create none", "POST", "/system/namespace/", `{}`, 400, "namespace is empty"},
		{"namespace create malformed", "POST", "/system/namespace/", `{"name":1}`, 400, "in field name: write a string, not a number"},
		{"namespace update", "PUT", "/system/namespace/openfaas-fn", `{"name":"openfaas-fn","annotations":{"a":"b"}}`, 202, ""},
		{"namespace update other", "PUT", "/system/namespace/openfaas-fn", `{"name":"lab"}`, 400, `field name is "lab", but the path names "openfaas-fn"`},
		{"namespace update unknown", "PUT", "/system/namespace/lab", `{"name":"lab"}`, 404, "there is no namespace lab"},
		{"namespace delete", "DELETE", "/system/namespace/openfaas-fn", `{"name":"openfaas-fn"}`, 202, ""},
		{"namespace delete unknown", "DELETE", "/system/namespace/lab", "", 404, "there is no namespace lab"},
		{"namespace delete bad", "DELETE", "/system/namespace/L", "", 400, "not a DNS label"},
		{"telemetry", "GET", "/system/telemetry", "", 501, "collects no telemetry"},
		{"healthz", "GET", "/healthz", "", 200, "OK\n"},
		{"healthz post", "POST", "/healthz", "", 405, "use GET, HEAD"},
		{"unknown", "GET", "/system/nothing", "", 404, `there is no "/system/nothing" in this API`},
		{"unknown below", "POST", "/system/functions/x", "", 404, `there is no "/system/functions/x"`},
		{"system", "GET", "/system/", "", 404, "in this API"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newGateway(t).ask(tt.method, tt.target, tt.body)
			body := w.Body.String()
			if w.Code != tt.code || !strings.Contains(body, tt.answer) || tt.code < 300 && body != tt.answer {
				t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, body, tt.code, tt.answer)
			}
			if got := w.Header().Get("X-OpenFaaS-Internal") == "gateway"; got != (tt.code >= 400) {
				t.Errorf("X-OpenFaaS-Internal: gateway is there: %v, with status %d", got, tt.code)
			}
			if typ := w.Header().Get("Content-Type"); tt.code >= 400 && typ != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type = %q", typ)
			}
			if tt.code == 405 && w.Header().Get("Allow") != strings.TrimPrefix(body, "use ") {
				t.Errorf("Allow = %q, but the body says %q", w.Header().Get("Allow"), body)
			}
		})
	}
}

// TestParts holds that what other parts serve is behind the password, and that
// their errors are answered as the API's own.
func TestParts(t *testing.T) {
	g := newGateway(t, func(c *api.Config) {
		c.Parts = map[string]func(http.ResponseWriter, *http.Request) error{
			"GET /system/part/{name}": func(w http.ResponseWriter, r *http.Request) error {
				fmt.Fprint(w, r.PathValue("name"))
				return nil
			},
			"PUT /system/part/{name}": func(http.ResponseWriter, *http.Request) error {
				return faas.Errorf(faas.ErrForbidden, "it is switched off")
			},
		}
	})
	if w := g.ask("GET", "/system/part/a", ""); w.Code != 200 || w.Body.String() != "a" {
		t.Errorf("GET = %d %q", w.Code, w.Body)
	}
	if w := g.ask("PUT", "/system/part/a", ""); w.Code != 403 || w.Body.String() != "it is switched off" {
		t.Errorf("PUT = %d %q", w.Code, w.Body)
	}
	if w := g.ask("DELETE", "/system/part/a", ""); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD, PUT" {
		t.Errorf("DELETE = %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest("GET", "/system/part/a", nil))
	if w.Code != 401 {
		t.Errorf("without the password: %d", w.Code)
	}
}

func TestHead(t *testing.T) {
	g := newGateway(t)
	for _, target := range []string{"/healthz", "/system/functions", "/system/info"} {
		if w := g.ask("HEAD", target, ""); w.Code != 200 {
			t.Errorf("HEAD %s = %d", target, w.Code)
		}
	}
}

// TestGolden compares what is sent, byte for byte, with files in testdata.
func TestGolden(t *testing.T) {
	g := newGateway(t, func(c *api.Config) {
		c.Invocations = func(n faas.Name) float64 { return float64(len(n.String())) }
	})
	deploy := g.ask("POST", "/system/functions", `{
		"service": "full", "image": "ghcr.io/you/full:1", "envProcess": "cat", "envVars": {"a": "<b>"},
		"constraints": ["arch=arm64"], "secrets": ["key"], "labels": {"team": "red"}, "annotations": {"topic": "x"},
		"limits": {"memory": "128Mi", "cpu": "100m"}, "requests": {"memory": "64Mi"}}`)
	if deploy.Code != 202 {
		t.Fatal(deploy.Body)
	}
	for file, target := range map[string]string{
		"functions.json":      "/system/functions",
		"function.json":       "/system/function/full",
		"function-usage.json": "/system/function/full?usage=1",
		"info.json":           "/system/info",
	} {
		t.Run(file, func(t *testing.T) {
			w := g.ask("GET", target, "")
			if typ := w.Header().Get("Content-Type"); w.Code != 200 || typ != "application/json" {
				t.Errorf("GET %s = %d, %q", target, w.Code, typ)
			}
			got := w.Body.String()
			if file == "info.json" { // the machine's own processor
				arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
				if arch == "" {
					arch = runtime.GOARCH
				}
				got = strings.Replace(got, `"arch":"`+arch+`"`, `"arch":"ARCH"`, 1)
			}
			path := filepath.Join("testdata", file)
			if *update {
				must(t, os.WriteFile(path, []byte(got), 0o644))
			}
			want, err := os.ReadFile(path)
			must(t, err)
			if got != string(want) {
				t.Errorf("GET %s =\n%s\nwant\n%s", target, got, want)
			}
		})
	}
}

func TestSecretValues(t *testing.T) {
	g := newGateway(t)
	for body, want := range map[string]string{
		`{"name":"a","value":"text"}`:                     "text",
		`{"name":"b","rawValue":"/////w=="}`:              "\xff\xff\xff\xff",
		`{"name":"c","value":"text","rawValue":"cmF3"}`:   "raw",
		`{"name":"d","value":"a\u0000b\n<&>"}`:            "a\x00b\n<&>",
		`{"name":"e","value":"text","rawValue":""}`:       "text",
		`{"name":"f","namespace":"lab","value":"in lab"}`: "in lab",
	} {
		if w := g.ask("POST", "/system/secrets", body); w.Code != 201 {
			t.Fatalf("POST %s = %d %s", body, w.Code, w.Body)
		}
		var s types.Secret
		must(t, json.Unmarshal([]byte(body), &s))
		if s.Namespace == "" {
			s.Namespace = faas.DefaultNamespace
		}
		if got := string(g.fleet.secrets[s.Namespace+"/"+s.Name]); got != want {
			t.Errorf("POST %s stored %q, want %q", body, got, want)
		}
	}
	for _, target := range []string{"/system/secrets", "/system/secrets?namespace=lab"} {
		if w := g.ask("GET", target, ""); strings.Contains(strings.ToLower(w.Body.String()), "value") {
			t.Errorf("GET %s tells values: %s", target, w.Body)
		}
	}
	if g.log.String() != "" {
		t.Errorf("logged: %s", g.log)
	}
}

func TestErrorKinds(t *testing.T) {
	secret := errors.New("dial nats at 10.0.0.1: no route")
	for _, tt := range []struct {
		err    error
		code   int
		body   string
		logged bool
	}{
		{faas.Errorf(faas.ErrInvalid, "invalid sentence"), 400, "invalid sentence", false},
		{faas.Errorf(faas.ErrNotFound, "not found: %w", faas.ErrInvalid), 404, "not found: invalid", false},
		{faas.Errorf(faas.ErrConflict, "conflict"), 409, "conflict", false},
		{faas.Errorf(faas.ErrTooLarge, "too large"), 413, "too large", false},
		{faas.Errorf(faas.ErrOverloaded, "overloaded"), 429, "overloaded", false},
		{faas.Errorf(faas.ErrUnavailable, "unavailable"), 503, "unavailable", true},
		{faas.Errorf(faas.ErrNoSpace, "no space"), 507, "no space", true},
		{fmt.Errorf("write state: %w", syscall.ENOSPC), 507, "the gateway's disk is full: nothing was changed; make room and try again", true},
		{fmt.Errorf("deploy: %w", faas.Errorf(faas.ErrConflict, "the sentence alone")), 409, "the sentence alone", false},
		{fmt.Errorf("%w: %w", faas.ErrNotFound, secret), 404, "Not Found", false},
		{secret, 500, "Internal Server Error", true},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			g := newGateway(t)
			g.fleet.fail = tt.err
			w := g.ask("PUT", "/system/functions", `{"service":"weather","image":"weather"}`)
			if w.Code != tt.code || w.Body.String() != tt.body {
				t.Errorf("answer = %d %q, want %d %q", w.Code, w.Body, tt.code, tt.body)
			}
			if got := strings.Contains(g.log.String(), tt.err.Error()); got != tt.logged {
				t.Errorf("logged = %v, want %v: %s", got, tt.logged, g.log)
			}
		})
	}
}

// TestGivenUp ends a request before it is done: whoever still listens must not
// take it for done.
func TestGivenUp(t *testing.T) {
	g := newGateway(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.fleet.fail = ctx.Err()
	r := httptest.NewRequestWithContext(ctx, "PUT", "/system/functions", strings.NewReader(`{"service":"weather","image":"weather"}`))
	r.SetBasicAuth(user, password)
	w := httptest.NewRecorder()
	if g.ServeHTTP(w, r); w.Code != 503 || g.log.String() != "" {
		t.Errorf("answer = %d %q, want 503; logged %q", w.Code, w.Body, g.log)
	}
}

func TestBodyLimit(t *testing.T) {
	g := newGateway(t, func(c *api.Config) { c.MaxBody = 40 })
	if w := g.ask("POST", "/system/secrets", `{"name":"a","value":"b"}`+strings.Repeat(" ", 16)); w.Code != 201 {
		t.Errorf("40 bytes = %d %s", w.Code, w.Body)
	}
	if w := g.ask("POST", "/system/secrets", `{"name":"b","value":"b"}`+strings.Repeat(" ", 17)); w.Code != 413 {
		t.Errorf("41 bytes = %d %s", w.Code, w.Body)
	}
}

func TestAlert(t *testing.T) {
	firing := `{"alerts":[{"status":"firing","labels":{"function_name":"weather"}}]}`
	for _, tt := range []struct {
		name     string
		body     string
		code     int
		answer   string
		replicas uint64 // of 2 before; at most 4 in steps of 2
	}{
		{"firing", firing, 200, "", 4},
		{"firing with namespace", strings.Replace(firing, "weather", "weather.openfaas-fn", 1), 200, "", 4},
		{"resolved", strings.Replace(firing, "firing", "resolved", 1), 200, "", 1},
		{"nothing", `{"alerts":[]}`, 200, "", 2},
		{"malformed", `{"alerts":{}}`, 400, "in field alerts: write a list, not an object", 2},
		{"unknown function", `{"alerts":[{"status":"firing","labels":{"function_name":"nobody"}},{"status":"firing","labels":{"function_name":"weather"}}]}`, 404, "there is no function nobody.openfaas-fn", 4},
		{"no function", `{"alerts":[{"status":"firing"}]}`, 400, "label function_name of an alert: function name is empty", 2},
		{"no status", `{"alerts":[{"labels":{"function_name":"weather"}}]}`, 400, `status of an alert is ""`, 2},
		{"too many", `{"alerts":[` + strings.Repeat("{},", 1000) + `{}]}`, 413, "1001 alerts", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGateway(t)
			g.ask("POST", "/system/scale-function/weather", `{"replicas":2}`)
			w := g.ask("POST", "/system/alert", tt.body)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.answer) {
				t.Errorf("answer = %d %q, want %d %q", w.Code, w.Body, tt.code, tt.answer)
			}
			s, err := g.fleet.Function(faas.Name{Function: "weather", Namespace: faas.DefaultNamespace})
			if err != nil || s.Replicas != tt.replicas {
				t.Errorf("replicas = %d, %v, want %d", s.Replicas, err, tt.replicas)
			}
		})
	}
	// A maximum is not exceeded, however often it fires.
	g := newGateway(t)
	for range 5 {
		g.ask("POST", "/system/alert", firing)
	}
	if s, _ := g.fleet.Function(faas.Name{Function: "weather", Namespace: faas.DefaultNamespace}); s.Replicas != 4 {
		t.Errorf("replicas = %d, want 4", s.Replicas)
	}
	// Who looks for why there are so many finds it.
	if want := "an alert is firing, which adds 50 % of 4"; g.fleet.why != want {
		t.Errorf("scaled because %q, want %q", g.fleet.why, want)
	}
	g.ask("POST", "/system/scale-function/weather", `{"replicas":2}`)
	if want := "set by hand"; g.fleet.why != want {
		t.Errorf("scaled because %q, want %q", g.fleet.why, want)
	}
}

func TestMetrics(t *testing.T) {
	g := newGateway(t)
	g.ask("GET", "/system/functions", "")
	g.ask("GET", "/system/function/weather", "")
	g.ask("GET", "/system/function/nobody", "")
	g.ask("GET", "/system/function/nobody-else", "")
	g.ask("GET", "/system/logs?name=weather", "")
	g.ask("BREW", "/system/coffee", "")
	g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/system/info", nil))
	families, err := g.reg.Gather()
	must(t, err)
	got := map[string]string{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := ""
			for _, label := range m.GetLabel() {
				labels = fmt.Sprintf("%s %s=%s", labels, label.GetName(), label.GetValue())
			}
			got[family.GetName()+labels] = fmt.Sprint(m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()))
		}
	}
	want := map[string]string{}
	for series, n := range map[string]string{
		"method=GET path=/system/ status=401":                "1",
		"method=GET path=/system/function/{name} status=200": "1",
		"method=GET path=/system/function/{name} status=404": "2",
		"method=GET path=/system/functions status=200":       "1",
		"method=GET path=/system/logs status=200":            "1",
		"method=other path=/system/ status=404":              "1",
	} {
		want["http_requests_total "+series] = n
		if !strings.Contains(series, "logs") { // they are not timed
			want["http_request_duration_seconds "+series] = n
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("metrics = %v, want %v", got, want)
	}
	newGateway(t, func(c *api.Config) { c.Registerer = nil }).ask("GET", "/system/info", "")
}

// TestBrowser holds pages of other origins off, whose requests a browser sends
// with the password that it knows.
func TestBrowser(t *testing.T) {
	g := newGateway(t)
	for site, want := range map[string]int{"": 202, "same-origin": 202, "none": 202, "cross-site": 403, "same-site": 403} {
		r := httptest.NewRequest("PUT", "/system/functions", strings.NewReader(`{"service":"weather","image":"weather:2"}`))
		r.SetBasicAuth(user, password)
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Sec-Fetch-Site %q = %d, want %d", site, w.Code, want)
		}
	}
}

// FuzzDeploy sends anything as a declaration: what is accepted is sound, what
// isn't gets a sentence.
func FuzzDeploy(f *testing.F) {
	f.Add([]byte(`{"service":"weather","image":"weather:latest"}`))
	f.Add([]byte("{\n\"limits\":{\"memory\":128},\n\"labels\":[]}"))
	f.Add([]byte("\xff"))
	f.Add([]byte(`{"service":"a","image":"b","envVars":{"":""},"secrets":[null]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		g := newGateway(t)
		g.ask("DELETE", "/system/functions", `{"functionName":"weather"}`)
		w := g.ask(http.MethodPost, "/system/functions", string(body))
		list := g.fleet.functions
		switch {
		case w.Code == 202 && len(list) == 1:
			for name := range list {
				if _, err := faas.ParseName(name.String()); err != nil {
					t.Errorf("%q was accepted, but %v", body, err)
				}
			}
		case w.Code == 400 && len(list) == 0 && w.Body.Len() > 10:
		default:
			t.Errorf("%q = %d %q, with %d functions declared", body, w.Code, w.Body, len(list))
		}
		if g.log.String() != "" {
			t.Errorf("%q was logged: %s", body, g.log)
		}
	})
}

// BenchmarkList lists 1000 functions, which must not take 20 ms.
func BenchmarkList(b *testing.B) {
	g := newGateway(b, func(c *api.Config) { c.Invocations = func(faas.Name) float64 { return 1 } })
	for i := range 999 {
		must(b, g.fleet.Deploy(b.Context(), types.FunctionDeployment{
			Service: fmt.Sprintf("weather-%d", i), Namespace: faas.DefaultNamespace, Image: "127.0.0.1:8080/weather:latest",
			EnvVars:     map[string]string{"write_timeout": "10s", "read_timeout": "10s"},
			Labels:      &map[string]string{"com.openfaas.scale.min": "0"},
			Annotations: &map[string]string{"thicket.digest": "sha256:" + strings.Repeat("0", 64)},
		}))
	}
	b.ReportAllocs()
	for b.Loop() {
		if w := g.ask("GET", "/system/functions", ""); w.Code != 200 || w.Body.Len() < 100_000 {
			b.Fatalf("list = %d with %d bytes", w.Code, w.Body.Len())
		}
	}
}
