package eureka

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Known tells the gateway's proxy of a service as the fleet does of a function:
// how many instances are registered, and why none is ready if none is.
func (r *Registry) Known(name faas.Name) (wanted int, reason string, ok bool) {
	if name.Namespace != faas.DefaultNamespace {
		return 0, "", false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := r.apps[strings.ToUpper(name.Function)]
	if len(all) == 0 {
		return 0, "", false
	}
	counts := map[Status]int{}
	for _, reg := range all {
		if _, callable := reg.instance.service(); !callable {
			continue
		}
		wanted++
		counts[reg.instance.Status]++
	}
	if wanted == 0 {
		return 1, "it takes requests over TLS only, which this gateway doesn't speak to services", true
	}
	var texts []string
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		texts = append(texts, fmt.Sprintf("%d %s", counts[s], s))
	}
	if counts[StatusUp] == 0 {
		reason = "of its registered instances none is UP: " + strings.Join(texts, ", ")
	}
	return wanted, reason, true
}

// Service returns what a registered service's metadata say of it as a function:
// entries that begin with "thicket." are its annotations. It is nil if there is
// no such service. Of several instances the one with the first id speaks.
func (r *Registry) Service(name faas.Name) *faas.Function {
	if name.Namespace != faas.DefaultNamespace {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := r.apps[strings.ToUpper(name.Function)]
	if len(all) == 0 {
		return nil
	}
	first := all[slices.Min(slices.Collect(maps.Keys(all)))]
	return &faas.Function{FunctionDeployment: r.declaration(first.instance)}
}

// declaration is what an instance's metadata say of it as a function.
func (r *Registry) declaration(i *Instance) types.FunctionDeployment {
	name, _ := nameOf(i.App)
	d := types.FunctionDeployment{Service: name.Function, Namespace: faas.DefaultNamespace}
	if r.cfg.Check == nil {
		return d
	}
	annotations := map[string]string{}
	for key, value := range i.Metadata {
		if strings.HasPrefix(key, "thicket.") {
			annotations[key] = value
		}
	}
	if len(annotations) > 0 {
		d.Annotations = &annotations
	}
	return d
}

// Names returns the names by which services can be called.
func (r *Registry) Names() []faas.Name {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var names []faas.Name
	for app := range r.apps {
		if name, ok := nameOf(app); ok {
			names = append(names, name)
		}
	}
	return names
}
