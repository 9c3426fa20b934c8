package waypoint

import (
	"testing"

	networkingapi "istio.io/api/networking/v1alpha3"
)

func exactly(s string) *networkingapi.StringMatch {
	return &networkingapi.StringMatch{MatchType: &networkingapi.StringMatch_Exact{Exact: s}}
}

func starting(s string) *networkingapi.StringMatch {
	return &networkingapi.StringMatch{MatchType: &networkingapi.StringMatch_Prefix{Prefix: s}}
}

func like(s string) *networkingapi.StringMatch {
	return &networkingapi.StringMatch{MatchType: &networkingapi.StringMatch_Regex{Regex: s}}
}

func TestDelegatedMatchesLieWithin(t *testing.T) {
	for _, tc := range []struct {
		root, leaf *networkingapi.StringMatch
		inside     bool
	}{
		{nil, exactly("/a"), true},
		{exactly("/a"), nil, true},
		{exactly("/a"), exactly("/a"), true},
		{exactly("/a"), exactly("/b"), false},
		{exactly("/a"), starting("/a"), false},
		{starting("/a"), exactly("/a/b"), true},
		{starting("/a"), starting("/a/b"), true},
		{starting("/a/b"), starting("/a"), false},
		{starting("/a"), like("/a.*"), false},
		{like("/a.*"), exactly("/a"), false},
		{like("/a.*"), like("/a.*"), true},
	} {
		got, err := mergeMatches([]*networkingapi.HTTPMatchRequest{{Uri: tc.root}}, []*networkingapi.HTTPMatchRequest{{Uri: tc.leaf}})
		if (err == nil) != tc.inside {
			t.Errorf("%v in %v: got %v, %v", tc.leaf, tc.root, got, err)
		}
	}
	for name, pair := range map[string][2]*networkingapi.HTTPMatchRequest{
		"port":      {{Port: 80}, {Port: 81}},
		"gateways":  {{Gateways: []string{"mesh"}}, {Gateways: []string{"other"}}},
		"header":    {{Headers: map[string]*networkingapi.StringMatch{"a": exactly("1")}}, {Headers: map[string]*networkingapi.StringMatch{"a": exactly("2")}}},
		"query":     {{QueryParams: map[string]*networkingapi.StringMatch{"a": starting("1")}}, {QueryParams: map[string]*networkingapi.StringMatch{"a": exactly("2")}}},
		"case":      {{Uri: starting("/a"), IgnoreUriCase: true}, {Uri: starting("/a")}},
		"namespace": {{SourceNamespace: "a"}, {SourceNamespace: "b"}},
		"labels":    {{SourceLabels: map[string]string{"a": "1"}}, {SourceLabels: map[string]string{"a": "2"}}},
		"method":    {{Method: exactly("GET")}, {Method: exactly("PUT")}},
	} {
		if !contradict(pair[0], pair[1]) {
			t.Errorf("%s: no contradiction seen", name)
		}
		if contradict(pair[0], pair[0]) {
			t.Errorf("%s: a match contradicts itself", name)
		}
	}
}

func TestDelegateKeepsWhatItSays(t *testing.T) {
	root := &networkingapi.HTTPRoute{
		Name: "r", Rewrite: &networkingapi.HTTPRewrite{Uri: "/root"}, Fault: &networkingapi.HTTPFaultInjection{},
		Mirror: &networkingapi.Destination{Host: "root.shop"}, CorsPolicy: &networkingapi.CorsPolicy{AllowMethods: []string{"GET"}},
		Retries: &networkingapi.HTTPRetry{Attempts: 7}, Headers: &networkingapi.Headers{},
	}
	got, err := mergeRules(root, &networkingapi.HTTPRoute{
		Rewrite: &networkingapi.HTTPRewrite{Uri: "/leaf"}, Mirrors: []*networkingapi.HTTPMirrorPolicy{{Destination: &networkingapi.Destination{Host: "leaf.shop"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetName() != "r" || got.GetRewrite().GetUri() != "/leaf" || got.GetMirror() != nil || len(got.GetMirrors()) != 1 ||
		got.GetRetries().GetAttempts() != 7 || got.GetCorsPolicy() == nil || got.GetFault() == nil || got.GetHeaders() == nil {
		t.Errorf("got %v", got)
	}
}
