package match

import "fmt"

// String says what the condition wants, for people.
func (h *Header) String() string {
	not := ""
	if h.invert {
		not = "not "
	}
	switch {
	case h.absent:
		return fmt.Sprintf("%s %sabsent", h.name, not)
	case h.numbers != nil:
		return fmt.Sprintf("%s %sin [%d, %d)", h.name, not, h.numbers.GetStart(), h.numbers.GetEnd())
	}
	return fmt.Sprintf("%s %s%s", h.name, not, h.value.describe())
}

// Name is the parameter's name.
func (m *Query) Name() string { return m.name }

func (m String) describe() string {
	var s string
	switch m.kind {
	case none:
		return "like nothing"
	case present:
		return "present"
	case exact:
		s = fmt.Sprintf("= %q", m.text)
	case prefix:
		s = fmt.Sprintf("begins with %q", m.text)
	case suffix:
		s = fmt.Sprintf("ends with %q", m.text)
	case contains:
		s = fmt.Sprintf("contains %q", m.text)
	case pattern:
		return fmt.Sprintf("like %q", m.re)
	}
	if m.fold {
		s += " in any case"
	}
	return s
}
