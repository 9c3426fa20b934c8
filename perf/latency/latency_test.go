package latency_test

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/perf/latency"
)

func durations() *rapid.Generator[time.Duration] {
	return rapid.Custom(func(t *rapid.T) time.Duration {
		// Spread over the magnitudes, not over the values.
		bits := rapid.IntRange(0, 41).Draw(t, "bits")
		return time.Duration(rapid.Int64Range(0, 1<<bits).Draw(t, "value"))
	})
}

func TestQuantileError(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(durations(), 1, 200).Draw(t, "values")
		var h latency.Histogram
		for _, v := range values {
			h.Record(v)
		}
		slices.Sort(values)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 1} {
			rank := max(int(math.Ceil(q*float64(len(values)))), 1)
			want := values[rank-1]
			got := h.Quantile(q)
			if got < want || float64(got) > float64(want)*(1+1.0/128) {
				t.Fatalf("quantile %v of %v is %d, the histogram says %d", q, values, want, got)
			}
		}
		if h.Max() != values[len(values)-1] || h.Count() != uint64(len(values)) {
			t.Fatalf("max %d, count %d", h.Max(), h.Count())
		}
	})
}

func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOf(durations()).Draw(t, "a")
		b := rapid.SliceOf(durations()).Draw(t, "b")
		var one, two, all latency.Histogram
		for _, v := range a {
			one.Record(v)
			all.Record(v)
		}
		for _, v := range b {
			two.Record(v)
			all.Record(v)
		}
		raw, err := json.Marshal(&two)
		if err != nil {
			t.Fatal(err)
		}
		var back latency.Histogram
		if err := json.Unmarshal(raw, &back); err != nil {
			t.Fatal(err)
		}
		one.Merge(&back)
		if one.Count() != all.Count() || one.Max() != all.Max() || math.Abs(float64(one.Mean()-all.Mean())) > 1 {
			t.Fatalf("merged: %d %v %v, all in one: %d %v %v", one.Count(), one.Max(), one.Mean(), all.Count(), all.Max(), all.Mean())
		}
		for _, q := range []float64{0, 0.3, 0.5, 0.99, 1} {
			if one.Quantile(q) != all.Quantile(q) {
				t.Fatalf("quantile %v differs", q)
			}
		}
	})
}

func TestEdges(t *testing.T) {
	var h latency.Histogram
	if h.Quantile(0.5) != 0 || h.Mean() != 0 {
		t.Error("an empty histogram has values")
	}
	h.Record(-time.Second)
	h.Record(100 * time.Hour)
	if h.Quantile(0) != 0 || h.Max() != time.Hour {
		t.Errorf("%v %v", h.Quantile(0), h.Max())
	}
	var last time.Duration = -1
	h.Each(func(upTo time.Duration, n uint64) {
		if upTo <= last || n != 1 {
			t.Errorf("bucket %v after %v holds %d", upTo, last, n)
		}
		last = upTo
	})
	if err := json.Unmarshal([]byte(`{"counts":[[99999,1]]}`), &h); err == nil {
		t.Error("a bucket that does not exist is taken")
	}
}
