package resilience_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-780dceda/thicket/functions/resilience"
)

// A function asks another. What it does when the other fails is said where it is
// deployed.
func Example() {
	policy, err := resilience.ParsePolicy(map[string]string{
		"thicket.timeout":  "2s/500ms",
		"thicket.breaker":  "50%/10s consecutive=2",
		"thicket.attempts": "1",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	chain, err := resilience.New(resilience.Config{Name: "weather", Policy: policy, Idempotent: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	ask := func(context.Context) (string, error) { return "", errors.New("connection reset") }
	for range 3 {
		answer, err := resilience.Do(context.Background(), chain, ask)
		if e, ok := errors.AsType[*resilience.Error](err); ok {
			fmt.Printf("%q, %v\n", answer, e.Kind)
		}
	}
	answer, err := resilience.Do(context.Background(), chain, ask, resilience.Static("no report"))
	fmt.Println(answer, err)
	// Output:
	// "", failed
	// "", failed
	// "", open
	// no report <nil>
}

func ExampleParsePolicy() {
	_, err := resilience.ParsePolicy(map[string]string{
		"thicket.timeot":   "5s",
		"thicket.attempts": "lots",
	})
	fmt.Println(err)
	// Output:
	// thicket.attempts: "lots" is no number: write 1, 2 or 3
	// "thicket.timeot": there is no such annotation: did you mean thicket.timeout?
}
