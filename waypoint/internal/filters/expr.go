package filters

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	celexpr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// The value of an expression is a string, a raw, a bool, an int64 or a mapping; nil stands for CEL's error, which spreads.
type (
	evaluate func(*match.Request) any
	raw      string
	mapping  map[any]any
)

// exprAction compiles the descriptor extension that evaluates a CEL expression, which has to be parsed already. Of CEL it knows what
// concerns a request: its attributes, comparisons, logic, the functions on strings, and maps and lists of constants.
func exprAction(p *corev3.TypedExtensionConfig) (action, error) {
	m := &exprv3.Descriptor{}
	if err := strict.Unpack(p.GetTypedConfig(), m, "descriptor_key", "skip_if_error", "parsed"); err != nil {
		return nil, fmt.Errorf("extension %q: %w", p.GetName(), err)
	}
	if m.GetDescriptorKey() == "" {
		return nil, fmt.Errorf("extension %q: has no descriptor_key", p.GetName())
	}
	e, err := compileExpr(m.GetParsed(), 0)
	if err != nil {
		return nil, fmt.Errorf("extension %q: %w", p.GetName(), err)
	}
	return func(f *LimitFacts, to []Entry) ([]Entry, bool) {
		v, ok := printed(e(f.Request))
		if !ok {
			return to, m.GetSkipIfError()
		}
		return append(to, Entry{m.GetDescriptorKey(), v}), true
	}, nil
}

func printed(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case raw:
		return string(v), true
	case bool:
		return strconv.FormatBool(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	}
	return "", false
}

const deepestExpr = 64

func compileExpr(p *celexpr.Expr, depth int) (evaluate, error) {
	if depth > deepestExpr {
		return nil, fmt.Errorf("expression is deeper than %d: %w", deepestExpr, strict.ErrUnsupported)
	}
	switch k := p.GetExprKind().(type) {
	case *celexpr.Expr_ConstExpr:
		return compileConst(k.ConstExpr)
	case *celexpr.Expr_SelectExpr:
		return compileSelect(k.SelectExpr)
	case *celexpr.Expr_CallExpr:
		return compileCall(k.CallExpr, depth)
	case *celexpr.Expr_StructExpr:
		return compileMap(k.StructExpr, depth)
	}
	return nil, fmt.Errorf("expression %T: %w", p.GetExprKind(), strict.ErrUnsupported)
}

func compileConst(p *celexpr.Constant) (evaluate, error) {
	var v any
	switch c := p.GetConstantKind().(type) {
	case *celexpr.Constant_StringValue:
		v = c.StringValue
	case *celexpr.Constant_BytesValue:
		v = raw(c.BytesValue)
	case *celexpr.Constant_BoolValue:
		v = c.BoolValue
	case *celexpr.Constant_Int64Value:
		v = c.Int64Value
	default:
		return nil, fmt.Errorf("constant %T: %w", c, strict.ErrUnsupported)
	}
	return func(*match.Request) any { return v }, nil
}

// compileSelect knows the attributes of the form object.field.
func compileSelect(p *celexpr.Expr_Select) (evaluate, error) {
	name := p.GetOperand().GetIdentExpr().GetName() + "." + p.GetField()
	if p.GetTestOnly() {
		return nil, fmt.Errorf("has(%s): %w", name, strict.ErrUnsupported)
	}
	text := func(f func(*match.Request) string) (evaluate, error) {
		return func(q *match.Request) any { return f(q) }, nil
	}
	switch name {
	case "request.path":
		return text((*match.Request).FullPath)
	case "request.url_path":
		return text(func(q *match.Request) string { return q.Path })
	case "request.host":
		return text(func(q *match.Request) string { return q.Authority })
	case "request.method":
		return text(func(q *match.Request) string { return q.Method })
	case "request.scheme":
		return text(func(q *match.Request) string { return q.Scheme })
	case "request.query":
		return text(func(q *match.Request) string { return q.Query })
	case "source.address":
		return text(func(q *match.Request) string { return q.Source.String() })
	case "source.port":
		return func(q *match.Request) any { return int64(q.Source.Port()) }, nil
	case "destination.port":
		return func(q *match.Request) any { return int64(q.Port) }, nil
	}
	return nil, fmt.Errorf("attribute %s: %w", name, strict.ErrUnsupported)
}

