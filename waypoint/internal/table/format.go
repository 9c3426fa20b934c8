package table

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Format is a compiled text with commands such as %REQ(X-A?:PATH)%.
type Format struct {
	parts []part
	json  []jsonField // in place of parts: an object
	omit  bool        // what is not known is left out
}

type part struct {
	text string
	name string // of the command; empty = plain text
	arg  string
	alt  string // second header of REQ(a?b)
	max  int    // 0 = no limit
}

type jsonField struct {
	key   string // encoded
	value *Format
	raw   string // in place of value: encoded
}

// DefaultLog is the text that Istio's proxies write for a request.
const DefaultLog = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// operators are the commands that a Facts can be asked for.
func operators() []string {
	return []string{
		"START_TIME", "REQ", "REQ_WITHOUT_QUERY", "RESP", "TRAILER", "PROTOCOL", "RESPONSE_CODE", "RESPONSE_FLAGS", "RESPONSE_FLAGS_LONG",
		"RESPONSE_CODE_DETAILS", "CONNECTION_TERMINATION_DETAILS", "UPSTREAM_TRANSPORT_FAILURE_REASON", "BYTES_RECEIVED", "BYTES_SENT",
		"DURATION", "REQUEST_DURATION", "RESPONSE_DURATION", "UPSTREAM_HOST", "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW",
		"UPSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_PORT",
		"DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_REMOTE_PORT", "DOWNSTREAM_PEER_URI_SAN", "DOWNSTREAM_LOCAL_URI_SAN",
		"REQUESTED_SERVER_NAME", "ROUTE_NAME", "UPSTREAM_REQUEST_ATTEMPT_COUNT", "HOSTNAME", "GRPC_STATUS", "FILTER_STATE", "METADATA",
		"DYNAMIC_METADATA", "ENVIRONMENT", "TRACE_ID", "STREAM_ID", "CONNECTION_ID",
	}
}

// CompileFormat compiles s. A lone % is an error, %% is one percent sign.
func CompileFormat(s string) (*Format, error) {
	f := &Format{}
	for rest := s; rest != ""; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			f.parts = append(f.parts, part{text: rest})
			break
		}
		if i > 0 {
			f.parts = append(f.parts, part{text: rest[:i]})
		}
		rest = rest[i+1:]
		if strings.HasPrefix(rest, "%") {
			f.parts = append(f.parts, part{text: "%"})
			rest = rest[1:]
			continue
		}
		p, after, err := command(rest)
		if err != nil {
			return nil, fmt.Errorf("format %q: %w", s, err)
		}
		f.parts, rest = append(f.parts, p), after
	}
	return f, nil
}

// command reads NAME, NAME(arg), NAME:max or NAME(arg):max up to its closing percent sign.
func command(s string) (p part, rest string, err error) {
	i := strings.IndexAny(s, "(:%")
	if i < 0 {
		return p, "", fmt.Errorf("command %q has no closing %%", s)
	}
	p.name, rest = s[:i], s[i:]
	if !slices.Contains(operators(), p.name) {
		return p, "", fmt.Errorf("command %q: %w", p.name, strict.ErrUnsupported)
	}
	if rest[0] == '(' {
		end := strings.IndexByte(rest, ')')
		if end < 0 {
			return p, "", fmt.Errorf("command %q has an open parenthesis", p.name)
		}
		p.arg, rest = rest[1:end], rest[end+1:]
		if p.name == "REQ" || p.name == "RESP" || p.name == "TRAILER" {
			p.arg, p.alt, _ = strings.Cut(p.arg, "?")
		}
	}
	if strings.HasPrefix(rest, ":") {
		end := strings.IndexByte(rest, '%')
		if end < 0 {
			return p, "", fmt.Errorf("command %q has no closing %%", p.name)
		}
		if p.max, err = strconv.Atoi(rest[1:end]); err != nil || p.max <= 0 {
			return p, "", fmt.Errorf("command %q: length %q is no positive number", p.name, rest[1:end])
		}
		rest = rest[end:]
	}
	if !strings.HasPrefix(rest, "%") {
		return p, "", fmt.Errorf("command %q has no closing %%", p.name)
	}
	return p, rest[1:], nil
}

// Literal is a format without commands.
func Literal(s string) *Format { return &Format{parts: []part{{text: s}}} }

// Render writes the text for facts; a value that is not known becomes missing.
func (f *Format) Render(facts Facts, missing string) string {
	if f.json != nil {
		return f.renderJSON(facts)
	}
	if f.omit {
		missing = ""
	}
	if len(f.parts) == 1 && f.parts[0].name == "" {
		return f.parts[0].text
	}
	var b strings.Builder
	for i := range f.parts {
		p := &f.parts[i]
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		b.WriteString(p.value(facts, missing))
	}
	return b.String()
}

func (p *part) value(facts Facts, missing string) string {
	v := facts.Operator(p.name, p.arg)
	if v == "" && p.alt != "" {
		v = facts.Operator(p.name, p.alt)
	}
	if v == "" {
		v = missing
	}
	if p.max > 0 && len(v) > p.max {
		v = v[:p.max]
	}
	return v
}

// numeric are the commands whose value is a JSON number when it stands alone.
func numeric(name string) bool {
	switch name {
	case "RESPONSE_CODE", "BYTES_RECEIVED", "BYTES_SENT", "DURATION":
		return true
	}
	return false
}

func (f *Format) renderJSON(facts Facts) string {
	var b strings.Builder
	f.object(&b, facts, f.omit)
	b.WriteByte('\n')
	return b.String()
}

func (f *Format) object(b *strings.Builder, facts Facts, omit bool) {
	b.WriteByte('{')
	first := true
	for i := range f.json {
		field := &f.json[i]
		v := field.raw
		if field.value != nil && field.value.json == nil {
			if v = field.text(facts); omit && (v == "null" || v == `""`) {
				continue
			}
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		b.WriteString(field.key)
		b.WriteByte(':')
		if field.value != nil && field.value.json != nil {
			field.value.object(b, facts, omit)
			continue
		}
		b.WriteString(v)
	}
	b.WriteByte('}')
}

// text is the encoded value of a field that is a text.
func (f *jsonField) text(facts Facts) string {
	parts := f.value.parts
	alone := len(parts) == 1 && parts[0].name != ""
	missing := "-"
	if alone {
		missing = ""
	}
	v := f.value.Render(facts, missing)
	switch {
	case alone && v == "":
		return "null"
	case alone && numeric(parts[0].name):
		return v
	}
	return quote(v)
}

func quote(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		return `""` // a string always encodes; bytes that are not UTF-8 are replaced
	}
	return string(raw)
}
