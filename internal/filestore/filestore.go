package filestore

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// ErrNotFound says that the store has no object of that key.
var ErrNotFound = errors.New("object not found")

// ErrConflict says that the object changed since the caller read it: its resourceVersion is not the stored one.
var ErrConflict = errors.New("object was changed meanwhile")

// Store is one directory. It has no state of its own, so any number of them may be open on a directory at once.
type Store struct{ dir string }

// Open makes dir if it does not exist.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open object store %s: %w", dir, err)
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, fmt.Errorf("open object store: %w", err)
	}
	return &Store{dir: abs}, nil
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// Get reads one object. The error is ErrNotFound, or says why the file could not be read.
func (s *Store) Get(k manifest.Key) (manifest.Object, error) {
	raw, err := os.ReadFile(s.path(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", k, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k, err)
	}
	return s.decode(k, raw)
}

// List reads all objects in the order of their keys. Files that cannot be read are in the error; the others are
// returned all the same.
func (s *Store) List() ([]manifest.Object, error) {
	var objects []manifest.Object
	var errs []error
	err := s.walk(s.dir, func(k manifest.Key, _ string) {
		o, err := s.Get(k)
		switch {
		case err == nil:
			objects = append(objects, o)
		case !errors.Is(err, ErrNotFound): // gone between walking and reading is gone
			errs = append(errs, err)
		}
	})
	return objects, errors.Join(append(errs, err)...)
}

// Put creates the object or replaces all of it but its status. It sets uid, creationTimestamp, resourceVersion and
// generation in o as stored. A resourceVersion in o must be the stored one (ErrConflict). Nothing changes, and no
// watcher wakes, when o says what is stored already.
func (s *Store) Put(o manifest.Object) error {
	return s.locked(func() error { return s.put(o, false) })
}

// PutStatus replaces the status of the stored object by that of o and leaves the rest alone.
func (s *Store) PutStatus(o manifest.Object) error {
	return s.locked(func() error { return s.put(o, true) })
}

// Patch lets edit change the stored object, status included, under the lock.
func (s *Store) Patch(k manifest.Key, edit func(manifest.Object) error) error {
	return s.locked(func() error {
		o, err := s.Get(k)
		if err != nil {
			return err
		}
		before, err := manifest.Tree(o)
		if err != nil {
			return err
		}
		if err := edit(o); err != nil {
			return err
		}
		if manifest.KeyOf(o) != k {
			return fmt.Errorf("patch %s: an object cannot become %s", k, manifest.KeyOf(o))
		}
		return s.store(o, before)
	})
}

// PatchStatus lets edit change the status as plain maps, also of an object that is refused for its spec: that is how a
// refusal reaches its owner. edit returns the new status; nil removes it, and it may be called again.
//
// Editors hold no lock. What one wrote in the meantime is read anew and not replaced by what was there before, and a file that is just being
// written, so that it names no object, is left alone (TestStatusOfAFileInWork).
func (s *Store) PatchStatus(k manifest.Key, edit func(status map[string]any) map[string]any) error {
	return s.locked(func() error {
		for {
			raw, err := os.ReadFile(s.path(k))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %w", k, ErrNotFound)
			}
			if err != nil {
				return fmt.Errorf("read %s: %w", k, err)
			}
			patched, err := s.withStatus(k, raw, edit)
			if err != nil || patched == nil {
				return err
			}
			if now, err := os.ReadFile(s.path(k)); err == nil && bytes.Equal(now, raw) {
				return s.write(k, patched)
			}
		}
	})
}

// withStatus edits the status in a file's text; nil means that nothing changes.
func (s *Store) withStatus(k manifest.Key, raw []byte, edit func(status map[string]any) map[string]any) ([]byte, error) {
	tree := map[string]any{}
	if err := yaml.Unmarshal(raw, &tree); err != nil {
		return nil, fmt.Errorf("write the status of %s: its file is no YAML: %w", k, err)
	}
	meta, ok := tree["metadata"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("write the status of %s: its file has no metadata, so it is no object, or is just being written", k)
	}
	status, _ := tree["status"].(map[string]any)
	before := bytes.Clone(mustYAML(status))
	status = edit(status)
	if bytes.Equal(before, mustYAML(status)) {
		return nil, nil
	}
	delete(tree, "status")
	if status != nil {
		tree["status"] = status
	}
	version, err := s.nextVersion()
	if err != nil {
		return nil, err
	}
	meta["resourceVersion"] = version
	return mustYAML(tree), nil
}

