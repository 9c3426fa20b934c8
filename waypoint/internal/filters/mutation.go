package filters

import (
	"fmt"
	"net/http"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// Mutate changes a request's headers before whatever stands behind it.
type Mutate struct{ request []mutation }

func (*Mutate) http() {}

type mutation struct {
	change HeaderChange // Value is not used
	remove bool
	parts  []valuePart
}

// valuePart is text, or the fact of the outer connection that stands there.
type valuePart struct{ text, state string }

// Apply changes the headers of a request.
func (m *Mutate) Apply(q *match.Request) {
	for i := range m.request {
		c := m.request[i].change
		if m.request[i].remove {
			delete(q.Header, c.Name)
			continue
		}
		var b strings.Builder
		for _, p := range m.request[i].parts {
			if p.state != "" {
				v, _ := q.State(p.state)
				b.WriteString(v)
				continue
			}
			b.WriteString(p.text)
		}
		if c.Value = b.String(); c.Value != "" {
			c.Apply(q.Header)
		}
	}
}

func compileMutate(p *headermutationv3.HeaderMutation) (*Mutate, error) {
	if err := strict.Only(p, "mutations"); err != nil {
		return nil, err
	}
	if err := strict.Only(p.GetMutations(), "request_mutations"); err != nil {
		return nil, err
	}
	out := &Mutate{}
	for _, m := range p.GetMutations().GetRequestMutations() {
		one, err := compileMutation(m)
		if err != nil {
			return nil, fmt.Errorf("request_mutations: %w", err)
		}
		out.request = append(out.request, one)
	}
	return out, nil
}

func compileMutation(p *mutationv3.HeaderMutation) (mutation, error) {
	var m mutation
	switch a := p.GetAction().(type) {
	case *mutationv3.HeaderMutation_Remove:
		m.change.Name, m.remove = http.CanonicalHeaderKey(a.Remove), true
		if framing(m.change.Name) {
			return m, fmt.Errorf("header %q cannot be removed: %w", a.Remove, strict.ErrUnsupported)
		}
		return m, nil
	case *mutationv3.HeaderMutation_Append:
		if err := strict.Only(a.Append, "header", "append_action"); err != nil {
			return m, err
		}
		if err := checkChange(a.Append.GetHeader()); err != nil {
			return m, err
		}
		m.change = HeaderChange{Name: http.CanonicalHeaderKey(a.Append.GetHeader().GetKey()), How: a.Append.GetAppendAction()}
		var err error
		m.parts, err = compileHeaderText(headerText(a.Append.GetHeader()))
		return m, err
	default:
		return m, fmt.Errorf("action %T: %w", a, strict.ErrUnsupported)
	}
}

// compileHeaderText reads a value with %FILTER_STATE(key:PLAIN)% in it.
func compileHeaderText(v string) ([]valuePart, error) {
	var out []valuePart
	for v != "" {
		text, rest, more := strings.Cut(v, "%")
		if text != "" {
			out = append(out, valuePart{text: text})
		}
		if !more {
			return out, nil
		}
		command, after, closed := strings.Cut(rest, "%")
		state, ok := strings.CutPrefix(command, "FILTER_STATE(")
		state, plain := strings.CutSuffix(state, ":PLAIN)")
		switch {
		case closed && command == "":
			out = append(out, valuePart{text: "%"})
		case !closed || !ok || !plain || !match.KnownState(state):
			return nil, fmt.Errorf("value %q: %w", v, strict.ErrUnsupported)
		default:
			out = append(out, valuePart{state: state})
		}
		v = after
	}
	return out, nil
}
