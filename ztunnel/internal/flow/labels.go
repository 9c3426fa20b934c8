package flow

import (
	"cmp"

	"github.com/marrowmesh/marrow/internal/claims"
	"github.com/marrowmesh/marrow/internal/mesh"
)

const unknown = "unknown"

// side is what the labels say of one end.
type side struct {
	workload, canonical, revision, namespace, app, cluster string
	region, zone                                           string
	known                                                  bool
}

// sideOf prefers the control plane's word to the peer's.
func sideOf(w *mesh.Workload, b *claims.Baggage) side {
	switch {
	case w == nil && b == nil:
		return side{}
	case w == nil:
		return side{
			workload: b.WorkloadName, canonical: b.Service, revision: b.Version, namespace: b.Namespace,
			app: b.WorkloadName, cluster: b.Cluster, region: b.Region, zone: b.Zone, known: *b != (claims.Baggage{}),
		}
	}
	return side{
		workload: w.WorkloadName, canonical: w.CanonicalName, revision: w.CanonicalRevision, namespace: w.Namespace,
		app: w.CanonicalName, cluster: w.ClusterID, region: w.Locality.Region, zone: w.Locality.Zone, known: true,
	}
}

// labelsOf is the label set at the start of a connection, without a flag.
func labelsOf(f *Facts) labels {
	src, dst := sideOf(f.SourceWorkload, f.SourceBaggage), sideOf(f.DestWorkload, f.DestBaggage)
	var host, ns, name string
	if f.Service != nil {
		host, ns, name = f.Service.Hostname, f.Service.Namespace, f.Service.Name
	}
	security := unknown
	if f.Mutual {
		security = "mutual_tls"
	}
	l := labels{placed: src.known || dst.known}
	l.base = [len(baseLabels)]string{
		f.Reporter.String(),
		src.workload, src.canonical, src.revision, src.namespace, f.SourceID.String(), src.app, src.revision, src.cluster,
		host, ns, name,
		dst.workload, dst.canonical, dst.revision, dst.namespace, f.DestID.String(), dst.app, dst.revision, dst.cluster,
		"tcp", string(NoFlag), security,
	}
	for i := range l.base {
		l.base[i] = cmp.Or(l.base[i], unknown)
	}
	if l.placed {
		l.place = [len(placeLabels)]string{src.region, src.zone, dst.region, dst.zone}
		for i := range l.place {
			l.place[i] = cmp.Or(l.place[i], unknown)
		}
	}
	return l
}
