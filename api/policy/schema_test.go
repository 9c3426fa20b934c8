package policy

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestSchemaIsThatOfTheTypes: the CustomResourceDefinition has each field of the Go types and no other, of the same kind, and is
// structural: every level has a type.
func TestSchemaIsThatOfTheTypes(t *testing.T) {
	raw, err := os.ReadFile("../../manifests/crds/policy.marrow.io_ratelimitpolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		t.Fatal(err)
	}
	v := crd.Spec.Versions
	if crd.Spec.Group != Group || crd.Spec.Names.Kind != "RateLimitPolicy" || len(v) != 1 || v[0].Name != Version {
		t.Fatalf("group, kind or version: %+v", crd.Spec)
	}
	root := v[0].Schema.OpenAPIV3Schema
	compare(t, "spec", root.Properties["spec"], reflect.TypeFor[RateLimitPolicySpec]())
	compare(t, "status", root.Properties["status"], reflect.TypeFor[RateLimitPolicyStatus]())
}

type schema struct {
	Type       string
	Properties map[string]schema
	Items      *schema
	Required   []string
	Enum       []string
}

func compare(t *testing.T, at string, s schema, typ reflect.Type) {
	t.Helper()
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	want := map[reflect.Kind]string{
		reflect.Struct: "object", reflect.Slice: "array", reflect.String: "string", reflect.Int32: "integer", reflect.Int64: "integer", reflect.Bool: "boolean",
	}[typ.Kind()]
	if typ.Name() == "Time" {
		want = "string"
	}
	if s.Type != want {
		t.Errorf("%s is %q, want %q", at, s.Type, want)
	}
	switch want {
	case "array":
		if s.Items == nil {
			t.Errorf("%s has no items", at)
			return
		}
		compare(t, at+"[]", *s.Items, typ.Elem())
	case "object":
		seen := map[string]bool{}
		for f := range typ.Fields() {
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			seen[name] = true
			p, ok := s.Properties[name]
			if !ok {
				t.Errorf("%s.%s is missing", at, name)
				continue
			}
			if optional := strings.Contains(rest, "omitempty"); optional == slices.Contains(s.Required, name) {
				t.Errorf("%s.%s: optional %v in Go, and not so in the schema", at, name, optional)
			}
			compare(t, at+"."+name, p, f.Type)
		}
		for name := range s.Properties {
			if !seen[name] {
				t.Errorf("%s.%s is no field", at, name)
			}
		}
	}
}

func TestDeepCopySharesNothing(t *testing.T) {
	n, b, s := int32(1), true, "v"
	long := int64(2)
	p := &RateLimitPolicy{Spec: RateLimitPolicySpec{
		TargetRefs: []TargetRef{{Kind: "Service"}}, Service: &RateLimitService{Name: "a"},
		Response: &RateLimitResponse{Status: &n, Headers: []Header{{Name: "a"}}, LimitHeaders: &b, ResourceExhausted: &b},
		Rules: []RateLimitRule{{
			Match: &RateLimitMatch{
				Paths: []string{"/"}, Methods: []string{"GET"}, Hosts: []string{"h"}, Headers: []HeaderMatch{{Name: "a", Value: &s}},
				SourcePrincipals: []string{"p"}, SourceNamespaces: []string{"n"},
			},
			Key: &RateLimitKey{Type: KeyHeader, MaxKeys: &n}, Limit: RateLimit{Burst: &long},
		}},
	}}
	c := p.DeepCopy()
	if !reflect.DeepEqual(c, p) {
		t.Fatalf("the copy is %+v, want %+v", c, p)
	}
	var apart func(at string, a, b reflect.Value)
	apart = func(at string, a, b reflect.Value) {
		switch a.Kind() {
		case reflect.Pointer:
			if !a.IsNil() {
				if a.Pointer() == b.Pointer() {
					t.Errorf("%s is shared", at)
				}
				apart(at, a.Elem(), b.Elem())
			}
		case reflect.Slice:
			if a.Len() > 0 && a.Pointer() == b.Pointer() {
				t.Errorf("%s is shared", at)
			}
			for i := range a.Len() {
				apart(at, a.Index(i), b.Index(i))
			}
		case reflect.Struct:
			for i := range a.NumField() {
				apart(at+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		default:
		}
	}
	apart("spec", reflect.ValueOf(p.Spec), reflect.ValueOf(c.Spec))
}
