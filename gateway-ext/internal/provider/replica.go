package provider

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// outputGrace is how long what a replica's process left in its pipes is waited
// for once it is gone.
const outputGrace = time.Second

// killWait is how long a killed process may take to be gone. It takes longer
// only in the hands of the kernel: a dead disk, a debugger.
const killWait = 10 * time.Second

// replica is one process and the goroutine that sees it through its life. Only
// that goroutine changes its state, so its steps are observed in order.
type replica struct {
	f    *function
	rev  *revision
	stop chan struct{} // closed when it is to drain

	asked time.Time // when its start was asked for

	// Guarded by f.mu.
	state   faas.Replica
	leaving bool // stop is closed
	ready   time.Time
	process *process // nil before it is started
}

// process is what runs, as the machine started it.
type process struct {
	os      *os.Process
	pid     int
	started time.Time
	group   *cgroup  // nil if it is in none
	stdout  *os.File // the ends that are read here
	stderr  *os.File
	exited  chan struct{} // closed when the main process has ended and was reaped
	state   *os.ProcessState
}

// newReplica returns a replica that waits to be run. The caller holds f.mu.
func newReplica(f *function, rev *revision) *replica {
	now := time.Now()
	id := f.name.Function + "-" + strings.ToLower(rand.Text()[:7])
	return &replica{f: f, rev: rev, stop: make(chan struct{}), asked: now, state: faas.Replica{
		ID: id, Function: f.name, Revision: rev.spec.Revision, Node: f.p.cfg.Node, Zone: f.p.cfg.Zone,
		State: faas.Starting, Since: now,
	}}
}

// drain asks the replica to finish and end. The caller holds f.mu.
func (r *replica) drain() {
	if !r.leaving {
		r.leaving = true
		close(r.stop)
	}
}

// enter notes a step and tells of it.
func (r *replica) enter(s faas.State, reason string) {
	r.f.mu.Lock()
	r.state.State, r.state.Reason, r.state.Since = s, reason, time.Now()
	state := r.state
	r.f.mu.Unlock()
	// Told without the lock, before anybody acts upon it: an old replica
	// drains only after the new one takes requests.
	r.f.p.cfg.Observer.Observe(state)
}

// run is the replica's life.
func (r *replica) run() {
	failure := r.live()
	r.enter(faas.Gone, failure)
	r.f.ended(r, failure)
}

// live starts the process, and returns when it and all it started are gone: with
// the reason if that wasn't asked for, else with "".
func (r *replica) live() (failure string) {
	p := r.f.p
	release := p.slot(r.stop)
	if release == nil {
		return ""
	}
	defer release()

	job, err := p.prepareJob(r)
	if err != nil {
		return err.Error()
	}
	defer job.cleanUp()
	r.f.mu.Lock()
	r.state.Addr = netip.AddrPortFrom(loopback, job.port)
	r.f.mu.Unlock()
	r.enter(faas.Starting, "")

	// Written down before and after: a gateway that is killed in between leaves
	// a process that is found by its mark.
	err = p.records.write(record{Replica: r.state.ID})
	defer func() {
		if err := p.records.remove(r.state.ID); err != nil {
			p.log.Warn("the record of a replica stays", "replica", r.state.ID, "err", err)
		}
	}()
	if err != nil {
		return fmt.Sprintf("it can't be written down, so it isn't started: %v", err)
	}
	proc, err := p.machine.start(job)
	if err != nil {
		return err.Error()
	}
	go proc.wait() // it ends with the process, and endProcess waits for that
	if err := p.records.write(newRecord(r.state.ID, proc)); err != nil {
		p.log.Warn("the record of a replica has no process", "replica", r.state.ID, "err", err)
	}
	r.f.mu.Lock()
	r.process = proc
	r.f.mu.Unlock()

	out := r.readOutput(proc)
	failure = r.watch(proc, job, release)
	r.endProcess(proc, job, out)
	if failure != "" {
		failure = r.explain(failure, proc, job, out)
	}
	if err := proc.close(); err != nil {
		p.log.Warn("the control group of a replica stays", "replica", r.state.ID, "err", err)
	}
	return failure
}

// slot waits for its turn to start; nil if stop came first. What it returns gives
// the turn to the next and may be called more than once.
func (p *Process) slot(stop <-chan struct{}) (release func()) {
	select {
	case p.starts <- struct{}{}:
		return sync.OnceFunc(func() { <-p.starts })
	case <-stop:
		return nil
	}
}

