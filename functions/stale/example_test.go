package stale_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/functions/stale"
)

func Example() {
	cache, err := stale.Open(stale.Config{
		RedisURL: "", // with one, all replicas share what follows
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cache.Close()

	ctx := context.Background()
	times := stale.Times{Fresh: time.Nanosecond, IfError: 6 * time.Hour}
	key := stale.NewKey("weather", "sha256:1", "Konstanz")
	sun := func(context.Context) (stale.Entry, error) {
		return stale.Entry{Body: []byte("sunny, 21 °C")}, nil
	}
	outage := func(context.Context) (stale.Entry, error) {
		return stale.Entry{}, errors.New("the weather service is down")
	}
	for _, load := range []stale.Load{sun, outage} {
		r, err := cache.Do(ctx, key, times, load)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s (%v, %v)\n", r.Body, r.Source, r.Err)
	}
	// Output:
	// sunny, 21 °C (miss, <nil>)
	// sunny, 21 °C (stale_if_error, the weather service is down)
}

func BenchmarkHit(b *testing.B) {
	c := open(b, stale.Config{Logger: slog.New(slog.DiscardHandler)})
	key := stale.NewKey("weather", "sha256:1", "Konstanz")
	times := stale.Times{Fresh: time.Hour}
	load := func(context.Context) (stale.Entry, error) { return stale.Entry{Body: make([]byte, 4<<10)}, nil }
	if _, err := c.Do(b.Context(), key, times, load); err != nil {
		b.Fatal(err)
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if r, err := c.Do(b.Context(), key, times, load); err != nil || r.Source != stale.Hit {
				b.Fatal(r.Source, err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if r, err := c.Do(b.Context(), key, times, load); err != nil || r.Source != stale.Hit {
					b.Error(r.Source, err)
				}
			}
		})
	})
}

func BenchmarkKeyFor(b *testing.B) {
	r := request("GET", "/function/weather-consumer?country=DE&postal=78462", "Accept", "application/json")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := stale.KeyFor(r, "weather-consumer.openfaas-fn", "sha256:1", "/", []string{"Accept"}); !ok {
			b.Fatal("no key")
		}
	}
}
