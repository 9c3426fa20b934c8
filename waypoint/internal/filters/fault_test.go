package filters

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// askable lets clients ask for delays in full and for aborts of up to half of the requests.
func askable(t *testing.T) *Fault {
	t.Helper()
	f, err := compileFault(&faultv3.HTTPFault{
		Delay: &commonfault.FaultDelay{
			FaultDelaySecifier: &commonfault.FaultDelay_HeaderDelay_{HeaderDelay: &commonfault.FaultDelay_HeaderDelay{}}, Percentage: &typev3.FractionalPercent{Numerator: 100},
		},
		Abort: &faultv3.FaultAbort{
			ErrorType: &faultv3.FaultAbort_HeaderAbort_{HeaderAbort: &faultv3.FaultAbort_HeaderAbort{}}, Percentage: &typev3.FractionalPercent{Numerator: 5000, Denominator: typev3.FractionalPercent_TEN_THOUSAND},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFaultsThatClientsAskFor: only where the configuration lets them, and never more than its share.
func TestFaultsThatClientsAskFor(t *testing.T) {
	f := askable(t)
	for _, tc := range []struct {
		name    string
		headers []string
		draw    uint64 // of a million
		delay   time.Duration
		status  int // of the abort; 0 = none
		grpc    int
	}{
		{"nothing asked", nil, 0, 0, 0, 0},
		{"delay", []string{askDelay, "250"}, 0, 250 * time.Millisecond, 0, 0},
		{"no delay", []string{askDelay, "0"}, 0, 0, 0, 0},
		{"a delay that is no number", []string{askDelay, "soon"}, 0, 0, 0, 0},
		{"a delay of years", []string{askDelay, "4294967295"}, 0, longestAsked, 0, 0},
		{"a smaller share of delays, inside", []string{askDelay, "1", askDelayShare, "10"}, 99_999, time.Millisecond, 0, 0},
		{"a smaller share of delays, outside", []string{askDelay, "1", askDelayShare, "10"}, 100_000, 0, 0, 0},
		{"abort", []string{askAbort, "418"}, 0, 0, 418, -1},
		{"abort in gRPC", []string{askAbortGRPC, "14"}, 0, 0, 503, 14},
		{"both aborts", []string{askAbort, "418", askAbortGRPC, "14"}, 0, 0, 418, -1},
		{"a status that is none", []string{askAbort, "99"}, 0, 0, 0, 0},
		{"beyond the configured half", []string{askAbort, "418"}, 500_000, 0, 0, 0},
		{"more than the configured half", []string{askAbort, "418", askAbortShare, "10000"}, 500_000, 0, 0, 0},
		{"less than the configured half", []string{askAbort, "418", askAbortShare, "1"}, 100, 0, 0, 0},
		{"a share that is no number", []string{askAbort, "418", askAbortShare, "-1"}, 499_999, 0, 418, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := get()
			for i := 0; i < len(tc.headers); i += 2 {
				q.Header.Set(tc.headers[i], tc.headers[i+1])
			}
			p := f.Plan(q, func(uint64) uint64 { return tc.draw })
			if p.Delay != tc.delay {
				t.Errorf("delay %v, want %v", p.Delay, tc.delay)
			}
			switch {
			case tc.status == 0 && p.Abort != nil, tc.status != 0 && p.Abort == nil:
				t.Errorf("abort %+v", p.Abort)
			case p.Abort != nil && *p.Abort != (Abort{Status: tc.status, GRPC: tc.grpc}):
				t.Errorf("abort %+v", *p.Abort)
			}
		})
	}
	fixed, err := compileFault(&faultv3.HTTPFault{Abort: &faultv3.FaultAbort{ErrorType: &faultv3.FaultAbort_HttpStatus{HttpStatus: 503}}})
	if err != nil {
		t.Fatal(err)
	}
	q := get()
	q.Header.Set(askAbort, "418")
	q.Header.Set(askDelay, "1000")
	if p := fixed.Plan(q, func(uint64) uint64 { return 0 }); p != (FaultPlan{}) {
		t.Errorf("a client got what nobody lets it ask for: %+v", p)
	}
}

// TestFaultCounts: with a seed, the share of requests that a fault befalls is within five standard deviations of what is configured, for
// delays and aborts each on its own.
func TestFaultCounts(t *testing.T) {
	const n = 100_000
	for _, share := range []uint32{1, 10, 33, 50, 99} {
		f, err := compileFault(&faultv3.HTTPFault{
			Delay: &commonfault.FaultDelay{Percentage: &typev3.FractionalPercent{Numerator: share}, FaultDelaySecifier: &commonfault.FaultDelay_FixedDelay{FixedDelay: durationpb.New(time.Second)}},
			Abort: &faultv3.FaultAbort{Percentage: &typev3.FractionalPercent{Numerator: share}, ErrorType: &faultv3.FaultAbort_GrpcStatus{GrpcStatus: 14}},
		})
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(1, uint64(share)))
		delays, aborts, both := 0, 0, 0
		for range n {
			p := f.Plan(get(), rnd.Uint64N)
			if p.Delay > 0 {
				delays++
			}
			if p.Abort != nil {
				aborts++
			}
			if p.Delay > 0 && p.Abort != nil {
				both++
			}
		}
		p := float64(share) / 100
		for what, c := range map[string]struct {
			got int
			p   float64
		}{"delays": {delays, p}, "aborts": {aborts, p}, "both": {both, p * p}} {
			if off, limit := math.Abs(float64(c.got)-n*c.p), 5*math.Sqrt(n*c.p*(1-c.p)); off > limit {
				t.Errorf("%d%%: %s %d of %d, want %.0f ± %.0f", share, what, c.got, n, n*c.p, limit)
			}
		}
	}
}
