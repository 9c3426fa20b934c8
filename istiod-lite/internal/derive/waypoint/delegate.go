package waypoint

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// httpRules are a VirtualService's rules with those of its delegates in their places. A delegate that is missing, not exported or in
// conflict takes its rule away and no other.
func (d *derivation) httpRules(v *networkingv1.VirtualService) []*networkingapi.HTTPRoute {
	var out []*networkingapi.HTTPRoute
	for i, rule := range v.Spec.GetHttp() {
		if rule.GetDelegate() == nil {
			out = append(out, rule)
			continue
		}
		rules, err := d.delegated(v, rule)
		if err != nil {
			d.report("VirtualService", v.Namespace, v.Name, reasonInvalid, fmt.Sprintf("http[%d].delegate: %v", i, err))
		}
		out = append(out, rules...)
	}
	return out
}

// delegated joins one rule with each of its delegate's.
func (d *derivation) delegated(root *networkingv1.VirtualService, rule *networkingapi.HTTPRoute) ([]*networkingapi.HTTPRoute, error) {
	if len(rule.GetRoute()) > 0 || rule.GetRedirect() != nil || rule.GetDirectResponse() != nil {
		return nil, fmt.Errorf("a rule that delegates cannot have route, redirect or directResponse")
	}
	name, namespace := rule.GetDelegate().GetName(), cmp.Or(rule.GetDelegate().GetNamespace(), root.Namespace)
	i := slices.IndexFunc(d.in.VirtualServices, func(v *networkingv1.VirtualService) bool {
		return v.Name == name && v.Namespace == namespace
	})
	if i < 0 {
		return nil, fmt.Errorf("VirtualService %s/%s does not exist", namespace, name)
	}
	leaf := d.in.VirtualServices[i]
	switch {
	case len(leaf.Spec.GetHosts()) > 0:
		return nil, fmt.Errorf("VirtualService %s/%s has hosts; a delegate has none", namespace, name)
	case !exported(leaf.Spec.GetExportTo(), namespace, root.Namespace):
		return nil, fmt.Errorf("VirtualService %s/%s is not exported to %s", namespace, name, root.Namespace)
	}
	var out []*networkingapi.HTTPRoute
	var problem error
	for n, sub := range leaf.Spec.GetHttp() {
		if sub.GetDelegate() != nil {
			problem = fmt.Errorf("%s/%s http[%d] delegates again; one level is possible", namespace, name, n)
			continue
		}
		merged, err := mergeRules(d.qualified(rule, root.Namespace), d.qualified(sub, namespace))
		if err != nil {
			problem = fmt.Errorf("%s/%s http[%d]: %w", namespace, name, n, err)
			continue
		}
		out = append(out, merged)
	}
	return out, problem
}

// qualified is a copy of a rule in which every destination is told by its whole name: the two rules may stand in two namespaces.
func (d *derivation) qualified(rule *networkingapi.HTTPRoute, namespace string) *networkingapi.HTTPRoute {
	out := proto.CloneOf(rule)
	full := func(dest *networkingapi.Destination) {
		if dest != nil {
			dest.Host = qualify(dest.GetHost(), namespace, d.in.Mesh)
		}
	}
	for _, r := range out.GetRoute() {
		full(r.GetDestination())
	}
	full(out.GetMirror())
	for _, m := range out.GetMirrors() {
		full(m.GetDestination())
	}
	return out
}

// mergeRules gives the delegate's rule what only the root's says; matches have to hold on both sides.
func mergeRules(root, leaf *networkingapi.HTTPRoute) (*networkingapi.HTTPRoute, error) {
	out := leaf
	var err error
	if out.Match, err = mergeMatches(root.GetMatch(), leaf.GetMatch()); err != nil {
		return nil, err
	}
	out.Name = strings.Trim(root.GetName()+"-"+leaf.GetName(), "-")
	if out.GetRewrite() == nil {
		out.Rewrite = root.GetRewrite()
	}
	if out.GetTimeout() == nil {
		out.Timeout = root.GetTimeout()
	}
	if out.GetRetries() == nil {
		out.Retries = root.GetRetries()
	}
	if out.GetFault() == nil {
		out.Fault = root.GetFault()
	}
	if out.GetMirror() == nil && len(out.GetMirrors()) == 0 {
		out.Mirror, out.MirrorPercentage, out.Mirrors = root.GetMirror(), root.GetMirrorPercentage(), root.GetMirrors()
	}
	if out.GetCorsPolicy() == nil {
		out.CorsPolicy = root.GetCorsPolicy()
	}
	if out.GetHeaders() == nil {
		out.Headers = root.GetHeaders()
	}
	return out, nil
}

