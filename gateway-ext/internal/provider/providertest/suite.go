package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/logs"
	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// patience is how long the suite waits for what must come. It is far more than
// any provider needs: a test that waits so long has failed.
const patience = 30 * time.Second

// Open returns a provider to be tested, that gets its images from images and
// tells its steps to observer. It runs until the test ends.
type Open func(t *testing.T, images provider.Images, observer provider.Observer) provider.Provider

// Test holds a provider to the contract of [provider.Provider].
func Test(t *testing.T, open Open) { TestWith(t, Traits{}, open) }

// TestWith is Test for a provider that can't do everything.
func TestWith(t *testing.T, traits Traits, open Open) {
	program := Program(t)
	for _, c := range []struct {
		name string
		test func(*bench)
	}{
		{"starts", starts},
		{"environment", environment},
		{"scales", scales},
		{"updates without a failed request", updates},
		{"a bad revision replaces nothing", badRevision},
		{"restarts what crashes", crashes},
		{"says why nothing starts", cannotStart},
		{"trouble stays with its function", trouble},
		{"heals when the image comes", heals},
		{"finishes what is in flight", drains},
		{"removes", removes},
		{"secrets", secrets},
		{"logs", readsLogs},
		{"follows logs", followsLogs},
		{"refuses what it can't read", refuses},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{T: t, traits: traits, images: NewImages(t, program), table: NewTable(t)}
			b.table.Holds = traits.Interrupts
			b.p = open(t, b.images, b.table)
			c.test(b)
			for name := range b.applied {
				b.checkHistory(name)
			}
		})
	}
}

// bench is one test at work.
type bench struct {
	*testing.T
	traits  Traits
	p       provider.Provider
	images  *Images
	table   *Table
	applied map[faas.Name]bool
}

// Workload returns a workload of the test function: a name, a revision, how many
// replicas, and its environment as key, value, key, value.
func Workload(name string, revision uint64, replicas int, env ...string) provider.Workload {
	w := provider.Workload{Function: faas.Function{
		FunctionDeployment: types.FunctionDeployment{
			Service: name, Namespace: faas.DefaultNamespace,
			Image: "registry.test:5000/" + name + ":latest", EnvVars: make(map[string]string),
		},
		Digest: Digest, Revision: revision, Replicas: replicas,
	}}
	for pair := range slices.Chunk(env, 2) {
		w.Function.EnvVars[pair[0]] = pair[1]
	}
	return w
}

func (b *bench) apply(w provider.Workload) faas.Name {
	b.Helper()
	if err := b.p.Apply(b.Context(), w); err != nil {
		b.Fatalf("Apply(%s) = %v", w.Function.Service, err)
	}
	if b.applied == nil {
		b.applied = make(map[faas.Name]bool)
	}
	b.applied[w.Function.Name()] = true
	return w.Function.Name()
}

// await polls until cond is true: for what has no event.
func (b *bench) await(what string, cond func() bool) {
	b.Helper()
	Await(b, what, cond)
}

// Await waits until cond is true, and fails the test if that takes too long.
func Await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("after %s still not: %s", patience, what)
		}
	}
}

// awaitReason waits until the function's status gives a reason that has all parts.
func (b *bench) awaitReason(name faas.Name, parts ...string) string {
	b.Helper()
	var s provider.Status
	limit := time.Now().Add(patience)
	for {
		s, _ = b.p.Status(name)
		if s.Reason != "" && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s.Reason, part) }) {
			return s.Reason
		}
		if time.Now().After(limit) {
			b.Fatalf("Status(%s).Reason = %q, want %q", name, s.Reason, parts)
		}
		tick := time.NewTimer(5 * time.Millisecond)
		<-tick.C
	}
}

