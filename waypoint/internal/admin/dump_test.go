package admin

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
	"github.com/marrowmesh/marrow/waypoint/internal/intake"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

func TestDumpIsStable(t *testing.T) {
	ups := upstream.NewStore(nil, time.Now)
	ups.ApplyClusters([]*upstream.Config{{Name: "b", Kind: upstream.KindStatic}, {Name: "a", Kind: upstream.KindStatic}}, nil)
	in := intake.New(ups, obs.Discard())
	var last string
	for range 5 {
		raw, err := json.Marshal(Make(&config.Config{Pod: "p"}, "v", in, ups, time.Unix(0, 0)))
		if err != nil {
			t.Fatal(err)
		}
		if last != "" && string(raw) != last {
			t.Fatalf("got %s, then %s", last, raw)
		}
		last = string(raw)
	}
}
