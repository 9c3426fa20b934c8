package filters

import (
	"net/http"
	"testing"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

func setHeader(name, value string) *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationv3.HeaderMutation{{
		Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}}
}

// TestMutate: a header is overwritten with facts of the outer connection; what else a format could say is refused.
func TestMutate(t *testing.T) {
	m, err := compileMutate(setHeader("x-forwarded-client-cert", "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%;%%"))
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []match.Request{
		{Principal: "spiffe://td/a", Local: "spiffe://td/w", Header: http.Header{"X-Forwarded-Client-Cert": {"forged", "twice"}}},
		{Local: "spiffe://td/w", Header: http.Header{}},
	} {
		m.Apply(&q)
		if got, want := q.Header["X-Forwarded-Client-Cert"], "By=spiffe://td/w;URI="+q.Principal+";%"; len(got) != 1 || got[0] != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, bad := range []*headermutationv3.HeaderMutation{
		setHeader("host", "x"), setHeader(":path", "/"), setHeader("content-length", "1"), setHeader("a", "%REQ(:path)%"), setHeader("a", "%FILTER_STATE(other:PLAIN)%"),
		setHeader("a", "%FILTER_STATE(io.istio.peer_principal)%"), setHeader("a", "100%"), setHeader("a", "b\r\nc: d"),
		{MostSpecificHeaderMutationsWins: true},
		{Mutations: &headermutationv3.Mutations{ResponseMutations: []*mutationv3.HeaderMutation{{}}}},
		{Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationv3.HeaderMutation{{}}}},
		{Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Remove{Remove: "host"}}}}},
	} {
		if _, err := compileMutate(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

func FuzzMutateValue(f *testing.F) {
	for _, s := range []string{"", "%", "%%", "%FILTER_STATE(io.istio.peer_principal:PLAIN)%", "a%FILTER_STATE(", "%%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		parts, err := compileHeaderText(v)
		for _, p := range parts {
			if err == nil && (p.text == "") == (p.state == "") {
				t.Errorf("%q: part %+v", v, p)
			}
		}
	})
}
