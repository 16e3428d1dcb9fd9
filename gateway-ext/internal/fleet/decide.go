package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Annotations that tell how far a function is. They are shown and never kept:
// a declaration that was copied from a status may carry old ones.
const (
	StatusAnnotation = "thicket.status" // why it doesn't run as declared, if it doesn't
	DigestAnnotation = "thicket.digest" // what runs

	PolicyAnnotation  = "thicket.policy"  // what is in force when its calls go wrong
	WarningAnnotation = "thicket.warning" // what in its declaration contradicts itself
)

// errRecord says that what is stored is JSON, but not what was stored here.
var errRecord = errors.New("it is not what was stored under this key")

// errRedeclared and errDeleted are why the work on a function was given up.
var (
	errRedeclared = errors.New("the function was declared anew")
	errDeleted    = errors.New("the function was deleted")
)

// scaleOf reads how a function wants to be scaled. Its labels were checked when
// it was declared; should an older release have allowed what this one doesn't,
// the defaults count.
func scaleOf(labels *map[string]string) faas.Scale {
	var l map[string]string
	if labels != nil {
		l = *labels
	}
	s, err := faas.ParseScale(l)
	if err != nil {
		s, _ = faas.ParseScale(nil)
	}
	return s
}

// replicas is how many replicas a function gets when it is declared that has
// now replicas so far (0 if it is new or asleep). A function asleep is woken,
// since who deploys it wants to see it run; with a minimum of 0 it stays asleep.
func replicas(s faas.Scale, now int) int {
	if now == 0 {
		return s.Min
	}
	return min(max(now, s.Min), s.Max)
}

// declare is the function that a declaration leads to. old is what the name
// stands for so far, or nil; serving is what runs while the new one isn't
// pinned.
func declare(d types.FunctionDeployment, old, oldServing *faas.Function, revision uint64, now time.Time) (declared, serving *faas.Function) {
	declared = &faas.Function{FunctionDeployment: d, Revision: revision, CreatedAt: now, UpdatedAt: now}
	if old != nil {
		declared.CreatedAt = old.CreatedAt
		serving = running(old, oldServing)
	}
	return declared, serving
}

// running is what the provider should run, or nil if nothing is pinned yet.
func running(declared, serving *faas.Function) *faas.Function {
	if declared.Digest != "" {
		return declared
	}
	return serving
}

// settle is what is left of a function and what serves in its place when its
// image is known. A declaration that changes nothing keeps the
// revision that runs, and so no replica is replaced.
func settle(declared, serving *faas.Function, image faas.Pin) (*faas.Function, *faas.Function) {
	next := *declared
	next.Digest, next.Platforms = image.Digest, image.Platforms
	if serving != nil && serving.Digest == image.Digest && same(serving.FunctionDeployment, declared.FunctionDeployment) {
		next.Revision = serving.Revision
	}
	return &next, nil
}

// same reports whether two declarations ask for the same.
func same(a, b types.FunctionDeployment) bool {
	x, errX := json.Marshal(normal(a))
	y, errY := json.Marshal(normal(b))
	return errX == nil && errY == nil && string(x) == string(y)
}

// normal is the declaration without what makes no difference: empty maps, and
// our own annotations.
func normal(d types.FunctionDeployment) types.FunctionDeployment {
	if d.Labels != nil && len(*d.Labels) == 0 {
		d.Labels = nil
	}
	if d.Annotations != nil {
		a := maps.Clone(*d.Annotations)
		for _, shown := range [...]string{StatusAnnotation, DigestAnnotation, PolicyAnnotation, WarningAnnotation} {
			delete(a, shown)
		}
		d.Annotations = &a
		if len(a) == 0 {
			d.Annotations = nil
		}
	}
	return d
}

// pinned returns the digest that a reference names itself.
func pinned(ref string) (digest string, ok bool) {
	_, digest, ok = strings.Cut(ref, "@")
	hex, sha := strings.CutPrefix(digest, "sha256:")
	if !ok || !sha || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", false
	}
	return digest, true
}

// task is what the loop has to do for one function.
type task struct {
	attempts int                     // that failed
	next     time.Time               // when to begin
	running  bool                    // it has begun
	cancel   context.CancelCauseFunc // ends it, once it runs
}

// idle is how long the loop sleeps when it has nothing to do; it is woken by
// what is declared.
const idle = time.Hour

// due returns the tasks to begin now, when at most limit may run at a time, and
// how long to wait for the next one. What never failed comes first, and what
// did never has more than half of the places. Those left out are due again when
// one that runs has ended. It looks at each task once: there may be thousands.
func due(tasks map[faas.Name]*task, limit int, now time.Time) (start []faas.Name, wait time.Duration) {
	free, repeats := limit, max(limit/2, 1)
	wait = idle
	for _, t := range tasks {
		if t.running {
			free--
			if t.attempts > 0 {
				repeats--
			}
		}
	}
	before := func(a, b faas.Name) int {
		x, y := tasks[a], tasks[b]
		return cmp.Or(cmp.Compare(x.attempts, y.attempts), x.next.Compare(y.next),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Function, b.Function))
	}
	var fresh, again []faas.Name // the first of each kind, in order
	for name, t := range tasks {
		switch {
		case t.running:
		case t.next.After(now):
			wait = min(wait, t.next.Sub(now))
		case t.attempts == 0:
			fresh = insert(fresh, name, free, before)
		default:
			again = insert(again, name, min(free, repeats), before)
		}
	}
	return append(fresh, again[:min(len(again), max(free-len(fresh), 0))]...), wait
}

// insert puts a name into a sorted list that keeps the first most.
func insert(list []faas.Name, name faas.Name, most int, compare func(a, b faas.Name) int) []faas.Name {
	if len(list) >= most && (most <= 0 || compare(list[most-1], name) <= 0) {
		return list
	}
	i, _ := slices.BinarySearchFunc(list, name, compare)
	list = slices.Insert(list, i, name)
	return list[:min(len(list), most)]
}

// retry is how long to wait before the next attempt, after attempts others
// failed and now this one with err; false if there is no use in another.
//
// A registry that comes back after a power cut should be seen within a minute.
// An image that isn't there may be pushed any time, which is rarer: 5 minutes.
func retry(attempts int, err error) (delay time.Duration, again bool) {
	if errors.Is(err, faas.ErrInvalid) {
		return 0, false
	}
	longest := time.Minute
	if errors.Is(err, faas.ErrNotFound) {
		longest = 5 * time.Minute
	}
	return min(time.Second<<min(attempts, 20), longest), true
}