// slotTime is how long a replica that isn't ready yet may keep others from
// starting: those that hang must not stop those that don't.
const slotTime = time.Second

// watch sees a process from its start to the moment at which it has ended or is
// to be ended. It returns why, or "" if that was asked for.
func (r *replica) watch(proc *process, job *job, release func()) (failure string) {
	p := r.f.p
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.StartTimeout)
	defer cancel()
	check := make(chan error, 1)
	var checking sync.WaitGroup
	defer checking.Wait()
	defer cancel()
	checking.Go(func() { check <- p.awaitReady(ctx, r.state.Addr, r.rev.spec.Annotation(readyPath)) })
	turn := time.NewTimer(slotTime)
	defer turn.Stop()

	for {
		select {
		case <-turn.C:
			release()
		case err := <-check:
			release()
			switch {
			case err == nil:
				r.becomeReady()
			case ctx.Err() == context.DeadlineExceeded:
				return fmt.Sprintf("not ready within %s: %v", p.cfg.StartTimeout, err)
			}
			// Else it is stopping, which stop says as well.
		case <-proc.exited:
			return "ended"
		case <-r.stop:
			release()
			r.enter(faas.Draining, "")
			r.awaitIdle(proc, job)
			return ""
		}
	}
}

func (r *replica) becomeReady() {
	r.enter(faas.Ready, "")
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	r.ready = time.Now()
	r.rev.proven = true
	f.p.log.Debug("replica ready", "function", f.name, "replica", r.state.ID, "after", r.ready.Sub(r.asked))
	f.step()
}

// awaitIdle waits until what is in flight is finished, for as long as the
// function may take for it.
func (r *replica) awaitIdle(proc *process, job *job) {
	p := r.f.p
	if r.ready.IsZero() {
		return // it never got a request
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), job.idle)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		select {
		case <-ctx.Done():
		case <-p.hurry:
			cancel()
		case <-proc.exited:
			cancel()
		}
	})
	if err := p.cfg.Observer.Idle(ctx, r.state.ID); err != nil && ctx.Err() == context.DeadlineExceeded {
		r.f.say(r.state.ID, fmt.Sprintf("stopped with requests in flight: they were not finished within %s", job.idle))
	}
}

// endProcess ends the process, if it hasn't, and all that it started: SIGTERM,
// the grace period, SIGKILL.
func (r *replica) endProcess(proc *process, job *job, out *output) {
	p := r.f.p
	grace := time.NewTimer(job.grace)
	defer grace.Stop()
	select {
	case <-proc.exited:
	case <-p.hurry:
	default:
		if err := proc.signal(syscall.SIGTERM); err != nil {
			p.log.Warn("signal a replica", "replica", r.state.ID, "err", err)
		}
		select {
		case <-proc.exited:
		case <-p.hurry:
		case <-grace.C:
			r.f.say(r.state.ID, fmt.Sprintf("killed: it did not end within %s after SIGTERM", job.grace))
		}
	}
	// The main process may have left others behind, in its group or not.
	p.machine.killAll(proc, r.state.ID)
	select {
	case <-proc.exited:
	case <-time.After(killWait):
		p.log.Error("a killed process doesn't end: the kernel holds on to it", "replica", r.state.ID, "pid", proc.pid)
	}
	out.finish(outputGrace)
}

// explain puts into words why a process ended by itself.
func (r *replica) explain(failure string, proc *process, job *job, out *output) string {
	if failure == "ended" {
		failure = describeExit(proc.state)
	}
	if proc.group.oomKilled() {
		failure = "killed: over its memory limit of " + r.rev.limits.memoryText
	}
	if last := out.lastWords(); last != "" {
		failure += ": " + last
	}
	return failure
}

// describeExit says how a process ended.
func describeExit(state *os.ProcessState) string {
	if state == nil {
		return "ended, and nobody knows how"
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", ws.Signal(), ws.Signal())
	}
	return fmt.Sprintf("exited with code %d", state.ExitCode())
}

// signal sends to the process and its group.
func (p *process) signal(sig syscall.Signal) error {
	err := syscall.Kill(-p.pid, sig)
	if err == syscall.ESRCH {
		return nil
	}
	return err
}
