package providertest

import (
	"context"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"
)

func readsLogs(b *bench) {
	if b.traits.Opaque {
		readsOpaqueLogs(b)
		return
	}
	name := b.apply(Workload("talking", 1, 2))
	rs := b.table.AwaitReady(b, name, 1, 2)
	for _, r := range rs {
		if _, _, err := b.table.DoAt(b.Context(), r, "/log?lines=5&text="+r.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.await("all lines are there", func() bool { return len(b.tail("talking")) >= 12 })
	future := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name  string
		q     logs.Request
		lines int
	}{
		{"all", logs.Request{Tail: -1}, 12},
		{"the last five minutes", logs.Request{}, 12},
		{"the last three", logs.Request{Tail: 3}, 3},
		{"one replica", logs.Request{Tail: -1, Instance: rs[0].ID}, 6},
		{"the last of one replica", logs.Request{Tail: 2, Instance: rs[1].ID}, 2},
		{"the future", logs.Request{Tail: -1, Since: &future}, 0},
	} {
		c.q.Name, c.q.Namespace = name.Function, name.Namespace
		n := 0
		var last time.Time
		for m, err := range b.p.Logs(b.Context(), c.q) {
			if err != nil || m.Name != name.Function || m.Namespace != name.Namespace || m.Timestamp.Before(last) {
				b.Errorf("%s: %+v, %v", c.name, m, err)
			}
			if c.q.Instance != "" && m.Instance != c.q.Instance {
				b.Errorf("%s: a line of %s", c.name, m.Instance)
			}
			last = m.Timestamp
			n++
		}
		if n != c.lines {
			b.Errorf("%s: %d lines, want %d", c.name, n, c.lines)
		}
	}
}

// readsOpaqueLogs reads logs in which the replicas have names of their own.
func readsOpaqueLogs(b *bench) {
	replicas := b.n(2)
	name := b.apply(Workload("talking", 1, replicas))
	for _, r := range b.table.AwaitReady(b, name, 1, replicas) {
		if _, _, err := b.table.DoAt(b.Context(), r, "/log?lines=5&text="+r.ID); err != nil {
			b.Fatal(err)
		}
	}
	lines := func(q logs.Request) (n int, by map[string]int) {
		b.Helper()
		q.Name, q.Namespace = name.Function, name.Namespace
		by = make(map[string]int)
		for m, err := range b.p.Logs(b.Context(), q) {
			if err != nil || m.Name != name.Function || m.Namespace != name.Namespace || m.Instance == "" {
				b.Errorf("%+v: %+v, %v", q, m, err)
			}
			by[m.Instance]++
			n++
		}
		return n, by
	}
	all := 6 * replicas
	b.await("all lines are there", func() bool { n, _ := lines(logs.Request{Tail: -1}); return n >= all })
	n, by := lines(logs.Request{Tail: -1})
	if n != all || len(by) != replicas {
		b.Errorf("%d lines of %d replicas, want %d of %d", n, len(by), all, replicas)
	}
	for instance, want := range by {
		if n, only := lines(logs.Request{Tail: -1, Instance: instance}); n != want || len(only) != 1 {
			b.Errorf("%d lines of %s, %v, want %d", n, instance, only, want)
		}
	}
	future := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name  string
		q     logs.Request
		lines int
	}{
		{"the last five minutes", logs.Request{}, all},
		{"the last three", logs.Request{Tail: 3}, 3},
		{"the future", logs.Request{Tail: -1, Since: &future}, 0},
		{"a replica of another node", logs.Request{Tail: -1, Instance: "elsewhere/1"}, 0},
	} {
		if n, _ := lines(c.q); n != c.lines {
			b.Errorf("%s: %d lines, want %d", c.name, n, c.lines)
		}
	}
}

// followsLogs follows a function over an update and a removal.
func followsLogs(b *bench) {
	name := b.apply(Workload("followed", 1, 1))
	first := b.table.AwaitReady(b, name, 1, 1)[0]
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	lines := make(chan logs.Message, 100)
	var follower sync.WaitGroup
	defer follower.Wait()
	follower.Go(func() {
		defer close(lines)
		for m, err := range b.p.Logs(ctx, logs.Request{Name: "followed", Tail: -1, Follow: true}) {
			if err != nil {
				b.Errorf("Logs() = %v", err)
				return
			}
			lines <- m
		}
	})
	known := make(map[string]bool)
	seen := func(replica string) {
		b.Helper()
		limit := time.NewTimer(patience)
		defer limit.Stop()
		for {
			select {
			case m := <-lines:
				if m.Text != "listening" {
					continue
				}
				if m.Instance == replica || b.traits.Opaque && !known[m.Instance] {
					known[m.Instance] = true
					return
				}
			case <-limit.C:
				b.Fatalf("no line of %s", replica)
			}
		}
	}
	seen(first.ID)
	b.apply(Workload("followed", 2, 1))
	seen(b.table.AwaitReady(b, name, 2, 1)[0].ID)
	if err := b.p.Remove(b.Context(), name); err != nil {
		b.Fatal(err)
	}
	b.apply(Workload("followed", 3, 1))
	seen(b.table.AwaitReady(b, name, 3, 1)[0].ID)
	cancel()
	follower.Wait()
}
