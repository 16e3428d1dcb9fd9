package image

import (
	"context"
	"net/http"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/semaphore"
)

// A fleet that is told to run something asks for the same layers at once. A small
// machine serves a few of them in the time that it needs for all at once, with a
// fraction of the memory, and is free for other things meanwhile: so some are
// served at a time, the others wait in the order in which they came, and who has
// waited for long is told when to come again.

const (
	// pullWait is how long a pull waits for its turn: less than clients wait for
	// an answer to begin.
	pullWait = 15 * time.Second
	// pullAgain is when who had no turn is to come again.
	pullAgain = 5 * time.Second
	// smallBlob is the size, in bytes, below which nobody waits: a configuration,
	// or a layer with a few files.
	smallBlob = 64 << 10
	// maxQueue is how many may wait, for each that is served.
	maxQueue = 32
)

// turns lets some layers be served at a time.
type turns struct {
	now   *semaphore.Weighted // being served
	queue *semaphore.Weighted // and those that wait
}

func newTurns(n int) *turns {
	return &turns{now: semaphore.NewWeighted(int64(n)), queue: semaphore.NewWeighted(int64(n) * (1 + maxQueue))}
}

// take waits for a turn. It returns nil if there was none.
func (t *turns) take(ctx context.Context) (done func()) {
	if !t.queue.TryAcquire(1) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pullWait)
	defer cancel()
	if t.now.Acquire(ctx, 1) != nil {
		t.queue.Release(1)
		return nil
	}
	return func() {
		t.now.Release(1)
		t.queue.Release(1)
	}
}

// pull serves a layer when it is its turn.
func (g *Registry) pull(w http.ResponseWriter, r *http.Request, t target) {
	if h, err := v1.NewHash(t.ref); err == nil && h.Algorithm == "sha256" && len(h.Hex) == 64 {
		if fi, err := g.root.Stat(blobPath(h.Hex)); err == nil && fi.Size() > smallBlob {
			done := g.turns.take(r.Context())
			if done == nil {
				w.Header().Set("Retry-After", strconv.Itoa(int(pullAgain/time.Second)))
				refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "the registry serves as many layers at the same time as it can: come again in a few seconds")
				return
			}
			defer done()
		}
	}
	g.serve(w, r)
}
