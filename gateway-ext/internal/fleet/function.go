package fleet

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// removeWait is how long a deletion waits for the provider. It goes on behind
// it; the wait is for the common case, in which nothing is left afterwards.
const removeWait = 250 * time.Millisecond

// Deploy declares a new function. An [faas.ErrConflict] says that there is one
// of this name.
func (f *Fleet) Deploy(ctx context.Context, d types.FunctionDeployment) error {
	return f.declare(ctx, d, func(name faas.Name, old *entry) error {
		if old != nil {
			return faas.Errorf(faas.ErrConflict, "function %s exists already: update it instead (PUT; faas-cli deploy does that, unless --update=false)", name)
		}
		return nil
	})
}

// Update declares a function anew that is there, else it returns an
// [faas.ErrNotFound]. The tag of its image is looked up again. If neither the
// declaration nor what the tag points to has changed, nothing is restarted.
// The number of replicas stays, within what the new labels allow, and a
// function asleep is woken.
func (f *Fleet) Update(ctx context.Context, d types.FunctionDeployment) error {
	return f.declare(ctx, d, func(name faas.Name, old *entry) error {
		if old == nil {
			return notFound(name)
		}
		return nil
	})
}

func (f *Fleet) declare(ctx context.Context, d types.FunctionDeployment, allow func(faas.Name, *entry) error) error {
	d, err := faas.Check(d)
	if err != nil {
		return err
	}
	d = normal(d)
	said, err := f.check(d)
	if err != nil {
		return err
	}
	name := faas.Name{Function: d.Service, Namespace: d.Namespace}
	allowed := func() error { // f.mu is held
		old := f.functions[name]
		return cmp.Or(f.namespaceExists(d.Namespace), allow(name, old), f.roomFor(old), f.secretsExist(name, d.Secrets))
	}
	f.mu.RLock()
	err = allowed()
	f.mu.RUnlock()
	if err != nil {
		return err
	}
	image, err := f.possible(ctx, d)
	if err != nil {
		return err
	}
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()

	f.mu.RLock()
	old := f.functions[name]
	err = allowed()
	var oldDeclared, oldServing *faas.Function
	var oldReplicas int
	if old != nil {
		oldDeclared, oldServing, oldReplicas = old.declared, old.serving, old.replicas
	}
	revision := f.revision + 1
	f.mu.RUnlock()
	if err != nil {
		return err
	}
	declared, serving := declare(d, oldDeclared, oldServing, revision, time.Now().UTC())
	if image.Digest != "" { // nothing to look up, nor to store twice
		declared, serving = settle(declared, serving, image)
	}
	scale := scaleOf(d.Labels)
	wanted := replicas(scale, oldReplicas)
	if err := f.save(ctx, declared, serving, wanted); err != nil {
		return err
	}
	f.mu.Lock()
	f.revision = revision
	e := old
	if e == nil {
		e = &entry{}
		if leaving := f.leaving[name]; leaving != nil {
			e.after = leaving
		}
		f.functions[name] = e
	}
	e.declared, e.serving, e.replicas, e.stored, e.trouble = declared, serving, wanted, wanted, ""
	e.said = said
	e.scale = unique.Make(scale)
	if old != nil && wanted != oldReplicas {
		v := verdict{Replicas: wanted, Asked: wanted, Kind: declaredKind}
		v.also("declared with %d to %d: %s", scale.Min, scale.Max, count(wanted))
		f.journal.note(name, oldReplicas, v, time.Now())
	}
	f.touch(name)
	f.schedule(name, errRedeclared)
	f.mu.Unlock()
	f.changed(name)
	if warning := said.warning.Value(); warning != "" {
		f.log.Warn("a function's declaration contradicts itself", "function", name.String(), "warning", warning)
	}
	f.log.Info("function declared", "function", name.String(), "image", d.Image, "revision", revision, "replicas", wanted)
	return nil
}

