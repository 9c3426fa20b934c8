package filters

import (
	"fmt"
	"math/bits"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Bucket says how many requests pass: Max at once, and Fill more in each Every, spread evenly over it.
type Bucket struct {
	Max   uint64
	Fill  uint64
	Every time.Duration
}

// Level is what a bucket holds at one moment. Its parts are whole numbers, so that no request is gained or lost by rounding.
type Level struct {
	Tokens uint64
	part   uint64    // of the next token, in units of 1/Every
	at     time.Time // when this was so
}

// Full is the level of a bucket that nobody has taken from.
func (b Bucket) Full(now time.Time) Level { return Level{Tokens: b.Max, at: now} }

// Take is the level after time went by and one token was taken; ok is false when there was none.
func (b Bucket) Take(l Level, now time.Time) (after Level, ok bool) {
	l = b.refill(l, now)
	if l.Tokens == 0 {
		return l, false
	}
	l.Tokens--
	return l, true
}

// refill adds what has dripped in since l. A clock that went back adds nothing.
func (b Bucket) refill(l Level, now time.Time) Level {
	passed := now.Sub(l.at)
	if passed <= 0 {
		return l
	}
	l.at = now
	if l.Tokens >= b.Max {
		return Level{Tokens: b.Max, at: now}
	}
	every := uint64(b.Every)
	hi, lo := bits.Mul64(uint64(passed), b.Fill)
	lo, carry := bits.Add64(lo, l.part, 0)
	hi += carry
	if hi >= every {
		return b.Full(now)
	}
	gained, rest := bits.Div64(hi, lo, every)
	if gained >= b.Max-l.Tokens {
		return b.Full(now)
	}
	l.Tokens, l.part = l.Tokens+gained, rest
	return l
}

// Next is how long it takes until l, as of its own moment, has a token; zero when it has one.
func (b Bucket) Next(l Level) time.Duration {
	if l.Tokens > 0 || b.Fill == 0 {
		return 0
	}
	missing := uint64(b.Every) - l.part
	return time.Duration((missing + b.Fill - 1) / b.Fill)
}

// Refill is the time in which an empty bucket becomes full; after that, one that nobody took from is as good as new.
func (b Bucket) Refill() time.Duration {
	if b.Fill == 0 {
		return b.Every
	}
	hi, lo := bits.Mul64(uint64(b.Every), b.Max)
	if hi >= b.Fill {
		return 1<<63 - 1
	}
	d, rest := bits.Div64(hi, lo, b.Fill)
	if rest > 0 {
		d++
	}
	return time.Duration(min(d, 1<<63-1))
}

// slower orders buckets by what they let through in the long run.
func (b Bucket) slower(than Bucket) bool {
	hi, lo := bits.Mul64(b.Fill, uint64(than.Every))
	hi2, lo2 := bits.Mul64(than.Fill, uint64(b.Every))
	return hi < hi2 || hi == hi2 && lo < lo2
}

// shortestFill is Envoy's lower bound of a bucket's interval.
const shortestFill = 50 * time.Millisecond

func compileBucket(p *typev3.TokenBucket) (Bucket, error) {
	if err := strict.Only(p, "max_tokens", "tokens_per_fill", "fill_interval"); err != nil {
		return Bucket{}, err
	}
	b := Bucket{Max: uint64(p.GetMaxTokens()), Fill: 1, Every: p.GetFillInterval().AsDuration()}
	if f := p.GetTokensPerFill(); f != nil {
		b.Fill = uint64(f.GetValue())
	}
	switch {
	case b.Max == 0:
		return b, fmt.Errorf("max_tokens is 0, want at least 1")
	case b.Fill == 0:
		return b, fmt.Errorf("tokens_per_fill is 0, want at least 1")
	case b.Every < shortestFill:
		return b, fmt.Errorf("fill_interval %v is shorter than %v", b.Every, shortestFill)
	}
	return b, nil
}
