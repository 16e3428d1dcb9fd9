package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// ProcessConfig says how a [Process] runs its functions. Node, Dir, Images,
// Observer and Logger must be set; the rest has defaults.
type ProcessConfig struct {
	// Node is the name of this machine in every replica it reports.
	Node string

	// Zone is what this machine shares with others near it, in every replica
	// too. Empty is none.
	Zone string

	// Dir is a folder of the provider's own below the state folder. It holds
	// what a restart needs to find what a killed gateway left behind, and the
	// user ids given to functions. It is made if it isn't there, and locked:
	// a second provider on the same folder is refused.
	Dir string

	// GatewayURL is the address at which functions on this machine reach the
	// gateway, such as "http://127.0.0.1:8080". Functions get it as
	// gateway_url and OPENFAAS_URL, and the names of OpenFaaS's gateway
	// resolve to its host where a function has a tree of its own.
	GatewayURL string

	// Env is given to every function. What the function's owner sets wins.
	Env map[string]string

	Images   Images
	Observer Observer
	Logger   *slog.Logger

	// StartTimeout is how long a replica may take from its start to its first
	// good answer before it is stopped and tried again: 30 s. Longer suits
	// slow machines, and hides functions that hang for as long.
	StartTimeout time.Duration

	// Grace is how long a replica may take to end after SIGTERM if its function
	// sets no timeouts to derive it from: 10 s.
	Grace time.Duration

	// Starts is how many replicas may be starting at the same time, so that a
	// small machine with many functions isn't brought down by its own boot:
	// twice the number of CPUs, at least 4. Fetches is the same for images: 4.
	Starts, Fetches int

	// FirstPort and LastPort bound the ports given to replicas, two each: 20000
	// and 29999, below those from which Linux takes its own for outgoing
	// connections.
	FirstPort, LastPort uint16

	// FirstUID is the first of UIDs user ids that functions run under when the
	// gateway is root: 210000, and 50,000 of them. They must belong to nobody
	// else on this machine. Two gateways on one machine need ranges apart.
	FirstUID, UIDs int

	// PIDs is how many processes and threads one replica may have where
	// cgroups can hold it to that: 1024.
	PIDs int

	// TmpBytes bounds what a replica may keep in /tmp where it has one of its
	// own, in memory: 64 MiB. It counts towards its memory limit.
	TmpBytes int64

	// LogLines and LogBytes bound what is kept of one function's output, all
	// replicas together: 2,000 lines and 256 KiB. The memory is taken when
	// lines come, not before.
	LogLines, LogBytes int

	// CgroupRoot is where the control groups are mounted: /sys/fs/cgroup.
	CgroupRoot string
}

func (c *ProcessConfig) fillIn() error {
	switch {
	case c.Node == "", c.Dir == "":
		return errors.New("provider for processes: Node and Dir must be set")
	case c.Images == nil, c.Observer == nil, c.Logger == nil:
		return errors.New("provider for processes: Images, Observer and Logger must be set")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("provider for processes: %w", err)
	}
	c.Dir = dir
	c.StartTimeout = cmp.Or(c.StartTimeout, 30*time.Second)
	c.Grace = cmp.Or(c.Grace, 10*time.Second)
	c.Starts = cmp.Or(c.Starts, max(4, 2*runtime.NumCPU()))
	c.Fetches = cmp.Or(c.Fetches, 4)
	c.FirstPort, c.LastPort = cmp.Or(c.FirstPort, 20000), cmp.Or(c.LastPort, 29999)
	c.FirstUID, c.UIDs = cmp.Or(c.FirstUID, 210000), cmp.Or(c.UIDs, 50000)
	c.PIDs = cmp.Or(c.PIDs, 1024)
	c.TmpBytes = cmp.Or(c.TmpBytes, 64<<20)
	c.LogLines, c.LogBytes = cmp.Or(c.LogLines, 2000), cmp.Or(c.LogBytes, 256<<10)
	c.CgroupRoot = cmp.Or(c.CgroupRoot, "/sys/fs/cgroup")
	if c.LastPort < c.FirstPort {
		return fmt.Errorf("provider for processes: ports %d to %d are none", c.FirstPort, c.LastPort)
	}
	return nil
}

// Process is the [Provider] that runs each replica as a plain process on this
// machine. It is for code that its owner trusts: what a function can be kept
// from depends on the machine, and [Process.Missing] says what it can't. Make
// one with [NewProcess]; it works until [Process.Run] has ended.
type Process struct {
	cfg     ProcessConfig
	log     *slog.Logger
	machine *machine // what this machine can hold functions to
	lock    *os.File
	records records
	secrets string // the folder with every function's secrets
	owners  *owners
	ports   *ports
	client  *http.Client // for readiness checks
	starts  chan struct{}
	fetches chan struct{}

	ctx     context.Context // set by Run; ends when nothing more is to be fetched or started
	running chan struct{}   // closed when ctx is set
	ended   chan struct{}   // closed when Run is over
	hurry   chan struct{}   // closed by Hurry
	once    sync.Once       // closes hurry
	work    sync.WaitGroup

	mu        sync.Mutex // guards below
	closed    bool
	functions map[faas.Name]*function
	rings     map[faas.Name]*ring
}

var errStopped = errors.New("the provider is stopping")