// checkHistory holds what was observed of a function to the order it must have.
func (b *bench) checkHistory(name faas.Name) {
	b.Helper()
	for id, steps := range b.table.History(name) {
		for i, s := range steps {
			if s.ID != id || s.Function != name || s.Since.IsZero() {
				b.Errorf("observed %+v of %s, %s", s, id, name)
			}
			if i > 0 && s.State < steps[i-1].State {
				b.Errorf("%s went from %s to %s", id, steps[i-1].State, s.State)
			}
			if s.State == faas.Ready && !s.Addr.IsValid() {
				b.Errorf("%s is ready without an address", id)
			}
		}
	}
}

func starts(b *bench) {
	name := b.apply(Workload("one", 1, 1))
	r := b.table.AwaitReady(b, name, 1, 1)[0]
	if !strings.HasPrefix(r.ID, "one-") || r.Node == "" {
		b.Errorf("replica %+v has no good ID or node", r)
	}
	if got := b.table.Get(b, name, "/"); got != r.ID+" image" && !(b.traits.Opaque && strings.HasSuffix(got, " image")) {
		b.Errorf("answer %q, want the replica's ID %s and the image's version", got, r.ID)
	}
	var s provider.Status
	b.await("status says ready", func() bool { s, _ = b.p.Status(name); return s.Ready() == 1 })
	if s.Revision != 1 || len(s.Replicas) != 1 || s.Replicas[0].ID != r.ID || s.Reason != "" {
		b.Errorf("Status() = %+v", s)
	}
	if _, ok := b.p.Status(faas.Name{Function: "other", Namespace: faas.DefaultNamespace}); ok {
		b.Error("Status of an unknown function is known")
	}
}

func environment(b *bench) {
	w := Workload("env", 7, 1, "mine", "a=b", "version", "v7")
	w.Function.EnvProcess = "node index.js"
	w.Function.Annotations = &map[string]string{"com.openfaas.ready.http.path": "/custom-ready"}
	name := b.apply(w)
	r := b.table.AwaitReady(b, name, 7, 1)[0]
	var env map[string]string
	if err := json.Unmarshal([]byte(b.table.Get(b, name, "/env")), &env); err != nil {
		b.Fatal(err)
	}
	port := fmt.Sprint(r.Addr.Port())
	want := map[string]string{"mine": "a=b", "version": "v7", "from_image": "yes", "fprocess": "node index.js"}
	if !b.traits.Opaque {
		maps.Copy(want, map[string]string{
			"port": port, "PORT": port, "OPENFAAS_NAME": "env", "OPENFAAS_NAMESPACE": faas.DefaultNamespace, "THICKET_REPLICA": r.ID,
		})
	}
	for k, want := range want {
		if env[k] != want {
			b.Errorf("environment has %s=%q, want %q", k, env[k], want)
		}
	}
	if env["secret_mount_path"] == "" {
		b.Error("environment has no secret_mount_path")
	}
}

func scales(b *bench) {
	name := b.apply(Workload("scaled", 1, 1))
	first := b.table.AwaitReady(b, name, 1, 1)[0]
	if most := b.traits.MaxReplicas; most > 0 {
		if err := b.p.Apply(b.Context(), Workload("scaled", 1, most+1)); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprint("at most ", most)) {
			b.Errorf("Apply of %d replicas = %v, want a refusal that says that there are at most %d", most+1, err, most)
		}
	}
	for _, n := range []int{b.n(3), b.n(2), 0} {
		b.apply(Workload("scaled", 1, n))
		now := b.table.AwaitReady(b, name, 1, n)
		if n > 0 && !slices.ContainsFunc(now, func(r faas.Replica) bool { return r.ID == first.ID }) {
			b.Errorf("the oldest replica %s has gone although %d are wanted", first.ID, n)
		}
	}
	var s provider.Status
	b.await("nothing runs", func() bool { s, _ = b.p.Status(name); return len(s.Replicas) == 0 })
	if _, ok := b.p.Status(name); !ok || s.Reason != "" {
		b.Errorf("a sleeping function has status %+v, known: %v", s, ok)
	}
	b.apply(Workload("scaled", 1, 1))
	if again := b.table.AwaitReady(b, name, 1, 1)[0]; again.ID == first.ID {
		b.Errorf("the ID %s was used again", again.ID)
	}
}

