package admin

import (
	"context"
	"net/http"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// Sources is where the pages get their facts.
type Sources struct {
	Config    *config.Config
	Version   string
	Node      *corev3.Node
	Intake    *intake.Intake
	Upstreams *upstream.Store
	Cert      mtls.Source
	Stats     prometheus.Gatherer
	Levels    *obs.Levels     // nil = no /logging
	Pending   func() []string // readiness tasks that are open
	Quit      func()          // nil = no /quitquitquit
	Started   time.Time
	Now       func() time.Time
}

// Pages are the pages in Envoy's shapes, by path.
func (s *Sources) Pages() map[string]http.Handler {
	pages := map[string]http.Handler{
		"/config_dump": http.HandlerFunc(s.configDump),
		"/clusters":    http.HandlerFunc(s.clusters),
		"/listeners":   http.HandlerFunc(s.listeners),
		"/stats":       http.HandlerFunc(s.stats),
		"/ready":       http.HandlerFunc(s.ready),
		"/server_info": http.HandlerFunc(s.serverInfo),
		"/certs":       http.HandlerFunc(s.certs),
		"/state":       http.HandlerFunc(s.state),
	}
	if s.Levels != nil {
		pages["/logging"] = http.HandlerFunc(s.logging)
	}
	if s.Quit != nil {
		pages["/quitquitquit"] = http.HandlerFunc(s.quit)
	}
	return pages
}

// state is what was compiled from the configuration, and what was refused: this program's own shape.
func (s *Sources) state(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, Make(s.Config, s.Version, s.Intake, s.Upstreams, s.Now()))
}

// certificate is the one in use; it does not wait for one.
func (s *Sources) certificate(ctx context.Context) *mtls.Certificate {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	c, err := s.Cert.Certificate(ctx)
	if err != nil {
		return nil
	}
	return c
}

// open resolves the types that this program knows. Of others, a filter that is refused for instance, the name alone is shown.
type open struct{ *protoregistry.Types }

func (open) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return (&emptypb.Empty{}).ProtoReflect().Type(), nil //nolint:nilerr // shown without its fields
	}
	return t, nil
}

func writeProto(w http.ResponseWriter, m proto.Message) { writeMessage(w, m, false) }

// writeMessage writes m as Envoy does; defaults asks for fields that have no value of their own too.
func writeMessage(w http.ResponseWriter, m proto.Message, defaults bool) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, Indent: " ", EmitDefaultValues: defaults, Resolver: open{protoregistry.GlobalTypes}}.Marshal(m)
	if err != nil {
		http.Error(w, "encode: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(raw, '\n'))
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}
