package api_test

import (
	"net/http"
	"net/url"
	"reflect"
	"testing"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"
	sdk "github.com/openfaas/go-sdk"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// TestSDK drives the API with OpenFaaS's own client.
func TestSDK(t *testing.T) {
	g := newGateway(t, func(c *api.Config) { c.Invocations = func(faas.Name) float64 { return 7 } })
	g.fleet.lines = []logs.Message{line("one"), line("two")}
	u, err := url.Parse(g.serve(t).URL)
	must(t, err)
	c := sdk.NewClient(u, &sdk.BasicAuth{Username: user, Password: password}, http.DefaultClient)
	ctx := t.Context()

	code, err := c.Deploy(ctx, types.FunctionDeployment{Service: "new", Image: "new:1", Namespace: "openfaas-fn", Secrets: []string{"key"}})
	if err != nil || code != http.StatusAccepted {
		t.Errorf("Deploy() = %d, %v", code, err)
	}
	if code, err := c.Deploy(ctx, types.FunctionDeployment{Service: "new", Image: "new:1"}); err == nil || code != http.StatusConflict {
		t.Errorf("Deploy() again = %d, %v, want 409", code, err)
	}
	if code, err := c.Update(ctx, types.FunctionDeployment{Service: "new", Image: "new:2"}); err != nil || code != http.StatusAccepted {
		t.Errorf("Update() = %d, %v", code, err)
	}
	if code, err := c.Update(ctx, types.FunctionDeployment{Service: "other", Image: "new:2"}); code != http.StatusNotFound {
		t.Errorf("Update() of nothing = %d, %v, want 404", code, err)
	}
	list, err := c.GetFunctions(ctx, "openfaas-fn")
	if err != nil || len(list) != 2 || list[0].Name != "new" || list[0].InvocationCount != 7 {
		t.Errorf("GetFunctions() = %+v, %v", list, err)
	}
	if list, err := c.GetFunctions(ctx, "lab"); err != nil || len(list) != 0 {
		t.Errorf("GetFunctions() of an empty namespace = %+v, %v", list, err)
	}
	must(t, c.ScaleFunction(ctx, "new", "openfaas-fn", 3))
	if f, err := c.GetFunction(ctx, "new", ""); err != nil || f.Replicas != 3 || f.AvailableReplicas != 3 || f.Image != "new:2" {
		t.Errorf("GetFunction() = %+v, %v", f, err)
	}
	must(t, c.DeleteFunction(ctx, "new", "openfaas-fn"))
	if err := c.DeleteFunction(ctx, "new", "openfaas-fn"); err == nil || err.Error() != "function new not found" {
		t.Errorf("DeleteFunction() again = %v", err)
	}

	if code, err := c.CreateSecret(ctx, types.Secret{Name: "pin", Namespace: "openfaas-fn", RawValue: []byte{0, 255}}); err != nil || code != http.StatusCreated {
		t.Errorf("CreateSecret() = %d, %v", code, err)
	}
	if code, err := c.CreateSecret(ctx, types.Secret{Name: "pin", Value: "x"}); err == nil || code != http.StatusConflict {
		t.Errorf("CreateSecret() again = %d, %v, want 409", code, err)
	}
	if code, err := c.UpdateSecret(ctx, types.Secret{Name: "pin", Value: "new"}); err != nil || code != http.StatusOK {
		t.Errorf("UpdateSecret() = %d, %v", code, err)
	}
	secrets, err := c.GetSecrets(ctx, "")
	want := []types.Secret{{Name: "key", Namespace: "openfaas-fn"}, {Name: "pin", Namespace: "openfaas-fn"}}
	if err != nil || !reflect.DeepEqual(secrets, want) {
		t.Errorf("GetSecrets() = %+v, %v, want %+v", secrets, err, want)
	}
	must(t, c.DeleteSecret(ctx, "pin", "openfaas-fn"))

	if code, err := c.CreateNamespace(ctx, types.FunctionNamespace{Name: "lab"}); err != nil || code != http.StatusCreated {
		t.Errorf("CreateNamespace() = %d, %v", code, err)
	}
	if code, err := c.UpdateNamespace(ctx, types.FunctionNamespace{Name: "lab", Labels: map[string]string{"a": "b"}}); err != nil {
		t.Errorf("UpdateNamespace() = %d, %v", code, err)
	}
	if ns, err := c.GetNamespace(ctx, "lab"); err != nil || ns.Labels["a"] != "b" || ns.Labels["openfaas"] != "1" {
		t.Errorf("GetNamespace() = %+v, %v", ns, err)
	}
	if all, err := c.GetNamespaces(ctx); err != nil || !reflect.DeepEqual(all, []string{"lab", "openfaas-fn"}) {
		t.Errorf("GetNamespaces() = %v, %v", all, err)
	}
	must(t, c.DeleteNamespace(ctx, "lab"))

	if info, err := c.GetInfo(ctx); err != nil || info.Provider.Provider != "thicket" || info.Version.Release != "1.2.3" {
		t.Errorf("GetInfo() = %+v, %v", info, err)
	}
	stream, err := c.GetLogs(ctx, "weather", "openfaas-fn", false, 10, nil)
	must(t, err)
	var texts []string
	for m := range stream {
		texts = append(texts, m.Text)
	}
	if !reflect.DeepEqual(texts, []string{"one", "two"}) {
		t.Errorf("GetLogs() = %q", texts)
	}

	stranger := sdk.NewClient(u, &sdk.BasicAuth{Username: user, Password: "wrong"}, http.DefaultClient)
	if code, _ := stranger.Deploy(ctx, types.FunctionDeployment{Service: "new", Image: "new:1"}); code != http.StatusUnauthorized {
		t.Errorf("Deploy() with a wrong password = %d, want 401", code)
	}
}
