package provider

import (
	"context"
	"errors"
	"iter"
	"log/slog"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// ProcessConfig says how a [Process] runs its functions. Node, Dir, Images,
// Observer and Logger must be set; the rest has defaults.
type ProcessConfig struct {
	// Node is the name of this machine in every replica it reports.
	Node string

	// Dir is a folder of the provider's own below the state folder. It holds
	// what a restart needs to find what a killed gateway left behind, and the
	// user ids given to functions. It is made if it isn't there, and locked:
	// a second provider on the same folder is refused.
	Dir string

	// GatewayURL is the address at which functions on this machine reach the
	// gateway, such as "http://127.0.0.1:8080". Functions get it as
	// gateway_url and OPENFAAS_URL.
	GatewayURL string

	// Env is given to every function, below what its image and its owner set.
	Env map[string]string

	Images   Images
	Observer Observer
	Logger   *slog.Logger

	// LogLines and LogBytes bound what is kept of one function's output, all
	// replicas together: 2,000 lines and 256 KiB unless set. The memory is
	// taken when lines come, not before.
	LogLines int
	LogBytes int
}

// Process runs each replica as a plain process on this machine. Make one with
// [NewProcess]; it works until [Process.Run] has ended.
type Process struct{ Provider }

// NewProcess returns a provider for this machine, after it has stopped whatever
// an earlier one on the same folder left running.
func NewProcess(cfg ProcessConfig) (*Process, error) {
	return nil, errors.ErrUnsupported
}

// Run blocks until ctx ends, then drains and stops every replica, and returns
// when the last process is gone.
func (p *Process) Run(ctx context.Context) error { return nil }

// Hurry makes a stop that is under way kill what it would otherwise wait for.
func (p *Process) Hurry() {}

// Missing says which guarantees this machine doesn't allow, in sentences.
func (p *Process) Missing() []string { return nil }

// Logs implements [Provider].
func (p *Process) Logs(ctx context.Context, r logs.Request) iter.Seq2[logs.Message, error] {
	return nil
}

var _ = faas.Ready
