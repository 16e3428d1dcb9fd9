package nodes

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

// together is how long a line waits for older ones of other nodes, where lines
// are followed: half a second is more than clocks that are kept differ.
const together = 500 * time.Millisecond

// merge returns the lines of several providers, by time as far as they are
// there, and of these as many as were asked for.
func merge(ctx context.Context, all []provider.Provider, q logs.Request) iter.Seq2[logs.Message, error] {
	return func(yield func(logs.Message, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var readers sync.WaitGroup
		defer readers.Wait()
		defer cancel()

		// What there is.
		now := q
		now.Follow = false
		lists, errs := make([][]logs.Message, len(all)), make([]error, len(all))
		for i, p := range all {
			readers.Go(func() {
				for m, err := range p.Logs(ctx, now) {
					if err != nil {
						errs[i] = err
						return
					}
					lists[i] = append(lists[i], m)
				}
			})
		}
		readers.Wait()
		missing := 0
		for i, err := range errs {
			if errors.Is(err, faas.ErrNotFound) {
				missing++
				errs[i] = nil
			}
		}
		if missing == len(all) {
			yield(logs.Message{}, faas.Errorf(faas.ErrNotFound, "function %s is on no node", q.Name))
			return
		}
		var lines []logs.Message
		for _, l := range lists {
			lines = append(lines, l...)
		}
		slices.SortStableFunc(lines, func(a, b logs.Message) int { return a.Timestamp.Compare(b.Timestamp) })
		if q.Tail > 0 && len(lines) > q.Tail {
			lines = lines[len(lines)-q.Tail:]
		}
		for _, m := range lines {
			if !yield(m, nil) {
				return
			}
		}
		if !q.Follow {
			if err := errors.Join(errs...); err != nil {
				yield(logs.Message{}, err)
			}
			return
		}

		// What comes. Each node's lines go on after the last that it has told.
		come := make(chan logs.Message)
		for i, p := range all {
			after := q
			since := time.Now()
			if n := len(lists[i]); n > 0 {
				since = lists[i][n-1].Timestamp.Add(time.Nanosecond)
			} else if q.Since != nil && q.Since.After(since) {
				since = *q.Since
			}
			after.Since, after.Tail = &since, -1
			readers.Go(func() {
				for ctx.Err() == nil {
					for m, err := range p.Logs(ctx, after) {
						if err != nil {
							break // the node is away, or doesn't run it yet
						}
						next := m.Timestamp.Add(time.Nanosecond)
						after.Since = &next
						select {
						case come <- m:
						case <-ctx.Done():
							return
						}
					}
					select {
					case <-ctx.Done():
					case <-time.After(time.Second):
					}
				}
			})
		}
		var held []logs.Message
		for {
			var due <-chan time.Time
			if len(held) > 0 {
				due = time.After(together)
			}
			select {
			case <-ctx.Done():
				return
			case m := <-come:
				held = append(held, m)
				if len(held) < 256 {
					continue
				}
			case <-due:
			}
			slices.SortStableFunc(held, func(a, b logs.Message) int { return a.Timestamp.Compare(b.Timestamp) })
			for _, m := range held {
				if !yield(m, nil) {
					return
				}
			}
			held = held[:0]
		}
	}
}
