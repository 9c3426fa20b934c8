package account

import (
	"crypto/sha256"
	"slices"
	"time"
)

// Calibrator times a fixed piece of work. How much longer than ever before it
// takes says how disturbed the machine is, whoever disturbs it.
type Calibrator struct {
	fastest time.Duration
	data    []byte
}

// NewCalibrator measures once, so that the first answer is not 1 by definition.
func NewCalibrator() *Calibrator {
	c := &Calibrator{data: make([]byte, 64<<10)}
	for range 5 {
		c.Ratio()
	}
	return c
}

// Ratio does the work, some ten milliseconds, and answers its time divided by
// the fastest so far. The median of five parts keeps one interrupt from
// looking like a bad machine.
func (c *Calibrator) Ratio() float64 {
	var parts []time.Duration
	for range 5 {
		began := time.Now()
		for range 30 {
			sum := sha256.Sum256(c.data)
			copy(c.data, sum[:])
		}
		parts = append(parts, time.Since(began))
	}
	slices.Sort(parts)
	if c.fastest == 0 || parts[2] < c.fastest {
		c.fastest = parts[2]
	}
	return float64(parts[2]) / float64(c.fastest)
}
