package waypoint

import "strconv"

// Names of resources and filter states. The program waypoint and Envoy's statistics know them.
const (
	ConnectTerminate = "connect_terminate"
	MainInternal     = "main_internal"
	ConnectOriginate = "connect_originate"
	Encap            = "encap"
	// UnknownService is the cluster of a backend that does not exist; it is never defined.
	UnknownService = "UnknownService"

	SecretDefault = "default"
	SecretRoots   = "ROOTCA"

	PrincipalKey        = "io.istio.peer_principal"
	localPrincipalKey   = "io.istio.local_principal"
	connectAuthorityKey = "io.istio.connect_authority"
	originalDstKey      = "envoy.filters.listener.original_dst"

	directHTTP = "direct-http"
	directTCP  = "direct-tcp"

	rbacAudit = "marrow.rbac.audit"
	rbacDeny  = "marrow.rbac.deny"
	rbacAllow = "marrow.rbac.allow"

	faultFilter = "envoy.filters.http.fault"
	corsFilter  = "envoy.filters.http.cors"

	// HBONEPort is where waypoints and node proxies accept tunnels.
	HBONEPort = 15008
)

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// vipName names the chain and the cluster of one service port; subset is empty for a chain.
func vipName(port uint32, http bool, subset, host string) string {
	kind := "tcp"
	if http {
		kind = "http"
	}
	if subset != "" {
		kind += "/" + subset
	}
	return "inbound-vip|" + decimal(port) + "|" + kind + "|" + host
}

func outboundName(port uint32, subset, host string) string {
	return "outbound|" + decimal(port) + "|" + subset + "|" + host
}
