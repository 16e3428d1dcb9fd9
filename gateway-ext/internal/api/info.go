package api

import (
	"net/http"
	"runtime"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// info is what "faas-cli version" shows.
func (h *Handler) info(w http.ResponseWriter, _ *http.Request) error {
	return encode(w, struct {
		Provider types.ProviderInfo `json:"provider"`
		Version  types.VersionInfo  `json:"version"`
		Arch     string             `json:"arch"`
	}{
		Provider: types.ProviderInfo{Name: "thicket", Version: &h.cfg.Version, Orchestration: "thicket"},
		Version:  h.cfg.Version,
		Arch:     arch(),
	})
}

// arch returns the processor as uname spells it, as OpenFaaS's gateways do.
func arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func (h *Handler) telemetry(http.ResponseWriter, *http.Request) error {
	return faas.Errorf(errNotImplemented, "this gateway collects no telemetry; its metrics are at /metrics")
}
