package faas_test

import (
	"fmt"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func ExampleCheck() {
	d, err := faas.Check(types.FunctionDeployment{Service: " weather ", Image: "ghcr.io/you/weather:1.2"})
	fmt.Println(d.Service, d.Namespace, err)

	_, err = faas.Check(types.FunctionDeployment{
		Service: "Weather",
		Image:   "https://ghcr.io/you/weather",
		Limits:  &types.FunctionResources{Memory: "128MB"},
	})
	fmt.Println(err)
	// Output:
	// weather openfaas-fn <nil>
	// function name "Weather" is not a DNS label: use a-z, 0-9 and "-" (not first or last)
	// image "https://ghcr.io/you/weather" is a URL: leave out everything up to "://"
	// limits.memory: quantity "128MB" ends in "MB", which is no unit of Kubernetes; write for example "128Mi" or "1Gi"
}

func ExampleParseMemory() {
	bytes, err := faas.ParseMemory("1.5Gi")
	fmt.Println(bytes, err)
	// Output: 1610612736 <nil>
}

func ExampleParseCPU() {
	milli, err := faas.ParseCPU("0.25")
	fmt.Println(milli, err)
	// Output: 250 <nil>
}
