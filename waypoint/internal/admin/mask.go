package admin

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// mask is a set of fields to keep; a leaf keeps all below it.
type mask map[string]mask

const maxMask = 4096

// parseMask reads "a.b,c". nil = everything is kept.
func parseMask(s string) (mask, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > maxMask {
		return nil, fmt.Errorf("mask is longer than %d bytes", maxMask)
	}
	m := mask{}
	for path := range strings.SplitSeq(s, ",") {
		at := m
		for name := range strings.SplitSeq(path, ".") {
			if name == "" {
				return nil, fmt.Errorf("mask %q has an empty name", path)
			}
			if at[name] == nil {
				at[name] = mask{}
			}
			at = at[name]
		}
	}
	return m, nil
}

// keep clears what the mask does not name. It looks into packed messages.
func (m mask) keep(msg protoreflect.Message) {
	if a, ok := msg.Interface().(*anypb.Any); ok {
		if inner, err := a.UnmarshalNew(); err == nil {
			m.keep(inner.ProtoReflect())
			if b, err := anypb.New(inner); err == nil {
				a.TypeUrl, a.Value = b.GetTypeUrl(), b.GetValue()
			}
		}
		return
	}
	msg.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		below, ok := m[string(f.Name())]
		switch {
		case !ok:
			msg.Clear(f)
		case len(below) == 0 || f.Kind() != protoreflect.MessageKind || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				below.keep(v.List().Get(i).Message())
			}
		default:
			below.keep(v.Message())
		}
		return true
	})
}