// compileMap compiles a map whose keys are constants.
func compileMap(p *celexpr.Expr_CreateStruct, depth int) (evaluate, error) {
	if p.GetMessageName() != "" {
		return nil, fmt.Errorf("message %s: %w", p.GetMessageName(), strict.ErrUnsupported)
	}
	keys, values := []any{}, []evaluate{}
	for _, e := range p.GetEntries() {
		k, err := compileConst(e.GetMapKey().GetConstExpr())
		if err != nil {
			return nil, fmt.Errorf("map key: %w", err)
		}
		v, err := compileExpr(e.GetValue(), depth+1)
		if err != nil {
			return nil, err
		}
		keys, values = append(keys, k(nil)), append(values, v)
	}
	return func(q *match.Request) any {
		m := make(mapping, len(keys))
		for i, k := range keys {
			m[k] = values[i](q)
		}
		return m
	}, nil
}

func compileCall(p *celexpr.Expr_Call, depth int) (evaluate, error) {
	name := p.GetFunction()
	if name == "_[_]" {
		return compileIndex(p, depth)
	}
	if name == "@in" || name == "_in_" {
		return compileIn(p, depth)
	}
	args := p.GetArgs()
	if p.GetTarget() != nil {
		args = append([]*celexpr.Expr{p.GetTarget()}, args...)
	}
	if name == "matches" && len(args) == 2 {
		return compileMatches(args, depth)
	}
	compiled := make([]evaluate, 0, len(args))
	for _, a := range args {
		e, err := compileExpr(a, depth+1)
		if err != nil {
			return nil, err
		}
		compiled = append(compiled, e)
	}
	if e := logic(name, compiled); e != nil {
		return e, nil
	}
	if e := comparison(name, compiled); e != nil {
		return e, nil
	}
	if test := stringTest(name); test != nil && len(compiled) == 2 {
		return func(q *match.Request) any {
			s, ok := compiled[0](q).(string)
			part, okPart := compiled[1](q).(string)
			if !ok || !okPart {
				return nil
			}
			return test(s, part)
		}, nil
	}
	return nil, fmt.Errorf("function %s with %d arguments: %w", name, len(args), strict.ErrUnsupported)
}

// logic knows the operators that may leave an argument alone: true || error is true.
func logic(name string, args []evaluate) evaluate {
	decisive := func(by bool) evaluate {
		return func(q *match.Request) any {
			a, okA := args[0](q).(bool)
			if okA && a == by {
				return by
			}
			b, okB := args[1](q).(bool)
			switch {
			case okB && b == by:
				return by
			case okA && okB:
				return !by
			}
			return nil
		}
	}
	switch {
	case name == "_&&_" && len(args) == 2:
		return decisive(false)
	case name == "_||_" && len(args) == 2:
		return decisive(true)
	case name == "!_" && len(args) == 1:
		return func(q *match.Request) any {
			if b, ok := args[0](q).(bool); ok {
				return !b
			}
			return nil
		}
	case name == "_?_:_" && len(args) == 3:
		return func(q *match.Request) any {
			b, ok := args[0](q).(bool)
			switch {
			case !ok:
				return nil
			case b:
				return args[1](q)
			}
			return args[2](q)
		}
	}
	return nil
}

func comparison(name string, args []evaluate) evaluate {
	var holds func(int) bool
	switch name {
	case "_==_":
		holds = func(c int) bool { return c == 0 }
	case "_!=_":
		holds = func(c int) bool { return c != 0 }
	case "_<_":
		holds = func(c int) bool { return c < 0 }
	case "_<=_":
		holds = func(c int) bool { return c <= 0 }
	case "_>_":
		holds = func(c int) bool { return c > 0 }
	case "_>=_":
		holds = func(c int) bool { return c >= 0 }
	}
	if holds == nil || len(args) != 2 {
		return nil
	}
	return func(q *match.Request) any {
		c, ok := compare(args[0](q), args[1](q))
		if !ok {
			return nil
		}
		return holds(c)
	}
}

