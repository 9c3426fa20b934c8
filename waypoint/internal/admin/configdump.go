package admin

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
)

// configDump answers /config_dump as Envoy does, with resource, mask, name_regex and include_eds.
func (s *Sources) configDump(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var name *regexp.Regexp
	if p := q.Get("name_regex"); p != "" {
		var err error
		if name, err = regexp.Compile(`\A(?:` + p + `)\z`); err != nil {
			http.Error(w, "name_regex: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	parts := s.parts(r, q.Has("include_eds"), name)
	m, err := parseMask(q.Get("mask"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if field := q.Get("resource"); field != "" {
		if parts, err = pick(parts, field); err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
	}
	out := &adminv3.ConfigDump{}
	for _, p := range parts {
		if m != nil {
			p = proto.Clone(p)
			m.keep(p.ProtoReflect())
			if q.Get("resource") == "" && !hasFields(p) {
				continue
			}
		}
		a, err := anypb.New(p)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		out.Configs = append(out.Configs, a)
	}
	writeProto(w, out)
}

func hasFields(m proto.Message) bool {
	some := false
	m.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { some = true; return false })
	return some
}

// pick takes the members of one repeated field, such as dynamic_listeners, wherever it is.
func pick(parts []proto.Message, field string) ([]proto.Message, error) {
	for _, p := range parts {
		f := p.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))
		if f == nil {
			continue
		}
		var out []proto.Message
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			l := p.ProtoReflect().Get(f).List()
			for i := range l.Len() {
				out = append(out, l.Get(i).Message().Interface())
			}
		case f.Kind() == protoreflect.MessageKind:
			out = append(out, p.ProtoReflect().Get(f).Message().Interface())
		default:
			return nil, fmt.Errorf("%s is no resource", field)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s not found in config dump", field)
}

// held is one resource with its last refusal.
type held struct {
	name    string
	ok      *intake.Accepted // nil = never accepted
	refused *intake.Refused  // nil = nothing to object
}

// held lists the resources of a type, by name.
func (s *Sources) held(url string, name *regexp.Regexp) []held {
	by := map[string]*held{}
	at := func(n string) *held {
		if by[n] == nil {
			by[n] = &held{name: n}
		}
		return by[n]
	}
	for _, a := range s.Intake.InForce() {
		if a.Type == url {
			at(a.Name).ok = &a
		}
	}
	for _, r := range s.Intake.Refusals() {
		if r.Type == url {
			at(r.Name).refused = &r
		}
	}
	out := make([]held, 0, len(by))
	for _, n := range slices.Sorted(maps.Keys(by)) {
		if name == nil || name.MatchString(n) {
			out = append(out, *by[n])
		}
	}
	return out
}

func (h held) failure() *adminv3.UpdateFailureState {
	if h.refused == nil {
		return nil
	}
	return &adminv3.UpdateFailureState{
		FailedConfiguration: h.refused.Body, LastUpdateAttempt: timestamppb.New(h.refused.Time), Details: h.refused.Reason, VersionInfo: h.refused.Version,
	}
}

func (h held) status() adminv3.ClientResourceStatus {
	if h.refused != nil {
		return adminv3.ClientResourceStatus_NACKED
	}
	return adminv3.ClientResourceStatus_ACKED
}

// state is version, body and time of what is in force.
func (h held) state() (string, *anypb.Any, *timestamppb.Timestamp) {
	if h.ok == nil {
		return "", nil, nil
	}
	return h.ok.Version, h.ok.Body, timestamppb.New(h.ok.Time)
}

// newest is the version of the resource that came last: delta discovery has none for all of them.
func newest(hs []held) string {
	var last *intake.Accepted
	for _, h := range hs {
		if h.ok != nil && (last == nil || cmp.Compare(h.ok.Time.UnixNano(), last.Time.UnixNano()) > 0) {
			last = h.ok
		}
	}
	if last == nil {
		return ""
	}
	return last.Version
}

// parts are the dumps that Envoy shows, in its order.
func (s *Sources) parts(r *http.Request, endpoints bool, name *regexp.Regexp) []proto.Message {
	out := []proto.Message{s.bootstrap(), s.clusterDump(name)}
	if endpoints {
		out = append(out, s.endpointDump(name))
	}
	return append(out, s.listenerDump(name), &adminv3.ScopedRoutesConfigDump{}, s.routeDump(name), secretDump(s.certificate(r.Context()), name))
}

func (s *Sources) bootstrap() proto.Message {
	return &adminv3.BootstrapConfigDump{LastUpdated: timestamppb.New(s.Started), Bootstrap: &bootstrapv3.Bootstrap{
		Node: s.Node,
		Admin: &bootstrapv3.Admin{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(s.Config.Ports.Admin)},
		}}}},
	}}
}

