package claims

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/marrowmesh/marrow/internal/mesh"
)

// Names of the headers of a CONNECT.
const (
	HeaderBaggage     = "baggage"
	HeaderForwarded   = "forwarded"
	HeaderTraceparent = "traceparent"
	HeaderNetwork     = "x-forwarded-network"
)

// maxHeader bounds what is parsed; longer values are nothing a mesh's proxy sends.
const maxHeader = 8 << 10

// Baggage is what one proxy tells another about a workload, by its own account.
type Baggage struct {
	Cluster, Namespace, WorkloadName string
	// Type is the lower-case kind of the workload's owner.
	Type             string
	Service, Version string
	Region, Zone     string
}

// BaggageOf describes a workload.
func BaggageOf(w *mesh.Workload) Baggage {
	return Baggage{
		Cluster: w.ClusterID, Namespace: w.Namespace, WorkloadName: w.WorkloadName, Type: w.WorkloadType,
		Service: w.CanonicalName, Version: w.CanonicalRevision, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// String is the header's value: only what is known, in the mesh's order.
func (b Baggage) String() string {
	var out strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if out.Len() > 0 {
			out.WriteByte(',')
		}
		out.WriteString(key)
		out.WriteByte('=')
		out.WriteString(clean(value))
	}
	add("k8s.cluster.name", b.Cluster)
	add("k8s.namespace.name", b.Namespace)
	add("k8s."+cmp.Or(b.Type, "deployment")+".name", b.WorkloadName)
	add("service.name", b.Service)
	add("service.version", b.Version)
	add("cloud.region", b.Region)
	add("cloud.availability_zone", b.Zone)
	return out.String()
}

// clean replaces what would break the header's syntax; names of Kubernetes objects hold none of it.
func clean(s string) string {
	bad := func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == ',' || r == ';' || r == '=' || r == '"' || r == '\\'
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return '_'
		}
		return r
	}, s)
}

// ParseBaggage reads a header; what it does not know or understand is left out.
func ParseBaggage(header string) Baggage {
	var b Baggage
	if len(header) > maxHeader {
		return b
	}
	for part := range strings.SplitSeq(header, ",") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(value, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if value == "" || !printable(value) {
			continue
		}
		switch key {
		case "k8s.cluster.name":
			b.Cluster = value
		case "k8s.namespace.name":
			b.Namespace = value
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			b.WorkloadName = value
			b.Type = strings.TrimSuffix(strings.TrimPrefix(key, "k8s."), ".name")
		case "service.name":
			b.Service = value
		case "service.version":
			b.Version = value
		case "cloud.region":
			b.Region = value
		case "cloud.availability_zone":
			b.Zone = value
		}
	}
	return b
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// Forwarded is the header's value for an application's socket and, if known, the service it meant.
func Forwarded(client netip.AddrPort, host string) string {
	if host == "" {
		return fmt.Sprintf("for=%q", client.String())
	}
	return fmt.Sprintf("for=%q;host=%s", client.String(), clean(host))
}

// ParseForwardedHost reads the service from the header, "" if it names none.
func ParseForwardedHost(header string) string {
	if len(header) > maxHeader || !printable(header) {
		return ""
	}
	for part := range strings.SplitSeq(header, ";") {
		if host, ok := strings.CutPrefix(strings.TrimSpace(part), "host="); ok {
			if n := len(host); n >= 2 && host[0] == '"' && host[n-1] == '"' {
				host = host[1 : n-1]
			}
			return host
		}
	}
	return ""
}

// TraceID correlates the log lines of both ends of a connection.
type TraceID [24]byte

// NewTrace makes an id from random bytes.
func NewTrace(fill func([]byte)) TraceID {
	var t TraceID
	fill(t[:])
	return t
}

// String is the traceparent header: never sampled.
func (t TraceID) String() string {
	return "00-" + hex.EncodeToString(t[:16]) + "-" + hex.EncodeToString(t[16:]) + "-00"
}

// traceparentLen is version, trace id, span id and flags with their dashes.
const traceparentLen = 55

// ParseTrace reads a traceparent header; false if it is not one.
func ParseTrace(header string) (TraceID, bool) {
	var t TraceID
	if len(header) != traceparentLen || header[2] != '-' || header[35] != '-' || header[52] != '-' {
		return TraceID{}, false
	}
	if _, err := hex.Decode(t[:16], []byte(header[3:35])); err != nil {
		return TraceID{}, false
	}
	if _, err := hex.Decode(t[16:], []byte(header[36:52])); err != nil {
		return TraceID{}, false
	}
	return t, true
}
