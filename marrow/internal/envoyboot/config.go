package envoyboot

import (
	"net"
	"net/netip"
	"strconv"

	"github.com/marrowmesh/marrow/internal/conf"
)

// Config is a waypoint pod as its environment describes it.
type Config struct {
	XDSHost   string // "istiod.istio-system.svc"
	XDSPort   uint32
	XDSName   string // what istiod-lite's certificate must say
	TokenFile string
	RootFile  string

	PodName        string
	Namespace      string
	PodIP          netip.Addr
	ServiceAccount string
	Node           string
	Gateway        string
	ClusterID      string
	ClusterDomain  string
	TrustDomain    string

	// Dir is where the one file that Envoy must find on disk is written.
	Dir string
}

// Load reads the environment that istiod-lite gives a waypoint's pod; its error joins all problems.
func Load(r *conf.Reader) (Config, error) {
	address := r.Addr("XDS_ADDRESS", "istiod.istio-system.svc:15012", "istiod-lite's xDS address, host:port")
	c := Config{
		XDSName:        r.String("XDS_SERVER_NAME", "", "name in istiod-lite's certificate; empty: the host of XDS_ADDRESS"),
		TokenFile:      r.Path("XDS_AUTH_TOKEN", "/var/run/secrets/tokens/istio-token", "file with the service-account token"),
		RootFile:       r.Path("XDS_ROOT_CA", "/var/run/secrets/istio/root-cert.pem", "file with the roots for istiod-lite's certificate"),
		PodName:        r.Required("POD_NAME", "the pod's name"),
		Namespace:      r.Required("POD_NAMESPACE", "the pod's namespace"),
		PodIP:          r.IP("INSTANCE_IP", netip.Addr{}, "the pod's address"),
		ServiceAccount: r.String("SERVICE_ACCOUNT", "default", "the pod's service account"),
		Node:           r.String("NODE_NAME", "", "the pod's node"),
		Gateway:        r.String("GATEWAY_NAME", "", "the Gateway that the pod is an instance of"),
		ClusterID:      r.String("ISTIO_META_CLUSTER_ID", "Kubernetes", "the cluster's name"),
		ClusterDomain:  r.String("MARROW_CLUSTER_DOMAIN", "cluster.local", "suffix of service hostnames"),
		TrustDomain:    r.String("TRUST_DOMAIN", "cluster.local", "the mesh's trust domain"),
		Dir:            r.Path("MARROW_ENVOY_DIR", "/var/run/marrow-envoy", "directory for Envoy's token subscription"),
	}
	if !c.PodIP.IsValid() {
		r.Fail("INSTANCE_IP", "", "is missing; give the pod's address")
	}
	host, port, err := net.SplitHostPort(address)
	number, numberErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numberErr != nil || host == "" {
		r.Fail("XDS_ADDRESS", address, "is not host:port with a number")
	}
	c.XDSHost, c.XDSPort = host, uint32(number)
	if c.XDSName == "" {
		c.XDSName = host
	}
	return c, r.Err()
}

// NodeID is how istiod-lite knows the proxy.
func (c Config) NodeID() string {
	return "waypoint~" + c.PodIP.String() + "~" + c.PodName + "." + c.Namespace + "~" + c.Namespace + ".svc." + c.ClusterDomain
}
