package table

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/expr"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Metric is one of Istio's standard metrics.
type Metric uint8

// The metrics.
const (
	RequestCount Metric = iota
	RequestDuration
	RequestSize
	ResponseSize
	RequestMessages
	ResponseMessages
	TCPOpened
	TCPClosed
	TCPSent
	TCPReceived
	MetricCount // how many there are
)

// metricNames are what Istio's API calls the metrics, in their order.
func metricNames() [MetricCount]string {
	return [MetricCount]string{
		"REQUEST_COUNT", "REQUEST_DURATION", "REQUEST_SIZE", "RESPONSE_SIZE", "GRPC_REQUEST_MESSAGES", "GRPC_RESPONSE_MESSAGES",
		"TCP_OPENED_CONNECTIONS", "TCP_CLOSED_CONNECTIONS", "TCP_SENT_BYTES", "TCP_RECEIVED_BYTES",
	}
}

// MetricsKey is where a filter chain's metadata says how its requests and connections are counted:
// {"REQUEST_COUNT": {"disabled": true}, "REQUEST_SIZE": {"set": {"label": "expression"}, "remove": ["label"]}}.
const MetricsKey = "marrow.metrics"

// Metrics is how a chain wants to be counted, where that is not the standard.
type Metrics struct{ of [MetricCount]metricLabels }

type metricLabels struct {
	off  bool
	set  map[string]*expr.Program // nil = the expression makes no sense: unknown
	gone map[string]bool
}

// Counted is how one request or connection counts in one metric.
type Counted struct {
	Off  bool              // not at all
	Set  map[string]string // labels with values of their own
	Gone map[string]bool   // labels that are not there
}

// Bounds of a label's value.
const (
	maxLabel     = 256 // bytes
	unknownLabel = "unknown"
)

// Of asks for the labels' values; nil for a chain that wants the standard.
func (m *Metrics) Of(a expr.Attributes) *[MetricCount]Counted {
	if m == nil {
		return nil
	}
	out := &[MetricCount]Counted{}
	for i := range m.of {
		l := &m.of[i]
		out[i] = Counted{Off: l.off, Gone: l.gone}
		if l.off || len(l.set) == 0 {
			continue
		}
		out[i].Set = make(map[string]string, len(l.set))
		for name, p := range l.set {
			out[i].Set[name] = labelValue(p, a)
		}
	}
	return out
}

// labelValue makes a label's value of what an expression gives; what is neither text, number nor truth is unknown.
func labelValue(p *expr.Program, a expr.Attributes) string {
	if p == nil {
		return unknownLabel
	}
	v, err := p.Value(a)
	out := ""
	switch v := v.(type) {
	case string:
		out = v
	case int64:
		out = strconv.FormatInt(v, 10)
	case uint64:
		out = strconv.FormatUint(v, 10)
	case float64:
		out = strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		out = strconv.FormatBool(v)
	}
	if err != nil || out == "" {
		return unknownLabel
	}
	if len(out) > maxLabel {
		cut := maxLabel
		for cut > 0 && !utf8.RuneStart(out[cut]) {
			cut--
		}
		out = out[:cut]
	}
	return strings.ToValidUTF8(out, "\uFFFD")
}

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// compileMetrics reads a chain's metadata; nil = it says nothing.
func compileMetrics(m *corev3.Metadata) (*Metrics, error) {
	said := m.GetFilterMetadata()[MetricsKey]
	if said == nil {
		return nil, nil
	}
	out := &Metrics{}
	for _, name := range slices.Sorted(maps.Keys(said.GetFields())) {
		at := slices.Index(namesOf(metricNames()), name)
		if at < 0 {
			return nil, fmt.Errorf("metadata %s: metric %q: %w", MetricsKey, name, strict.ErrUnsupported)
		}
		if err := out.of[at].compile(said.GetFields()[name].GetStructValue()); err != nil {
			return nil, fmt.Errorf("metadata %s: %s: %w", MetricsKey, name, err)
		}
	}
	return out, nil
}

func namesOf(a [MetricCount]string) []string { return a[:] }

func (l *metricLabels) compile(p *structpb.Struct) error {
	label := func(name string) error {
		if !labelName.MatchString(name) || strings.HasPrefix(name, "__") || name == "le" {
			return fmt.Errorf("%q cannot be a label", name)
		}
		return nil
	}
	for field, v := range p.GetFields() {
		switch field {
		case "disabled":
			l.off = v.GetBoolValue()
		case "remove":
			l.gone = map[string]bool{}
			for _, name := range v.GetListValue().GetValues() {
				if err := label(name.GetStringValue()); err != nil {
					return err
				}
				l.gone[name.GetStringValue()] = true
			}
		case "set":
			l.set = map[string]*expr.Program{}
			for name, text := range v.GetStructValue().GetFields() {
				if err := label(name); err != nil {
					return err
				}
				// One label must not hold back all other configuration: as in Istio its value is unknown then.
				l.set[name], _ = expr.CompileValue(text.GetStringValue())
			}
		default:
			return fmt.Errorf("%q: %w", field, strict.ErrUnsupported)
		}
	}
	return nil
}
