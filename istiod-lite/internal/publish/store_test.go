package publish

import (
	"fmt"
	"sort"
	"sync"
	"testing"

	"github.com/marrowmesh/marrow/internal/xds"
)

const (
	clusters = "type/cluster"
	routes   = "type/route"
)

func res(name, version string) xds.Resource { return xds.Resource{Name: name, Version: version} }

func TestSameVersionIsNoChange(t *testing.T) {
	s := New()
	sub := s.Subscribe("mesh")
	defer sub.Close()
	s.Publish(Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("a", "1")}})
	<-sub.Changed()
	sub.Take()
	if n := s.Publish(Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("a", "1")}, Removed: []string{"unknown"}}); n != 0 {
		t.Fatalf("publishing the same again changed %d names", n)
	}
	select {
	case <-sub.Changed():
		t.Fatal("an unchanged resource woke a subscriber")
	default:
	}
	if n := s.Publish(Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("b", "")}}, Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("b", "")}}); n != 2 {
		t.Fatalf("a resource without version counts as changed each time, got %d", n)
	}
}

func TestPendingNamesAreASet(t *testing.T) {
	s := New()
	sub := s.Subscribe("mesh")
	defer sub.Close()
	for i := range 1000 {
		s.Publish(Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("a", fmt.Sprint(i)), res("b", fmt.Sprint(i))}})
	}
	got := sub.Take()[clusters]
	sort.Strings(got)
	if len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Fatalf("pending names %v, want [a b]", got)
	}
	if r, ok := sub.Get(clusters, "a"); !ok || r.Version != "999" {
		t.Fatalf("present state is %+v, want version 999", r)
	}
	if len(sub.Take()) != 0 {
		t.Fatal("Take did not clear")
	}
}

func TestPublishIsAtomic(t *testing.T) {
	s := New()
	sub := s.Subscribe("mesh")
	defer sub.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 2000 {
			v := fmt.Sprint(i)
			s.Publish(Change{Scope: "mesh", URL: clusters, Updated: []xds.Resource{res("c", v)}}, Change{Scope: "mesh", URL: routes, Updated: []xds.Resource{res("r", v)}})
		}
	})
	for seen := range 200 {
		<-sub.Changed()
		names := sub.Take()
		if len(names) != 0 && (len(names[clusters]) != 1 || len(names[routes]) != 1) {
			t.Fatalf("half a batch seen: %v", names)
		}
		if seen > 20 && len(names) == 0 {
			break
		}
		if r, _ := sub.Get(routes, "r"); r.Version == "1999" {
			break
		}
	}
	wg.Wait()
}

func TestScopesAreApart(t *testing.T) {
	s := New()
	mine, other := s.Subscribe("waypoint/a/w", "secret/1"), s.Subscribe("waypoint/b/w")
	defer mine.Close()
	s.Publish(Change{Scope: "waypoint/a/w", URL: clusters, Updated: []xds.Resource{res("x", "1")}})
	s.Publish(Change{Scope: "secret/1", URL: routes, Updated: []xds.Resource{res("y", "1")}})
	if got := len(mine.List(clusters)) + len(mine.List(routes)); got != 2 {
		t.Fatalf("subscriber sees %d resources of its scopes, want 2", got)
	}
	if len(other.Take()) != 0 || len(other.List(clusters)) != 0 {
		t.Fatal("a scope leaked to another subscriber")
	}
	other.Close()
	if n := s.Replace("waypoint/a/w", clusters, []xds.Resource{res("z", "1")}); n != 2 {
		t.Fatalf("Replace changed %d names, want 2 (x removed, z added)", n)
	}
	if _, ok := mine.Get(clusters, "x"); ok {
		t.Fatal("x is still served after Replace")
	}
}
