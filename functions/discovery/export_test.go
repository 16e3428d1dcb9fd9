package discovery

import (
	"io"
	"iter"
)

// Event is an event of a stream, for tests of the parser alone.
type Event struct{ ID, Name, Data string }

// Events reads a stream.
func Events(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for e, err := range events(r) {
			if !yield(Event{e.id, e.name, string(e.data)}, err) {
				return
			}
		}
	}
}
