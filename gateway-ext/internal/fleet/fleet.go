// Package fleet remembers what people declared (functions, namespaces,
// secrets) and has a provider bring it about.
//
// A declaration returns once it is stored; a [Store] that syncs makes that a
// promise over kill -9 and a power cut. What follows goes on behind it: the
// image's tag is looked up and pinned to a digest, with growing delays while
// the registry can't be reached, and the provider is told what to run. While an
// update isn't pinned yet, what ran before it goes on running, also over a
// restart. A start needs no registry: pinned functions are given to the
// provider at once.
//
// What should happen (how many replicas a declaration leads to, what is run
// meanwhile, when to try again) is decided by pure functions in decide.go; one
// loop, [Fleet.Run], obeys them. No function waits for another's trouble: at
// most half of the look-ups that may run at a time are repetitions, so a
// registry that hangs doesn't keep new functions from being pinned.
package fleet

import (
	"cmp"
	"context"
	"crypto/cipher"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
	"unique"

	"github.com/openfaas/faas-provider/types"
	"golang.org/x/sync/errgroup"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// Store keeps values under keys made of letters, digits, "-" and ".". When Put
// or Delete returns nil, its change is durable.
type Store interface {
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// Get returns an [faas.ErrNotFound] if there is no such key.
	Get(ctx context.Context, key string) ([]byte, error)
	// Each calls f for each key, until f returns an error, which it returns.
	Each(ctx context.Context, f func(key string, value []byte) error) error
}

// Images looks images up.
type Images interface {
	// Resolve returns what ref's tag points to now. Its errors are sentences for
	// the function's owner. An [faas.ErrInvalid] is not tried again before the
	// next declaration; any other is.
	Resolve(ctx context.Context, ref string) (faas.Pin, error)
}

// Config is what a fleet works with.
type Config struct {
	Store    Store             // required; no other user may write to it
	Provider provider.Provider // required
	Images   Images            // required
	Logger   *slog.Logger      // required

	// Key encrypts secrets at rest (AES-256-GCM): 32 bytes, required. A fleet
	// whose secrets were encrypted with another key doesn't open.
	Key []byte

	// Check looks at what a declaration says to others than the fleet. Its error
	// refuses the declaration. Else it says in a line what is in force for the
	// function, and what contradicts itself, if anything does: the function's
	// status shows both. Nil checks nothing.
	Check func(types.FunctionDeployment) (policy, warning string, err error)

	// Possible returns nil if the function could run somewhere, else an
	// [faas.ErrInvalid] with the reasons, which refuses the declaration. What is
	// known of the image is in it. Nil is always possible.
	Possible func(context.Context, *faas.Function) error

	// Patience is how long a declaration waits for its image to be looked up, so
	// that one which can run nowhere is refused to who declares it. After that it
	// is stored, and looked up behind it. 0 doesn't wait: then the function's
	// status is where its owner sees what is wrong.
	Patience time.Duration

	// Environment returns variables that a function is given beside its own,
	// which come before these. Nil gives none.
	Environment func(types.FunctionDeployment) map[string]string

	// Changed is told of a function that was declared anew, is pinned to another
	// image, or is no more, when [Fleet.Running] and [Fleet.Known] say so. It
	// must be quick. Nil is not told.
	Changed func(faas.Name)

	// Loads yields the load of every function that was called. Nil, and no
	// function is scaled by load, or put to sleep.
	Loads func(yield func(faas.Name, faas.Load))

	// Invocations returns how often a function was called since the start. Nil
	// counts none.
	Invocations func(faas.Name) float64

	// Ready returns how many replicas of a function take calls. Nil asks the
	// provider, which takes longer.
	Ready func(faas.Name) int

	// Room returns what each node has left for more replicas, sorted by the
	// nodes' names. It is asked before replicas are added. Nil knows no bounds.
	Room func() []provider.Room

	MaxFunctions  int // default 10,000
	MaxNamespaces int // default 1,000
	MaxSecrets    int // in all namespaces together; default 10,000

	// Lookups is how many images are looked up at a time. Default 8.
	Lookups int

	// LookupTimeout bounds one look-up. Default 30 s: a registry over a slow
	// line that needs a token first takes a few round trips.
	LookupTimeout time.Duration
}

// Fleet is what was declared. Its methods may be called from any goroutine,
// once [Fleet.Run] is started too.
type Fleet struct {
	cfg  Config
	log  *slog.Logger
	seal cipher.AEAD

	declaring chan struct{} // holds one token: one declaration is stored at a time
	kick      chan struct{} // wakes the loop; holds at most one

	mu         sync.RWMutex // guards below, and what entry says; never held over I/O
	functions  map[faas.Name]*entry
	namespaces map[string]types.FunctionNamespace
	secrets    map[secretName]struct{}
	tasks      map[faas.Name]*task
	leaving    map[faas.Name]chan struct{} // closed when the provider was told that it is gone
	revision   uint64                      // the newest one given to a function
	touched    map[faas.Name]struct{}      // to be looked at by the scaler
	journal    journal

	kept kept // belongs to Run
}

// entry is one function. All but apply and after is guarded by Fleet.mu.
type entry struct {
	declared *faas.Function // not changed once it is here; Replicas is below
	serving  *faas.Function // what runs while declared has no digest, or nil
	replicas int
	stored   int // the number of replicas that the store knows

	scale unique.Handle[faas.Scale] // what declared's labels say
	hand  time.Time                 // until when a number set by hand is kept
	calls uint64                    // of it, before this start

	said    said     // by Config.Check
	trouble string   // why declared is not with the provider yet, or ""
	history *history // what the fleet has to say in the logs; nil while that is nothing

	apply sync.Mutex      // held while the provider is told, so that the newest is told last
	after <-chan struct{} // if not nil, the provider is told nothing before it is closed
}

// New reads what was declared. It starts nothing: [Fleet.Run] does.
func New(ctx context.Context, cfg Config) (*Fleet, error) {
	cfg.MaxFunctions = cmp.Or(cfg.MaxFunctions, 10_000)
	cfg.MaxNamespaces = cmp.Or(cfg.MaxNamespaces, 1_000)
	cfg.MaxSecrets = cmp.Or(cfg.MaxSecrets, 10_000)
	cfg.Lookups = cmp.Or(cfg.Lookups, 8)
	cfg.LookupTimeout = cmp.Or(cfg.LookupTimeout, 30*time.Second)
	seal, err := newSeal(cfg.Key)
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		cfg:        cfg,
		log:        cfg.Logger,
		seal:       seal,
		declaring:  make(chan struct{}, 1),
		kick:       make(chan struct{}, 1),
		functions:  make(map[faas.Name]*entry),
		namespaces: map[string]types.FunctionNamespace{faas.DefaultNamespace: {Name: faas.DefaultNamespace}},
		secrets:    make(map[secretName]struct{}),
		tasks:      make(map[faas.Name]*task),
		leaving:    make(map[faas.Name]chan struct{}),
		touched:    make(map[faas.Name]struct{}),
	}
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// Run has the provider run what was declared, now and whenever that changes,
// until ctx ends. It returns when nothing of it is under way any more.
func (f *Fleet) Run(ctx context.Context) error {
	f.applyAll(ctx)
	var lookups sync.WaitGroup
	defer lookups.Wait()
	ctx, cancel := context.WithCancel(ctx) // ends them first
	defer cancel()
	lookups.Go(func() { f.scale(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f.mu.Lock()
		start, wait := due(f.tasks, f.cfg.Lookups, time.Now())
		for _, name := range start {
			t := f.tasks[name]
			t.running = true
			tctx, cancel := context.WithCancelCause(ctx)
			t.cancel = cancel
			lookups.Go(func() {
				defer cancel(nil)
				f.work(tctx, name, t)
			})
		}
		f.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-f.kick:
		case <-timer.C:
		}
	}
}

// applyAll gives the provider all that is pinned.
func (f *Fleet) applyAll(ctx context.Context) {
	f.mu.RLock()
	entries := make(map[faas.Name]*entry, len(f.functions))
	maps.Copy(entries, f.functions)
	f.mu.RUnlock()
	var g errgroup.Group
	g.SetLimit(8)
	for name, e := range entries {
		g.Go(func() error {
			f.tell(ctx, name, e)
			return nil
		})
	}
	g.Wait() // no error: tell notes its own
}

// work does one task: it pins the function if that is to be done, stores what
// isn't stored, and tells the provider.
func (f *Fleet) work(ctx context.Context, name faas.Name, t *task) {
	f.mu.RLock()
	e := f.functions[name]
	f.mu.RUnlock()
	var err error
	if e != nil {
		if err = f.pin(ctx, name, e); err == nil {
			err = f.push(ctx, name, e)
		}
	}
	if ctx.Err() != nil {
		return // the fleet ends, or another task has taken this one's place
	}
	f.finish(name, e, t, err)
	f.wakeLoop()
}

// finish notes how a task went, unless another one has taken its place.
func (f *Fleet) finish(name faas.Name, e *entry, t *task, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tasks[name] != t {
		return
	}
	if err == nil {
		delete(f.tasks, name)
		if e != nil && e.trouble != "" {
			e.trouble = ""
			e.note(time.Now(), name, "what kept the function from being deployed is over")
		}
		return
	}
	delay, again := retry(t.attempts, err)
	if e.trouble != err.Error() {
		e.trouble = err.Error()
		e.note(time.Now(), name, "deploy: "+e.trouble)
		f.log.Warn("function is not deployed yet", "function", name.String(), "err", err, "again", again)
	}
	if !again {
		delete(f.tasks, name)
		return
	}
	t.running, t.cancel = false, nil
	t.attempts++
	t.next = time.Now().Add(delay + rand.N(delay/4))
}

// schedule has the loop work on a function, as if for the first time; what it
// was doing for it is cancelled. f.mu is held.
func (f *Fleet) schedule(name faas.Name, why error) {
	if old := f.tasks[name]; old != nil && old.cancel != nil {
		old.cancel(why)
	}
	f.tasks[name] = &task{}
	f.wakeLoop()
}

func (f *Fleet) wakeLoop() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// pin looks the image up if that is to be done, and stores the result, with
// the number of replicas if that isn't stored yet.
func (f *Fleet) pin(ctx context.Context, name faas.Name, e *entry) error {
	f.mu.RLock()
	declared := e.declared
	stale := e.replicas != e.stored
	f.mu.RUnlock()
	image := faas.Pin{Digest: declared.Digest, Platforms: declared.Platforms}
	if image.Digest == "" {
		var err error
		if image, err = f.resolve(ctx, declared.Image, f.cfg.LookupTimeout); err != nil {
			return err
		}
	} else if !stale {
		return nil
	}
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.mu.RLock()
	current := f.functions[name] == e && e.declared == declared
	next, serving := settle(declared, e.serving, image)
	replicas := e.replicas
	f.mu.RUnlock()
	if !current {
		return nil // whoever changed it has scheduled what follows
	}
	if err := f.save(ctx, next, serving, replicas); err != nil {
		return err
	}
	f.mu.Lock()
	e.declared, e.serving, e.stored = next, serving, replicas
	f.mu.Unlock()
	f.changed(name)
	return nil
}

func (f *Fleet) resolve(ctx context.Context, image string, limit time.Duration) (faas.Pin, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f.cfg.Images.Resolve(ctx, image)
}

// tell has the provider told, to the end even if the caller goes away, and by
// the loop again if that fails.
func (f *Fleet) tell(ctx context.Context, name faas.Name, e *entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.LookupTimeout)
	defer cancel()
	err := f.push(ctx, name, e)
	if err == nil {
		return
	}
	f.mu.Lock()
	if f.functions[name] != e || f.tasks[name] != nil {
		f.mu.Unlock()
		return // it is gone, or worked on anyway
	}
	t := &task{}
	f.tasks[name] = t
	f.mu.Unlock()
	f.finish(name, e, t, err)
	f.wakeLoop()
}

// push tells the provider what to run of a function now.
func (f *Fleet) push(ctx context.Context, name faas.Name, e *entry) error {
	e.apply.Lock()
	defer e.apply.Unlock()
	if e.after != nil {
		select {
		case <-e.after:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.RLock()
	run := running(e.declared, e.serving)
	replicas := e.replicas
	gone := f.functions[name] != e
	f.mu.RUnlock()
	if gone || run == nil {
		return nil
	}
	w := provider.Workload{Function: *run}
	w.Function.Replicas = replicas
	if f.cfg.Environment != nil {
		if env := f.cfg.Environment(run.FunctionDeployment); len(env) > 0 {
			env = maps.Clone(env)
			maps.Copy(env, run.EnvVars)
			w.Function.EnvVars = env
		}
	}
	for _, s := range run.Secrets {
		value, err := f.open(ctx, secretName{run.Namespace, s})
		if err != nil {
			return err
		}
		if w.Secrets == nil {
			w.Secrets = make(map[string][]byte, len(run.Secrets))
		}
		w.Secrets[s] = value
	}
	if err := f.cfg.Provider.Apply(ctx, w); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	f.mu.Lock()
	e.history.changed()
	f.mu.Unlock()
	return nil
}

// begin waits until no other declaration is being stored. What is checked
// between it and done stays true until done.
func (f *Fleet) begin(ctx context.Context) (done func(), err error) {
	select {
	case f.declaring <- struct{}{}:
		return func() { <-f.declaring }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put stores a value, to the end even if the caller goes away meanwhile: only
// so is it known whether it is stored.
func (f *Fleet) put(ctx context.Context, key string, v any) error {
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			return fmt.Errorf("store %s: %w", key, err)
		}
	}
	return f.cfg.Store.Put(context.WithoutCancel(ctx), key, b)
}

func (f *Fleet) save(ctx context.Context, declared, serving *faas.Function, replicas int) error {
	d := *declared
	d.Replicas = replicas
	return f.put(ctx, storedAs(&d), record{Declared: &d, Serving: serving})
}