// updates changes the revision again and again while requests come.
func updates(b *bench) {
	n := b.n(2)
	name := b.apply(Workload("updated", 1, n, "version", "v1"))
	b.table.AwaitReady(b, name, 1, n)
	ctx, cancel := context.WithCancel(b.Context())
	var asked, failed atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				code, body, err := b.table.Do(context.WithoutCancel(ctx), name, "/sleep?for=2ms")
				asked.Add(1)
				if err != nil || code != 200 || body != "slept" {
					failed.Add(1)
					b.Errorf("request failed: %d %q %v", code, body, err)
					return
				}
			}
		})
	}
	for revision := uint64(2); revision <= 4; revision++ {
		b.apply(Workload("updated", revision, n, "version", fmt.Sprint("v", revision)))
		b.table.AwaitReady(b, name, revision, n)
	}
	if b.traits.Opaque {
		b.awaitAnswer(name, " v4")
	}
	cancel()
	callers.Wait()
	if got := b.table.Get(b, name, "/"); !strings.HasSuffix(got, " v4") && !b.traits.Opaque { // it was awaited
		b.Errorf("answer %q is not of the last revision", got)
	}
	if failed.Load() > 0 || asked.Load() == 0 {
		b.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	b.Logf("three updates under load: %d requests, %d failed", asked.Load(), failed.Load())
}

func badRevision(b *bench) {
	name := b.apply(Workload("bad", 1, 1, "version", "v1"))
	first := b.table.AwaitReady(b, name, 1, 1)[0]
	b.apply(Workload("bad", 2, 1, "behave", "crash"))
	if b.traits.Opaque {
		opaqueBadRevision(b, name)
		return
	}
	b.awaitReason(name, "exited with code 3", "no such table", "goes on serving")
	if got := b.table.Get(b, name, "/"); got != first.ID+" v1" {
		b.Errorf("answer %q, want the old revision's", got)
	}
	// What crashes of the old one comes again, as long as the new one can't serve.
	_, _, _ = b.table.Do(b.Context(), name, "/exit?code=9")
	b.table.AwaitGone(b, first.ID)
	b.await("the old revision is back", func() bool {
		ready := b.table.Ready(name)
		return len(ready) == 1 && ready[0].Revision == 1
	})
	b.apply(Workload("bad", 3, 1, "version", "v3"))
	b.table.AwaitReady(b, name, 3, 1)
	b.await("nothing is wrong", func() bool { s, _ := b.p.Status(name); return s.Reason == "" })
}

func crashes(b *bench) {
	name := b.apply(Workload("crashing", 1, 1))
	first := b.table.AwaitReady(b, name, 1, 1)[0]
	_, _, _ = b.table.Do(b.Context(), name, "/exit?code=4")
	if b.traits.Opaque {
		b.awaitAnswer(name, " image")
		b.await("the logs have its last words", func() bool { return slices.Contains(b.tail("crashing"), "asked to exit") })
		loop := b.apply(Workload("looping", 1, 1, "behave", "panic"))
		b.awaitReason(loop, "")
		return
	}
	gone := b.table.AwaitGone(b, first.ID)
	if !strings.Contains(gone.Reason, "exited with code 4") || !strings.Contains(gone.Reason, "asked to exit") {
		b.Errorf("it is gone because %q, want the code and what it said last", gone.Reason)
	}
	if second := b.table.AwaitReady(b, name, 1, 1)[0]; second.ID == first.ID {
		b.Errorf("replica %s lives twice", first.ID)
	}
	var text []string
	for m, err := range b.p.Logs(b.Context(), logs.Request{Name: "crashing", Tail: -1}) {
		if err != nil {
			b.Fatal(err)
		}
		text = append(text, m.Text)
	}
	if !slices.ContainsFunc(text, func(s string) bool { return strings.Contains(s, "exited with code 4") }) {
		b.Errorf("the logs don't tell of the crash: %q", text)
	}

	// A loop is visible and slows down.
	loop := b.apply(Workload("looping", 1, 1, "behave", "panic"))
	b.awaitReason(loop, "exited with code 2", "panic: a nil map", "failure 3 in a row", "next attempt in")
}

