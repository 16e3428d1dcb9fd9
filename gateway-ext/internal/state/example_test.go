package state_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

func Example() {
	dir, err := os.MkdirTemp("", "state")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	s, err := state.Open(ctx, state.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	b, err := s.Bucket(ctx, "fleet")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(b.Put(ctx, "function.weather", []byte("declared"))) // on the disk from here on
	value, err := b.Get(ctx, "function.weather")
	fmt.Println(string(value), err)
	_, err = b.Get(ctx, "function.traffic")
	fmt.Println(err)
	// Output:
	// <nil>
	// declared <nil>
	// there is no function.traffic
}
