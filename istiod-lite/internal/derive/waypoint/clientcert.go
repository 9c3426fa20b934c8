package waypoint

import (
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// AnnotationClientIdentity on a Gateway asks its waypoint to tell applications who their client is.
const AnnotationClientIdentity = "ambient.istio.io/xfcc-include-client-identity"

// AsksClientIdentity reads the annotation.
func AsksClientIdentity(annotations map[string]string) bool {
	return strings.EqualFold(annotations[AnnotationClientIdentity], "true")
}

// clientIdentity writes who the tunnel's client and this waypoint are. What a client itself wrote there is gone before: the connection
// manager sanitizes the header, and only then filters run.
func (d *derivation) clientIdentity() []*hcmv3.HttpFilter {
	if !d.in.ClientIdentity {
		return nil
	}
	state := func(key string) string { return "%FILTER_STATE(" + key + ":PLAIN)%" }
	return []*hcmv3.HttpFilter{httpFilter("marrow.xfcc_client_identity", &headermutationv3.HeaderMutation{
		Mutations: &headermutationv3.Mutations{RequestMutations: []*mutationv3.HeaderMutation{{
			Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header: &corev3.HeaderValue{
					Key: "x-forwarded-client-cert", Value: "By=" + state(localPrincipalKey) + ";URI=" + state(PrincipalKey),
				},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}},
		}}},
	})}
}
