package http1

import (
	"context"
	"sync/atomic"
)

// connContext is the context of all requests of a server's connection. A
// [Transport] that carries one of them learns of its end through a word in
// memory, which costs nothing: [context.AfterFunc], which any other context
// needs, allocates three times and takes locks.
type connContext struct {
	context.Context
	cancel   context.CancelCauseFunc
	carrying atomic.Pointer[link]
}

func newConnContext(parent context.Context) *connContext {
	ctx, cancel := context.WithCancelCause(parent)
	return &connContext{Context: ctx, cancel: cancel}
}

// end ends the context, and what is carried for it.
func (x *connContext) end(cause error) {
	x.cancel(cause)
	if l := x.carrying.Swap(nil); l != nil {
		l.abort()
	}
}

// carry has a link aborted when the context ends. It returns false if there is
// another already.
func (x *connContext) carry(l *link) bool {
	if !x.carrying.CompareAndSwap(nil, l) {
		return false
	}
	// Either end sees the link, or this sees that it has ended.
	if x.Err() != nil && x.carrying.CompareAndSwap(l, nil) {
		l.abort()
	}
	return true
}

// drop undoes carry. It returns false if the link was aborted, or is being.
func (x *connContext) drop(l *link) bool { return x.carrying.CompareAndSwap(l, nil) }

// watch has the answer's link aborted when ctx ends.
func (a *Answer) watch(ctx context.Context) {
	if x, ok := ctx.(*connContext); ok && x.carry(a.link) {
		a.ctx = x
		return
	}
	a.stop = context.AfterFunc(ctx, a.link.abort)
}

// unwatch undoes watch. It returns false if the link was aborted, or is being.
// Only the first call counts.
func (a *Answer) unwatch() bool {
	switch {
	case a.ctx != nil:
		x := a.ctx
		a.ctx = nil
		return x.drop(a.link)
	case a.stop != nil:
		stop := a.stop
		a.stop = nil
		return stop()
	}
	return false
}
