package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unique"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/functions/spelling"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// said is what Config.Check said of a function. Most functions share it.
type said struct{ policy, warning unique.Handle[string] }

// check is Config.Check, and a warning of labels for scaling that nobody reads.
func (f *Fleet) check(d types.FunctionDeployment) (said, error) {
	var policy, warning string
	var err error
	if f.cfg.Check != nil {
		policy, warning, err = f.cfg.Check(d)
	}
	if d.Labels != nil {
		if idle := idleLabels(*d.Labels); idle != "" {
			warning = strings.Trim(warning+"; "+idle, "; ")
		}
	}
	return said{unique.Make(policy), unique.Make(warning)}, err
}

// idleLabels names the labels that look as if they were for scaling, and are
// none. They are no error: another version of OpenFaaS may know them.
func idleLabels(labels map[string]string) string {
	var idle []string
	for _, l := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(l, faas.LabelScale) || slices.Contains(faas.ScaleLabels(), l) {
			continue
		}
		hint := "it may be left out"
		if meant := spelling.Nearest(l, faas.ScaleLabels(), 4); meant != "" {
			hint = "did you mean " + meant + "?"
		}
		idle = append(idle, fmt.Sprintf("label %.70s says nothing to this gateway: %s", l, hint))
	}
	return strings.Join(idle, "; ")
}

// possible looks a declaration's image up, if that can be done soon, and returns
// what it has found; the error says that the function can run nowhere. What
// else is wrong with the image may be over in a moment: it is looked up again
// behind the declaration.
func (f *Fleet) possible(ctx context.Context, d types.FunctionDeployment) (image faas.Pin, err error) {
	if f.cfg.Patience > 0 {
		image, err = f.resolve(ctx, d.Image, f.cfg.Patience)
		switch {
		case ctx.Err() != nil:
			return image, ctx.Err()
		case errors.Is(err, faas.ErrInvalid):
			return image, err
		case err != nil:
			image = faas.Pin{}
		}
	}
	if digest, ok := pinned(d.Image); ok {
		image.Digest = digest
	}
	if f.cfg.Possible == nil {
		return image, nil
	}
	return image, f.cfg.Possible(ctx, &faas.Function{FunctionDeployment: d, Digest: image.Digest, Platforms: image.Platforms})
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