// roomFor returns an error if one more function is one too many. f.mu is held.
func (f *Fleet) roomFor(old *entry) error {
	if old == nil && len(f.functions) >= f.cfg.MaxFunctions {
		return faas.Errorf(faas.ErrOverloaded, "there are %d functions, and no more are allowed: delete some, or raise the bound", len(f.functions))
	}
	return nil
}

// Delete removes a function with its replicas. It returns when that is stored,
// and usually when the replicas are gone; those that drain go on for a while.
func (f *Fleet) Delete(ctx context.Context, name faas.Name) error {
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	f.mu.RLock()
	e := f.functions[name]
	f.mu.RUnlock()
	if e == nil {
		done()
		return notFound(name)
	}
	if err := f.cfg.Store.Delete(context.WithoutCancel(ctx), keyOf(name)); err != nil {
		done()
		return err
	}
	left := make(chan struct{})
	f.mu.Lock()
	if t := f.tasks[name]; t != nil && t.cancel != nil {
		t.cancel(errDeleted)
	}
	delete(f.tasks, name)
	delete(f.functions, name)
	f.leaving[name] = left
	e.history.changed()
	f.journal.forget(name)
	f.mu.Unlock()
	f.changed(name)
	done()

	// Nothing is told of this entry any more, and of one that takes its name
	// only after left is closed.
	e.apply.Lock()
	defer e.apply.Unlock()
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeWait)
	defer cancel()
	if err := f.cfg.Provider.Remove(rctx, name); err != nil && rctx.Err() == nil {
		f.log.Error("function is deleted, but its replicas may still run", "function", name.String(), "err", err)
	}
	f.mu.Lock()
	if f.leaving[name] == left {
		delete(f.leaving, name)
	}
	f.mu.Unlock()
	close(left)
	f.log.Info("function deleted", "function", name.String())
	return nil
}

// Scale sets how many replicas are wanted: 0, or a number that the function's
// labels allow. why says on whose behalf, as its decision tells it: "set by hand".
// The number is kept for a while, unless the load needs twice what is ready; then
// the load counts again, if the function's labels want it to.
func (f *Fleet) Scale(ctx context.Context, name faas.Name, replicas int, why string) error {
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.mu.RLock()
	e := f.functions[name]
	var declared, serving *faas.Function
	stored := -1
	if e != nil {
		declared, serving, stored = e.declared, e.serving, e.stored
	}
	f.mu.RUnlock()
	if e == nil {
		return notFound(name)
	}
	bounds := scaleOf(declared.Labels)
	switch {
	case replicas < 0 || replicas > bounds.Max:
		return faas.Errorf(faas.ErrInvalid, "%s can't have %d replicas, only 0 to %d: the label %s raises that", name, replicas, bounds.Max, faas.LabelScaleMax)
	case replicas > 0 && replicas < bounds.Min:
		return faas.Errorf(faas.ErrInvalid, "%s can't have %d replicas, only 0 or at least %d: the label %s lowers that", name, replicas, bounds.Min, faas.LabelScaleMin)
	}
	if replicas != stored { // an alert says the same again and again
		if err := f.save(ctx, declared, serving, replicas); err != nil {
			return err
		}
	}
	now := time.Now()
	v := verdict{Replicas: replicas, Asked: replicas, Kind: handKind}
	v.also("%s: %s", why, count(replicas))
	switch {
	case replicas == 0:
		v.also("the next call wakes it")
	case bounds.ByLoad:
		v.also("kept for %s, unless the load needs twice what is ready", span(handWindow))
	}
	f.mu.Lock()
	from := e.replicas
	e.replicas, e.stored, e.hand = replicas, replicas, now.Add(handWindow)
	f.journal.note(name, from, v, now)
	f.touch(name)
	f.mu.Unlock()
	f.log.Info("function scaled", "function", name.String(), "from", from, "to", replicas, "why", v.Sentence())
	f.tell(ctx, name, e)
	return nil
}

