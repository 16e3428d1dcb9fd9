package fleet

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxHistory is how many of its own messages the fleet keeps for a function.
// They are few: what fails again for the same reason is said once.
const maxHistory = 20

// history is what the fleet has to say of a function, oldest first.
type history struct {
	messages []logs.Message
	said     int           // how many there ever were
	wake     chan struct{} // closed when there is news, for those who follow
}

// note adds a message. Fleet.mu is held.
func (e *entry) note(now time.Time, name faas.Name, text string) {
	h := e.watch()
	if len(h.messages) == maxHistory {
		h.messages = append(h.messages[:0:0], h.messages[1:]...)
	}
	h.messages = append(h.messages, logs.Message{
		Name: name.Function, Namespace: name.Namespace, Instance: "thicket", Timestamp: now.UTC(), Text: text,
	})
	h.said++
	h.changed()
}

// watch returns the history, which is made for the first who asks. Fleet.mu is
// held.
func (e *entry) watch() *history {
	if e.history == nil {
		e.history = &history{wake: make(chan struct{})}
	}
	return e.history
}

// changed wakes who follows. Fleet.mu is held.
func (h *history) changed() {
	if h != nil {
		close(h.wake)
		h.wake = make(chan struct{})
	}
}

// Logs returns what a function's replicas wrote and what the platform says of
// it: why it isn't deployed yet, besides what [provider.Provider] says. An
// unknown function is an [faas.ErrNotFound]. A log that is followed goes on
// until ctx ends or the function is deleted.
func (f *Fleet) Logs(ctx context.Context, r logs.Request) iter.Seq2[logs.Message, error] {
	r.Namespace = cmp.Or(r.Namespace, faas.DefaultNamespace)
	name := faas.Name{Function: r.Name, Namespace: r.Namespace}
	return func(yield func(logs.Message, error) bool) {
		f.mu.RLock()
		e := f.functions[name]
		f.mu.RUnlock()
		switch {
		case e == nil:
			yield(logs.Message{}, notFound(name))
		case r.Follow:
			f.follow(ctx, r, name, e, yield)
		default:
			f.printed(ctx, r, e, yield)
		}
	}
}

// printed yields what there is, oldest first.
func (f *Fleet) printed(ctx context.Context, r logs.Request, e *entry, yield func(logs.Message, error) bool) {
	own, _, _ := f.news(r, e, 0)
	for m, err := range f.cfg.Provider.Logs(ctx, r) {
		if errors.Is(err, faas.ErrNotFound) {
			break // nothing of it ran yet
		}
		if err != nil {
			yield(logs.Message{}, err)
			return
		}
		for len(own) > 0 && own[0].Timestamp.Before(m.Timestamp) {
			if !yield(own[0], nil) {
				return
			}
			own = own[1:]
		}
		if !yield(m, nil) {
			return
		}
	}
	for _, m := range own {
		if !yield(m, nil) {
			return
		}
	}
}

// news returns the messages after the first seen ones that r asks for, how many
// there were in all, and what is closed when that changes.
func (f *Fleet) news(r logs.Request, e *entry, seen int) (messages []logs.Message, said int, wake <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := e.watch()
	fresh := h.messages[max(0, len(h.messages)-(h.said-seen)):]
	for _, m := range fresh {
		if r.Instance == "" && (r.Since == nil || !m.Timestamp.Before(*r.Since)) {
			messages = append(messages, m)
		}
	}
	if seen == 0 && r.Tail > 0 && len(messages) > r.Tail {
		messages = messages[len(messages)-r.Tail:]
	}
	return messages, h.said, h.wake
}

// follow yields what there is and what comes. The provider's messages arrive
// through a goroutine that has ended when follow returns.
func (f *Fleet) follow(ctx context.Context, r logs.Request, name faas.Name, e *entry, yield func(logs.Message, error) bool) {
	type item struct {
		m   logs.Message
		err error
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var items chan item // nil while the provider has nothing to read from
	read := func() {
		items = make(chan item)
		out := items
		reader.Go(func() {
			defer close(out)
			for m, err := range f.cfg.Provider.Logs(ctx, r) {
				select {
				case out <- item{m, err}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	read()
	seen := 0
	for {
		own, said, wake := f.news(r, e, seen)
		seen = said
		for _, m := range own {
			if !yield(m, nil) {
				return
			}
		}
		f.mu.RLock()
		gone := f.functions[name] != e
		f.mu.RUnlock()
		if gone {
			return
		}
	waiting:
		for {
			select {
			case i, open := <-items:
				if !open || errors.Is(i.err, faas.ErrNotFound) {
					items = nil // until it is told of the function
					continue
				}
				if !yield(i.m, i.err) || i.err != nil {
					return
				}
			case <-wake:
				if items == nil {
					read()
				}
				break waiting
			case <-ctx.Done():
				return
			}
		}
	}
}
