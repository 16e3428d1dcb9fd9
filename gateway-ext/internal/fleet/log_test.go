package fleet_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func texts(t *testing.T, w *world, r logs.Request) (list []string) {
	t.Helper()
	for m, err := range w.Logs(t.Context(), r) {
		must(t, err)
		list = append(list, m.Text)
	}
	return list
}

func equal(a []string, b ...string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestLogsSayWhyNothingRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.registry.set("", "", faas.Errorf(faas.ErrUnavailable, "no route to registry"))
		must(t, w.Deploy(t.Context(), deployment("f")))
		time.Sleep(time.Hour) // the same again and again is said once
		r := logs.Request{Name: "f", Tail: -1}
		if got := texts(t, w, r); !equal(got, "deploy: no route to registry") {
			t.Errorf("logs = %q, want the reason, once", got)
		}
		w.registry.set("", "", nil)
		time.Sleep(2 * time.Minute)
		w.nodes.mu.Lock()
		w.nodes.lines = []logs.Message{
			{Text: "early", Timestamp: time.Now().Add(-2 * time.Hour)},
			{Text: "late", Timestamp: time.Now()},
		}
		w.nodes.mu.Unlock()
		over := "what kept the function from being deployed is over"
		if got := texts(t, w, r); !equal(got, "early", "deploy: no route to registry", over, "late") {
			t.Errorf("logs = %q, want both sources by time", got)
		}
		r.Tail = 1
		if got := texts(t, w, r); !equal(got, "early", over, "late") {
			t.Errorf("logs with tail 1 = %q, want no more than the last of the fleet's own", got)
		}
		r.Instance = "f-1"
		if got := texts(t, w, r); !equal(got, "early", "late") {
			t.Errorf("logs of an instance = %q, want its alone", got)
		}
		r.Instance, r.Since = "", new(time.Now().Add(-time.Second))
		if got := texts(t, w, r); !equal(got, "early", "late") {
			t.Errorf("logs since a second ago = %q, want none of the fleet's", got)
		}
		for _, err := range w.Logs(t.Context(), logs.Request{Name: "none"}) {
			if !errors.Is(err, faas.ErrNotFound) {
				t.Errorf("logs of no function = %v, want ErrNotFound", err)
			}
		}
	})
}

func TestFollowFromBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		w.nodes.lines = []logs.Message{{Text: "hello", Timestamp: time.Now()}}
		w.registry.set("", "", faas.Errorf(faas.ErrUnavailable, "down"))
		must(t, w.Deploy(t.Context(), deployment("f")))
		synctest.Wait()

		var mu sync.Mutex
		var got []string
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var reader sync.WaitGroup
		reader.Go(func() {
			for m, err := range w.Logs(ctx, logs.Request{Name: "f", Follow: true}) {
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, m.Text)
				mu.Unlock()
			}
		})
		synctest.Wait()
		w.registry.set("", "", faas.Errorf(faas.ErrUnavailable, "still down"))
		time.Sleep(time.Minute)
		w.registry.set("", "", nil)
		time.Sleep(2 * time.Minute)
		mu.Lock()
		seen := map[string]int{}
		for _, text := range got {
			seen[text]++
		}
		mu.Unlock()
		for _, text := range []string{"deploy: down", "deploy: still down", "what kept the function from being deployed is over", "hello"} {
			if seen[text] != 1 {
				t.Errorf("%q was read %d times in %q, want once", text, seen[text], got)
			}
		}
		must(t, w.Delete(t.Context(), named("f")))
		reader.Wait() // ends with the function
	})
}