func mergeMatches(roots, leaves []*networkingapi.HTTPMatchRequest) ([]*networkingapi.HTTPMatchRequest, error) {
	if len(roots) == 0 {
		return leaves, nil
	}
	if len(leaves) == 0 {
		return roots, nil
	}
	var out []*networkingapi.HTTPMatchRequest
	for i, leaf := range leaves {
		inside := false
		for _, root := range roots {
			if contradict(root, leaf) {
				continue
			}
			inside = true
			out = append(out, mergeMatch(root, leaf))
		}
		if !inside {
			return nil, fmt.Errorf("match[%d] lies within no match of the rule that delegates", i)
		}
	}
	return out, nil
}

// contradict says that a delegate's match is not within the root's.
func contradict(root, leaf *networkingapi.HTTPMatchRequest) bool {
	switch {
	case root.GetUri() != nil && leaf.GetUri() != nil && root.GetIgnoreUriCase() != leaf.GetIgnoreUriCase():
		return true
	case outside(root.GetUri(), leaf.GetUri()), outside(root.GetScheme(), leaf.GetScheme()), outside(root.GetMethod(), leaf.GetMethod()),
		outside(root.GetAuthority(), leaf.GetAuthority()):
		return true
	case root.GetPort() != 0 && leaf.GetPort() != 0 && root.GetPort() != leaf.GetPort():
		return true
	case root.GetSourceNamespace() != "" && leaf.GetSourceNamespace() != "" && root.GetSourceNamespace() != leaf.GetSourceNamespace():
		return true
	}
	for _, pair := range [][2]map[string]*networkingapi.StringMatch{
		{root.GetHeaders(), leaf.GetHeaders()}, {root.GetWithoutHeaders(), leaf.GetWithoutHeaders()}, {root.GetQueryParams(), leaf.GetQueryParams()},
	} {
		for k, want := range pair[0] {
			if got, there := pair[1][k]; there && outside(want, got) {
				return true
			}
		}
	}
	for k, want := range root.GetSourceLabels() {
		if got, there := leaf.GetSourceLabels()[k]; there && got != want {
			return true
		}
	}
	return len(root.GetGateways()) > 0 && slices.ContainsFunc(leaf.GetGateways(), func(g string) bool {
		return !slices.Contains(root.GetGateways(), g)
	})
}

// outside says that not every text that leaf matches is one that root matches. Of expressions nothing is known but their equality.
func outside(root, leaf *networkingapi.StringMatch) bool {
	if root.GetMatchType() == nil || leaf.GetMatchType() == nil || proto.Equal(root, leaf) {
		return false
	}
	text := leaf.GetExact()
	if text == "" {
		text = leaf.GetPrefix()
	}
	if r, ok := root.GetMatchType().(*networkingapi.StringMatch_Prefix); ok && leaf.GetRegex() == "" {
		return !strings.HasPrefix(text, r.Prefix)
	}
	return true
}

// mergeMatch is the delegate's match with what only the root's asks for.
func mergeMatch(root, leaf *networkingapi.HTTPMatchRequest) *networkingapi.HTTPMatchRequest {
	out := proto.CloneOf(leaf)
	out.Name = strings.Trim(root.GetName()+"-"+leaf.GetName(), "-")
	if out.GetUri() == nil {
		out.Uri, out.IgnoreUriCase = root.GetUri(), root.GetIgnoreUriCase()
	}
	if out.GetScheme() == nil {
		out.Scheme = root.GetScheme()
	}
	if out.GetMethod() == nil {
		out.Method = root.GetMethod()
	}
	if out.GetAuthority() == nil {
		out.Authority = root.GetAuthority()
	}
	out.Headers = union(root.GetHeaders(), leaf.GetHeaders())
	out.WithoutHeaders = union(root.GetWithoutHeaders(), leaf.GetWithoutHeaders())
	out.QueryParams = union(root.GetQueryParams(), leaf.GetQueryParams())
	out.SourceLabels = union(root.GetSourceLabels(), leaf.GetSourceLabels())
	out.Port = cmp.Or(leaf.GetPort(), root.GetPort())
	out.SourceNamespace = cmp.Or(leaf.GetSourceNamespace(), root.GetSourceNamespace())
	out.StatPrefix = cmp.Or(leaf.GetStatPrefix(), root.GetStatPrefix())
	if len(out.GetGateways()) == 0 {
		out.Gateways = root.GetGateways()
	}
	return out
}

func union[V any](under, over map[string]V) map[string]V {
	if len(under) == 0 {
		return over
	}
	out := maps.Clone(under)
	maps.Copy(out, over)
	return out
}
