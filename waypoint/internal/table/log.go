package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/waypoint/internal/expr"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Log is a line that is written for requests or connections.
type Log struct {
	Format    *Format
	MinStatus int           // only answers with at least this status; 0 = all
	When      *expr.Program // nil = always
}

func compileLogs(ps []*accesslogv3.AccessLog) ([]Log, error) {
	var out []Log
	for _, p := range ps {
		l, err := compileLog(p)
		if err != nil {
			return nil, fmt.Errorf("access log %q: %w", p.GetName(), err)
		}
		out = append(out, l)
	}
	return out, nil
}

func compileLog(p *accesslogv3.AccessLog) (Log, error) {
	var l Log
	switch f := p.GetFilter().GetFilterSpecifier().(type) {
	case nil:
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		c := f.StatusCodeFilter.GetComparison()
		if c.GetOp() != accesslogv3.ComparisonFilter_GE {
			return l, fmt.Errorf("status code filter %v: %w", c.GetOp(), strict.ErrUnsupported)
		}
		l.MinStatus = int(c.GetValue().GetDefaultValue())
	case *accesslogv3.AccessLogFilter_ExtensionFilter:
		e := &celfilterv3.ExpressionFilter{}
		if err := strict.Unpack(f.ExtensionFilter.GetTypedConfig(), e, "expression"); err != nil {
			return l, fmt.Errorf("filter %q: %w: %w", f.ExtensionFilter.GetName(), strict.ErrUnsupported, err)
		}
		var err error
		if l.When, err = expr.Compile(e.GetExpression()); err != nil {
			return l, err
		}
	default:
		return l, fmt.Errorf("filter %T: %w", f, strict.ErrUnsupported)
	}
	file := &filelogv3.FileAccessLog{}
	if err := strict.Unpack(p.GetTypedConfig(), file, "path", "format", "json_format", "log_format"); err != nil {
		return l, err
	}
	if file.GetPath() != "/dev/stdout" {
		return l, fmt.Errorf("path %q: %w: only /dev/stdout is written", file.GetPath(), strict.ErrUnsupported)
	}
	var err error
	l.Format, err = compileLogFormat(file)
	return l, err
}

func compileLogFormat(file *filelogv3.FileAccessLog) (*Format, error) {
	lf := file.GetLogFormat()
	if lf == nil {
		return textLine(DefaultLog)
	}
	if err := strict.Only(lf, "text_format", "text_format_source", "json_format", "omit_empty_values"); err != nil {
		return nil, err
	}
	f, err := formatOf(lf)
	if err == nil {
		f.omit = lf.GetOmitEmptyValues()
	}
	return f, err
}

func formatOf(lf *corev3.SubstitutionFormatString) (*Format, error) {
	switch f := lf.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormatSource:
		return textLine(f.TextFormatSource.GetInlineString())
	case *corev3.SubstitutionFormatString_JsonFormat:
		return compileJSON(f.JsonFormat, maxDepth)
	case *corev3.SubstitutionFormatString_TextFormat:
		return textLine(f.TextFormat) //nolint:staticcheck // control planes may still send the old form
	}
	return nil, fmt.Errorf("log format %T: %w", lf.GetFormat(), strict.ErrUnsupported)
}

// maxDepth is how deep objects of a JSON line may lie in each other.
const maxDepth = 8

// compileJSON compiles an object of texts, numbers and objects; keys are written in the order of their names.
func compileJSON(s *structpb.Struct, depth int) (*Format, error) {
	if depth == 0 {
		return nil, fmt.Errorf("objects lie deeper than %d: %w", maxDepth, strict.ErrUnsupported)
	}
	out := &Format{json: []jsonField{}}
	for _, k := range slices.Sorted(maps.Keys(s.GetFields())) {
		field := jsonField{key: quote(k)}
		var err error
		switch v := s.GetFields()[k].GetKind().(type) {
		case *structpb.Value_StringValue:
			field.value, err = CompileFormat(v.StringValue)
		case *structpb.Value_StructValue:
			field.value, err = compileJSON(v.StructValue, depth-1)
		case *structpb.Value_NumberValue, *structpb.Value_BoolValue:
			raw, e := s.GetFields()[k].MarshalJSON()
			field.raw, err = string(raw), e
		default:
			err = fmt.Errorf("value %T: %w", v, strict.ErrUnsupported)
		}
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k, err)
		}
		out.json = append(out.json, field)
	}
	return out, nil
}

func textLine(s string) (*Format, error) {
	if !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return CompileFormat(s)
}
