package inbound

import (
	"net/netip"
	"testing"
	"time"
)

func TestPenalties(t *testing.T) {
	var p penalties
	peer := offender{"a", netip.MustParseAddr("10.0.0.1")}
	others := []offender{{"a", netip.MustParseAddr("10.0.0.2")}, {"b", peer.peer}}
	now := time.Unix(1000, 0)
	out := func(a offender) time.Duration {
		if r, _ := p.check(now, a); r != nil {
			return r.For
		}
		return 0
	}
	if d := p.note(now, peer); d != 0 || out(peer) != 0 {
		t.Fatalf("kept out for %v after the first deed", d)
	}
	for i, seconds := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
		want := time.Duration(seconds) * time.Second
		if d := p.note(now, peer); d != want || out(peer) != want {
			t.Errorf("deed %d: kept out for %v and %v, want %v", i+2, d, out(peer), want)
		}
		for _, other := range others {
			if d := out(other); d != 0 {
				t.Errorf("%v is kept out for %v", other, d)
			}
		}
		now = now.Add(want - 1)
		if d := out(peer); d != 1 {
			t.Errorf("deed %d: %v left, want 1 ns", i+2, d)
		}
		now = now.Add(1)
		if d := out(peer); d != 0 {
			t.Errorf("deed %d: kept out for %v more", i+2, d)
		}
	}
	now = now.Add(penaltyMemory + 1)
	if d := p.note(now, peer); d != 0 {
		t.Errorf("kept out for %v by what was long ago", d)
	}
}

func TestFirstRefusalOfAPenalty(t *testing.T) {
	var p penalties
	peer, now := offender{"a", netip.MustParseAddr("10.0.0.1")}, time.Unix(1000, 0)
	for range 2 {
		p.note(now, peer)
		p.note(now, peer)
		for i := range 3 {
			if r, first := p.check(now, peer); r == nil || first != (i == 0) {
				t.Errorf("refusal %d: %v, first %v", i, r, first)
			}
		}
	}
}

func TestPenaltiesAreBounded(t *testing.T) {
	var p penalties
	now := time.Unix(1000, 0)
	a := offender{"a", netip.MustParseAddr("10.0.0.1")}
	first := a
	for range 3 * penaltyPeers {
		p.note(now, a)
		a.peer, now = a.peer.Next(), now.Add(time.Microsecond)
		if len(p.by) > penaltyPeers {
			t.Fatalf("%d peers are remembered", len(p.by))
		}
	}
	if p.by[first] != nil {
		t.Error("the oldest is remembered longest")
	}
}
