package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Decode reads all documents of r. Kinds named List, or ending in List, stand for their items. The error joins one
// [Error] per problem; objects without a problem are returned all the same.
func Decode(source string, r io.Reader) ([]Object, error) {
	docs, err := split(r)
	if err != nil {
		return nil, &Error{Source: source, Problem: fmt.Sprintf("cannot be read: %v", err)}
	}
	var objects []Object
	var errs []error
	for i, d := range docs {
		got, bad := decodeDocument(d.text)
		objects = append(objects, got...)
		for _, e := range bad {
			e.Source, e.Document, e.Line = source, i+1, d.line
			errs = append(errs, e)
		}
	}
	return objects, errors.Join(errs...)
}

// DecodeDir reads every .yaml, .yml and .json file below dir in the order of their paths.
func DecodeDir(dir string) ([]Object, error) {
	var objects []Object
	var errs []error
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
		default:
			return nil
		}
		if d.IsDir() {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := Decode(path, bytes.NewReader(raw))
		objects = append(objects, got...)
		errs = append(errs, err)
		return nil
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("read manifests of %s: %w", dir, err))
	}
	return objects, errors.Join(errs...)
}

type document struct {
	text []byte
	line int
}

// split cuts a stream at the lines that start with "---". Comments before the first such line are no document; any
// later part is, so that numbers are those that a reader of the file counts.
func split(r io.Reader) ([]document, error) {
	var docs []document
	cur := document{line: 1}
	started := false // something other than the first separator was seen
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if len(line) > 0 {
			if rest, ok := bytes.CutPrefix(line, []byte("---")); ok && separator(rest) {
				if started {
					docs = append(docs, cur)
				}
				cur, started = document{line: n + 1}, true
			} else {
				cur.text = append(cur.text, line...)
				text := bytes.TrimSpace(line)
				started = started || len(text) > 0 && text[0] != '#'
			}
		}
		if errors.Is(err, io.EOF) {
			return append(docs, cur), nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// separator says whether what follows "---" on its line leaves it a separator: nothing, or a comment.
func separator(rest []byte) bool {
	rest = bytes.TrimRight(rest, "\r\n")
	trimmed := bytes.TrimLeft(rest, " \t")
	return len(trimmed) == 0 || len(trimmed) < len(rest) && trimmed[0] == '#'
}

func decodeDocument(text []byte) ([]Object, []*Error) {
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, []*Error{{Problem: "is not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}}
	}
	if bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	return decodeJSON(raw)
}

// header is what every object says about itself, read before its schema is known.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

func decodeJSON(raw []byte) ([]Object, []*Error) {
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, []*Error{{Problem: fmt.Sprintf("is no object with apiVersion, kind and metadata: %v", err)}}
	}
	if strings.HasSuffix(h.Kind, "List") && h.Metadata.Name == "" {
		return decodeList(h)
	}
	group, version, found := strings.Cut(h.APIVersion, "/")
	if !found {
		group, version = "", h.APIVersion
	}
	key := Key{Group: group, Kind: h.Kind, Namespace: h.Metadata.Namespace, Name: h.Metadata.Name}
	fail := func(field, format string, args ...any) ([]Object, []*Error) {
		return nil, []*Error{{Key: key, Field: field, Problem: fmt.Sprintf(format, args...)}}
	}
	if h.Kind == "" || h.APIVersion == "" {
		return fail("", "has no kind or no apiVersion; write both")
	}
	o := blank(group, h.Kind)
	if o == nil {
		return fail("kind", "%s of %s is not a kind that is read here; remove the object", h.Kind, h.APIVersion)
	}
	if !served(group, version, h.Kind) {
		return fail("apiVersion", "%s has no version %q; use %s", h.Kind, version, typeOf(o).gvk().GroupVersion())
	}
	p := &problems{}
	decodeObject(raw, o, p)
	if Namespaced(group, h.Kind) && key.Namespace == "" {
		key.Namespace = "default"
		o.SetNamespace(key.Namespace)
	}
	setType(o)
	if len(p.list) == 0 {
		validate(o, p)
	}
	for _, e := range p.list {
		e.Key = key
	}
	if len(p.list) > 0 {
		return nil, p.list
	}
	return []Object{o}, nil
}

func decodeList(h header) ([]Object, []*Error) {
	var objects []Object
	var errs []*Error
	for i, item := range h.Items {
		got, bad := decodeJSON(item)
		objects = append(objects, got...)
		for _, e := range bad {
			e.Field = strings.TrimSuffix(fmt.Sprintf("items[%d].%s", i, e.Field), ".")
			errs = append(errs, e)
		}
	}
	return objects, errs
}

// decodeObject fills o. Specs and statuses that are proto messages are compared with their schema first, because their
// own decoder passes over what it does not know.
func decodeObject(raw []byte, o Object, p *problems) {
	tree := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		p.add("", "is no object: %v", err)
		return
	}
	for _, part := range []string{"spec", "status"} {
		if md := protoPart(o, part); md != nil {
			checkProto(part, tree[part], md, p)
		}
	}
	if len(p.list) > 0 {
		return
	}
	strict, err := kjson.UnmarshalStrict(raw, o)
	if err != nil {
		p.add("", "%s", strings.TrimPrefix(err.Error(), "json: "))
		return
	}
	for _, e := range strict {
		field, problem := strictProblem(e)
		p.add(field, "%s", problem)
	}
}

// strictProblem takes the field path out of the JSON library's text.
func strictProblem(err error) (field, problem string) {
	text := err.Error()
	for _, kind := range []string{"unknown field", "duplicate field"} {
		if rest, ok := strings.CutPrefix(text, kind+` "`); ok {
			return strings.TrimSuffix(rest, `"`), kind + "; remove it or correct its name"
		}
	}
	return "", text
}

// protoPart returns the schema of o's spec or status if it is a proto message.
func protoPart(o Object, part string) protoreflect.MessageDescriptor {
	f := reflect.ValueOf(o).Elem().FieldByName(strings.ToUpper(part[:1]) + part[1:])
	if !f.IsValid() || !f.CanAddr() {
		return nil
	}
	m, ok := reflect.TypeAssert[proto.Message](f.Addr())
	if !ok {
		return nil
	}
	return m.ProtoReflect().Descriptor()
}
