package openfaas_test

import (
	"maps"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
)

func TestEnvironment(t *testing.T) {
	own := map[string]string{"a": "b", "OPENFAAS_URL": "http://mine", "THICKET_DISCOVERY_URL": "/system/discovery", "THICKET_DISCOVERY_TOKEN": "t"}
	for gateway, want := range map[string]map[string]string{
		"":                        {"a": "b", "OPENFAAS_URL": "http://mine"},
		"http://192.168.1.2:8080": {"a": "b", "OPENFAAS_URL": "http://mine", "gateway_url": "http://192.168.1.2:8080"},
	} {
		if got := openfaas.Environment(own, gateway); !maps.Equal(got, want) {
			t.Errorf("with the gateway at %q: %v, want %v", gateway, got, want)
		}
	}
	if len(own) != 4 {
		t.Errorf("the function's own variables are changed: %v", own)
	}
}
