package provider

import (
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// reserve is how much of a machine's memory is left to itself.
func reserve(total int64) int64 { return max(total/20, 32<<20) }

// Memory returns how many bytes of memory replicas on this machine may have in
// all, and how many of them are free; 0 if that isn't known.
func Memory() (all, free int64) {
	free, total, known := freeMemory()
	if !known {
		return 0, 0
	}
	return total - reserve(total), max(0, free-reserve(total))
}

// Room returns what this machine has left for more replicas. It reads a file or
// two.
func (p *Process) Room() Room {
	r := Room{Node: p.cfg.Node, Memory: -1, CPU: CPU()}
	free, total, known := freeMemory()
	if known {
		r.Memory = max(0, free-reserve(total))
	}
	for _, f := range p.all() {
		starting, cpu := f.reserved()
		if known {
			r.Memory = max(0, r.Memory-starting)
		}
		r.CPU = max(0, r.CPU-cpu)
	}
	return r
}

// reserved returns the memory that replicas which have only just been started
// will need, and the CPU that all have reserved.
func (f *function) reserved() (starting, cpu int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.replicas {
		if r.leaving {
			continue
		}
		memory, milli := Needs(&r.rev.spec)
		cpu += milli
		if r.state.State == faas.Starting {
			starting += memory
		}
	}
	return starting, cpu
}

// Needs returns the bytes of memory and the thousandths of a processor that one
// replica of a function is given a place by: what it requests and, of memory, its
// limit if it requests none. 0 is unknown.
func Needs(fn *faas.Function) (memory, cpu int64) {
	// Quantities were checked when they were declared.
	if l := fn.Limits; l != nil && l.Memory != "" {
		memory, _ = faas.ParseMemory(l.Memory)
	}
	if r := fn.Requests; r != nil {
		if r.Memory != "" {
			memory, _ = faas.ParseMemory(r.Memory)
		}
		if r.CPU != "" {
			cpu, _ = faas.ParseCPU(r.CPU)
		}
	}
	return memory, cpu
}
