package fleet_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
)

// TestCheck holds that what others have to say of a declaration refuses it, or
// is shown with it and never kept; and that they hear of each change when it can
// be seen.
func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var mu sync.Mutex // guards changes
		var changes []string
		var f *fleet.Fleet
		runs := newNodes()
		cfg := fleet.Config{
			Store: newStore(), Provider: runs, Images: newRegistry(), Key: testKey,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Check: func(d types.FunctionDeployment) (string, string, error) {
				if d.Annotations == nil {
					return "the usual", "", nil
				}
				if w := (*d.Annotations)["thicket.warning"] + (*d.Annotations)["thicket.policy"]; w != "" {
					return "", "", errors.New("what is shown was sent back")
				}
				if (*d.Annotations)["wrong"] != "" {
					return "", "", faas.Errorf(faas.ErrInvalid, "it is wrong")
				}
				return "a policy", "one contradicts the other", nil
			},
			Environment: func(types.FunctionDeployment) map[string]string {
				return map[string]string{"given": "1", "own": "2"}
			},
			Changed: func(name faas.Name) {
				state := "gone"
				if running := f.Running(name); running != nil {
					state = running.Image + " " + running.Digest
				}
				mu.Lock()
				defer mu.Unlock()
				changes = append(changes, state)
			},
		}
		var err error
		f, err = fleet.New(t.Context(), cfg)
		must(t, err)
		defer runFleet(t, f)()

		d := deployment("f")
		d.EnvVars = map[string]string{"own": "3"}
		must(t, f.Deploy(t.Context(), d))
		synctest.Wait()
		if got, _ := runs.last("f"); got.Function.EnvVars["given"] != "1" || got.Function.EnvVars["own"] != "3" {
			t.Errorf("it runs with %v, want what it is given and its own", got.Function.EnvVars)
		}
		if s, _ := f.Function(named("f")); len(s.EnvVars) != 1 {
			t.Errorf("what it is given is shown as its own: %v", s.EnvVars)
		}
		d.Annotations = &map[string]string{"wrong": "yes"}
		if err := f.Update(t.Context(), d); !errors.Is(err, faas.ErrInvalid) || err.Error() != "it is wrong" {
			t.Errorf("Update() = %v, want what Check says", err)
		}
		status := func() map[string]string {
			s, err := f.Function(named("f"))
			must(t, err)
			return *s.Annotations
		}
		if a := status(); a[fleet.PolicyAnnotation] != "the usual" || a[fleet.WarningAnnotation] != "" {
			t.Errorf("annotations = %v", a)
		}
		// What was listed is sent back, with more.
		sent := status()
		sent["mine"] = "1"
		d.Annotations = &sent
		must(t, f.Update(t.Context(), d))
		synctest.Wait()
		if a := status(); a[fleet.PolicyAnnotation] != "a policy" || a[fleet.WarningAnnotation] != "one contradicts the other" || a["mine"] != "1" {
			t.Errorf("annotations = %v", a)
		}
		if !strings.Contains(log.String(), "one contradicts the other") {
			t.Errorf("the log doesn't warn: %s", log.String())
		}
		// Labels that look like others are told of, and kept.
		d.Labels = &map[string]string{"com.openfaas.scale.maxx": "3", "com.openfaas.scale.min": "1", "com.openfaas.scale.by-the-moon": "full", "zone": "1"}
		must(t, f.Update(t.Context(), d))
		synctest.Wait()
		if got, want := status()[fleet.WarningAnnotation], "one contradicts the other; "+
			"label com.openfaas.scale.by-the-moon says nothing to this gateway: it may be left out; "+
			"label com.openfaas.scale.maxx says nothing to this gateway: did you mean com.openfaas.scale.max?"; got != want {
			t.Errorf("it warns %q, want %q", got, want)
		}
		// A fleet that starts says the same.
		again, err := fleet.New(t.Context(), cfg)
		must(t, err)
		if s, err := again.Function(named("f")); err != nil || (*s.Annotations)[fleet.PolicyAnnotation] != "a policy" {
			t.Errorf("after a start: %+v, %v", s, err)
		}
		must(t, f.Delete(t.Context(), named("f")))
		synctest.Wait()
		want := []string{"img:1 ", "img:1 " + digest("1"), "img:1 " + digest("1"), "img:1 " + digest("1"), "img:1 " + digest("1"), "img:1 " + digest("1"), "gone"}
		if !slices.Equal(changes, want) {
			t.Errorf("changes = %q, want %q", changes, want)
		}
	})
}

// TestPossible holds that what can run nowhere is refused to who declares it, and
// leaves what was there as it is; and that nobody waits long for a registry.
func TestPossible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		images, runs, s := newRegistry(), newNodes(), newStore()
		var asked []faas.Function
		f, err := fleet.New(t.Context(), fleet.Config{
			Store: s, Provider: runs, Images: images, Key: testKey, Logger: discard, Patience: 3 * time.Second,
			Possible: func(_ context.Context, f *faas.Function) error {
				asked = append(asked, *f)
				if len(f.Constraints) > 0 {
					return faas.Errorf(faas.ErrInvalid, "no node can run %s: nuc: it has no label disk", f.Name())
				}
				return nil
			},
		})
		must(t, err)
		defer runFleet(t, f)()
		must(t, f.Deploy(t.Context(), deployment("f")))
		if len(asked) != 1 || asked[0].Digest != digest("1") {
			t.Errorf("it was asked about %+v, want the function with its digest", asked)
		}
		if r := f.Running(named("f")); r.Digest != digest("1") {
			t.Errorf("it is declared with the digest %q, want the one that was found", r.Digest)
		}
		synctest.Wait()
		if n := images.count(); n != 1 {
			t.Errorf("the image was looked up %d times, want once", n)
		}
		d := deployment("f")
		d.Constraints = []string{"node.labels.disk==ssd"}
		for service, declare := range map[string]func(context.Context, types.FunctionDeployment) error{"f": f.Update, "g": f.Deploy} {
			d.Service = service
			if err := declare(t.Context(), d); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "nuc: it has no label disk") {
				t.Errorf("declaring %s = %v, want each node's reason", service, err)
			}
		}
		if st, err := f.Function(named("f")); err != nil || len(st.Constraints) != 0 {
			t.Errorf("after a refused update: %+v, %v", st, err)
		}
		if _, err := f.Function(named("g")); !errors.Is(err, faas.ErrNotFound) {
			t.Errorf("after a refused declaration: %v", err)
		}

		// What is wrong with the image for good is said at once, too.
		images.set("", "", faas.Errorf(faas.ErrInvalid, "image img:1 has no linux/amd64"))
		if err := f.Deploy(t.Context(), deployment("g")); err == nil || !strings.Contains(err.Error(), "has no linux/amd64") {
			t.Errorf("Deploy() = %v, want what is wrong with the image", err)
		}

		// What may be over in a moment isn't in the way.
		images.hangs = true
		began := time.Now()
		must(t, f.Deploy(t.Context(), deployment("g")))
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it waited %v for a registry that hangs, want 3s", took)
		}
		images.set("", "", nil)
		time.Sleep(time.Minute)
		if st, err := f.Function(named("g")); err != nil || st.AvailableReplicas == 0 {
			t.Errorf("when the registry is back: %+v, %v", st, err)
		}
	})
}
