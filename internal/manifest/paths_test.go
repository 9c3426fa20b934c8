package manifest_test

import (
	"strings"
	"testing"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// TestNamesStayNames: names of containers and volumes become parts of paths on the machine that runs them.
func TestNamesStayNames(t *testing.T) {
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
spec:
  containers: [{name: CONTAINER, image: x, volumeMounts: [{name: v, mountPath: /m, subPath: SUBPATH}]}]
  volumes: [{name: VOLUME, emptyDir: {}}]
`
	for name, tc := range map[string]struct{ container, volume, subPath, want string }{
		"good":              {"app", "v", "a/b..c", ""},
		"container":         {"../../../../tmp/x", "v", "a", "spec.containers[0].name"},
		"container's slash": {"a/b", "v", "a", "spec.containers[0].name"},
		"volume":            {"app", "../../tmp/x", "a", "spec.volumes[0].name"},
		"subPath":           {"app", "v", "a/../..", "spec.containers[0].volumeMounts[0].subPath"},
	} {
		text := strings.NewReplacer("CONTAINER", tc.container, "VOLUME", tc.volume, "SUBPATH", tc.subPath).Replace(pod)
		_, err := manifest.Decode("test", strings.NewReader(text))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
