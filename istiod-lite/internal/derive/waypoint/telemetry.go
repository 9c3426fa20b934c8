package waypoint

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	"google.golang.org/protobuf/types/known/structpb"
	meshapi "istio.io/api/mesh/v1alpha1"
	telemetryapi "istio.io/api/telemetry/v1alpha1"
	typeapi "istio.io/api/type/v1beta1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
)

// The provider that is there without being declared, and the only file that is written.
const (
	builtinLog = "envoy"
	stdout     = "/dev/stdout"
)

// telemetryFor lists the Telemetry objects that hold for a service, from the most general on; nil asks for what has no service: workloads
// that are reached by address.
func (d *derivation) telemetryFor(s *Service) []*telemetryv1.Telemetry {
	here := d.in.Gateway.Namespace
	namespaces := []string{d.in.Mesh.RootNamespace}
	if here != d.in.Mesh.RootNamespace {
		namespaces = append(namespaces, here)
	}
	last := here
	if s != nil && s.Namespace != here {
		last = s.Namespace
		if last != d.in.Mesh.RootNamespace {
			namespaces = append(namespaces, last)
		}
	}
	var out []*telemetryv1.Telemetry
	for _, ns := range namespaces { // one object speaks for a namespace: the oldest
		i := slices.IndexFunc(d.in.Telemetries, func(t *telemetryv1.Telemetry) bool {
			return t.Namespace == ns && t.Spec.GetSelector() == nil && len(telemetryTargets(t)) == 0
		})
		if i >= 0 {
			out = append(out, d.in.Telemetries[i])
		}
	}
	for _, t := range d.in.Telemetries {
		if t.Namespace == last && slices.ContainsFunc(telemetryTargets(t), func(r *typeapi.PolicyTargetReference) bool { return d.aims(r, s, last) }) {
			out = append(out, t)
		}
	}
	return out
}

func telemetryTargets(t *telemetryv1.Telemetry) []*typeapi.PolicyTargetReference {
	refs := slices.Clone(t.Spec.GetTargetRefs())
	if r := t.Spec.GetTargetRef(); r != nil {
		refs = append(refs, r)
	}
	return refs
}

// aims says whether a reference in a namespace means the service, or this waypoint.
func (d *derivation) aims(r *typeapi.PolicyTargetReference, s *Service, namespace string) bool {
	switch {
	case r.GetKind() == "Gateway" && r.GetGroup() == "gateway.networking.k8s.io":
		return namespace == d.in.Gateway.Namespace && r.GetName() == d.in.Gateway.Name
	case s == nil:
		return false
	case r.GetKind() == "Service" && (r.GetGroup() == "" || r.GetGroup() == "core"), r.GetKind() == "ServiceEntry" && r.GetGroup() == "networking.istio.io":
		return s.Kind == r.GetKind() && s.Name == r.GetName()
	}
	return false
}

// logChoice is one provider with what narrows it.
type logChoice struct {
	provider string
	filter   string // a CEL expression; empty = everything
}

// logs are the access logs of a service's chains. Where nobody says anything there is one line for everything, with the client's identity.
func (d *derivation) logs(s *Service) []*accesslogv3.AccessLog {
	cfg := d.in.Mesh.Config
	var chosen []logChoice
	for _, p := range cfg.GetDefaultProviders().GetAccessLogging() {
		chosen = append(chosen, logChoice{provider: p})
	}
	if len(chosen) == 0 && cfg.GetAccessLogFile() != "" {
		chosen = []logChoice{{provider: builtinLog}}
	}
	said := len(chosen) > 0
	owner := map[string]*telemetryv1.Telemetry{}
	for _, t := range d.telemetryFor(s) {
		for _, l := range t.Spec.GetAccessLogging() {
			if !d.countsHere(l.GetMatch().GetMode()) {
				continue
			}
			if len(chosen) == 0 && !said && len(l.GetProviders()) == 0 {
				chosen = []logChoice{{provider: builtinLog}}
			}
			said = true
			chosen = mergeLog(chosen, l)
			for _, c := range chosen {
				owner[c.provider] = t
			}
		}
	}
	if !said {
		return accessLog(nil)
	}
	var out []*accesslogv3.AccessLog
	for _, c := range chosen {
		file, err := d.logFile(c.provider)
		if err != nil {
			if t := owner[c.provider]; t != nil {
				d.report("Telemetry", t.Namespace, t.Name, reasonUnsupported, fmt.Sprintf("access log provider %q: %v", c.provider, err))
			}
			continue
		}
		l := &accesslogv3.AccessLog{Name: "envoy.access_loggers.file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(file)}}
		if c.filter != "" {
			l.Filter = celFilter(c.filter)
		}
		out = append(out, l)
	}
	return out
}

func celFilter(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: pack(&celfilterv3.ExpressionFilter{Expression: expression})},
	}}}
}

