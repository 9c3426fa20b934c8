package certs

import "time"

const (
	backoffFirst  = time.Second
	backoffMax    = 150 * time.Second
	backoffBudget = 15 * time.Minute
	backoffJitter = 0.2
)

// backoff is the row of waits after failures of one identity: doubling with
// jitter, and once the waits add up to the budget, constant.
type backoff struct {
	step  time.Duration
	spent time.Duration
}

func (b *backoff) next(random func() float64) time.Duration {
	if b.spent >= backoffBudget {
		return backoffMax
	}
	if b.step == 0 {
		b.step = backoffFirst
	} else {
		b.step = min(2*b.step, backoffMax)
	}
	wait := b.step
	if random != nil {
		wait += time.Duration((2*random() - 1) * backoffJitter * float64(wait))
	}
	b.spent += wait
	return wait
}
