package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checkProto compares a JSON tree with the schema of the proto message that will be decoded from it. The decoder of
// Istio's types passes over fields that it does not know, and its errors name no field; here every difference gets its
// path.
func checkProto(path string, v any, md protoreflect.MessageDescriptor, p *problems) {
	if v == nil || md.FullName().Parent() == "google.protobuf" {
		return // well-known types have JSON forms of their own, which their decoder judges
	}
	m, ok := v.(map[string]any)
	if !ok {
		p.add(path, "is %s, want an object", nameOf(v))
		return
	}
	seen := map[protoreflect.FullName]string{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		at := join(path, name)
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			p.add(at, "unknown field; remove it or correct its name")
			continue
		}
		if m[name] == nil {
			continue
		}
		id := fd.FullName()
		if of := fd.ContainingOneof(); of != nil && !of.IsSynthetic() {
			id = of.FullName()
		}
		if other, there := seen[id]; there {
			p.add(at, "excludes %s; keep one of the two", other)
			continue
		}
		seen[id] = name
		checkField(at, m[name], fd, p)
	}
}

func checkField(path string, v any, fd protoreflect.FieldDescriptor, p *problems) {
	switch {
	case fd.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			p.add(path, "is %s, want an object", nameOf(v))
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			checkValue(path+"["+k+"]", m[k], fd.MapValue(), p)
		}
	case fd.IsList():
		l, ok := v.([]any)
		if !ok {
			p.add(path, "is %s, want a list", nameOf(v))
			return
		}
		for i, e := range l {
			checkValue(fmt.Sprintf("%s[%d]", path, i), e, fd, p)
		}
	default:
		checkValue(path, v, fd, p)
	}
}

func checkValue(path string, v any, fd protoreflect.FieldDescriptor, p *problems) {
	_, text := v.(string)
	_, number := v.(json.Number)
	_, boolean := v.(bool)
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if v == nil {
			p.add(path, "is null, want an object")
			return
		}
		checkProto(path, v, fd.Message(), p)
	case protoreflect.EnumKind:
		checkEnum(path, v, fd.Enum(), p)
	case protoreflect.BoolKind:
		if !boolean {
			p.add(path, "is %s, want true or false", nameOf(v))
		}
	case protoreflect.StringKind, protoreflect.BytesKind:
		if !text {
			p.add(path, "is %s, want a string; put it in quotes", nameOf(v))
		}
	default:
		if !number && !text {
			p.add(path, "is %s, want a number", nameOf(v))
		}
	}
}

func checkEnum(path string, v any, ed protoreflect.EnumDescriptor, p *problems) {
	if n, ok := v.(json.Number); ok {
		if i, err := n.Int64(); err == nil && ed.Values().ByNumber(protoreflect.EnumNumber(i)) != nil {
			return
		}
	}
	if s, ok := v.(string); ok && ed.Values().ByName(protoreflect.Name(s)) != nil {
		return
	}
	var names []string
	for i := range ed.Values().Len() {
		names = append(names, string(ed.Values().Get(i).Name()))
	}
	p.add(path, "value %v is unknown; want one of %s", v, strings.Join(names, ", "))
}

func nameOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return fmt.Sprintf("the string %q", v)
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	case json.Number:
		return "the number " + v.String()
	case []any:
		return "a list"
	}
	return "an object"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// CheckMessage compares JSON with the schema of m, for texts inside of objects that are decoded without looking at
// unknown fields. The error joins one [Error] per difference, with field paths that begin with root.
func CheckMessage(root string, raw []byte, m proto.Message) error {
	var tree any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return &Error{Field: root, Problem: err.Error()}
	}
	p := &problems{}
	checkProto(root, tree, m.ProtoReflect().Descriptor(), p)
	var errs []error
	for _, e := range p.list {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}