// mergeLog applies one entry; without providers it speaks of those that are chosen already.
func mergeLog(chosen []logChoice, l *telemetryapi.AccessLogging) []logChoice {
	names := []string{}
	for _, p := range l.GetProviders() {
		names = append(names, p.GetName())
	}
	if len(names) == 0 {
		for _, c := range chosen {
			names = append(names, c.provider)
		}
	} else {
		// Providers of a later entry take the place of those before.
		chosen = slices.DeleteFunc(slices.Clone(chosen), func(c logChoice) bool { return !slices.Contains(names, c.provider) })
	}
	for _, n := range names {
		i := slices.IndexFunc(chosen, func(c logChoice) bool { return c.provider == n })
		switch {
		case l.GetDisabled().GetValue():
			if i >= 0 {
				chosen = slices.Delete(slices.Clone(chosen), i, i+1)
			}
			continue
		case i < 0:
			chosen, i = append(slices.Clone(chosen), logChoice{provider: n}), len(chosen)
		}
		if f := l.GetFilter(); f != nil {
			chosen[i].filter = f.GetExpression()
		}
	}
	return chosen
}

// provider finds what the mesh's settings declare under a name; names compare without case.
func (d *derivation) provider(name string) *meshapi.MeshConfig_ExtensionProvider {
	for _, p := range d.in.Mesh.Config.GetExtensionProviders() {
		if strings.EqualFold(p.GetName(), name) {
			return p
		}
	}
	return nil
}

// logFile is what a provider of access logs writes.
func (d *derivation) logFile(name string) (*filelogv3.FileAccessLog, error) {
	p := d.provider(name)
	if p == nil {
		if name != builtinLog {
			return nil, errors.New("is not among extensionProviders of the mesh's settings")
		}
		path := cmp.Or(d.in.Mesh.Config.GetAccessLogFile(), stdout)
		if path != stdout {
			return nil, fmt.Errorf("accessLogFile %q: only %s is written", path, stdout)
		}
		return d.meshFormat()
	}
	f, ok := p.GetProvider().(*meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLog)
	if !ok {
		return nil, fmt.Errorf("provider %T is not supported: only envoyFileAccessLog writes logs", p.GetProvider())
	}
	if path := f.EnvoyFileAccessLog.GetPath(); path != stdout {
		return nil, fmt.Errorf("path %q: only %s is written", path, stdout)
	}
	omit := f.EnvoyFileAccessLog.GetOmitEmptyValues()
	switch l := f.EnvoyFileAccessLog.GetLogFormat().GetLogFormat().(type) {
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Text:
		return textFile(cmp.Or(l.Text, accessLogFormat), omit), nil
	case *meshapi.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Labels:
		labels := l.Labels
		if len(labels.GetFields()) == 0 {
			labels = defaultLabels()
		}
		return jsonFile(labels, omit), nil
	}
	return d.meshFormat()
}

// meshFormat is what accessLogFormat and accessLogEncoding say.
func (d *derivation) meshFormat() (*filelogv3.FileAccessLog, error) {
	cfg := d.in.Mesh.Config
	if cfg.GetAccessLogEncoding() != meshapi.MeshConfig_JSON {
		return textFile(cmp.Or(cfg.GetAccessLogFormat(), accessLogFormat), false), nil
	}
	if cfg.GetAccessLogFormat() == "" {
		return jsonFile(defaultLabels(), false), nil
	}
	labels := &structpb.Struct{}
	if err := labels.UnmarshalJSON([]byte(cfg.GetAccessLogFormat())); err != nil {
		return nil, fmt.Errorf("accessLogFormat is no JSON object, which accessLogEncoding JSON needs: %w", err)
	}
	return jsonFile(labels, false), nil
}

func textFile(format string, omit bool) *filelogv3.FileAccessLog {
	if !strings.HasSuffix(format, "\n") {
		format += "\n"
	}
	return logFile(&corev3.SubstitutionFormatString{OmitEmptyValues: omit, Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: format}},
	}})
}

func jsonFile(labels *structpb.Struct, omit bool) *filelogv3.FileAccessLog {
	return logFile(&corev3.SubstitutionFormatString{OmitEmptyValues: omit, Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: labels}})
}

func logFile(f *corev3.SubstitutionFormatString) *filelogv3.FileAccessLog {
	return &filelogv3.FileAccessLog{Path: stdout, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: f}}
}

// defaultLabels are Istio's keys of a JSON line.
func defaultLabels() *structpb.Struct {
	m := map[string]string{
		"start_time": "%START_TIME%", "route_name": "%ROUTE_NAME%", "method": "%REQ(:METHOD)%", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"protocol": "%PROTOCOL%", "response_code": "%RESPONSE_CODE%", "response_flags": "%RESPONSE_FLAGS%",
		"response_code_details": "%RESPONSE_CODE_DETAILS%", "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
		"bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%", "duration": "%DURATION%",
		"upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%", "user_agent": "%REQ(USER-AGENT)%",
		"request_id": "%REQ(X-REQUEST-ID)%", "authority": "%REQ(:AUTHORITY)%", "upstream_host": "%UPSTREAM_HOST%", "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
		"upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "requested_server_name": "%REQUESTED_SERVER_NAME%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	}
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out.Fields[k] = structpb.NewStringValue(m[k])
	}
	return out
}
