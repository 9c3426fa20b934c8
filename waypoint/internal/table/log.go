package table

import (
	"fmt"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Log is a line that is written for requests or connections.
type Log struct {
	Format    *Format
	MinStatus int // only answers with at least this status; 0 = all
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
	switch f := lf.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormatSource:
		return textLine(f.TextFormatSource.GetInlineString())
	case *corev3.SubstitutionFormatString_JsonFormat:
		m := map[string]string{}
		for k, v := range f.JsonFormat.GetFields() {
			m[k] = v.GetStringValue()
		}
		return CompileJSONFormat(m)
	case *corev3.SubstitutionFormatString_TextFormat:
		return textLine(f.TextFormat) //nolint:staticcheck // control planes may still send the old form
	}
	return nil, fmt.Errorf("log format %T: %w", lf.GetFormat(), strict.ErrUnsupported)
}

func textLine(s string) (*Format, error) {
	if !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return CompileFormat(s)
}
