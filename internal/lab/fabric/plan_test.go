package fabric

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	p, err := PlanNode(12, "node-12")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		p.Fabric4.String(): "172.30.12.1/30", p.Node4.String(): "172.30.12.2/30",
		p.Fabric6.String(): "fd00:172:30:12::1/64", p.Node6.String(): "fd00:172:30:12::2/64",
		p.Pods4.String(): "10.244.12.0/24", p.Pods6.String(): "fd00:10:244:12::/64",
		p.Pod4(120).String(): "10.244.12.120", p.Pod6(120).String(): "fd00:10:244:12::120",
		p.Gateway4().String(): "10.244.12.1", p.Gateway6().String(): "fd00:10:244:12::1", p.Link: "n12",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for _, index := range []int{0, -1, 255} {
		if _, err := PlanNode(index, "n"); err == nil {
			t.Errorf("node number %d is accepted", index)
		}
	}
}

// TestPlanProperties: every address of a lab belongs to one thing, and no host
// number is given out twice, nor again before all others were.
func TestPlanProperties(t *testing.T) {
	owner := map[netip.Addr]string{DNS4(): "dns", DNS6(): "dns"}
	own := func(a netip.Addr, who string) {
		if first, ok := owner[a]; ok {
			t.Fatalf("%v belongs to %s and %s", a, first, who)
		}
		owner[a] = who
		if ServiceCIDR4().Contains(a) || ServiceCIDR6().Contains(a) {
			t.Fatalf("%v of %s is in a Service range", a, who)
		}
	}
	for index := 1; index <= maxNodes; index++ {
		p, err := PlanNode(index, "n")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Addr{p.Fabric4.Addr(), p.Fabric6.Addr(), p.Node4.Addr(), p.Node6.Addr()} {
			own(a, p.Link)
		}
		for n := 1; n <= lastPod; n++ {
			if !p.Pods4.Contains(p.Pod4(n)) || !p.Pods6.Contains(p.Pod6(n)) {
				t.Fatalf("pod %d of node %d is outside its node's range", n, index)
			}
			own(p.Pod4(n), p.Link)
			own(p.Pod6(n), p.Link)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var (
			n     numbers
			taken []int
			used  = map[int]bool{}
			last  = 0
		)
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				got, ok := n.take()
				if ok != (len(taken) < lastPod-firstPod+1) || ok && (used[got] || got < firstPod || got > lastPod) {
					t.Fatalf("got %d, %v with %d taken", got, ok, len(taken))
				}
				if ok {
					if got == last {
						t.Fatalf("%d was given again at once", got)
					}
					last = got
					used[got] = true
					taken = append(taken, got)
				}
			},
			"free": func(t *rapid.T) {
				if len(taken) == 0 {
					t.Skip("none taken")
				}
				i := rapid.IntRange(0, len(taken)-1).Draw(t, "which")
				n.free(taken[i])
				delete(used, taken[i])
				taken = append(taken[:i], taken[i+1:]...)
			},
		})
	})
}
