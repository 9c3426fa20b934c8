package file_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source/file"
)

// waiting lists worlds beyond what the project serves so far, with the feature that each waits for.
func waiting() map[string]string {
	return map[string]string{}
}

// refusedWorlds hold an object that must be refused, with what the refusal says.
func refusedWorlds() map[string]string {
	return map[string]string{
		"se-address-invalid": "ServiceEntry.networking.istio.io/out/bad: spec.addresses[1]: value \"not-an-address\"",
	}
}

// TestGolden feeds each world of the shared goldens through the file source and compares what is served.
func TestGolden(t *testing.T) {
	worlds := goldenWorlds(t)
	for _, path := range worlds {
		world := strings.TrimSuffix(filepath.Base(path), ".yaml")
		t.Run(world, func(t *testing.T) {
			if feature, ok := waiting()[world]; ok {
				t.Skipf("waits for %s", feature)
			}
			served, refusals := serve(t, path)
			if want := refusedWorlds()[world]; want != "" != (len(refusals) > 0) {
				t.Errorf("refused %v, want %q", refusals, want)
			} else if want != "" && !strings.Contains(errors.Join(refusals...).Error(), want) {
				t.Errorf("refused %v, want %q", refusals, want)
			}
			if len(served.Problems) > 0 {
				t.Errorf("problems: %v", served.Problems)
			}
			base := strings.TrimSuffix(path, ".yaml")
			compare(t, base+".addresses.json", served.Addresses.Updated, func() proto.Message { return &workload.Address{} })
			compare(t, base+".authorizations.json", served.Authorizations.Updated,
				func() proto.Message { return &security.Authorization{} })
		})
	}
}

// goldenWorlds finds the worlds: beside the checkout, or where MARROW_GOLDEN_DIR says.
func goldenWorlds(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("MARROW_GOLDEN_DIR")
	if dir == "" {
		dir = "../../../../../shared/golden"
	}
	worlds, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if len(worlds) == 0 {
		text := "no golden worlds at " + dir + "; put the shared goldens beside the checkout or set MARROW_GOLDEN_DIR"
		if os.Getenv("MARROW_REQUIRE_GOLDEN") == "1" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	return worlds
}

// serve writes a world into a store, as text and therefore as written, and returns what comes of it.
func serve(t *testing.T, path string) (ambient.Changes, []error) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for doc := range bytes.SplitSeq(raw, []byte("\n---\n")) {
		writeObject(t, dir, doc)
	}
	store, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := errors.New("one batch is enough")
	var out ambient.Changes
	var refusals []error
	err = file.New(store).Run(ctx, func(b source.Batch) error {
		out = ambient.NewPipeline(ambient.Config{Unguarded: true}).Apply(b.Events)
		for _, r := range b.Refused {
			refusals = append(refusals, r.Err)
		}
		return done
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	return out, refusals
}

func writeObject(t *testing.T, dir string, doc []byte) {
	t.Helper()
	var head struct {
		APIVersion, Kind string
		Metadata         struct{ Namespace, Name string }
	}
	if err := yaml.Unmarshal(doc, &head); err != nil {
		t.Fatal(err)
	}
	group, _, grouped := strings.Cut(head.APIVersion, "/")
	if !grouped {
		group = "core"
	}
	path := filepath.Join(dir, group, head.Kind, cmp.Or(head.Metadata.Namespace, "_"), head.Metadata.Name+".yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, doc, 0o644); err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, path string, served []ambient.Resource, empty func() proto.Message) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var texts map[string]json.RawMessage
	if err := json.Unmarshal(raw, &texts); err != nil {
		t.Fatal(err)
	}
	want, got := map[string]proto.Message{}, map[string]proto.Message{}
	for name, text := range texts {
		m := empty()
		if err := protojson.Unmarshal(text, m); err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		want[name] = normal(m)
	}
	for _, r := range served {
		m, err := r.Body.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if implied := nameOf(m); implied != r.Name {
			t.Errorf("resource %s holds %s", r.Name, implied)
		}
		if got[r.Name] != nil {
			t.Errorf("resource %s is served twice", r.Name)
		}
		got[r.Name] = normal(m)
	}
	if d := gocmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("%s (-golden +served):\n%s", filepath.Base(path), d)
	}
}

// nameOf is the resource name that a payload implies.
func nameOf(m proto.Message) string {
	switch m := m.(type) {
	case *security.Authorization:
		return m.GetNamespace() + "/" + m.GetName()
	case *workload.Address:
		if s := m.GetService(); s != nil {
			return s.GetNamespace() + "/" + s.GetHostname()
		}
		return m.GetWorkload().GetUid()
	}
	return ""
}

// normal sorts lists whose order means nothing, and inside of policies drops repetitions.
func normal(m proto.Message) proto.Message {
	_, policy := m.(*security.Authorization)
	normalize(m.ProtoReflect(), policy)
	return m
}

func normalize(m protoreflect.Message, distinct bool) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
					normalize(e.Message(), distinct)
					return true
				})
			}
		case fd.IsList():
			normalizeList(m, fd, v.List(), distinct)
		case fd.Message() != nil:
			normalize(v.Message(), distinct)
		}
		return true
	})
}

func normalizeList(m protoreflect.Message, fd protoreflect.FieldDescriptor, l protoreflect.List, distinct bool) {
	if fd.Name() == "routing_preference" {
		return
	}
	type element struct {
		key   string
		value protoreflect.Value
	}
	var all []element
	for i := range l.Len() {
		e := element{value: l.Get(i)}
		if fd.Message() != nil {
			normalize(e.value.Message(), distinct)
			raw, _ := proto.MarshalOptions{Deterministic: true}.Marshal(e.value.Message().Interface())
			e.key = string(raw)
		} else {
			e.key = e.value.String()
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b element) int { return strings.Compare(a.key, b.key) })
	if distinct {
		all = slices.CompactFunc(all, func(a, b element) bool { return a.key == b.key })
	}
	sorted := m.NewField(fd).List()
	for _, e := range all {
		sorted.Append(e.value)
	}
	m.Set(fd, protoreflect.ValueOfList(sorted))
}

// TestGoldenInAnyOrder feeds each world one object at a time, in random orders: what is served in the end must be the
// same.
func TestGoldenInAnyOrder(t *testing.T) {
	for _, path := range goldenWorlds(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			objects, _ := manifest.Decode(path, bytes.NewReader(raw)) // TestGolden knows which worlds have refused objects
			var events []source.Event
			for _, o := range objects {
				events = append(events, source.Event{Key: manifest.KeyOf(o), Object: o})
			}
			want := map[string]string{}
			follow(want, ambient.NewPipeline(ambient.Config{Unguarded: true}).Apply(events))
			for range 3 {
				rand.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
				got := map[string]string{}
				p := ambient.NewPipeline(ambient.Config{Unguarded: true})
				for _, e := range events {
					follow(got, p.Apply([]source.Event{e}))
				}
				if d := gocmp.Diff(want, got); d != "" {
					t.Errorf("one by one (-at once +one by one):\n%s", d)
				}
			}
		})
	}
}

// follow keeps the versions of what is served.
func follow(have map[string]string, c ambient.Changes) {
	for _, d := range []ambient.Delta{c.Addresses, c.Authorizations} {
		for _, r := range d.Updated {
			have[r.Name] = r.Version
		}
		for _, n := range d.Removed {
			delete(have, n)
		}
	}
}
