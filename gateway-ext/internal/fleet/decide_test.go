package fleet_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
)

func TestReplicas(t *testing.T) {
	tests := []struct {
		name     string
		min, max string
		now      int
		want     int
	}{
		{"new", "", "", 0, 1},
		{"new with a minimum", "3", "", 0, 3},
		{"new with a minimum of 0 stays asleep", "0", "", 0, 0},
		{"present number stays", "2", "8", 5, 5},
		{"present number below the minimum", "4", "8", 2, 4},
		{"present number above the maximum", "1", "3", 5, 3},
		{"asleep is woken", "2", "8", 0, 2},
		{"labels that an older release allowed", "x", "", 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			labels := make(map[string]string)
			if tt.min != "" {
				labels[faas.LabelScaleMin] = tt.min
			}
			if tt.max != "" {
				labels[faas.LabelScaleMax] = tt.max
			}
			if got := fleet.Replicas(fleet.ScaleOf(&labels), tt.now); got != tt.want {
				t.Errorf("replicas = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestSettle(t *testing.T) {
	one, two := digest("1"), digest("2")
	spec := func(env string) types.FunctionDeployment {
		return types.FunctionDeployment{Service: "f", Image: "img:1", EnvVars: map[string]string{"k": env}}
	}
	old := &faas.Function{FunctionDeployment: spec("a"), Digest: one, Revision: 4}
	empty := map[string]string{}
	tests := []struct {
		name     string
		spec     types.FunctionDeployment
		serving  *faas.Function
		digest   string
		revision uint64
	}{
		{"new", spec("a"), nil, one, 9},
		{"nothing changed", spec("a"), old, one, 4},
		{"empty labels are none", types.FunctionDeployment{Service: "f", Image: "img:1", EnvVars: spec("a").EnvVars, Labels: &empty}, old, one, 4},
		{"the tag moved", spec("a"), old, two, 9},
		{"the declaration changed", spec("b"), old, one, 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			declared := &faas.Function{FunctionDeployment: tt.spec, Revision: 9}
			got, serving := fleet.Settle(declared, tt.serving, faas.Pin{Digest: tt.digest})
			if got.Revision != tt.revision || got.Digest != tt.digest || serving != nil {
				t.Errorf("settle = revision %d, digest %s, serving %v, want revision %d, digest %s, nil", got.Revision, got.Digest, serving, tt.revision, tt.digest)
			}
			if declared.Digest != "" {
				t.Error("settle changed the declared function itself")
			}
		})
	}
}

func TestDeclareKeepsWhatRuns(t *testing.T) {
	now := time.Now()
	before := now.Add(-time.Hour)
	pinned := &faas.Function{Digest: digest("1"), Revision: 1, CreatedAt: before}
	unpinned := &faas.Function{Revision: 2, CreatedAt: before}
	tests := []struct {
		name                     string
		old, oldServing, serving *faas.Function
		created                  time.Time
	}{
		{"new", nil, nil, nil, now},
		{"over one that runs", pinned, nil, pinned, before},
		{"over one that isn't pinned", unpinned, pinned, pinned, before},
		{"over one that never was", unpinned, nil, nil, before},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			declared, serving := fleet.Declare(types.FunctionDeployment{Service: "f"}, tt.old, tt.oldServing, 7, now)
			if serving != tt.serving || fleet.Running(declared, serving) != tt.serving {
				t.Errorf("serving = %v, want %v", serving, tt.serving)
			}
			if declared.Digest != "" || declared.Revision != 7 || !declared.CreatedAt.Equal(tt.created) || !declared.UpdatedAt.Equal(now) {
				t.Errorf("declared = %+v, want revision 7, no digest, created %v, updated %v", declared, tt.created, now)
			}
		})
	}
}

func TestPinned(t *testing.T) {
	tests := []struct {
		ref string
		ok  bool
	}{
		{"img@" + digest("a"), true},
		{"host:5000/a/img:tag@" + digest("0"), true},
		{"img:1", false},
		{"img@sha256:abc", false},
		{"img@" + digest("A"), false},
		{"img@sha512:" + strings.Repeat("a", 64), false},
	}
	for _, tt := range tests {
		d, ok := fleet.Pinned(tt.ref)
		if ok != tt.ok || ok && !strings.HasSuffix(tt.ref, "@"+d) {
			t.Errorf("pinned(%s) = %q, %t, want %t", tt.ref, d, ok, tt.ok)
		}
	}
}

func TestDue(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name  string
		tasks map[string]*fleet.Task
		limit int
		start []string
		wait  time.Duration
	}{
		{"nothing", nil, 4, nil, time.Hour},
		{"in order", map[string]*fleet.Task{
			"b": fleet.NewTask(0, time.Time{}, false), "a": fleet.NewTask(0, time.Time{}, false),
		}, 4, []string{"a", "b"}, time.Hour},
		{"not yet", map[string]*fleet.Task{
			"a": fleet.NewTask(1, now.Add(time.Minute), false), "b": fleet.NewTask(1, now.Add(time.Second), false),
		}, 4, nil, time.Second},
		{"no place", map[string]*fleet.Task{
			"a": fleet.NewTask(0, time.Time{}, true), "b": fleet.NewTask(0, time.Time{}, true), "c": fleet.NewTask(0, time.Time{}, false),
		}, 2, nil, time.Hour},
		{"new before repeated", map[string]*fleet.Task{
			"a": fleet.NewTask(3, now.Add(-time.Hour), false), "b": fleet.NewTask(0, now, false),
		}, 1, []string{"b"}, time.Hour},
		{"repeated have half", map[string]*fleet.Task{
			"a": fleet.NewTask(1, time.Time{}, true), "b": fleet.NewTask(1, now, false), "c": fleet.NewTask(2, now, false), "d": fleet.NewTask(0, now, false),
		}, 4, []string{"d", "b"}, time.Hour},
		{"repeated have one place at least", map[string]*fleet.Task{
			"a": fleet.NewTask(1, now, false), "b": fleet.NewTask(1, now, false),
		}, 1, []string{"a"}, time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tasks := make(map[faas.Name]*fleet.Task)
			for name, task := range maps.All(tt.tasks) {
				tasks[faas.Name{Function: name}] = task
			}
			names, wait := fleet.Due(tasks, tt.limit, now)
			var start []string
			for _, n := range names {
				start = append(start, n.Function)
			}
			if !slices.Equal(start, tt.start) || wait != tt.wait {
				t.Errorf("due = %v, %v, want %v, %v", start, wait, tt.start, tt.wait)
			}
		})
	}
}

func TestRetry(t *testing.T) {
	tests := []struct {
		name     string
		attempts int
		err      error
		delay    time.Duration
		again    bool
	}{
		{"first", 0, faas.ErrUnavailable, time.Second, true},
		{"grows", 3, faas.ErrUnavailable, 8 * time.Second, true},
		{"is bounded", 1000, errors.New("anything"), time.Minute, true},
		{"no such image yet", 1000, faas.ErrNotFound, 5 * time.Minute, true},
		{"full disk", 20, faas.ErrNoSpace, time.Minute, true},
		{"wrong whatever happens", 0, faas.Errorf(faas.ErrInvalid, "no"), 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if delay, again := fleet.Retry(tt.attempts, tt.err); delay != tt.delay || again != tt.again {
				t.Errorf("retry = %v, %t, want %v, %t", delay, again, tt.delay, tt.again)
			}
		})
	}
}
