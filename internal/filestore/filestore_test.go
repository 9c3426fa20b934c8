package filestore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *filestore.Store {
	t.Helper()
	s, err := filestore.Open(filepath.Join(t.TempDir(), "objects"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}},
	}
}

func keyOf(name string) manifest.Key {
	return manifest.Key{Kind: "Pod", Namespace: "shop", Name: name}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *filestore.Store, k manifest.Key) *corev1.Pod {
	t.Helper()
	o, err := s.Get(k)
	must(t, err)
	return o.(*corev1.Pod)
}

func TestPutLikeAnAPIServer(t *testing.T) {
	s := open(t)
	a := pod("a")
	must(t, s.Put(a))
	if a.UID == "" || a.CreationTimestamp.IsZero() || a.ResourceVersion == "" || a.Generation != 1 {
		t.Fatalf("metadata not set: %+v", a.ObjectMeta)
	}
	st := pod("a")
	st.Status.PodIP = "10.0.0.1"
	must(t, s.PutStatus(st))
	if got := get(t, s, keyOf("a")); got.Status.PodIP != "10.0.0.1" || got.Generation != 1 || got.UID != a.UID {
		t.Fatalf("after PutStatus: %+v", got)
	}

	again := pod("a")
	again.Spec.NodeName = "n"
	must(t, s.Put(again))
	got := get(t, s, keyOf("a"))
	if got.Status.PodIP != "10.0.0.1" || got.Generation != 2 || got.UID != a.UID || !got.CreationTimestamp.Equal(&a.CreationTimestamp) {
		t.Fatalf("after a second Put: %+v", got)
	}

	same := pod("a")
	same.Spec.NodeName = "n"
	must(t, s.Put(same))
	if v := get(t, s, keyOf("a")).ResourceVersion; v != got.ResourceVersion {
		t.Errorf("a Put of the same object made version %s of %s", v, got.ResourceVersion)
	}

	stale := pod("a")
	stale.ResourceVersion = a.ResourceVersion
	if err := s.Put(stale); !errors.Is(err, filestore.ErrConflict) {
		t.Errorf("stale Put: %v", err)
	}
	if err := s.PutStatus(pod("b")); !errors.Is(err, filestore.ErrNotFound) {
		t.Errorf("status of an absent pod: %v", err)
	}
	if _, err := s.Get(keyOf("b")); !errors.Is(err, filestore.ErrNotFound) {
		t.Errorf("get of an absent pod: %v", err)
	}
}

func TestDeleteTakesWhatIsOwned(t *testing.T) {
	s := open(t)
	owner := pod("owner")
	must(t, s.Put(owner))
	child := pod("child")
	child.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "owner", UID: owner.UID}}
	must(t, s.Put(child))
	grandchild := pod("grandchild")
	grandchild.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "child", UID: child.UID}}
	must(t, s.Put(grandchild))
	must(t, s.Put(pod("other")))
	must(t, s.Delete(keyOf("owner")))
	left, err := s.List()
	must(t, err)
	if len(left) != 1 || left[0].GetName() != "other" {
		t.Errorf("left %v", left)
	}
	must(t, s.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}))
	must(t, s.Delete(manifest.Key{Kind: "Namespace", Name: "shop"}))
	if left, _ := s.List(); len(left) != 0 {
		t.Errorf("left after the namespace %v", left)
	}
	if err := s.Delete(keyOf("owner")); !errors.Is(err, filestore.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
}

