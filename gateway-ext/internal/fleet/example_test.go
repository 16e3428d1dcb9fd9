package fleet_test

import (
	"context"
	"fmt"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
)

// A function is declared, and asleep; nothing runs yet, since Run wasn't called.
func Example() {
	ctx := context.Background()
	f, err := fleet.New(ctx, fleet.Config{
		Store: newStore(), Provider: newNodes(), Images: newRegistry(), Key: testKey, Logger: discard,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := types.FunctionDeployment{Service: "weather", Image: "img:1", Labels: &map[string]string{faas.LabelScaleMin: "0"}}
	fmt.Println(f.Deploy(ctx, d))
	fmt.Println(f.Deploy(ctx, d))
	for _, s := range f.Functions("") {
		fmt.Println(s.Name, s.Namespace, s.Replicas)
	}
	// Output:
	// <nil>
	// function weather.openfaas-fn exists already: update it instead (PUT; faas-cli deploy does that, unless --update=false)
	// weather openfaas-fn 0
}
