package manifest_test

import (
	"fmt"
	"strings"

	"github.com/marrowmesh/marrow/internal/manifest"
)

func ExampleDecode() {
	const text = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {prots: [{port: 80}]}
`
	objects, err := manifest.Decode("shop.yaml", strings.NewReader(text))
	for _, o := range objects {
		fmt.Println("good:", manifest.KeyOf(o))
	}
	fmt.Println("bad:", err)
	// Output:
	// good: Namespace/shop
	// bad: shop.yaml: document 2 (line 6): Service/shop/cart: spec.prots: unknown field; remove it or correct its name
}
