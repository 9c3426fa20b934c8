package filestore_test

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/filestore"
)

func ExampleStore_Watch() {
	dir, err := os.MkdirTemp("", "objects")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	store, err := filestore.Open(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	batches, err := store.Watch(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("at first:", len(<-batches))
	if err := store.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		fmt.Println(err)
	}
	for _, e := range <-batches {
		fmt.Println("changed:", e.Key, e.Object.GetGeneration())
	}
	cancel()
	_, open := <-batches
	fmt.Println("open:", open)
	// Output:
	// at first: 0
	// changed: Namespace/shop 1
	// open: false
}
