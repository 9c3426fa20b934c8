package strict

import (
	"errors"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestOnlyNamesTheField(t *testing.T) {
	m := &routev3.Route{Name: "a", StatPrefix: "b"}
	if err := Only(m, "name", "stat_prefix"); err != nil {
		t.Fatalf("both fields are named: %v", err)
	}
	err := Only(m, "name")
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `Route.stat_prefix = b`) {
		t.Fatalf("got %v, want the field and its value", err)
	}
	if err := Only((*routev3.Route)(nil)); err != nil {
		t.Fatalf("an absent message says nothing: %v", err)
	}
}

func TestOnlyRefusesUnknownBytes(t *testing.T) {
	raw, err := proto.Marshal(&routev3.Route{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, 0xfa, 0x3f, 0x01, 'x') // field 1023, one byte
	m := &routev3.Route{}
	if err := proto.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	if err := Only(m, "name"); !errors.Is(err, ErrUnsupported) {
		t.Fatalf("got %v, want a refusal", err)
	}
}

func TestUnpackChecksTheType(t *testing.T) {
	a, err := anypb.New(&routev3.Route{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Unpack(a, &routev3.VirtualHost{}, "name"); err == nil {
		t.Fatal("a Route was read as a VirtualHost")
	}
	if err := Unpack(a, &routev3.Route{}, "name"); err != nil {
		t.Fatal(err)
	}
}
