package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/ambient"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source"
	"github.com/marrowmesh/marrow/istiod-lite/internal/source/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const policy = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [bad]}}]}]}
`

func TestLastGoodStaysInForce(t *testing.T) {
	dir := t.TempDir()
	writeObject(t, dir, []byte(policy))
	store, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	path := filepath.Join(dir, "security.istio.io/AuthorizationPolicy/shop/p.yaml")
	write := func(text string) {
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Error(err)
		}
	}
	key := manifest.Key{Group: manifest.GroupSecurity, Kind: "AuthorizationPolicy", Namespace: "shop", Name: "p"}
	pipeline := ambient.NewPipeline(ambient.Config{})
	served := map[string]string{}
	done := errors.New("done")
	step := 0
	err = file.New(store).Run(ctx, func(b source.Batch) error {
		c := pipeline.Apply(b.Events)
		for _, r := range c.Authorizations.Updated {
			served[r.Name] = r.Version
		}
		for _, n := range c.Authorizations.Removed {
			delete(served, n)
		}
		switch step++; step {
		case 1:
			if len(served) != 1 {
				t.Errorf("first batch: served %v", served)
			}
			write(policy + "bogus: true\n")
		case 2:
			if len(b.Refused) != 1 || b.Refused[0].Key != key || len(b.Events) != 0 || len(served) != 1 {
				t.Errorf("malformed: batch %+v, served %v", b, served)
			}
			write(policy)
		case 3:
			if len(b.Mended) != 1 || b.Mended[0] != key || len(b.Refused) != 0 || len(served) != 1 {
				t.Errorf("mended: batch %+v, served %v", b, served)
			}
			if err := store.Delete(key); err != nil {
				t.Error(err)
			}
		default:
			if len(served) != 0 {
				t.Errorf("deleted: served %v", served)
			}
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	store, err := filestore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = file.New(store).Run(ctx, func(b source.Batch) error {
		if len(b.Events)+len(b.Refused) != 0 {
			t.Errorf("an empty store gave %+v", b)
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