func (s *Sources) clusterDump(name *regexp.Regexp) proto.Message {
	hs := s.held(intake.ClusterType, name)
	d := &adminv3.ClustersConfigDump{VersionInfo: newest(hs)}
	for _, h := range hs {
		c := &adminv3.ClustersConfigDump_DynamicCluster{ErrorState: h.failure(), ClientStatus: h.status()}
		c.VersionInfo, c.Cluster, c.LastUpdated = h.state()
		d.DynamicActiveClusters = append(d.DynamicActiveClusters, c)
	}
	return d
}

func (s *Sources) endpointDump(name *regexp.Regexp) proto.Message {
	d := &adminv3.EndpointsConfigDump{}
	for _, h := range s.held(intake.EndpointType, name) {
		e := &adminv3.EndpointsConfigDump_DynamicEndpointConfig{ErrorState: h.failure(), ClientStatus: h.status()}
		e.VersionInfo, e.EndpointConfig, e.LastUpdated = h.state()
		d.DynamicEndpointConfigs = append(d.DynamicEndpointConfigs, e)
	}
	return d
}

func (s *Sources) listenerDump(name *regexp.Regexp) proto.Message {
	hs := s.held(intake.ListenerType, name)
	d := &adminv3.ListenersConfigDump{VersionInfo: newest(hs)}
	for _, h := range hs {
		l := &adminv3.ListenersConfigDump_DynamicListener{Name: h.name, ErrorState: h.failure(), ClientStatus: h.status()}
		if h.ok != nil {
			l.ActiveState = &adminv3.ListenersConfigDump_DynamicListenerState{}
			l.ActiveState.VersionInfo, l.ActiveState.Listener, l.ActiveState.LastUpdated = h.state()
		}
		d.DynamicListeners = append(d.DynamicListeners, l)
	}
	return d
}

func (s *Sources) routeDump(name *regexp.Regexp) proto.Message {
	d := &adminv3.RoutesConfigDump{}
	for _, h := range s.held(intake.RouteType, name) {
		c := &adminv3.RoutesConfigDump_DynamicRouteConfig{ErrorState: h.failure(), ClientStatus: h.status()}
		c.VersionInfo, c.RouteConfig, c.LastUpdated = h.state()
		d.DynamicRouteConfigs = append(d.DynamicRouteConfigs, c)
	}
	return d
}

// secretDump shows certificates under the names that the configuration uses for them; never the key.
func secretDump(c *mtls.Certificate, name *regexp.Regexp) proto.Message {
	d := &adminv3.SecretsConfigDump{}
	if c == nil {
		return d
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	for _, s := range []*tlsv3.Secret{
		{Name: "default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(c.ChainPEM), PrivateKey: inline([]byte("[redacted]")),
		}}},
		{Name: "ROOTCA", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(c.RootPEM)}}},
	} {
		if name != nil && !name.MatchString(s.GetName()) {
			continue
		}
		a, err := anypb.New(s)
		if err != nil {
			continue // a message of ours always encodes
		}
		d.DynamicActiveSecrets = append(d.DynamicActiveSecrets, &adminv3.SecretsConfigDump_DynamicSecret{
			Name: s.GetName(), Secret: a, VersionInfo: c.Leaf.SerialNumber.String(), LastUpdated: timestamppb.New(c.Leaf.NotBefore),
		})
	}
	return d
}
