package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// The lease of a prefix: who has it writes it again all the time, and when nobody
// does it is gone. It is in the memory of the cluster's servers, so that nothing
// is written to disks for it.
const (
	leaseTime  = 20 * time.Second
	leaseRenew = 5 * time.Second
	leaseKey   = "gateway"

	// ownerKey has in the prefix's own bucket, on disk, who took the lease last:
	// whoever finds another's name there has lost it, even if the lease is free.
	ownerKey = "owner"
)

// holder is who has a lease.
type holder struct {
	Identity string    `json:"identity"` // of the state folder
	Node     string    `json:"node"`
	Host     string    `json:"host"`
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"`
}

func (h *holder) String() string {
	return fmt.Sprintf("the gateway %s (process %d on %s, since %s)", h.Node, h.PID, h.Host, h.Since.UTC().Format(time.DateTime))
}

// lease is a prefix, had by one gateway.
type lease struct {
	c    *cluster
	me   holder
	kv   jetstream.KeyValue
	rev  uint64 // of the lease as it was written last
	stop context.CancelFunc
	done sync.WaitGroup
}

func newLease(c *cluster, identity string) *lease {
	host, err := os.Hostname()
	if err != nil {
		host = "an unknown host"
	}
	return &lease{c: c, me: holder{Identity: identity, Node: c.cfg.NATS.Node, Host: host, PID: os.Getpid(), Since: time.Now()}}
}

// take takes it, unless another gateway has it. The same gateway, started again
// after it was killed, has it still.
func (l *lease) take(ctx context.Context) error {
	ways := l.c.streams("lease")
	for i := range ways {
		ways[i].Storage, ways[i].MaxAge, ways[i].Duplicates = jetstream.MemoryStorage, leaseTime, leaseTime
	}
	kv, err := openBucket(ctx, l.c.js, ways, l.c.settle)
	if err != nil {
		return err
	}
	l.kv = kv
	if err := l.write(ctx); err != nil {
		return err
	}
	me, err := json.Marshal(l.me)
	if err != nil {
		return err
	}
	_, err = l.c.meta.Put(ctx, ownerKey, me)
	return err
}

// write writes the lease: anew, or over what this gateway has written.
func (l *lease) write(ctx context.Context) error {
	me, err := json.Marshal(l.me)
	if err != nil {
		return err
	}
	rev, err := l.kv.Create(ctx, leaseKey, me)
	if !errors.Is(err, jetstream.ErrKeyExists) {
		if err == nil {
			l.rev = rev
		}
		return err
	}
	e, err := l.kv.Get(ctx, leaseKey)
	if err != nil {
		return err
	}
	if h := read(e); h.Identity != l.me.Identity {
		return l.taken(h)
	}
	if rev, err = l.kv.Update(ctx, leaseKey, me, e.Revision()); err == nil {
		l.rev = rev
	}
	return err
}

func read(e jetstream.KeyValueEntry) (h holder) {
	_ = json.Unmarshal(e.Value(), &h) // what isn't one is somebody else's
	return h
}

func (l *lease) taken(by holder) error {
	return faas.Errorf(faas.ErrConflict, "the prefix %s of NATS at %s is used by %s: stop that one and wait %s, or set another THICKET_NATS_PREFIX for this one",
		l.c.cfg.NATS.Prefix, l.c.hosts, &by, leaseTime)
}

// begin renews the lease from now on.
func (l *lease) begin() {
	ctx, cancel := context.WithCancel(l.c.life)
	l.stop = cancel
	l.done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(leaseRenew):
			}
			if err := l.renew(ctx); err != nil {
				l.c.cfg.Logger.Error("another gateway uses what this one has stored: nothing is written any more", "err", err)
				l.c.life.end(err)
				return
			}
		}
	})
}

// renew writes the lease once more. An error means that it is lost for good; a
// cluster that is away is none.
func (l *lease) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseRenew)
	defer cancel()
	me, err := json.Marshal(l.me)
	if err != nil {
		return err
	}
	rev, err := l.kv.Update(ctx, leaseKey, me, l.rev)
	if err == nil {
		l.rev = rev
		return nil
	}
	// It is over, was written although the answer was lost, or the cluster is away.
	e, err := l.c.meta.Get(ctx, ownerKey)
	if err == nil {
		if h := read(e); h.Identity != l.me.Identity {
			return faas.Errorf(faas.ErrUnavailable, "%w; start this one anew when it should have it again", l.taken(h))
		}
		err = l.write(ctx)
	}
	if errors.Is(err, faas.ErrConflict) {
		return faas.Errorf(faas.ErrUnavailable, "%w; start this one anew when it should have it again", err)
	}
	if err != nil {
		l.c.cfg.Logger.Debug("the lease was not renewed", "err", err)
	}
	return nil
}

// close gives it back.
func (l *lease) close() {
	if l.stop == nil {
		return
	}
	l.stop()
	l.done.Wait()
	if l.c.life.Err() != nil || l.c.away() > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(l.c.life, attempt)
	defer cancel()
	if err := l.kv.Delete(ctx, leaseKey, jetstream.LastRevision(l.rev)); err != nil {
		l.c.cfg.Logger.Debug("the lease was not given back", "err", err)
	}
}
