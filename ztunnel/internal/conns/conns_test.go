package conns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/marrowmesh/marrow/internal/authz"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/ztunnel/internal/conns"
	"github.com/marrowmesh/marrow/ztunnel/internal/view"
)

// spy calls a function whenever the View is taken.
type spy struct {
	*view.Store
	onGet func()
}

func (s *spy) Get() *mesh.View {
	if s.onGet != nil {
		s.onGet()
	}
	return s.Store.Get()
}

func deny(name string, ports ...uint16) *mesh.Policy {
	return &mesh.Policy{
		Resource: "ns/" + name, Namespace: "ns", Name: name, Scope: mesh.PolicyNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{mesh.Clause{{DestinationPorts: ports}}}},
	}
}

func entry(port uint16, w *mesh.Workload) conns.Entry {
	dst := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port)
	src := netip.MustParseAddrPort("10.0.0.1:1")
	return conns.Entry{Pod: "pod", Direction: conns.Inbound, Src: src, Actual: dst, Workload: w, Facts: authz.Facts{Src: src, Dst: dst}}
}

var dest = &mesh.Workload{UID: "w", Name: "w", Namespace: "ns"}

// TestRegisterBeforeJudge: when the View for the verdict is taken, the connection is in the table,
// and a policy that arrives at that very moment reaches it.
func TestRegisterBeforeJudge(t *testing.T) {
	s := &spy{Store: view.New(obs.Discard())}
	table := conns.NewTable(s, obs.Discard(), false)
	asked := 0
	s.onGet = func() {
		asked++
		if table.Count() != 1 {
			t.Error("the View was taken before the connection was registered")
		}
	}
	live, err := table.Admit(t.Context(), entry(80, dest))
	if err != nil || asked != 1 {
		t.Fatalf("%v, View taken %d times", err, asked)
	}
	s.onGet = nil
	s.Apply(mesh.Batch{Policies: []*mesh.Policy{deny("d", 80)}})
	table.Rejudge(s.Get())
	if !errors.Is(live.Cut(), conns.ErrPolicyChange) {
		t.Fatalf("cut: %v", live.Cut())
	}
	live.Close()
	if _, err := table.Admit(t.Context(), entry(80, dest)); err == nil || table.Count() != 0 {
		t.Fatalf("refused: %v, %d left in the table", err, table.Count())
	}
}

// TestPolicyChangeCuts: after any changes of policies and of the workload's list, what is
// open is exactly what the present View allows. Changes may be judged one by one or several at once.
func TestPolicyChangeCuts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := view.New(obs.Discard())
		table := conns.NewTable(s, obs.Discard(), false)
		w := *dest
		s.Apply(mesh.Batch{Workloads: []*mesh.Workload{&w}})
		open := map[*conns.Live]uint16{}
		port := rapid.Uint16Range(1, 3)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"open", "open", "policy", "remove", "list", "judge", "close"}).Draw(t, "op") {
			case "open":
				p := port.Draw(t, "port")
				if live, err := table.Admit(context.Background(), entry(p, dest)); err == nil {
					open[live] = p
				}
			case "policy":
				p := deny(fmt.Sprint("p", port.Draw(t, "name")), port.Draw(t, "denied"))
				if rapid.Bool().Draw(t, "selector") {
					p.Scope = mesh.PolicySelector
				}
				s.Apply(mesh.Batch{Policies: []*mesh.Policy{p}})
			case "remove":
				s.Apply(mesh.Batch{RemovedPolicies: []string{fmt.Sprint("ns/p", port.Draw(t, "name"))}})
			case "list":
				next := w
				next.Policies = []string{fmt.Sprint("ns/p", port.Draw(t, "named"))}
				s.Apply(mesh.Batch{Workloads: []*mesh.Workload{&next}})
			case "judge":
				table.Rejudge(s.Get())
			case "close":
				for live := range open {
					live.Close()
					delete(open, live)
					break
				}
			}
		}
		table.Rejudge(s.Get())
		v := s.Get()
		for live, p := range open {
			allowed := authz.Judge(v, v.WorkloadByUID("w"), entry(p, dest).Facts, nil).Allowed
			if !allowed && live.Cut() == nil {
				t.Fatalf("a connection to port %d stays open against policy", p)
			}
			live.Close()
		}
		if table.Count() != 0 {
			t.Fatalf("%d entries left", table.Count())
		}
	})
}

func TestRunFollowsChanges(t *testing.T) {
	s := view.New(obs.Discard())
	table := conns.NewTable(s, obs.Discard(), false)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = table.Run(ctx) })
	live, err := table.Admit(t.Context(), entry(80, dest))
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(mesh.Batch{Policies: []*mesh.Policy{deny("d", 80)}})
	<-live.Context().Done()
	if !errors.Is(live.Cut(), conns.ErrPolicyChange) {
		t.Fatal(live.Cut())
	}
	live.Close()
	cancel()
	wg.Wait()
}

func TestListAndCut(t *testing.T) {
	s := view.New(obs.Discard())
	table := conns.NewTable(s, obs.Discard(), false)
	b, _ := table.Admit(t.Context(), entry(81, dest))
	a, _ := table.Admit(t.Context(), entry(80, dest))
	out := entry(1, nil)
	out.Direction = conns.Outbound
	o := table.Register(t.Context(), out)
	other := entry(9, dest)
	other.Pod = "other"
	x, _ := table.Admit(t.Context(), other)
	if got := table.List("pod", conns.Inbound); len(got) != 2 || got[0].Actual.Port() != 80 {
		t.Errorf("inbound %+v", got)
	}
	if got := table.List("pod", conns.Outbound); len(got) != 1 {
		t.Errorf("outbound %+v", got)
	}
	why := errors.New("why")
	table.CutPod("pod", why)
	for _, l := range []*conns.Live{a, b, o} {
		if !errors.Is(l.Cut(), why) {
			t.Errorf("cut: %v", l.Cut())
		}
		l.Close()
		l.Close()
	}
	if x.Cut() != nil {
		t.Error("another pod's connection was cut")
	}
	x.Close()
}