func cannotStart(b *bench) {
	b.images.Image.Entrypoint = []string{"/not/there"}
	name := b.apply(Workload("absent", 1, 1))
	if b.traits.Opaque {
		b.awaitReason(name, "")
		if n := len(b.table.Ready(name)); n > 0 {
			b.Errorf("%d replicas are ready that can't have started", n)
		}
		return
	}
	b.awaitReason(name, "the image has no /not/there")

	b.images.Image.Entrypoint = []string{"/etc/motd"}
	name = b.apply(Workload("text", 1, 1))
	b.awaitReason(name, "/etc/motd can't be started", "no program")

	b.images.Image.Entrypoint = nil
	name = b.apply(Workload("empty", 1, 1))
	b.awaitReason(name, "set an ENTRYPOINT")

	w := Workload("fprocess", 1, 1)
	w.Function.EnvProcess = "function serve"
	name = b.apply(w)
	b.table.AwaitReady(b, name, 1, 1)
}

func trouble(b *bench) {
	b.images.Miss("nowhere", errors.New("no such image; push it first"))
	each := 5
	if most := b.traits.MaxFunctions; most > 0 {
		each = min(each, (most-1)/3)
	}
	for i := range each {
		b.apply(Workload(fmt.Sprint("crash", i), 1, b.n(3), "behave", "crash"))
		b.apply(Workload(fmt.Sprint("nowhere", i), 1, b.n(3)))
		b.apply(Workload(fmt.Sprint("deaf", i), 1, 1, "behave", "deaf"))
	}
	name := b.apply(Workload("fine", 1, b.n(2)))
	b.table.AwaitReady(b, name, 1, b.n(2))
}

func heals(b *bench) {
	b.images.Miss("later", errors.New("no such image; push it first"))
	name := b.apply(Workload("later", 1, 1))
	if b.traits.Opaque {
		b.awaitReason(name, "")
	} else {
		b.awaitReason(name, "image registry.test:5000/later:latest", "push it first")
	}
	if !b.traits.Opaque && !strings.Contains(strings.Join(b.tail("later"), "\n"), "push it first") {
		b.Errorf("the logs don't say why: %q", b.tail("later"))
	}
	b.images.Miss("later", nil)
	b.table.AwaitReady(b, name, 1, 1)
	b.await("nothing is wrong", func() bool { s, _ := b.p.Status(name); return s.Reason == "" })
}

func (b *bench) tail(function string) (text []string) {
	for m, err := range b.p.Logs(b.Context(), logs.Request{Name: function, Namespace: faas.DefaultNamespace, Tail: -1}) {
		if err != nil {
			b.Fatal(err)
		}
		text = append(text, m.Text)
	}
	return text
}

func drains(b *bench) {
	name := b.apply(Workload("draining", 1, 1))
	r := b.table.AwaitReady(b, name, 1, 1)[0]
	answer := make(chan string, 1)
	var caller sync.WaitGroup
	caller.Go(func() {
		_, body, err := b.table.Do(b.Context(), name, "/sleep?for=500ms")
		answer <- fmt.Sprint(body, err)
	})
	b.await("the request is in flight", func() bool {
		b.table.mu.Lock()
		defer b.table.mu.Unlock()
		return b.table.inFlight[r.ID] == 1
	})
	b.apply(Workload("draining", 1, 0))
	if got := <-answer; got != "slept<nil>" {
		b.Errorf("the request in flight got %q", got)
	}
	caller.Wait()
	b.table.AwaitGone(b, r.ID)
	var states []faas.State
	for _, s := range b.table.History(name)[r.ID] {
		if len(states) == 0 || states[len(states)-1] != s.State {
			states = append(states, s.State)
		}
	}
	if want := []faas.State{faas.Starting, faas.Ready, faas.Draining, faas.Gone}; !slices.Equal(states, want) {
		b.Errorf("observed %v, want %v", states, want)
	}
}

