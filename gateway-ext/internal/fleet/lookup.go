package fleet

import (
	"slices"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Known tells who routes requests about a function without a ready replica: how
// many are wanted and, if there is trouble, why fewer are ready. ok is false if
// there is no such function.
func (f *Fleet) Known(name faas.Name) (wanted int, reason string, ok bool) {
	f.mu.RLock()
	e := f.functions[name]
	if e == nil {
		f.mu.RUnlock()
		return 0, "", false
	}
	wanted, reason = e.replicas, e.trouble
	f.mu.RUnlock()
	if reason == "" {
		s, _ := f.cfg.Provider.Status(name)
		reason = s.Reason
	}
	return wanted, reason, true
}

// Names returns the names of all functions, in no order.
func (f *Fleet) Names() []faas.Name {
	f.mu.RLock()
	defer f.mu.RUnlock()
	names := make([]faas.Name, 0, len(f.functions))
	for name := range f.functions {
		names = append(names, name)
	}
	return names
}

// Digests returns the digests of all images that functions run, or will run
// again: what a registry and a store of images must keep.
func (f *Fleet) Digests() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	digests := make([]string, 0, len(f.functions))
	for _, e := range f.functions {
		if d := e.declared.Digest; d != "" {
			digests = append(digests, d)
		}
		if e.serving != nil {
			digests = append(digests, e.serving.Digest)
		}
	}
	slices.Sort(digests)
	return slices.Compact(digests)
}