// Wake has a function run that is asleep, with as many replicas as it has at
// least; it does nothing for one that is awake. A request waits for it, so it
// returns as soon as the provider knows; it is stored a moment later, and if
// that is lost, the function sleeps again after a restart and is woken by the
// next request.
func (f *Fleet) Wake(ctx context.Context, name faas.Name) error {
	f.mu.Lock()
	e := f.functions[name]
	if e == nil || e.replicas > 0 {
		f.mu.Unlock()
		if e == nil {
			return notFound(name)
		}
		return nil
	}
	e.replicas = max(1, e.scale.Value().Min)
	v := verdict{Replicas: e.replicas, Asked: 1, Kind: wakeKind}
	v.also("a call came: %s", count(e.replicas))
	e.hand = time.Time{}
	f.journal.note(name, 0, v, time.Now())
	f.touch(name)
	f.mu.Unlock()
	f.tell(ctx, name, e)
	f.log.Info("function scaled", "function", name.String(), "from", 0, "to", v.Replicas, "why", v.Sentence())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.functions[name] == e && f.tasks[name] == nil {
		f.schedule(name, nil) // to store it
	}
	return nil
}

// Running returns what runs of a function or, if nothing does yet, what was
// declared; nil if there is no such function. It must not be changed.
func (f *Fleet) Running(name faas.Name) *faas.Function {
	f.mu.RLock()
	defer f.mu.RUnlock()
	e := f.functions[name]
	if e == nil {
		return nil
	}
	return cmp.Or(running(e.declared, e.serving), e.declared)
}

// Functions returns the functions of a namespace, or of all for "", by name.
// What it returns must not be changed.
func (f *Fleet) Functions(namespace string) []types.FunctionStatus {
	f.mu.RLock()
	list := make([]types.FunctionStatus, 0, len(f.functions))
	for name, e := range f.functions {
		if namespace == "" || name.Namespace == namespace {
			list = append(list, e.status())
		}
	}
	f.mu.RUnlock()
	slices.SortFunc(list, func(a, b types.FunctionStatus) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for i := range list {
		f.observe(&list[i])
	}
	return list
}

// Function returns one function, or an [faas.ErrNotFound].
func (f *Fleet) Function(name faas.Name) (types.FunctionStatus, error) {
	f.mu.RLock()
	e := f.functions[name]
	if e == nil {
		f.mu.RUnlock()
		return types.FunctionStatus{}, notFound(name)
	}
	s := e.status()
	f.mu.RUnlock()
	f.observe(&s)
	return s, nil
}

// status is what the fleet itself knows. f.mu is held.
func (e *entry) status() types.FunctionStatus {
	d := e.declared
	s := types.FunctionStatus{
		Name: d.Service, Image: d.Image, Namespace: d.Namespace,
		EnvProcess: d.EnvProcess, EnvVars: d.EnvVars, Constraints: d.Constraints, Secrets: d.Secrets,
		Labels: d.Labels, Limits: d.Limits, Requests: d.Requests, ReadOnlyRootFilesystem: d.ReadOnlyRootFilesystem,
		Replicas: uint64(e.replicas), CreatedAt: d.CreatedAt,
	}
	var a map[string]string
	if d.Annotations != nil {
		a = maps.Clone(*d.Annotations)
	} else {
		a = make(map[string]string, 2)
	}
	e.said.show(a)
	if run := running(d, e.serving); run != nil {
		a[DigestAnnotation] = run.Digest
	}
	if e.trouble != "" {
		a[StatusAnnotation] = e.trouble
	}
	s.Annotations = &a
	return s
}

// observe adds what the provider knows.
func (f *Fleet) observe(s *types.FunctionStatus) {
	p, ok := f.cfg.Provider.Status(faas.Name{Function: s.Name, Namespace: s.Namespace})
	if !ok {
		return
	}
	s.AvailableReplicas = p.Ready()
	s.Usage = p.Usage
	if a := *s.Annotations; p.Reason != "" && a[StatusAnnotation] == "" {
		a[StatusAnnotation] = p.Reason
	}
}

func notFound(name faas.Name) error {
	return faas.Errorf(faas.ErrNotFound, "there is no function %s in namespace %s", name.Function, name.Namespace)
}
