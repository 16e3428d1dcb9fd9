package fleet

import (
	"unique"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// said is what Config.Check said of a function. Most functions share it.
type said struct{ policy, warning unique.Handle[string] }

// check is Config.Check.
func (f *Fleet) check(d types.FunctionDeployment) (said, error) {
	var policy, warning string
	var err error
	if f.cfg.Check != nil {
		policy, warning, err = f.cfg.Check(d)
	}
	return said{unique.Make(policy), unique.Make(warning)}, err
}

// show adds what was said to annotations.
func (s said) show(a map[string]string) {
	if policy := s.policy.Value(); policy != "" {
		a[PolicyAnnotation] = policy
	}
	if warning := s.warning.Value(); warning != "" {
		a[WarningAnnotation] = warning
	}
}

// changed is Config.Changed. f.mu is not held.
func (f *Fleet) changed(name faas.Name) {
	if f.cfg.Changed != nil {
		f.cfg.Changed(name)
	}
}
