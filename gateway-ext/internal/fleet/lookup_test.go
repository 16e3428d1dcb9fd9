package fleet_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestWhatTheProxyAndTheRegistryAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		must(t, w.Deploy(t.Context(), deployment("f")))
		must(t, w.Deploy(t.Context(), deployment("same")))
		synctest.Wait()
		down := faas.Errorf(faas.ErrUnavailable, "the registry can't be reached")
		w.registry.set("", "", down)
		d := deployment("f")
		d.Image = "img:2"
		must(t, w.Update(t.Context(), d))
		synctest.Wait()
		if got := w.Digests(); !slices.Equal(got, []string{digest("1")}) {
			t.Errorf("Digests = %v, want what runs until the update is pinned, once", got)
		}
		if wanted, reason, ok := w.Known(named("f")); wanted != 1 || reason != down.Error() || !ok {
			t.Errorf("Known(f) = %d, %q, %t, want 1 and why the update isn't deployed", wanted, reason, ok)
		}
		if _, _, ok := w.Known(named("none")); ok {
			t.Error("Known(none) is true")
		}
		if names := w.Names(); len(names) != 2 || !slices.Contains(names, named("f")) || !slices.Contains(names, named("same")) {
			t.Errorf("Names = %v, want f and same", names)
		}
		w.registry.set("img:2", digest("2"), nil)
		time.Sleep(2 * time.Minute)
		if got := w.Digests(); !slices.Equal(got, []string{digest("1"), digest("2")}) {
			t.Errorf("Digests = %v, want both that run", got)
		}
		w.nodes.mu.Lock()
		w.nodes.reason = "exit status 3"
		w.nodes.mu.Unlock()
		if _, reason, _ := w.Known(named("f")); reason != "exit status 3" {
			t.Errorf("Known(f) says %q, want the provider's reason", reason)
		}
	})
}

func TestLateAnswerOfTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		answer := make(chan struct{})
		w.registry.deaf = answer
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()
		d := deployment("f")
		d.Image = "img@" + digest("2")
		must(t, w.Update(t.Context(), d))
		synctest.Wait()
		close(answer)
		synctest.Wait()
		w.stop()
		w = start(t, w.store, w.registry)
		synctest.Wait()
		if got, _ := w.nodes.last("f"); got.Function.Digest != digest("2") {
			t.Errorf("%q runs, want what was declared last", got.Function.Digest)
		}
	})
}

func TestDeletionEndsTheLookUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.registry.hangs = true
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()
		if n := w.registry.hung(0); n != 1 {
			t.Fatalf("%d look-ups hang, want 1", n)
		}
		must(t, w.Delete(t.Context(), named("f")))
		synctest.Wait()
		if n := w.registry.hung(0); n != 0 {
			t.Errorf("%d look-ups hang after the function was deleted", n)
		}
		w.stop()
		if len(start(t, w.store, w.registry).Functions("")) != 0 {
			t.Error("the function is back after a restart")
		}
	})
}