func TestConcurrentPatchesAllCount(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("a")))
	var wg sync.WaitGroup
	for range 8 {
		other, err := filestore.Open(s.Dir())
		must(t, err)
		wg.Go(func() {
			for range 10 {
				err := other.Patch(keyOf("a"), func(o manifest.Object) error {
					n, _ := strconv.Atoi(o.GetAnnotations()["n"])
					o.SetAnnotations(map[string]string{"n": strconv.Itoa(n + 1)})
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := get(t, s, keyOf("a")).Annotations["n"]; n != "80" {
		t.Errorf("counted %s of 80 patches", n)
	}
}

func TestPatchStatusReachesRefusedObjects(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("a")))
	path := filepath.Join(s.Dir(), "core/Pod/shop/a.yaml")
	must(t, os.WriteFile(path, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {bogus: 1}\n"), 0o644))
	must(t, s.PatchStatus(keyOf("a"), func(status map[string]any) map[string]any {
		return map[string]any{"message": "refused"}
	}))
	raw, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(raw), "message: refused") || !strings.Contains(string(raw), "bogus: 1") {
		t.Errorf("got\n%s", raw)
	}
}

// TestStatusOfAFileInWork: a status never costs an editor, who holds no lock, what he wrote.
func TestStatusOfAFileInWork(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("a")))
	path := filepath.Join(s.Dir(), "core/Pod/shop/a.yaml")
	refused := func(map[string]any) map[string]any { return map[string]any{"message": "refused"} }
	for _, half := range []string{"", "apiVersion: v1\nkind: Pod\n"} {
		must(t, os.WriteFile(path, []byte(half), 0o644))
		if err := s.PatchStatus(keyOf("a"), refused); err == nil || !strings.Contains(err.Error(), "just being written") {
			t.Errorf("a status for %q: %v", half, err)
		}
		if raw, err := os.ReadFile(path); err != nil || string(raw) != half {
			t.Errorf("%q became %q, %v", half, raw, err)
		}
	}
	whole := "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {number: N}\n"
	must(t, os.WriteFile(path, []byte(strings.Replace(whole, "N", "1", 1)), 0o644))
	edits := 0
	must(t, s.PatchStatus(keyOf("a"), func(old map[string]any) map[string]any {
		if edits++; edits == 1 { // the editor is quicker
			must(t, os.WriteFile(path, []byte(strings.Replace(whole, "N", "2", 1)), 0o644))
		}
		return refused(old)
	}))
	raw, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(raw), "number: 2") || !strings.Contains(string(raw), "message: refused") || edits != 2 {
		t.Errorf("after %d edits:\n%s", edits, raw)
	}
}

// follow applies the events of a watcher until done says that the state is as wanted.
func follow(t *testing.T, ch <-chan []filestore.Event, state map[manifest.Key]string, done func() bool) {
	t.Helper()
	// Silence is what fails, not a busy machine.
	const silence = 20 * time.Second
	limit := time.NewTimer(silence)
	defer limit.Stop()
	for {
		select {
		case batch := <-ch:
			limit.Reset(silence)
			for _, e := range batch {
				switch {
				case e.Err != nil:
					state[e.Key] += "!"
				case e.Object == nil:
					delete(state, e.Key)
				default:
					state[e.Key] = e.Object.GetAnnotations()["n"]
				}
			}
		case <-limit.C:
			t.Fatalf("not reached; state %v", state)
		}
		if done() {
			return
		}
	}
}

func TestWatchSeesEveryLastState(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("first")))
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := s.Watch(ctx)
	must(t, err)
	state := map[manifest.Key]string{}
	follow(t, ch, state, func() bool { return len(state) == 1 })

	want := map[manifest.Key]string{}
	var wg sync.WaitGroup
	for w := range 4 {
		for i := range 10 { // one pod of each ten lives in a namespace that nobody has seen before
			want[manifest.Key{Kind: "Pod", Namespace: fmt.Sprintf("ns-%d", i), Name: fmt.Sprintf("p%d", w)}] = "3"
		}
		wg.Go(func() {
			for n := range 4 {
				for i := range 10 {
					p := pod(fmt.Sprintf("p%d", w))
					p.Namespace = fmt.Sprintf("ns-%d", i)
					p.Annotations = map[string]string{"n": strconv.Itoa(n)}
					if err := s.Put(p); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Go(func() {
		if err := s.Delete(keyOf("first")); err != nil {
			t.Error(err)
		}
	})
	follow(t, ch, state, func() bool { return maps.Equal(state, want) })
	wg.Wait()
	cancel()
	for range ch { // the channel ends when the watcher has ended
	}
}

func TestMalformedFileKeepsLastGood(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("a")))
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := s.Watch(ctx)
	must(t, err)
	state := map[manifest.Key]string{}
	follow(t, ch, state, func() bool { return len(state) == 1 })
	path := filepath.Join(s.Dir(), "core/Pod/shop/a.yaml")
	good, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {bogus: 1}\n"), 0o644))
	follow(t, ch, state, func() bool { return strings.HasSuffix(state[keyOf("a")], "!") })
	must(t, os.WriteFile(path, good, 0o644))
	follow(t, ch, state, func() bool { return state[keyOf("a")] == "" })
	must(t, os.RemoveAll(filepath.Join(s.Dir(), "core")))
	follow(t, ch, state, func() bool { return len(state) == 0 })
	cancel()
	for range ch { // the channel ends when the watcher has ended
	}
}

func TestFileMustHoldWhatItsPathNames(t *testing.T) {
	s := open(t)
	must(t, s.Put(pod("a")))
	from := filepath.Join(s.Dir(), "core/Pod/shop/a.yaml")
	raw, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.Dir(), "core/Pod/shop/b.yaml"), raw, 0o644))
	if _, err := s.Get(keyOf("b")); err == nil || !strings.Contains(err.Error(), "stands in the file of Pod/shop/b") {
		t.Error(err)
	}
	all, err := s.List()
	if len(all) != 1 || err == nil {
		t.Errorf("list: %v, %v", all, err)
	}
}
