package fabric

import (
	"testing"

	"github.com/marrowmesh/marrow/internal/testkit/nstest"
)

func TestUnprivileged(t *testing.T) {
	nstest.AsNobody(t, "PodToPod|TestService|TestCapture|Spoofed|Replace")
}
