package fleet

import (
	"context"
	"maps"
	"slices"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Namespaces returns the names of all namespaces, in order.
func (f *Fleet) Namespaces() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.Sorted(maps.Keys(f.namespaces))
}

// Namespace returns one namespace, or an [faas.ErrNotFound]. What it returns
// must not be changed.
func (f *Fleet) Namespace(name string) (types.FunctionNamespace, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.namespaces[name], f.namespaceExists(name)
}

// CreateNamespace makes a new namespace. An [faas.ErrConflict] says that there
// is one of this name.
func (f *Fleet) CreateNamespace(ctx context.Context, ns types.FunctionNamespace) error {
	return f.putNamespace(ctx, ns, func(exists bool) error {
		if exists {
			return faas.Errorf(faas.ErrConflict, "namespace %s exists already: update it instead", ns.Name)
		}
		if len(f.namespaces) >= f.cfg.MaxNamespaces {
			return faas.Errorf(faas.ErrOverloaded, "there are %d namespaces, and no more are allowed: delete some, or raise the bound", len(f.namespaces))
		}
		return nil
	})
}

// UpdateNamespace gives a namespace other labels and annotations. An
// [faas.ErrNotFound] says that there is none of this name.
func (f *Fleet) UpdateNamespace(ctx context.Context, ns types.FunctionNamespace) error {
	return f.putNamespace(ctx, ns, func(exists bool) error {
		if !exists {
			return f.namespaceExists(ns.Name)
		}
		return nil
	})
}

func (f *Fleet) putNamespace(ctx context.Context, ns types.FunctionNamespace, allow func(exists bool) error) error {
	if err := faas.CheckNamespace(ns); err != nil {
		return err
	}
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.mu.RLock()
	_, exists := f.namespaces[ns.Name]
	err = allow(exists)
	f.mu.RUnlock()
	if err != nil {
		return err
	}
	if err := f.put(ctx, namespaceKey+ns.Name, ns); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.namespaces[ns.Name] = ns
	return nil
}

// DeleteNamespace removes a namespace in which nothing is. The default one
// stays.
func (f *Fleet) DeleteNamespace(ctx context.Context, name string) error {
	if name == faas.DefaultNamespace {
		return faas.Errorf(faas.ErrInvalid, "namespace %s is where functions live that name none: it can't be deleted", name)
	}
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.mu.RLock()
	err = f.namespaceExists(name)
	functions, secrets := 0, 0
	for n := range f.functions {
		if n.Namespace == name {
			functions++
		}
	}
	for s := range f.secrets {
		if s.namespace == name {
			secrets++
		}
	}
	f.mu.RUnlock()
	if err != nil {
		return err
	}
	if functions+secrets > 0 {
		return faas.Errorf(faas.ErrConflict, "namespace %s still has %d functions and %d secrets: delete those first", name, functions, secrets)
	}
	if err := f.cfg.Store.Delete(context.WithoutCancel(ctx), namespaceKey+name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.namespaces, name)
	return nil
}

// namespaceExists returns an [faas.ErrNotFound] if it doesn't. f.mu is held.
func (f *Fleet) namespaceExists(name string) error {
	if _, ok := f.namespaces[name]; !ok {
		return faas.Errorf(faas.ErrNotFound, "there is no namespace %.70q: create it first (faas-cli namespace create)", name)
	}
	return nil
}
