package resilience

import (
	"sync"
	"time"
)

// budgetWindow is what a retry budget looks back at.
const budgetWindow = 10 * time.Second

// Budget bounds the retries of all calls to one target together. When a target
// fails for everybody, three attempts each would triple its load just when it
// can bear least; a share of the calls is all that retries ever add.
//
// It is safe for concurrent use.
type Budget struct {
	ratio float64
	floor float64

	mu     sync.Mutex // guards below
	window window     // calls, retries
}

// NewBudget returns a budget that nothing has been taken from.
func NewBudget(p BudgetPolicy) *Budget {
	b := &Budget{ratio: p.Ratio, floor: float64(p.Floor)}
	b.window.span(budgetWindow)
	return b
}

// Call notes one call, before its first attempt. As a rule it takes no lock.
func (b *Budget) Call(now time.Time) {
	if b.window.tick(now) {
		return
	}
	b.mu.Lock()
	b.window.add(now, counts{1})
	b.mu.Unlock()
}

// Take says whether one more attempt may be made, and takes it. An attempt of
// which nothing was sent costs the target nothing and needs no budget.
func (b *Budget) Take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window.roll(now)
	if float64(b.window.sum[1])+1 > b.ratio*float64(b.window.sum[0])+b.floor {
		return false
	}
	b.window.add(now, counts{0, 1})
	return true
}

// Spent returns the calls of the last ten seconds, and their retries.
func (b *Budget) Spent(now time.Time) (calls, retries int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window.roll(now)
	return int(b.window.sum[0]), int(b.window.sum[1])
}
