package waypoint

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
	meshapi "istio.io/api/mesh/v1alpha1"
	telemetryapi "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
)

const (
	// metricsKey is where a filter chain's metadata says how it is counted. Our waypoint reads it; a stock Envoy, which has no such
	// series, keeps it without a meaning.
	metricsKey     = "marrow.metrics"
	builtinMetrics = "prometheus"
)

// metricWish is what is asked for one metric.
type metricWish struct {
	off  bool
	set  map[string]string // expressions
	gone map[string]bool
}

// metrics says how a service's chains are counted, where that is not the standard; nil asks for what has no service.
func (d *derivation) metrics(s *Service) *corev3.Metadata {
	providers := d.in.Mesh.Config.GetDefaultProviders().GetMetrics()
	if len(providers) == 0 {
		providers = []string{builtinMetrics} // as Istio's chart sets it
	}
	wishes := map[string]*metricWish{}
	for _, name := range standardMetrics() {
		wishes[name] = &metricWish{set: map[string]string{}, gone: map[string]bool{}}
	}
	var speaker *telemetryv1.Telemetry
	for _, t := range d.telemetryFor(s) {
		for _, m := range t.Spec.GetMetrics() {
			if len(m.GetProviders()) > 0 {
				providers, speaker = nil, t
				for _, p := range m.GetProviders() {
					providers = append(providers, p.GetName())
				}
			}
			for _, o := range m.GetOverrides() {
				d.overrideMetrics(t, o, wishes)
			}
		}
	}
	if !slices.ContainsFunc(providers, d.isPrometheus) {
		for _, w := range wishes {
			w.off = true
		}
	}
	for _, p := range providers {
		if speaker != nil && !d.isPrometheus(p) {
			d.report("Telemetry", speaker.Namespace, speaker.Name, reasonUnsupported, fmt.Sprintf("metrics provider %q: only %s is there to be scraped", p, builtinMetrics))
		}
	}
	return metricsMetadata(wishes)
}

func (d *derivation) isPrometheus(name string) bool {
	if p := d.provider(name); p != nil {
		_, is := p.GetProvider().(*meshapi.MeshConfig_ExtensionProvider_Prometheus)
		return is
	}
	return strings.EqualFold(name, builtinMetrics)
}

// standardMetrics are the names of what is always there.
func standardMetrics() []string {
	var out []string
	for n, name := range telemetryapi.MetricSelector_IstioMetric_name {
		if n != int32(telemetryapi.MetricSelector_ALL_METRICS) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// countsHere says whether an override for a mode means this proxy: a waypoint is the server's side, a gateway the client's.
func (d *derivation) countsHere(m telemetryapi.WorkloadMode) bool {
	if d.in.Edge != nil {
		return m != telemetryapi.WorkloadMode_SERVER
	}
	return m != telemetryapi.WorkloadMode_CLIENT
}

var metricLabel = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// overrideMetrics applies one override; later ones win, label by label.
func (d *derivation) overrideMetrics(t *telemetryv1.Telemetry, o *telemetryapi.MetricsOverrides, wishes map[string]*metricWish) {
	if !d.countsHere(o.GetMatch().GetMode()) {
		return
	}
	problem := func(format string, args ...any) {
		d.report("Telemetry", t.Namespace, t.Name, reasonUnsupported, "metrics: "+fmt.Sprintf(format, args...))
	}
	names := standardMetrics()
	if c := o.GetMatch().GetCustomMetric(); c != "" {
		problem("customMetric %q is not known: the standard metrics are", c)
		return
	} else if m := o.GetMatch().GetMetric(); m != telemetryapi.MetricSelector_ALL_METRICS {
		names = []string{m.String()}
	}
	for _, name := range names {
		w := wishes[name]
		if w == nil {
			problem("metric %q is not known", name)
			return
		}
		if v := o.GetDisabled(); v != nil {
			w.off = v.GetValue()
		}
		for _, label := range slices.Sorted(maps.Keys(o.GetTagOverrides())) {
			v := o.GetTagOverrides()[label]
			switch {
			case !metricLabel.MatchString(label) || strings.HasPrefix(label, "__") || label == "le":
				problem("tagOverrides: %q cannot be a label", label)
			case v.GetOperation() == telemetryapi.MetricsOverrides_TagOverride_REMOVE:
				w.gone[label] = true
				delete(w.set, label)
			case v.GetValue() == "":
				problem("tagOverrides: %q has no value to be set to", label)
			default:
				w.set[label] = v.GetValue()
				delete(w.gone, label)
			}
		}
	}
}

// metricsMetadata is nil when all metrics are the standard ones.
func metricsMetadata(wishes map[string]*metricWish) *corev3.Metadata {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for name, w := range wishes {
		m := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		switch {
		case w.off:
			m.Fields["disabled"] = structpb.NewBoolValue(true)
		case len(w.set) > 0 || len(w.gone) > 0:
			if len(w.set) > 0 {
				set := &structpb.Struct{Fields: map[string]*structpb.Value{}}
				for label, expression := range w.set {
					set.Fields[label] = structpb.NewStringValue(expression)
				}
				m.Fields["set"] = structpb.NewStructValue(set)
			}
			if len(w.gone) > 0 {
				gone := &structpb.ListValue{}
				for _, label := range slices.Sorted(maps.Keys(w.gone)) {
					gone.Values = append(gone.Values, structpb.NewStringValue(label))
				}
				m.Fields["remove"] = structpb.NewListValue(gone)
			}
		default:
			continue
		}
		out.Fields[name] = structpb.NewStructValue(m)
	}
	if len(out.GetFields()) == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metricsKey: out}}
}