// Delete removes the object and everything that it owns. Deleting a Namespace removes what is in it.
func (s *Store) Delete(k manifest.Key) error {
	return s.locked(func() error {
		if _, err := os.Stat(s.path(k)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", k, ErrNotFound)
		}
		all, _ := s.List() // what cannot be read owns nothing and is owned by nobody
		return s.delete(k, all)
	})
}

func (s *Store) delete(k manifest.Key, all []manifest.Object) error {
	var uid types.UID
	for _, o := range all {
		if manifest.KeyOf(o) == k {
			uid = o.GetUID()
		}
	}
	if err := os.Remove(s.path(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", k, err)
	}
	for _, o := range all {
		in := k.Group == "" && k.Kind == "Namespace" && o.GetNamespace() == k.Name
		owned := uid != "" && slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == uid })
		if child := manifest.KeyOf(o); child != k && (in || owned) {
			if err := s.delete(child, all); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) put(o manifest.Object, status bool) error {
	k := manifest.KeyOf(o)
	old, err := s.Get(k)
	switch {
	case errors.Is(err, ErrNotFound) && status:
		return err
	case err != nil && !errors.Is(err, ErrNotFound) && status:
		return fmt.Errorf("write the status of %s: %w", k, err)
	case err != nil: // new, or in the place of a file that cannot be read
		return s.store(o, nil)
	}
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return fmt.Errorf("%s: version %s is not the stored %s: %w", k, v, old.GetResourceVersion(), ErrConflict)
	}
	before, err := manifest.Tree(old)
	if err != nil {
		return err
	}
	from, to := old, o // whose status goes into whom
	if status {
		from, to = o, old
	}
	copyStatus(from, to)
	if err := s.store(to, before); err != nil {
		return err
	}
	if status {
		o.SetResourceVersion(to.GetResourceVersion())
	}
	return nil
}

// store writes o if it differs from before, the stored tree (nil: there is none).
func (s *Store) store(o manifest.Object, before map[string]any) error {
	k := manifest.KeyOf(o)
	old, _ := before["metadata"].(map[string]any)
	takeOver(o, old)
	after, err := manifest.Tree(o)
	if err != nil {
		return err
	}
	if before != nil && reflect.DeepEqual(before, after) {
		return nil
	}
	if before == nil || !sameSpec(before, after) {
		o.SetGeneration(o.GetGeneration() + 1)
	}
	version, err := s.nextVersion()
	if err != nil {
		return err
	}
	o.SetResourceVersion(version)
	raw, err := manifest.Encode(o)
	if err != nil {
		return err
	}
	return s.write(k, raw)
}

// takeOver gives o the metadata that belongs to the store: that of the stored object, or new ones.
func takeOver(o manifest.Object, old map[string]any) {
	uid, _ := old["uid"].(string)
	version, _ := old["resourceVersion"].(string)
	created, _ := old["creationTimestamp"].(string)
	if old == nil {
		o.SetGeneration(0)
	} else {
		generation, _ := old["generation"].(float64)
		o.SetGeneration(int64(generation))
		o.SetUID(types.UID(uid))
		o.SetResourceVersion(version)
	}
	if t, err := time.Parse(time.RFC3339, created); err == nil {
		o.SetCreationTimestamp(metav1.NewTime(t))
	}
	if o.GetUID() == "" {
		o.SetUID(newUID())
	}
	if ts := o.GetCreationTimestamp(); ts.IsZero() {
		o.SetCreationTimestamp(metav1.NewTime(time.Now().UTC().Truncate(time.Second)))
	}
}

