package upstream

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Balancer chooses among usable endpoints.
type Balancer struct {
	Policy     Policy
	Choices    int           // of least request: how many draws the least loaded is the best of
	Bias       float64       // of least request: how much open requests count against a heavier endpoint
	MinRing    uint64        // of the ring
	MaxRing    uint64        // of the ring
	Table      uint64        // of Maglev, a prime
	Warmup     time.Duration // of an endpoint; 0 = none
	Aggression float64       // of the warm-up: 1 = a straight line
	MinWeight  float64       // share of its weight that a fresh endpoint has
	Localities bool          // localities share by their own weights
}

// Policy is a balancer's kind.
type Policy uint8

// The policies.
const (
	LeastRequest Policy = iota
	RoundRobin
	Random
	RingHash
	Maglev
)

// Defaults and bounds, as in Envoy.
const (
	defaultMinRing = 1024
	maxRing        = 8 << 20
	defaultTable   = 65537
	maxTable       = 5_000_011
	maxChoices     = 64
)

func (c *Config) compileBalancer(p *clusterv3.Cluster) error {
	b := Balancer{Choices: 2, Bias: 1, MinRing: defaultMinRing, MaxRing: maxRing, Table: defaultTable, Aggression: 1, MinWeight: 0.1}
	var err error
	switch p.GetLbPolicy() {
	case clusterv3.Cluster_LEAST_REQUEST:
		err = b.leastRequest(p.GetLeastRequestLbConfig())
	case clusterv3.Cluster_ROUND_ROBIN:
		b.Policy = RoundRobin
		o := p.GetRoundRobinLbConfig()
		if err = strict.Only(o, "slow_start_config"); err == nil {
			err = b.slowStart(o.GetSlowStartConfig())
		}
	case clusterv3.Cluster_RANDOM:
		b.Policy = Random
	case clusterv3.Cluster_RING_HASH:
		err = b.ring(p.GetRingHashLbConfig())
	case clusterv3.Cluster_MAGLEV:
		b.Policy = Maglev
		if t := p.GetMaglevLbConfig().GetTableSize(); t != nil {
			b.Table = t.GetValue()
		}
		if b.Table < 2 || b.Table > maxTable || !prime(b.Table) {
			err = fmt.Errorf("maglev_lb_config.table_size %d is no prime below %d", b.Table, maxTable+1)
		}
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if c.Kind != KindDialled {
			err = fmt.Errorf("lb_policy CLUSTER_PROVIDED for a cluster of type %v: %w", p.GetType(), strict.ErrUnsupported)
		}
	default:
		err = fmt.Errorf("lb_policy %v: %w", p.GetLbPolicy(), strict.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	common := p.GetCommonLbConfig()
	if err := strict.Only(common, "healthy_panic_threshold", "locality_weighted_lb_config", "update_merge_window",
		"close_connections_on_host_set_change"); err != nil {
		return fmt.Errorf("common_lb_config: %w", err)
	}
	if t := common.GetHealthyPanicThreshold(); t != nil {
		c.Panic = t.GetValue()
	}
	b.Localities = common.GetLocalityWeightedLbConfig() != nil
	c.Balancer = b
	return nil
}

func (b *Balancer) leastRequest(p *clusterv3.Cluster_LeastRequestLbConfig) error {
	if err := strict.Only(p, "choice_count", "active_request_bias", "slow_start_config"); err != nil {
		return err
	}
	if n := p.GetChoiceCount(); n != nil {
		b.Choices = int(min(max(n.GetValue(), 2), maxChoices))
	}
	if v := p.GetActiveRequestBias(); v != nil {
		b.Bias = max(v.GetDefaultValue(), 0)
	}
	return b.slowStart(p.GetSlowStartConfig())
}

func (b *Balancer) ring(p *clusterv3.Cluster_RingHashLbConfig) error {
	b.Policy = RingHash
	if err := strict.Only(p, "minimum_ring_size", "maximum_ring_size", "hash_function"); err != nil {
		return err
	}
	if p.GetHashFunction() != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
		return fmt.Errorf("ring_hash_lb_config.hash_function %v: %w", p.GetHashFunction(), strict.ErrUnsupported)
	}
	if n := p.GetMinimumRingSize(); n != nil {
		b.MinRing = n.GetValue()
	}
	if n := p.GetMaximumRingSize(); n != nil {
		b.MaxRing = n.GetValue()
	}
	if b.MaxRing > maxRing || b.MinRing > b.MaxRing || b.MinRing == 0 {
		return fmt.Errorf("ring_hash_lb_config: sizes %d to %d: want 1 <= minimum <= maximum <= %d", b.MinRing, b.MaxRing, maxRing)
	}
	return nil
}

func (b *Balancer) slowStart(p *clusterv3.Cluster_SlowStartConfig) error {
	if p == nil {
		return nil
	}
	b.Warmup = max(p.GetSlowStartWindow().AsDuration(), 0)
	if a := p.GetAggression(); a != nil {
		b.Aggression = a.GetDefaultValue()
	}
	if b.Aggression <= 0 {
		return fmt.Errorf("slow_start_config.aggression %v is not positive", b.Aggression)
	}
	if m := p.GetMinWeightPercent(); m != nil {
		b.MinWeight = m.GetValue() / 100
	}
	return nil
}

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}
