package latency

import (
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"time"
)

const (
	subBits = 7 // buckets per power of two: 1<<subBits
	sub     = 1 << subBits
	// longest is what is kept of anything longer.
	longest = time.Hour
)

// Histogram counts durations. The zero value is empty. It is not safe for
// concurrent use: each worker has its own, merged in the end.
type Histogram struct {
	counts []uint64
	n      uint64
	sum    float64
	max    time.Duration
}

// index of the bucket: values below 2*sub have one each.
func index(v uint64) int {
	if v < 2*sub {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift<<subBits + int(v>>shift)
}

// top is the largest value of a bucket.
func top(i int) uint64 {
	if i < 2*sub {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i-shift<<subBits)+1)<<shift - 1
}

// Record counts one duration. A negative one counts as zero.
func (h *Histogram) Record(d time.Duration) {
	d = min(max(d, 0), longest)
	i := index(uint64(d))
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint64, i+1-len(h.counts))...)
	}
	h.counts[i]++
	h.n++
	h.sum += float64(d)
	h.max = max(h.max, d)
}

// Merge adds all of o.
func (h *Histogram) Merge(o *Histogram) {
	if len(o.counts) > len(h.counts) {
		h.counts = append(h.counts, make([]uint64, len(o.counts)-len(h.counts))...)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Count is how many durations there are.
func (h *Histogram) Count() uint64 { return h.n }

// Max is the longest of them, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is their mean, exactly.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return time.Duration(h.sum / float64(h.n))
}

// Quantile is the smallest bucket bound that a part q of all durations does
// not exceed: 0.5 is the median. An empty histogram answers 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := uint64(math.Ceil(min(max(q, 0), 1) * float64(h.n)))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= max(want, 1) {
			return min(time.Duration(top(i)), h.max)
		}
	}
	return h.max
}

// Each calls fn for every bucket that is not empty, in ascending order.
func (h *Histogram) Each(fn func(upTo time.Duration, n uint64)) {
	for i, n := range h.counts {
		if n > 0 {
			fn(time.Duration(top(i)), n)
		}
	}
}

type wire struct {
	Sum    float64     `json:"sum_ns"`
	Max    int64       `json:"max_ns"`
	Counts [][2]uint64 `json:"counts"` // bucket, count
}

// MarshalJSON writes the buckets that are not empty.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	w := wire{Sum: h.sum, Max: int64(h.max), Counts: [][2]uint64{}}
	for i, n := range h.counts {
		if n > 0 {
			w.Counts = append(w.Counts, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*h = Histogram{sum: w.Sum, max: time.Duration(w.Max)}
	limit := uint64(index(uint64(longest)))
	for _, c := range w.Counts {
		if c[0] > limit {
			return fmt.Errorf("histogram: bucket %d: there are %d", c[0], limit+1)
		}
		if int(c[0]) >= len(h.counts) {
			h.counts = append(h.counts, make([]uint64, int(c[0])+1-len(h.counts))...)
		}
		h.counts[c[0]] += c[1]
		h.n += c[1]
	}
	return nil
}
