package strict

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// ErrUnsupported marks configuration that is well formed but asks for something this proxy does not do.
var ErrUnsupported = errors.New("not supported by this proxy")

// Only returns an error naming the first set field of m that is not in allowed.
func Only(m proto.Message, allowed ...string) error {
	r := m.ProtoReflect()
	if !r.IsValid() {
		return nil
	}
	if len(r.GetUnknown()) > 0 {
		return fmt.Errorf("%s has fields that its schema does not know: %w", r.Descriptor().FullName(), ErrUnsupported)
	}
	var refused error
	r.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		for _, a := range allowed {
			if string(f.Name()) == a {
				return true
			}
		}
		refused = fmt.Errorf("%s.%s = %s: %w", r.Descriptor().Name(), f.Name(), short(v), ErrUnsupported)
		return false
	})
	return refused
}

// Unpack reads the message inside a and checks that it is a T with only the allowed fields.
func Unpack[T proto.Message](a *anypb.Any, into T, allowed ...string) error {
	if err := a.UnmarshalTo(into); err != nil {
		return fmt.Errorf("read %s: %w", a.GetTypeUrl(), err)
	}
	return Only(into, allowed...)
}

func short(v protoreflect.Value) string {
	const limit = 80
	s := v.String()
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return s
}
