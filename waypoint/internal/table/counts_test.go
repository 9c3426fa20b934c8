package table

import (
	"math"
	"math/rand/v2"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestShareCounts: with a seed, weighted clusters and mirrors get their shares within five standard deviations.
func TestShareCounts(t *testing.T) {
	const n = 100_000
	weights := map[string]uint32{"a": 1, "b": 9, "c": 90}
	wc := &routev3.WeightedCluster{}
	for _, name := range []string{"a", "b", "c"} {
		wc.Clusters = append(wc.GetClusters(), &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: wrapperspb.UInt32(weights[name])})
	}
	action, err := compileForward(&routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: wc},
		RequestMirrorPolicies: []*routev3.RouteAction_RequestMirrorPolicy{{Cluster: "m", RuntimeFraction: &corev3.RuntimeFractionalPercent{
			DefaultValue: &typev3.FractionalPercent{Numerator: 2500, Denominator: typev3.FractionalPercent_TEN_THOUSAND},
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := action.(*Forward)
	rnd := rand.New(rand.NewPCG(7, 7))
	got := map[string]int{}
	for range n {
		got[f.Pick(rnd.Uint64N).Cluster]++
		if f.Mirrors[0].Share.Hit(rnd.Uint64N) {
			got["m"]++
		}
	}
	for name, p := range map[string]float64{"a": 0.01, "b": 0.09, "c": 0.9, "m": 0.25} {
		if off, limit := math.Abs(float64(got[name])-n*p), 5*math.Sqrt(n*p*(1-p)); off > limit {
			t.Errorf("%s got %d of %d, want %.0f ± %.0f", name, got[name], n, n*p, limit)
		}
	}
}