// compare orders two values of one kind; values of two kinds cannot be compared.
func compare(a, b any) (int, bool) {
	switch a := a.(type) {
	case string:
		b, ok := b.(string)
		return cmp.Compare(a, b), ok
	case raw:
		b, ok := b.(raw)
		return cmp.Compare(a, b), ok
	case int64:
		b, ok := b.(int64)
		return cmp.Compare(a, b), ok
	case bool:
		b, ok := b.(bool)
		switch {
		case a == b:
			return 0, ok
		case b:
			return -1, ok
		}
		return 1, ok
	}
	return 0, false
}

func stringTest(name string) func(s, part string) bool {
	switch name {
	case "startsWith":
		return strings.HasPrefix
	case "endsWith":
		return strings.HasSuffix
	case "contains":
		return strings.Contains
	}
	return nil
}

// compileMatches wants a constant expression, which CEL searches for anywhere in the text.
func compileMatches(args []*celexpr.Expr, depth int) (evaluate, error) {
	s, err := compileExpr(args[0], depth+1)
	if err != nil {
		return nil, err
	}
	pattern, constant := args[1].GetConstExpr().GetConstantKind().(*celexpr.Constant_StringValue)
	if !constant {
		return nil, fmt.Errorf("matches: pattern is no constant: %w", strict.ErrUnsupported)
	}
	re, err := match.Regex("(?s:.*)(?:" + pattern.StringValue + ")(?s:.*)")
	if err != nil {
		return nil, fmt.Errorf("matches: %w", err)
	}
	return func(q *match.Request) any {
		if v, ok := s(q).(string); ok {
			return re.MatchString(v)
		}
		return nil
	}, nil
}

func compileIn(p *celexpr.Expr_Call, depth int) (evaluate, error) {
	if len(p.GetArgs()) != 2 || p.GetArgs()[1].GetListExpr() == nil {
		return nil, fmt.Errorf("in: wants a list: %w", strict.ErrUnsupported)
	}
	v, err := compileExpr(p.GetArgs()[0], depth+1)
	if err != nil {
		return nil, err
	}
	set := map[any]bool{}
	for _, e := range p.GetArgs()[1].GetListExpr().GetElements() {
		c, err := compileConst(e.GetConstExpr())
		if err != nil {
			return nil, fmt.Errorf("in: list: %w", err)
		}
		set[c(nil)] = true
	}
	return func(q *match.Request) any {
		switch k := v(q).(type) {
		case string, raw, bool, int64:
			return set[k]
		}
		return nil
	}, nil
}

// compileIndex knows filter_state[...], request.headers[...] and maps written in the expression. A key that is not there is an error.
func compileIndex(p *celexpr.Expr_Call, depth int) (evaluate, error) {
	if len(p.GetArgs()) != 2 {
		return nil, fmt.Errorf("index with %d arguments: %w", len(p.GetArgs()), strict.ErrUnsupported)
	}
	of, at := p.GetArgs()[0], p.GetArgs()[1]
	key, constant := at.GetConstExpr().GetConstantKind().(*celexpr.Constant_StringValue)
	switch {
	case of.GetIdentExpr().GetName() == "filter_state" && constant:
		if !match.KnownState(key.StringValue) {
			return nil, fmt.Errorf("filter state %q: %w", key.StringValue, strict.ErrUnsupported)
		}
		return func(q *match.Request) any {
			if v, ok := q.State(key.StringValue); ok {
				return raw(v)
			}
			return nil
		}, nil
	case of.GetSelectExpr().GetField() == "headers" && of.GetSelectExpr().GetOperand().GetIdentExpr().GetName() == "request" && constant:
		name := canonicalName(key.StringValue)
		return func(q *match.Request) any {
			if v, ok := q.Get(name); ok {
				return v
			}
			return nil
		}, nil
	case of.GetStructExpr() != nil:
		m, err := compileMap(of.GetStructExpr(), depth+1)
		if err != nil {
			return nil, err
		}
		k, err := compileExpr(at, depth+1)
		if err != nil {
			return nil, err
		}
		return func(q *match.Request) any {
			table, _ := m(q).(mapping)
			switch k := k(q).(type) {
			case string, raw, bool, int64:
				return table[k]
			}
			return nil
		}, nil
	}
	return nil, fmt.Errorf("index: only filter_state, request.headers and maps of constants have one: %w", strict.ErrUnsupported)
}