func newUID() types.UID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// sameSpec compares everything but metadata and status.
func sameSpec(a, b map[string]any) bool {
	part := func(m map[string]any) map[string]any {
		out := map[string]any{}
		for k, v := range m {
			if k != "metadata" && k != "status" {
				out[k] = v
			}
		}
		return out
	}
	return reflect.DeepEqual(part(a), part(b))
}

// copyStatus sets the Status field of to, which has the same Go type as from. Kinds without status stay as they are.
func copyStatus(from, to manifest.Object) {
	f := reflect.ValueOf(from.DeepCopyObject()).Elem().FieldByName("Status")
	t := reflect.ValueOf(to).Elem().FieldByName("Status")
	if f.IsValid() && t.IsValid() && t.CanSet() {
		t.Set(f)
	}
}

func mustYAML(v any) []byte {
	raw, err := yaml.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("filestore: maps of JSON values that cannot be written: %v", err))
	}
	return raw
}

// decode reads the bytes of a file that must hold exactly the object that its path names.
func (s *Store) decode(k manifest.Key, raw []byte) (manifest.Object, error) {
	path := s.path(k)
	objects, err := manifest.Decode(path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 {
		return nil, &manifest.Error{Source: path, Key: k, Problem: fmt.Sprintf("holds %d objects, want one", len(objects))}
	}
	if got := manifest.KeyOf(objects[0]); got != k {
		return nil, &manifest.Error{Source: path, Key: got, Problem: "stands in the file of " + k.String() + "; rename one of the two"}
	}
	return objects[0], nil
}

func (s *Store) path(k manifest.Key) string {
	group, ns := k.Group, k.Namespace
	if group == "" {
		group = "core"
	}
	if ns == "" {
		ns = "_"
	}
	return filepath.Join(s.dir, group, k.Kind, ns, k.Name+".yaml")
}

// keyAt is the inverse of path.
func (s *Store) keyAt(path string) (manifest.Key, bool) {
	rel, err := filepath.Rel(s.dir, path)
	if err != nil {
		return manifest.Key{}, false
	}
	parts := strings.Split(rel, string(filepath.Separator))
	if len(parts) != 4 || filepath.Ext(path) != ".yaml" || strings.HasPrefix(parts[3], ".") {
		return manifest.Key{}, false
	}
	k := manifest.Key{Group: parts[0], Kind: parts[1], Namespace: parts[2], Name: strings.TrimSuffix(parts[3], ".yaml")}
	if k.Group == "core" {
		k.Group = ""
	}
	if k.Namespace == "_" {
		k.Namespace = ""
	}
	return k, true
}

// walk visits the object files below dir, which is the store's or one of its sub-directories.
func (s *Store) walk(dir string, visit func(k manifest.Key, path string)) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read object store: %w", err)
		}
		if k, ok := s.keyAt(path); ok && !d.IsDir() {
			visit(k, path)
		}
		return nil
	})
}

// write replaces the file of k. The rename protects readers and a killed writer, not against a power cut.
func (s *Store) write(k manifest.Key, raw []byte) error {
	path := s.path(k)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", k, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", k, err)
	}
	_, err = f.Write(raw)
	if k.Kind != "Secret" {
		err = errors.Join(err, f.Chmod(0o644))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", k, err)
	}
	return nil
}

// nextVersion counts the writes of all processes; callers hold the lock.
func (s *Store) nextVersion() (string, error) {
	path := filepath.Join(s.dir, ".version")
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("count the store's writes: %w", err)
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	next := strconv.FormatUint(n+1, 10)
	if err := os.WriteFile(path, []byte(next), 0o644); err != nil {
		return "", fmt.Errorf("count the store's writes: %w", err)
	}
	return next, nil
}

// locked runs fn while no other process and no other call writes. Each call opens the lock file anew, because a lock
// belongs to the open file.
func (s *Store) locked(fn func() error) error {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("lock object store: %w", err)
	}
	defer func() { _ = f.Close() }() // gives the lock back
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock object store: %w", err)
	}
	return fn()
}
