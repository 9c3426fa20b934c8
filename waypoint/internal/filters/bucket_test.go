package filters

import (
	"math/big"
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

func TestBucketArithmetic(t *testing.T) {
	start := time.Unix(1000, 0)
	ten := Bucket{Max: 10, Fill: 10, Every: time.Second}
	third := Bucket{Max: 2, Fill: 3, Every: time.Second}
	day := Bucket{Max: 1<<32 - 1, Fill: 1<<32 - 1, Every: 24 * time.Hour}
	for _, tc := range []struct {
		name   string
		bucket Bucket
		after  []time.Duration // moments of the takes
		want   []bool
		left   uint64
		next   time.Duration
	}{
		{"ten at once", ten, make([]time.Duration, 11), []bool{true, true, true, true, true, true, true, true, true, true, false}, 0, 100 * time.Millisecond},
		{"one drips in", ten, append(make([]time.Duration, 10), 99999999, 100*time.Millisecond, 199*time.Millisecond), []bool{
			true, true, true, true, true, true, true, true, true, true, false, true, false,
		}, 0, time.Millisecond},
		{"never above its size", ten, []time.Duration{0, time.Hour}, []bool{true, true}, 9, 0},
		{"thirds do not get lost", third, []time.Duration{0, 0, 333333333, 333333334, 666666666, 666666667, time.Second}, []bool{true, true, false, true, false, true, true}, 0, 333333334},
		{"a clock that goes back", ten, []time.Duration{time.Second, 0}, []bool{true, true}, 8, 0},
		{"a large bucket over a day", day, []time.Duration{0, 0, 48 * time.Hour}, []bool{true, true, true}, 1<<32 - 2, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := tc.bucket.Full(start)
			for i, d := range tc.after {
				var ok bool
				if l, ok = tc.bucket.Take(l, start.Add(d)); ok != tc.want[i] {
					t.Fatalf("take %d at %v: %v", i, d, ok)
				}
			}
			if l.Tokens != tc.left || tc.bucket.Next(l) != tc.next {
				t.Errorf("left %d, next %v; want %d, %v", l.Tokens, tc.bucket.Next(l), tc.left, tc.next)
			}
		})
	}
}

func anyBucket(t *rapid.T) Bucket {
	return Bucket{
		Max: rapid.Uint64Range(1, 1<<32-1).Draw(t, "max"), Fill: rapid.Uint64Range(1, 1<<32-1).Draw(t, "fill"),
		Every: time.Duration(rapid.Int64Range(int64(shortestFill), int64(48*time.Hour)).Draw(t, "every")),
	}
}

// TestNeverMoreThanAllowed: in no window does more pass than the bucket's size and what drips in, and what is refused is due to that.
func TestNeverMoreThanAllowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := anyBucket(t)
		b.Max = b.Max%50 + 1
		start := time.Unix(0, 0)
		l, now, passed := b.Full(start), start, int64(0)
		for range rapid.IntRange(1, 200).Draw(t, "takes") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(b.Every)).Draw(t, "pause")))
			var ok bool
			if l, ok = b.Take(l, now); ok {
				passed++
			}
			// passed <= max + fill * elapsed / every, in whole numbers
			limit := new(big.Int).Mul(new(big.Int).SetUint64(b.Fill), big.NewInt(now.Sub(start).Nanoseconds()))
			limit.Div(limit, big.NewInt(int64(b.Every)))
			limit.Add(limit, new(big.Int).SetUint64(b.Max))
			if big.NewInt(passed).Cmp(limit) > 0 {
				t.Fatalf("%d passed %+v after %v", passed, b, now.Sub(start))
			}
			if !ok {
				// At the moment that Next names, and not before, there is a token.
				due := now.Add(b.Next(l))
				if _, ok := b.Take(l, due); !ok {
					t.Fatalf("no token at the moment that was promised, %+v %+v", b, l)
				}
				if b.Next(l) > 1 {
					if _, ok := b.Take(l, due.Add(-1)); ok {
						t.Fatalf("a token before the moment that was promised, %+v %+v", b, l)
					}
				}
			}
		}
		// Left alone for its time, it is full again.
		if d := b.Refill(); d < 1<<62 {
			if again, _ := b.Take(l, now.Add(d)); again.Tokens != b.Max-1 {
				t.Fatalf("%+v holds %d after %v", b, again.Tokens+1, d)
			}
		}
	})
}

// TestSplitTimeIsTheSame: looking at a bucket more often gives and takes nothing.
func TestSplitTimeIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := anyBucket(t)
		empty := Level{at: time.Unix(0, 0)}
		a := empty
		total := time.Duration(0)
		for range rapid.IntRange(1, 50).Draw(t, "looks") {
			total += time.Duration(rapid.Int64Range(0, int64(b.Every)/16).Draw(t, "step"))
			a = b.refill(a, empty.at.Add(total))
		}
		if once := b.refill(empty, empty.at.Add(total)); once.Tokens != a.Tokens || once.part != a.part {
			t.Fatalf("%+v after %v: once %+v, in steps %+v", b, total, once, a)
		}
	})
}

func TestBucketsThatAreRefused(t *testing.T) {
	good := func() *typev3.TokenBucket {
		return &typev3.TokenBucket{MaxTokens: 1, TokensPerFill: wrapperspb.UInt32(1), FillInterval: durationpb.New(time.Second)}
	}
	for name, change := range map[string]func(*typev3.TokenBucket){
		"no tokens": func(b *typev3.TokenBucket) { b.MaxTokens = 0 },
		"no fill":   func(b *typev3.TokenBucket) { b.TokensPerFill = wrapperspb.UInt32(0) },
		"too fast":  func(b *typev3.TokenBucket) { b.FillInterval = durationpb.New(49 * time.Millisecond) },
		"no time":   func(b *typev3.TokenBucket) { b.FillInterval = nil },
	} {
		b := good()
		change(b)
		if _, err := compileBucket(b); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if b, err := compileBucket(good()); err != nil || b != (Bucket{Max: 1, Fill: 1, Every: time.Second}) {
		t.Errorf("%+v %v", b, err)
	}
	if !(Bucket{Fill: 1, Every: time.Hour}).slower(Bucket{Fill: 1, Every: time.Minute}) || (Bucket{Fill: 60, Every: time.Hour}).slower(Bucket{Fill: 1, Every: time.Minute}) {
		t.Error("the order of buckets is wrong")
	}
}