func removes(b *bench) {
	name := b.apply(Workload("removed", 1, b.n(2)))
	b.table.AwaitReady(b, name, 1, b.n(2))
	if err := b.p.Remove(b.Context(), name); err != nil {
		b.Fatalf("Remove() = %v", err)
	}
	if left := b.table.All(name); len(left) > 0 {
		b.Errorf("after Remove there are %+v", left)
	}
	if _, ok := b.p.Status(name); ok {
		b.Error("a removed function has a status")
	}
	if err := b.p.Remove(b.Context(), name); !errors.Is(err, faas.ErrNotFound) {
		b.Errorf("Remove() again = %v, want %v", err, faas.ErrNotFound)
	}
	for _, err := range b.p.Logs(b.Context(), logs.Request{Name: "removed", Tail: -1}) {
		if !errors.Is(err, faas.ErrNotFound) {
			b.Errorf("Logs() = %v, want %v", err, faas.ErrNotFound)
		}
	}
	b.await("its image is released", func() bool { return b.images.Held() == 0 })

	// The name may be applied again while the old replicas are still at it.
	b.apply(Workload("removed", 1, 1))
	b.table.AwaitReady(b, name, 1, 1)
	ended, cancel := context.WithCancel(b.Context())
	cancel()
	if err := b.p.Remove(ended, name); err != nil && !errors.Is(err, context.Canceled) {
		b.Errorf("Remove() = %v", err)
	}
	b.apply(Workload("removed", 1, 1))
	b.table.AwaitReady(b, name, 1, 1)
}

func secrets(b *bench) {
	w := Workload("secretive", 1, 1)
	w.Secrets = map[string][]byte{"api-key": []byte("old"), "other": []byte("one")}
	name := b.apply(w)
	r := b.table.AwaitReady(b, name, 1, 1)[0]
	var env map[string]string
	if err := json.Unmarshal([]byte(b.table.Get(b, name, "/env")), &env); err != nil {
		b.Fatal(err)
	}
	file := "/read?path=" + env["secret_mount_path"] + "/"
	if got := b.table.Get(b, name, file+"api-key"); got != "old" {
		b.Errorf("secret is %q, want old", got)
	}
	w.Secrets = map[string][]byte{"api-key": []byte("new")}
	b.apply(w)
	b.await("the new value is there", func() bool {
		_, body, err := b.table.Do(b.Context(), name, file+"api-key")
		return err == nil && body == "new"
	})
	b.await("the other is gone", func() bool {
		code, _, err := b.table.Do(b.Context(), name, file+"other")
		return err == nil && code != 200
	})
	if now := b.table.AwaitReady(b, name, 1, 1)[0]; now.ID != r.ID && !b.traits.Opaque {
		b.Errorf("the replica was replaced for a secret's value")
	}
}

func refuses(b *bench) {
	w := Workload("limited", 1, 1)
	w.Function.Limits = &types.FunctionResources{Memory: "much"}
	if err := b.p.Apply(b.Context(), w); !errors.Is(err, faas.ErrInvalid) {
		b.Errorf("Apply with a memory limit of %q = %v, want %v", "much", err, faas.ErrInvalid)
	}
	w = Workload("limited", 1, 1)
	w.Secrets = map[string][]byte{"../escape": []byte("x")}
	if err := b.p.Apply(b.Context(), w); !errors.Is(err, faas.ErrInvalid) {
		b.Errorf("Apply with a secret %q = %v, want %v", "../escape", err, faas.ErrInvalid)
	}
	if _, ok := b.p.Status(w.Function.Name()); ok {
		b.Error("a refused function is known")
	}
}
