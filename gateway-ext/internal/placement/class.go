package placement

import (
	"slices"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// class is all functions that ask the same of a node, but for room: the same
// platforms and constraints. Most functions of a fleet are of a few classes, so
// that what is found out of a node for one of them is known for all.
type class struct {
	verdicts []verdictOf // by node
	full     []amount    // for whom no node had room in this round; it only gets less
	said     map[amount]string
}

// verdictOf is whether a node has what it must have, but for room.
type verdictOf uint8

const (
	unknown verdictOf = iota
	fit
	unfit
)

// maxClasses bounds what is remembered. Functions of further classes are looked at
// as if each were alone.
const maxClasses = 256

// maxFull bounds how many are remembered that found no room, none of whom asks for
// more of everything than another.
const maxFull = 8

// classOf returns a function's class. One that nodes have reasons of their own
// against is alone.
func (r *round) classOf(f *Function) *class {
	if len(f.Barred) > 0 {
		return r.apart()
	}
	r.key = r.key[:0]
	for _, p := range f.Platforms {
		r.key = append(append(r.key, p...), 0)
	}
	for i := range f.Constraints {
		c := &f.Constraints[i]
		op := byte('=')
		if c.not {
			op = '!'
		}
		if c.label {
			r.key = append(r.key, 'l')
		}
		r.key = append(append(append(append(append(r.key, op), c.key...), 1), c.value...), 1)
	}
	if c := r.classes[string(r.key)]; c != nil {
		return c
	}
	if len(r.classes) < maxClasses {
		c := &class{verdicts: make([]verdictOf, len(r.nodes))}
		r.classes[string(r.key)] = c
		return c
	}
	return r.apart()
}

// apart returns a class for one function.
func (r *round) apart() *class {
	if r.alone == nil {
		r.alone = &class{verdicts: make([]verdictOf, len(r.nodes))}
	}
	clear(r.alone.verdicts)
	r.alone.full, r.alone.said = r.alone.full[:0], nil
	return r.alone
}

// takes says whether a node has what it must have for a function of the class.
func (c *class) takes(node int, n *Node, f *Function) bool {
	v := &c.verdicts[node]
	if *v == unknown {
		if *v = fit; lacks(n, f) != (lack{}) {
			*v = unfit
		}
	}
	return *v == fit
}

// hopeless says that who asks for as much, or less, has found no room.
func (c *class) hopeless(asks amount) bool {
	return slices.ContainsFunc(c.full, func(a amount) bool { return a.memory <= asks.memory && a.cpu <= asks.cpu })
}

// despair notes that somebody who asks for so much has found no room.
func (c *class) despair(asks amount) {
	c.full = slices.DeleteFunc(c.full, func(a amount) bool { return a.memory >= asks.memory && a.cpu >= asks.cpu })
	if len(c.full) < maxFull {
		c.full = append(c.full, asks)
	}
}

// seed is a hash of a function's name (FNV-1a), with which lots are drawn between
// nodes that are equally good: others for each function, so that the first by
// name don't get all. It must be the same on every gateway and after every start,
// which [maphash] isn't.
type seed uint64

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func (h seed) with(s string) seed {
	for i := range len(s) {
		h = (h ^ seed(s[i])) * fnvPrime
	}
	return h
}

func seedOf(name faas.Name) seed {
	return seed(fnvOffset).with(name.Function).with(".").with(name.Namespace).with("\xff")
}

// start is the index of the node that is looked at first, of n.
func (h seed) start(n int) int { return int(uint64(h^h>>32) % uint64(max(n, 1))) }

// lot is what a node has drawn. The lowest wins.
func (h seed) lot(node string) uint64 {
	h = h.with(node)
	return uint64(h ^ h>>32)
}
