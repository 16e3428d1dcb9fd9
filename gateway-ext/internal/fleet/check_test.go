package fleet_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

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
		// A fleet that starts says the same.
		again, err := fleet.New(t.Context(), cfg)
		must(t, err)
		if s, err := again.Function(named("f")); err != nil || (*s.Annotations)[fleet.PolicyAnnotation] != "a policy" {
			t.Errorf("after a start: %+v, %v", s, err)
		}
		must(t, f.Delete(t.Context(), named("f")))
		synctest.Wait()
		want := []string{"img:1 ", "img:1 " + digest("1"), "img:1 " + digest("1"), "img:1 " + digest("1"), "gone"}
		if !slices.Equal(changes, want) {
			t.Errorf("changes = %q, want %q", changes, want)
		}
	})
}
