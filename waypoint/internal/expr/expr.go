package expr

import (
	"errors"
	"fmt"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"
)

// Bounds of an expression.
const (
	maxText = 8 << 10 // bytes
	maxCost = 100_000 // steps as CEL counts them
)

// names are the roots of Envoy's attributes, and of what Istio's proxies know of the two ends.
func names() []string {
	return []string{"request", "response", "connection", "source", "destination", "upstream", "xds", "metadata", "filter_state", "upstream_peer", "downstream_peer"}
}

// Program is a compiled condition.
type Program struct {
	text string
	p    cel.Program
}

// String is the condition as it was written.
func (p *Program) String() string { return p.text }

// Attributes gives the members of one root; nil = there are none.
type Attributes func(root string) map[string]any

// Compile compiles a condition.
func Compile(text string) (*Program, error) {
	return compile(text, func(t *cel.Type) error {
		if !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
			return fmt.Errorf("expression %q gives %s, want a boolean", text, t)
		}
		return nil
	})
}

// CompileValue compiles an expression that may give anything.
func CompileValue(text string) (*Program, error) {
	return compile(text, func(*cel.Type) error { return nil })
}

func compile(text string, fits func(*cel.Type) error) (*Program, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("expression is longer than %d bytes", maxText)
	}
	opts := []cel.EnvOption{cel.ClearMacros(), cel.Macros(cel.StandardMacros...), cel.ParserRecursionLimit(100)}
	for _, n := range names() {
		opts = append(opts, cel.Variable(n, cel.MapType(cel.StringType, cel.DynType)))
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, fmt.Errorf("expression %q: %w", text, err)
	}
	if err := fits(ast.OutputType()); err != nil {
		return nil, err
	}
	p, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost))
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", text, err)
	}
	return &Program{text: text, p: p}, nil
}

// Holds evaluates the condition.
func (p *Program) Holds(a Attributes) bool {
	v, err := p.Value(a)
	b, ok := v.(bool)
	return err == nil && ok && b
}

// errNoValue is an expression without a result.
var errNoValue = errors.New("no value")

// Value evaluates the expression to whatever it gives.
func (p *Program) Value(a Attributes) (any, error) {
	out, _, err := p.p.Eval(activation(a))
	switch {
	case err != nil:
		return nil, err
	case out == nil || types.IsUnknownOrError(out):
		return nil, errNoValue
	}
	return out.Value(), nil
}

// activation resolves roots only when an expression asks for them.
type activation Attributes

// ResolveName implements interpreter.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	if !slices.Contains(names(), name) {
		return nil, false
	}
	if m := a(name); m != nil {
		return m, true
	}
	return map[string]any{}, true
}

// Parent implements interpreter.Activation.
func (activation) Parent() interpreter.Activation { return nil }
