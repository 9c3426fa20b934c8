package ambient

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/emptypb"
	apisecurity "istio.io/api/security/v1beta1"
	clientsecurity "istio.io/client-go/pkg/apis/security/v1"

	"github.com/marrowmesh/marrow/api/security"
)

// Names of the policies that PeerAuthentications become. No object can have them: they are no DNS names.
const (
	staticStrictName    = "istio_converted_static_strict"
	convertedPeerPrefix = "converted_peer_authentication_"
)

// mode is a peer authentication mode. For node proxies PERMISSIVE and DISABLE are the same.
type mode = apisecurity.PeerAuthentication_MutualTLS_Mode

const (
	unset      = apisecurity.PeerAuthentication_MutualTLS_UNSET
	disable    = apisecurity.PeerAuthentication_MutualTLS_DISABLE
	permissive = apisecurity.PeerAuthentication_MutualTLS_PERMISSIVE
	strict     = apisecurity.PeerAuthentication_MutualTLS_STRICT
)

func peerMode(pa *clientsecurity.PeerAuthentication) mode {
	if pa == nil {
		return unset
	}
	return pa.Spec.GetMtls().GetMode()
}

// inherited is the mode of a namespace: its own, else the mesh's.
func inherited(mesh, namespace mode) mode {
	if namespace != unset {
		return namespace
	}
	return mesh
}

func portModes(pa *clientsecurity.PeerAuthentication) (exempt, disabled, hard []uint32) {
	ports := pa.Spec.GetPortLevelMtls()
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		switch ports[p].GetMode() {
		case disable:
			exempt, disabled = append(exempt, p), append(disabled, p)
		case permissive:
			exempt = append(exempt, p)
		case strict:
			hard = append(hard, p)
		case unset:
		}
	}
	return exempt, disabled, hard
}

// staticStrict refuses every peer without identity. Workloads refer to it when their mode is STRICT without exception.
func staticStrict(root string) *security.Authorization {
	return &security.Authorization{
		Name: staticStrictName, Namespace: root, Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{anonymous()}}}}},
	}
}

// anonymous matches a peer without identity.
func anonymous() *security.Match {
	return &security.Match{NotPrincipals: []*security.StringMatch{
		{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}},
	}}
}

// portPolicy makes the policy for the ports of a PeerAuthentication with a selector; around is the mode that it inherits.
// It is nil when the ports do not differ from the rest.
func portPolicy(pa *clientsecurity.PeerAuthentication, around mode) *security.Authorization {
	exempt, _, hard := portModes(pa)
	out := &security.Authorization{
		Name: convertedPeerPrefix + pa.Name, Namespace: pa.Namespace,
		Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY,
	}
	if inherited(around, peerMode(pa)) == strict {
		if len(exempt) == 0 {
			return nil
		}
		group := &security.Group{Rules: []*security.Rules{{Matches: []*security.Match{anonymous()}}}}
		for _, p := range exempt {
			group.Rules = append(group.Rules, &security.Rules{Matches: []*security.Match{{NotDestinationPorts: []uint32{p}}}})
		}
		out.Groups = []*security.Group{group}
		return out
	}
	for _, p := range hard {
		m := anonymous()
		m.DestinationPorts = []uint32{p}
		out.Groups = append(out.Groups, &security.Group{Rules: []*security.Rules{{Matches: []*security.Match{m}}}})
	}
	if len(out.GetGroups()) == 0 {
		return nil
	}
	return out
}

// peerPolicies names what a workload refers to: pa is the oldest PeerAuthentication that selects it (nil: none), around
// the mode of its namespace.
func peerPolicies(pa *clientsecurity.PeerAuthentication, around mode, root string) []string {
	fixed := []string{root + "/" + staticStrictName}
	if pa == nil {
		if around == strict {
			return fixed
		}
		return nil
	}
	own := []string{pa.Namespace + "/" + convertedPeerPrefix + pa.Name}
	exempt, disabled, hard := portModes(pa)
	switch {
	case peerMode(pa) == strict && len(exempt) > 0:
		return own
	case peerMode(pa) == strict:
		return fixed
	case inherited(around, peerMode(pa)) == strict && len(exempt) > len(disabled):
		return own
	case inherited(around, peerMode(pa)) == strict:
		return fixed // with DISABLE alone the exception does not count: what is doubtful stays closed
	case len(hard) > 0:
		return own
	}
	return nil
}
