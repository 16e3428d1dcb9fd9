package provider

import (
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// limits is what one replica may use. 0 is no limit.
type limits struct {
	memory     int64 // bytes
	memoryText string
	cpu        int64 // thousandths of a CPU
	pids       int
}

func parseLimits(fn *faas.Function, pids int) (l limits, err error) {
	l.pids = pids
	if fn.Limits == nil {
		return l, nil
	}
	if s := fn.Limits.Memory; s != "" {
		l.memoryText = s
		if l.memory, err = faas.ParseMemory(s); err != nil {
			return l, err
		}
	}
	if s := fn.Limits.CPU; s != "" {
		if l.cpu, err = faas.ParseCPU(s); err != nil {
			return l, err
		}
	}
	return l, nil
}

// Check refuses a workload that no provider can read: with limits that are no
// quantities, or secrets whose names are no file's. The error is an
// [faas.ErrInvalid].
func Check(w Workload) error {
	if _, err := parseLimits(&w.Function, 0); err != nil {
		return err
	}
	return checkSecretNames(w.Secrets)
}
