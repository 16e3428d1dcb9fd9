package providertest

import (
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Traits are what a provider can't do that the contract asks for. Where it can't,
// the suite holds it to what it does instead: that it says so, and that nothing
// fails because of it. The zero value can do everything.
type Traits struct {
	MaxReplicas  int // of a function: more are refused; 0 is no bound
	MaxFunctions int // 0 is no bound

	// Interrupts says that an update stops what runs before the new is there. A
	// request waits meanwhile, as at the gateway.
	Interrupts bool

	// Opaque says that single replicas can't be told apart from outside: it isn't
	// known which one answers, of which revision it is and with what code it ended,
	// and they are not known by the same names inside and outside.
	Opaque bool
}

// n is how many replicas it runs of those that a test would like to have.
func (b *bench) n(replicas int) int {
	if b.traits.MaxReplicas > 0 {
		return min(replicas, b.traits.MaxReplicas)
	}
	return replicas
}

// awaitAnswer waits until the function answers GET / with something that ends so.
func (b *bench) awaitAnswer(name faas.Name, end string) {
	b.Helper()
	b.await("it answers "+end, func() bool {
		code, body, err := b.table.Do(b.Context(), name, "/")
		return err == nil && code == 200 && strings.HasSuffix(body, end)
	})
}

// opaqueBadRevision: where an update stops the old first, nothing is ready and the
// reason says so; elsewhere the old goes on. The next revision is fine.
func opaqueBadRevision(b *bench, name faas.Name) {
	if b.traits.Interrupts {
		b.await("nothing is ready, and a reason says so", func() bool {
			s, _ := b.p.Status(name)
			return s.Ready() == 0 && s.Reason != ""
		})
	} else {
		for range 20 {
			if got := b.table.Get(b, name, "/"); !strings.HasSuffix(got, " v1") {
				b.Errorf("answer %q, want the old revision's", got)
			}
		}
	}
	b.apply(Workload("bad", 3, 1, "version", "v3"))
	b.table.AwaitReady(b, name, 3, 1)
	b.awaitAnswer(name, " v3")
	b.await("nothing is wrong", func() bool { s, _ := b.p.Status(name); return s.Reason == "" })
}