// NewProcess returns a provider for this machine, after it has stopped whatever
// an earlier one on the same folder left running when it was killed.
func NewProcess(cfg ProcessConfig) (*Process, error) {
	if err := cfg.fillIn(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("provider for processes: %w", err)
	}
	lock, err := lockFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	p := &Process{
		cfg:     cfg,
		log:     cfg.Logger,
		lock:    lock,
		records: records{dir: filepath.Join(cfg.Dir, "replicas")},
		ports:   newPorts(cfg.FirstPort, cfg.LastPort),
		client:  newProbeClient(),
		starts:  make(chan struct{}, cfg.Starts),
		fetches: make(chan struct{}, cfg.Fetches),
		running: make(chan struct{}),
		ended:   make(chan struct{}),
		hurry:   make(chan struct{}),

		functions: make(map[faas.Name]*function),
		rings:     make(map[faas.Name]*ring),
	}
	if err := p.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("provider for processes in %s: %w", cfg.Dir, err), lock.Close())
	}
	return p, nil
}

// prepare finds out what the machine can do and clears away what is left over.
func (p *Process) prepare() error {
	if err := p.records.prepare(); err != nil {
		return err
	}
	p.machine = newMachine(&p.cfg)
	stopped, err := p.records.stopLeftovers(p.machine)
	if err != nil {
		return err
	}
	for _, id := range stopped {
		p.log.Info("stopped a replica that an earlier gateway left behind", "replica", id)
	}
	if err := os.RemoveAll(filepath.Join(p.cfg.Dir, "tmp")); err != nil {
		return err
	}
	if p.secrets, err = prepareSecrets(p.cfg.Dir, p.machine); err != nil {
		return err
	}
	p.owners, err = openOwners(filepath.Join(p.cfg.Dir, "uids.json"), p.cfg.FirstUID, p.cfg.UIDs)
	if err != nil {
		p.log.Warn("user ids given to functions before are forgotten", "err", err)
	}
	return nil
}

// tmpDir is a replica's own folder for temporary files, where it gets no /tmp of
// its own: one that its user can reach.
func (p *Process) tmpDir(id string) string {
	if p.machine.users {
		return filepath.Join(p.secrets, "tmp-"+id)
	}
	return filepath.Join(p.cfg.Dir, "tmp", id)
}

// Missing says which guarantees this machine doesn't allow, each a sentence for
// the operator that says what would bring it. It is empty if there are all.
func (p *Process) Missing() []string { return p.machine.missing }

// Run brings about what is applied, before and after, until ctx ends. Then it
// refuses what is new, drains and stops every replica, and returns when the last
// process is gone; [Process.Hurry] shortens that. It must be called once.
func (p *Process) Run(ctx context.Context) error {
	working, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p.ctx = working
	close(p.running)
	for _, f := range p.all() {
		f.wake()
	}
	<-ctx.Done()

	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	functions := p.all()
	cancel(errStopped)
	for _, f := range functions {
		f.close()
	}
	p.work.Wait()

	close(p.ended)
	p.client.CloseIdleConnections()
	return errors.Join(p.machine.close(), os.RemoveAll(p.secrets), os.RemoveAll(filepath.Join(p.cfg.Dir, "tmp")), p.lock.Close())
}

// all returns the functions that are known now.
func (p *Process) all() []*function {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.functions))
}

// Hurry makes the stop of every replica, under way or to come, a kill: nothing
// in flight is waited for. It may be called at any time, more than once.
func (p *Process) Hurry() { p.once.Do(func() { close(p.hurry) }) }

// Apply implements [Provider].
func (p *Process) Apply(ctx context.Context, w Workload) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	lim, err := parseLimits(&w.Function, p.cfg.PIDs)
	if err != nil {
		return err
	}
	if err := checkSecretNames(w.Secrets); err != nil {
		return err
	}
	name := w.Function.Name()

	for {
		f, err := p.function(name)
		if err != nil {
			return err
		}
		if ok, err := f.apply(w, lim); ok || err != nil {
			return err
		}
		// It was removed in between: the name is free again.
	}
}

// function returns the function of that name, a new one if it isn't known.
func (p *Process) function(name faas.Name) (*function, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, faas.Errorf(faas.ErrUnavailable, "the node %s is stopping and takes no function", p.cfg.Node)
	}
	f := p.functions[name]
	if f == nil {
		f = &function{p: p, name: name, replicas: make(map[string]*replica), gone: make(chan struct{})}
		p.functions[name] = f
	}
	return f, nil
}

// Remove implements [Provider].
func (p *Process) Remove(ctx context.Context, name faas.Name) error {
	p.mu.Lock()
	f := p.functions[name]
	delete(p.functions, name)
	if r := p.rings[name]; r != nil && r.readers == 0 {
		delete(p.rings, name)
	}
	p.mu.Unlock()
	if f == nil {
		return faas.Errorf(faas.ErrNotFound, "function %s is not on node %s", name, p.cfg.Node)
	}
	f.close()
	select {
	case <-f.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("remove %s: its replicas are still being stopped: %w", name, context.Cause(ctx))
	}
}

// Status implements [Provider].
func (p *Process) Status(name faas.Name) (Status, bool) {
	p.mu.Lock()
	f := p.functions[name]
	p.mu.Unlock()
	if f == nil {
		return Status{}, false
	}
	return f.status(), true
}

// freeUser lets others have the user id of a function that has been removed.
func (p *Process) freeUser(name faas.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.functions[name] != nil {
		return // it is only stopped, or there is another one of the same name
	}
	if err := p.owners.free(name.String()); err != nil {
		p.log.Warn("the user id of a removed function stays taken", "function", name, "err", err)
	}
}
