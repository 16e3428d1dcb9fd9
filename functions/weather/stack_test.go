package weather_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/openfaas/go-sdk/stack"

	"github.com/seed-780dceda/thicket/functions/weather"
)

// TestStack reads stack.yml as faas-cli does.
func TestStack(t *testing.T) {
	read := func(t *testing.T) *stack.Services {
		t.Helper()
		services, err := stack.ParseYAMLFile("../../stack.yml", "", "", true)
		if err != nil {
			t.Fatal(err)
		}
		return services
	}
	t.Run("as it is", func(t *testing.T) {
		for _, name := range []string{"WEATHER_SIMULATE", "OPENMETEO_URL", "WEATHER_COUNTRY", "THICKET_REGISTRY"} {
			t.Setenv(name, "")
		}
		services := read(t)
		if len(services.Functions) != 2 || services.Provider.Name != "openfaas" || services.Provider.GatewayURL != "http://127.0.0.1:8080" {
			t.Errorf("stack = %+v", services)
		}
		if want := []string{"go.mod", "go.sum", "functions/balance", "functions/discovery", "functions/resilience", "functions/spelling", "functions/stale", "functions/weather"}; !slices.Equal(services.StackConfiguration.CopyExtraPaths, want) {
			t.Errorf("copied into each build: %v, want %v", services.StackConfiguration.CopyExtraPaths, want)
		}
		for name, f := range services.Functions {
			if f.Image != "127.0.0.1:8080/"+name+":latest" || f.Handler != "./functions/"+name || f.Language != "golang-resilient" {
				t.Errorf("%s = %+v", name, f)
			}
			if len(f.Secrets) != 0 {
				t.Errorf("%s lists the secrets %v, which a fresh gateway doesn't have", name, f.Secrets)
			}
			if f.Labels == nil || f.Limits == nil || f.Limits.Memory == "" {
				t.Errorf("%s has no labels or limits: %+v", name, f)
			}
			for key, value := range f.Environment {
				if strings.HasSuffix(key, "_url") {
					var u weather.BaseURL
					if err := u.UnmarshalText([]byte(value)); err != nil || u.Scheme != "https" {
						t.Errorf("%s: %s: %q, %v", name, key, value, err)
					}
				}
			}
		}
		if got := services.Functions["weather-producer"].Environment["weather_simulate"]; got != "false" {
			t.Errorf("weather_simulate = %q, want false unless somebody asks for it", got)
		}
	})
	t.Run("changed by the environment", func(t *testing.T) {
		t.Setenv("WEATHER_SIMULATE", "true")
		t.Setenv("OPENMETEO_URL", "http://127.0.0.1:9")
		t.Setenv("THICKET_REGISTRY", "pi.local:5000")
		f := read(t).Functions["weather-producer"]
		if f.Environment["weather_simulate"] != "true" || f.Environment["openmeteo_url"] != "http://127.0.0.1:9" || f.Image != "pi.local:5000/weather-producer:latest" {
			t.Errorf("weather-producer = %+v", f)
		}
	})
}
