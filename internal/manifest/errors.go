package manifest

import (
	"fmt"
	"strings"
)

// Error says why one object, or one document that is no object, was refused.
type Error struct {
	Source   string // file or other origin
	Document int    // from 1, counted by "---"
	Line     int    // where the document starts, from 1; 0 = not known
	Key      Key    // zero when the document does not say what it is
	Field    string // path inside the object; empty when the whole object is meant
	Problem  string // what is wrong and what to do
}

// Error names source, document, object and field in that order.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Source != "" {
		b.WriteString(e.Source)
		b.WriteString(": ")
	}
	if e.Document > 0 {
		fmt.Fprintf(&b, "document %d", e.Document)
		if e.Line > 0 {
			fmt.Fprintf(&b, " (line %d)", e.Line)
		}
		b.WriteString(": ")
	}
	if !e.Key.IsZero() {
		b.WriteString(e.Key.String())
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

// problems collects what is wrong with one object.
type problems struct{ list []*Error }

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, &Error{Field: field, Problem: fmt.Sprintf(format, args...)})
}
