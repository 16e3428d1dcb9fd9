package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unique"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Keys of the store begin with what they hold.
const (
	functionKey  = "function."
	namespaceKey = "namespace."
	secretKey    = "secret."
	checkKey     = "check"   // something known, encrypted with Config.Key
	scalingKey   = "scaling" // a keptRecord
)

// record is how the store holds a function.
type record struct {
	Declared *faas.Function `json:"declared"`
	Serving  *faas.Function `json:"serving,omitempty"`
}

// load reads the store. What can't be read (a newer release wrote it, or the
// disk is broken) is left out and said, so that all else runs.
func (f *Fleet) load(ctx context.Context) error {
	var check, scaling []byte
	err := f.cfg.Store.Each(ctx, func(key string, value []byte) error {
		var err error
		switch {
		case key == checkKey:
			check = value
		case key == scalingKey:
			scaling = value
		case strings.HasPrefix(key, functionKey):
			err = f.loadFunction(key, value)
		case strings.HasPrefix(key, namespaceKey):
			err = f.loadNamespace(key, value)
		case strings.HasPrefix(key, secretKey):
			if s, ok := parseSecretKey(key); ok {
				f.secrets[s] = struct{}{}
			}
		}
		if err != nil {
			f.log.Error("something stored can't be read and is left out until it is declared anew", "key", key, "err", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what was declared: %w", err)
	}
	f.loadKept(scaling)
	for name, e := range f.functions {
		if e.replicas > 0 {
			f.touch(name)
		}
	}
	return f.checkSeal(ctx, check)
}

func (f *Fleet) loadFunction(key string, value []byte) error {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return err
	}
	if r.Declared == nil || storedAs(r.Declared) != key || r.Serving != nil && storedAs(r.Serving) != key || r.Declared.Replicas < 0 {
		return errRecord
	}
	name := r.Declared.Name()
	// What an older release took runs, also if this one would not take it.
	said, err := f.check(r.Declared.FunctionDeployment)
	if err != nil {
		f.log.Warn("a function's declaration would be refused today", "function", name.String(), "err", err)
	}
	f.functions[name] = &entry{
		declared: r.Declared, serving: r.Serving, said: said,
		replicas: r.Declared.Replicas, stored: r.Declared.Replicas,
		scale: unique.Make(scaleOf(r.Declared.Labels)),
	}
	f.revision = max(f.revision, r.Declared.Revision)
	if r.Declared.Digest == "" {
		f.tasks[name] = &task{}
	}
	return nil
}

func (f *Fleet) loadNamespace(key string, value []byte) error {
	var ns types.FunctionNamespace
	if err := json.Unmarshal(value, &ns); err != nil {
		return err
	}
	if namespaceKey+ns.Name != key {
		return errRecord
	}
	f.namespaces[ns.Name] = ns
	return nil
}

// storedAs is the key of a function.
func storedAs(f *faas.Function) string { return keyOf(f.Name()) }

func keyOf(name faas.Name) string { return functionKey + name.Namespace + "." + name.Function }
