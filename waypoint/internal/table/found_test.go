package table

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// TestRoutesByFacts: a route may depend on what filters found out about a request; what nobody found out matches nothing, and what cannot be
// understood is refused.
func TestRoutesByFacts(t *testing.T) {
	compile := func(text string) (condition, error) {
		m := &routev3.RouteMatch{}
		if err := prototext.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		return compileCondition(m)
	}
	const admin = `prefix: "/" dynamic_metadata {filter: "jwt" path {key: "group"} value {string_match {exact: "admin"}} `
	found := func(group string) *match.Request {
		s, err := structpb.NewStruct(map[string]any{"group": group})
		if err != nil {
			t.Fatal(err)
		}
		return &match.Request{Path: "/", Metadata: map[string]*structpb.Struct{"jwt": s}}
	}
	nothing := &match.Request{Path: "/"}
	for _, c := range []struct {
		text             string
		admin, user, all bool
	}{{admin + "}", true, false, false}, {admin + "invert: true}", false, true, true}} {
		when, err := compile(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if a, u, n := when.match(found("admin"), nil), when.match(found("user"), nil), when.match(nothing, nil); a != c.admin || u != c.user || n != c.all {
			t.Errorf("%s: admin %v, user %v, nobody %v", c.text, a, u, n)
		}
	}
	for _, text := range []string{`prefix: "/" dynamic_metadata {filter: "jwt"}`, `prefix: "/" dynamic_metadata {path {key: "a"} value {present_match: true}}`} {
		if _, err := compile(text); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
