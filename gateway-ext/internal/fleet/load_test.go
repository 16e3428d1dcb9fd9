package fleet_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
)

func TestWhatCantBeReadIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		must(t, w.Deploy(t.Context(), deployment("good")))
		must(t, w.Deploy(t.Context(), deployment("bad")))
		must(t, w.CreateNamespace(t.Context(), types.FunctionNamespace{Name: "n"}))
		synctest.Wait()
		w.stop()
		w.store.data["function.openfaas-fn.bad"] = []byte(`{"declared":`)
		w.store.data["function.openfaas-fn.alias"] = w.store.data["function.openfaas-fn.good"]
		w.store.data["namespace.n"] = []byte(`{"name":"m"}`)
		w.store.data["of a later release"] = []byte("?")

		w = start(t, w.store, w.registry)
		synctest.Wait()
		if list := w.Functions(""); len(list) != 1 || list[0].Name != "good" {
			t.Errorf("functions = %+v, want good alone", list)
		}
		if list := w.Namespaces(); len(list) != 1 {
			t.Errorf("namespaces = %v, want the default alone", list)
		}
		if _, ok := w.nodes.last("good"); !ok {
			t.Error("good doesn't run")
		}
		must(t, w.Deploy(t.Context(), deployment("bad"))) // mended by declaring it anew
		synctest.Wait()
		if _, ok := w.nodes.last("bad"); !ok {
			t.Error("bad doesn't run after it was declared anew")
		}
	})
}

// FuzzLoad opens a fleet over a function that anybody may have written: it
// opens, or says why not, and what it lists bears the key's name.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"declared":{"service":"f","image":"img:1","namespace":"openfaas-fn","revision":1,"replicas":1}}`))
	f.Add([]byte(`{"declared":{"service":"f","namespace":"openfaas-fn","replicas":-1},"serving":{}}`))
	f.Add([]byte(`{"declared":{"service":"f","namespace":"openfaas-fn","labels":null,"annotations":{"a":"b"}},"serving":{"service":"f","namespace":"openfaas-fn","digest":"sha256:0"}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStore()
		s.data["function.openfaas-fn.f"] = b
		fl, err := fleet.New(t.Context(), fleet.Config{Store: s, Provider: newNodes(), Images: newRegistry(), Key: testKey, Logger: discard})
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range fl.Functions("") {
			if got.Name != "f" || got.Namespace != faas.DefaultNamespace || got.Annotations == nil {
				t.Errorf("listed %+v", got)
			}
		}
		if err := fl.Scale(t.Context(), named("f"), 0, "by hand"); err != nil && !errors.Is(err, faas.ErrNotFound) {
			t.Error(err)
		}
	})
}
