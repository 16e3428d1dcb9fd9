package balance

import "math/rand/v2"

// Pick returns the index of one of n candidates, or -1 if every one of them is
// to be skipped. It takes two at random and of these the one with the lower
// load: nearly as even as always taking the least loaded one, without all
// callers that look at the same moment running to the same place.
//
// skip is for candidates that failed this request before; nil skips none.
// Neither function is kept.
func Pick(n int, load func(i int) int64, skip func(i int) bool) int {
	if n <= 0 {
		return -1
	}
	i := rand.IntN(n)
	if n > 1 {
		// One of the n-1 others, each as likely.
		j := (i + 1 + rand.IntN(n-1)) % n
		if skip == nil || !skip(i) && !skip(j) {
			if load(j) < load(i) {
				return j
			}
			return i
		}
	}
	// Some are skipped, which is rare: look at all, from a random one on, so
	// that equals are equally likely to be the first.
	best := -1
	for k := range n {
		c := (i + k) % n
		if skip != nil && skip(c) {
			continue
		}
		if best < 0 || load(c) < load(best) {
			best = c
		}
	}
	return best
}
