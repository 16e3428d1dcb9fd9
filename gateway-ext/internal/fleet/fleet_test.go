package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
)

func named(name string) faas.Name {
	return faas.Name{Function: name, Namespace: faas.DefaultNamespace}
}

func deployment(name string) types.FunctionDeployment {
	return types.FunctionDeployment{Service: name, Image: "img:1"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reason returns what the function's status says of why it doesn't run.
func (w *world) reason(t *testing.T, name string) string {
	t.Helper()
	s, err := w.Function(named(name))
	must(t, err)
	return (*s.Annotations)[fleet.StatusAnnotation]
}

func TestDeployRunsWhatWasDeclared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		d := deployment("f")
		d.EnvVars = map[string]string{"a": "b"}
		d.Annotations = &map[string]string{"mine": "1", fleet.DigestAnnotation: "old", fleet.StatusAnnotation: "old"}
		must(t, w.Deploy(t.Context(), d))
		synctest.Wait()

		got, ok := w.nodes.last("f")
		if !ok || got.Function.Digest != digest("1") || got.Function.Replicas != 1 || got.Function.EnvVars["a"] != "b" {
			t.Errorf("runs %+v, want one replica of digest 1", got.Function)
		}
		s, err := w.Function(named("f"))
		must(t, err)
		a := *s.Annotations
		if s.Name != "f" || s.Namespace != faas.DefaultNamespace || s.Image != "img:1" || s.Replicas != 1 || s.AvailableReplicas != 1 || s.CreatedAt.IsZero() {
			t.Errorf("status = %+v, want one of one replica available", s)
		}
		if len(a) != 2 || a["mine"] != "1" || a[fleet.DigestAnnotation] != digest("1") {
			t.Errorf("annotations = %v, want the user's own and the digest", a)
		}
		if own := got.Function.Annotation(fleet.DigestAnnotation); own != "" {
			t.Errorf("the annotation %s was kept: %s", fleet.DigestAnnotation, own)
		}
		if list := w.Functions(""); len(list) != 1 || list[0].Name != "f" || list[0].AvailableReplicas != 1 {
			t.Errorf("list = %+v, want f", list)
		}
		if list := w.Functions("elsewhere"); list == nil || len(list) != 0 {
			t.Errorf("list of another namespace = %#v, want an empty one", list)
		}
	})
}

func TestKindsOfRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.Deploy(ctx, deployment("f")))
		must(t, w.CreateSecret(ctx, types.Secret{Name: "s", Value: "v"}))
		withSecret := deployment("user")
		withSecret.Secrets = []string{"s"}
		must(t, w.Deploy(ctx, withSecret))
		noSecret := deployment("g")
		noSecret.Secrets = []string{"s", "api-key"}
		elsewhere := deployment("g")
		elsewhere.Namespace = "elsewhere"
		synctest.Wait()
		before := w.store.puts

		tests := []struct {
			name string
			err  error
			kind error
			says string
		}{
			{"deploy what exists", w.Deploy(ctx, deployment("f")), faas.ErrConflict, "update"},
			{"update what doesn't", w.Update(ctx, deployment("g")), faas.ErrNotFound, "no function g"},
			{"delete what doesn't", w.Delete(ctx, named("g")), faas.ErrNotFound, "no function g"},
			{"scale what doesn't", w.Scale(ctx, named("g"), 1, "by hand"), faas.ErrNotFound, "no function g"},
			{"wake what doesn't", w.Wake(ctx, named("g")), faas.ErrNotFound, "no function g"},
			{"scale below 0", w.Scale(ctx, named("f"), -1, "by hand"), faas.ErrInvalid, "0 to 20"},
			{"scale above the maximum", w.Scale(ctx, named("f"), 21, "by hand"), faas.ErrInvalid, faas.LabelScaleMax},
			{"not a name", w.Deploy(ctx, deployment("F_")), faas.ErrInvalid, "DNS label"},
			{"unknown secret", w.Deploy(ctx, noSecret), faas.ErrInvalid, "faas-cli secret create api-key"},
			{"unknown namespace", w.Deploy(ctx, elsewhere), faas.ErrNotFound, "elsewhere"},
			{"secret that exists", w.CreateSecret(ctx, types.Secret{Name: "s", Value: "v"}), faas.ErrConflict, "update"},
			{"update of no secret", w.UpdateSecret(ctx, types.Secret{Name: "none", Value: "v"}), faas.ErrNotFound, "none"},
			{"secret without a value", w.CreateSecret(ctx, types.Secret{Name: "e"}), faas.ErrInvalid, "no value"},
			{"secret that is a path", w.CreateSecret(ctx, types.Secret{Name: "../e", Value: "v"}), faas.ErrInvalid, "DNS"},
			{"large secret", w.CreateSecret(ctx, types.Secret{Name: "e", RawValue: make([]byte, fleet.MaxSecret+1)}), faas.ErrTooLarge, "at most"},
			{"secret elsewhere", w.CreateSecret(ctx, types.Secret{Name: "e", Namespace: "elsewhere", Value: "v"}), faas.ErrNotFound, "elsewhere"},
			{"delete no secret", w.DeleteSecret(ctx, "", "none"), faas.ErrNotFound, "none"},
			{"delete a used secret", w.DeleteSecret(ctx, "", "s"), faas.ErrConflict, "used by user"},
			{"namespace that exists", w.CreateNamespace(ctx, types.FunctionNamespace{Name: faas.DefaultNamespace}), faas.ErrConflict, "exists"},
			{"update of no namespace", w.UpdateNamespace(ctx, types.FunctionNamespace{Name: "none"}), faas.ErrNotFound, "none"},
			{"not a namespace", w.CreateNamespace(ctx, types.FunctionNamespace{Name: "a.b"}), faas.ErrInvalid, "DNS label"},
			{"delete the default namespace", w.DeleteNamespace(ctx, faas.DefaultNamespace), faas.ErrInvalid, "can't be deleted"},
			{"delete no namespace", w.DeleteNamespace(ctx, "none"), faas.ErrNotFound, "none"},
		}
		for _, tt := range tests {
			if _, shown := errors.AsType[*faas.Error](tt.err); !shown || !errors.Is(tt.err, tt.kind) || !strings.Contains(tt.err.Error(), tt.says) {
				t.Errorf("%s: %v, want %v with %q", tt.name, tt.err, tt.kind, tt.says)
			}
		}
		if w.store.puts != before {
			t.Errorf("%d refused changes were stored", w.store.puts-before)
		}
	})
}

func TestOneOfManyDeploysWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		var won, refused atomic.Int32
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				switch err := w.Deploy(t.Context(), deployment("f")); {
				case err == nil:
					won.Add(1)
				case errors.Is(err, faas.ErrConflict):
					refused.Add(1)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 || refused.Load() != 49 {
			t.Errorf("%d deploys won and %d were refused as conflicts, want 1 and 49", won.Load(), refused.Load())
		}
	})
}

func TestUpdateRollsOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()
		must(t, w.Scale(t.Context(), named("f"), 3, "by hand"))
		first, _ := w.nodes.last("f")

		must(t, w.Update(t.Context(), deployment("f")))
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Revision != first.Function.Revision || got.Function.Replicas != 3 {
			t.Errorf("after an update to the same: revision %d with %d replicas, want %d with 3", got.Function.Revision, got.Function.Replicas, first.Function.Revision)
		}
		if n := w.registry.count(); n != 2 {
			t.Errorf("the tag was looked up %d times, want 2", n)
		}

		w.registry.set("img:1", digest("2"), nil)
		must(t, w.Update(t.Context(), deployment("f")))
		synctest.Wait()
		second, _ := w.nodes.last("f")
		if second.Function.Revision <= first.Function.Revision || second.Function.Digest != digest("2") {
			t.Errorf("after the tag moved: revision %d, digest %s, want a newer one", second.Function.Revision, second.Function.Digest)
		}

		d := deployment("f")
		d.Labels = &map[string]string{faas.LabelScaleMax: "2"}
		must(t, w.Update(t.Context(), d))
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Revision <= second.Function.Revision || got.Function.Replicas != 2 {
			t.Errorf("after other labels: revision %d with %d replicas, want a newer one with 2", got.Function.Revision, got.Function.Replicas)
		}
	})
}

func TestRegistryThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()

		down := faas.Errorf(faas.ErrUnavailable, "the registry can't be reached")
		w.registry.set("img:2", digest("2"), down)
		d := deployment("f")
		d.Image = "img:2"
		must(t, w.Update(t.Context(), d))
		must(t, w.Deploy(t.Context(), deployment("new")))
		time.Sleep(10 * time.Minute)
		if got, _ := w.nodes.last("f"); got.Function.Digest != digest("1") {
			t.Errorf("while the registry is down %q runs, want what ran before", got.Function.Digest)
		}
		if _, ok := w.nodes.last("new"); ok {
			t.Error("a function runs whose image was never found")
		}
		if got := w.reason(t, "f"); got != down.Error() {
			t.Errorf("status says %q, want %q", got, down)
		}
		if n := w.registry.count(); n < 10 || n > 60 {
			t.Errorf("%d look-ups in 10 minutes for 2 functions, want growing delays up to a minute", n)
		}
		// What runs meanwhile can be scaled.
		must(t, w.Scale(t.Context(), named("f"), 2, "by hand"))
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 2 || got.Function.Digest != digest("1") {
			t.Errorf("scaled to %d of %s, want 2 of what ran before", got.Function.Replicas, got.Function.Digest)
		}

		// And a restart keeps it running.
		w.stop()
		w = start(t, w.store, w.registry)
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Digest != digest("1") || got.Function.Replicas != 2 {
			t.Errorf("after a restart %d of %q run, want 2 of what ran before", got.Function.Replicas, got.Function.Digest)
		}

		w.registry.set("", "", nil)
		time.Sleep(90 * time.Second)
		if got, _ := w.nodes.last("f"); got.Function.Digest != digest("2") || got.Function.Replicas != 2 {
			t.Errorf("after the registry came back %d of %q run, want 2 of the new", got.Function.Replicas, got.Function.Digest)
		}
		if _, ok := w.nodes.last("new"); !ok {
			t.Error("the new function doesn't run after the registry came back")
		}
		if got := w.reason(t, "f"); got != "" {
			t.Errorf("status still says %q", got)
		}
	})
}

func TestRedeclarationEndsTheOlderAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.registry.hangs = true
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()
		began := time.Now()
		w.registry.set("img:2", digest("2"), nil)
		d := deployment("f")
		d.Image = "img:2"
		must(t, w.Update(t.Context(), d))
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Digest != digest("2") {
			t.Errorf("%q runs, want the redeclared image", got.Function.Digest)
		}
		if hanging, waited := w.registry.hung(0), time.Since(began); hanging != 0 || waited != 0 {
			t.Errorf("%d look-ups hang on after %v, want the older one ended at once", hanging, waited)
		}
	})
}

func TestHangingRegistryDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.registry.hangs = true
		for i := range 40 {
			must(t, w.Deploy(t.Context(), deployment(fmt.Sprintf("hangs%d", i))))
		}
		time.Sleep(20 * time.Minute) // each was tried, and is tried again and again
		d := deployment("good")
		d.Image = "img@" + digest("a")
		must(t, w.Deploy(t.Context(), d))
		synctest.Wait()
		if _, ok := w.nodes.last("good"); !ok {
			t.Error("a function with a good image waits for those whose registry hangs")
		}
	})
}

func TestImageThatCantRunIsNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.registry.set("", "", faas.Errorf(faas.ErrInvalid, "the image has only windows/amd64"))
		must(t, w.Deploy(t.Context(), deployment("f")))
		time.Sleep(time.Hour)
		if n := w.registry.count(); n != 1 {
			t.Errorf("looked up %d times, want once", n)
		}
		if got := w.reason(t, "f"); !strings.Contains(got, "windows/amd64") {
			t.Errorf("status says %q", got)
		}
		w.registry.set("", "", nil)
		must(t, w.Update(t.Context(), deployment("f")))
		synctest.Wait()
		if got := w.reason(t, "f"); got != "" {
			t.Errorf("after a declaration that works, status says %q", got)
		}
	})
}

func TestRestartAppliesAllWithoutARegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.CreateNamespace(ctx, types.FunctionNamespace{Name: "lab", Labels: map[string]string{"a": "b"}}))
		must(t, w.CreateSecret(ctx, types.Secret{Name: "key.pem", Namespace: "lab", Value: "hush"}))
		for i := range 20 {
			d := deployment(fmt.Sprintf("f%d", i))
			d.Namespace, d.Secrets = "lab", []string{"key.pem"}
			must(t, w.Deploy(ctx, d))
		}
		must(t, w.Deploy(ctx, deployment("deleted")))
		synctest.Wait()
		must(t, w.Scale(ctx, faas.Name{Function: "f3", Namespace: "lab"}, 4, "by hand"))
		must(t, w.Scale(ctx, faas.Name{Function: "f4", Namespace: "lab"}, 0, "by hand"))
		must(t, w.Delete(ctx, named("deleted")))
		before := w.nodes.running
		w.stop()

		offline := newRegistry()
		offline.hangs = true
		began := time.Now()
		w = start(t, w.store, offline)
		synctest.Wait()
		if len(w.nodes.running) != 20 || len(before) != 20 {
			t.Fatalf("%d functions run after the restart, %d before, want 20", len(w.nodes.running), len(before))
		}
		for name, was := range before {
			is := w.nodes.running[name]
			if is.Function.Digest != was.Function.Digest || is.Function.Revision != was.Function.Revision ||
				is.Function.Replicas != was.Function.Replicas || string(is.Secrets["key.pem"]) != "hush" {
				t.Errorf("%s: %+v runs, want %+v", name, is.Function, was.Function)
			}
		}
		if offline.count() != 0 || time.Since(began) != 0 {
			t.Errorf("it took %d look-ups and %v", offline.count(), time.Since(began))
		}
		if ns, err := w.Namespace("lab"); err != nil || ns.Labels["a"] != "b" {
			t.Errorf("namespace lab = %+v, %v, want its label", ns, err)
		}
		if got := w.Namespaces(); !slices.Equal(got, []string{"lab", faas.DefaultNamespace}) {
			t.Errorf("namespaces = %v", got)
		}
		// A new revision is newer than any before the restart.
		d := deployment("f1")
		d.Namespace, d.Image = "lab", "img@"+digest("b")
		must(t, w.Update(ctx, d))
		synctest.Wait()
		name := faas.Name{Function: "f1", Namespace: "lab"}
		if is, was := w.nodes.running[name], before[name]; is.Function.Revision <= was.Function.Revision {
			t.Errorf("revision %d after revision %d", is.Function.Revision, was.Function.Revision)
		}
	})
}

func TestSleepAndWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		d := deployment("f")
		d.Labels = &map[string]string{faas.LabelScaleMin: "2"}
		must(t, w.Deploy(ctx, d))
		synctest.Wait()
		must(t, w.Scale(ctx, named("f"), 0, "by hand"))
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 0 {
			t.Fatalf("%d replicas, want 0", got.Function.Replicas)
		}
		w.store.fail(faas.ErrNoSpace) // a request can be answered on a full disk
		must(t, w.Wake(ctx, named("f")))
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 2 {
			t.Errorf("Wake returned with %d replicas wanted, want 2", got.Function.Replicas)
		}
		told := w.nodes.tellings()
		must(t, w.Wake(ctx, named("f")))
		if n := w.nodes.tellings(); n != told {
			t.Errorf("Wake of one that is awake told the provider %d times", n-told)
		}
		w.store.fail(nil)
		time.Sleep(time.Minute) // it is stored as soon as that is possible
		w.stop()
		w = start(t, w.store, w.registry)
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 2 {
			t.Errorf("%d replicas after a restart, want 2", got.Function.Replicas)
		}
		must(t, w.Scale(ctx, named("f"), 0, "by hand"))
		must(t, w.Update(ctx, d))
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 2 {
			t.Errorf("%d replicas after an update of one asleep, want 2", got.Function.Replicas)
		}
	})
}

func TestFullDiskChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.Deploy(ctx, deployment("f")))
		synctest.Wait()
		told := w.nodes.tellings()
		w.store.fail(faas.ErrNoSpace)
		changed := deployment("f")
		changed.EnvVars = map[string]string{"a": "b"}
		for what, err := range map[string]error{
			"deploy":    w.Deploy(ctx, deployment("g")),
			"update":    w.Update(ctx, changed),
			"scale":     w.Scale(ctx, named("f"), 3, "by hand"),
			"delete":    w.Delete(ctx, named("f")),
			"secret":    w.CreateSecret(ctx, types.Secret{Name: "s", Value: "v"}),
			"namespace": w.CreateNamespace(ctx, types.FunctionNamespace{Name: "n"}),
		} {
			if !errors.Is(err, faas.ErrNoSpace) {
				t.Errorf("%s = %v, want ErrNoSpace", what, err)
			}
		}
		time.Sleep(time.Minute)
		s, err := w.Function(named("f"))
		must(t, err)
		if len(w.Functions("")) != 1 || len(w.Secrets("")) != 0 || len(w.Namespaces()) != 1 || s.Replicas != 1 || s.EnvVars != nil || w.nodes.tellings() != told {
			t.Errorf("something was changed: %+v", s)
		}
		w.store.fail(nil)
		must(t, w.Update(ctx, changed))
	})
}

func TestDeleteAndDeployAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.Deploy(ctx, deployment("f")))
		synctest.Wait()
		first, _ := w.nodes.last("f")
		w.nodes.draining = make(chan struct{}) // the old replica never ends
		var deleted sync.WaitGroup
		deleted.Go(func() { must(t, w.Delete(ctx, named("f"))) })
		synctest.Wait()
		if _, err := w.Function(named("f")); !errors.Is(err, faas.ErrNotFound) {
			t.Errorf("Function = %v while it is deleted, want ErrNotFound", err)
		}
		must(t, w.Deploy(ctx, deployment("f")))
		deleted.Wait()
		synctest.Wait()
		second, ok := w.nodes.last("f")
		if !ok || second.Function.Revision <= first.Function.Revision {
			t.Errorf("running %t with revision %d, want a newer one than %d, told after the removal", ok, second.Function.Revision, first.Function.Revision)
		}
	})
}

func TestProviderThatRefusesIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()
		w.nodes.mu.Lock()
		w.nodes.applyErr = errors.New("node is away")
		w.nodes.mu.Unlock()
		must(t, w.Scale(t.Context(), named("f"), 5, "by hand"))
		if got := w.reason(t, "f"); !strings.Contains(got, "node is away") {
			t.Errorf("status says %q", got)
		}
		w.nodes.mu.Lock()
		w.nodes.applyErr = nil
		w.nodes.mu.Unlock()
		time.Sleep(time.Minute)
		if got, _ := w.nodes.last("f"); got.Function.Replicas != 5 {
			t.Errorf("%d replicas, want 5 as soon as the node is back", got.Function.Replicas)
		}
		w.nodes.mu.Lock()
		w.nodes.reason = "exit status 3"
		w.nodes.mu.Unlock()
		if got := w.reason(t, "f"); got != "exit status 3" {
			t.Errorf("status says %q, want the provider's reason", got)
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		f, err := fleet.New(t.Context(), fleet.Config{
			Store: s, Provider: newNodes(), Images: newRegistry(), Key: testKey, Logger: discard,
			MaxFunctions: 2, MaxSecrets: 2, MaxNamespaces: 2,
		})
		must(t, err)
		ctx := t.Context()
		for i, want := range []error{nil, nil, faas.ErrOverloaded} {
			if err := f.Deploy(ctx, deployment(fmt.Sprintf("f%d", i))); !errors.Is(err, want) {
				t.Errorf("Deploy number %d = %v, want %v", i, err, want)
			}
			if err := f.CreateSecret(ctx, types.Secret{Name: fmt.Sprintf("s%d", i), Value: "v"}); !errors.Is(err, want) {
				t.Errorf("CreateSecret number %d = %v, want %v", i, err, want)
			}
		}
		for i, want := range []error{nil, faas.ErrOverloaded} { // the default one counts
			if err := f.CreateNamespace(ctx, types.FunctionNamespace{Name: fmt.Sprintf("n%d", i)}); !errors.Is(err, want) {
				t.Errorf("CreateNamespace number %d = %v, want %v", i, err, want)
			}
		}
		must(t, f.Update(ctx, deployment("f0"))) // what is there may change
		must(t, f.UpdateSecret(ctx, types.Secret{Name: "s0", Value: "w"}))
	})
}

func TestCallerThatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		// Whether it is accepted or not, the answer is true.
		err := w.Deploy(ctx, deployment("f"))
		_, ferr := w.Function(named("f"))
		if (err == nil) != (ferr == nil) {
			t.Errorf("Deploy = %v, but Function = %v", err, ferr)
		}
	})
}
